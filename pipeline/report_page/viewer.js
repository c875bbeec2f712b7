"use strict";
// A viewer of small volumes in three planes: image, contours of the reference, and the prediction as a fill.

// World axes of a plane: the one that it stands on, that from right to left of the picture, that from bottom to top.
const PLANES = [
  { name: "axial", on: 2, across: 0, up: 1, letters: "RLAP" },
  { name: "coronal", on: 1, across: 0, up: 2, letters: "RLSI" },
  { name: "sagittal", on: 0, across: 1, up: 2, letters: "APSI" },
];
const MANY_STRUCTURES = 8; // in view: then the worst one alone is shown first

async function unpack(text, Kind) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Kind(await new Response(stream).arrayBuffer());
}

async function unpackCase(packed) {
  const [label, prediction] = await Promise.all([unpack(packed.label, Uint16Array), unpack(packed.prediction, Uint16Array)]);
  const image = packed.image ? await unpack(packed.image, Uint8Array) : null;
  return { ...packed, image, label, prediction };
}

const voxelAt = (volume, place) => place[0] + volume.shape[0] * (place[1] + volume.shape[1] * place[2]);

// RGBA bytes of one slice; both the patient's right, or front, and the head are the last index of their axis.
// cell: pixels of a voxel, across and down. A contour lies inside of its structure, along the edges of its voxels.
// shown: whether label and prediction are; only: the one class that is, 0 for all.
function paintSlice(volume, plane, index, shown, cell = [1, 1]) {
  const columns = volume.shape[plane.across], rows = volume.shape[plane.up];
  const strides = [1, volume.shape[0], volume.shape[0] * volume.shape[1]];
  const colours = new Map(volume.classes.map(([value, , rgb]) => [value, rgb]));
  const width = columns * cell[0], height = rows * cell[1];
  const bytes = new Uint8ClampedArray(4 * width * height);
  const at = (column, row) =>
    index * strides[plane.on] + (columns - 1 - column) * strides[plane.across] + (rows - 1 - row) * strides[plane.up];
  const seen = (value) => (colours.has(value) && (!shown.only || value === shown.only) ? value : 0);
  const fill = (left, top, right, bottom, rgb) => {
    for (let y = top; y < bottom; y++) {
      for (let x = left, byte = 4 * (y * width + left); x < right; x++, byte += 4) {
        bytes[byte] = rgb[0], bytes[byte + 1] = rgb[1], bytes[byte + 2] = rgb[2], bytes[byte + 3] = 255;
      }
    }
  };
  const thick = cell.map((pixels) => Math.max(1, Math.min(2, Math.floor(pixels / 2))));
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const voxel = at(column, row);
      const grey = volume.image ? volume.image[voxel] : 40;
      let rgb = [grey, grey, grey];
      const found = shown.prediction ? seen(volume.prediction[voxel]) : 0;
      if (found) rgb = rgb.map((part, c) => 0.62 * part + 0.38 * colours.get(found)[c]);
      const left = column * cell[0], top = row * cell[1], right = left + cell[0], bottom = top + cell[1];
      fill(left, top, right, bottom, rgb);
      const truth = shown.label ? seen(volume.label[voxel]) : 0;
      if (!truth) continue;
      const line = colours.get(truth);
      const outside = (c, r) => c < 0 || r < 0 || c >= columns || r >= rows || volume.label[at(c, r)] !== truth;
      if (outside(column - 1, row)) fill(left, top, left + thick[0], bottom, line);
      if (outside(column + 1, row)) fill(right - thick[0], top, right, bottom, line);
      if (outside(column, row - 1)) fill(left, top, right, top + thick[1], line);
      if (outside(column, row + 1)) fill(left, bottom - thick[1], right, bottom, line);
    }
  }
  return { bytes, width, height };
}

const element = (tag, properties = {}, ...inside) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
};

// One plane with its letters and its slider; `state` has place, shown and moved(). Returns the frame and what draws it.
function showPlane(volume, plane, state, pixelsPerMm) {
  const sizes = [plane.across, plane.up].map((axis) => ({ n: volume.shape[axis], mm: volume.shape[axis] * volume.edges_mm[axis] }));
  const [wide, tall] = sizes.map(({ mm }) => Math.max(24, mm * pixelsPerMm));
  const cell = sizes.map(({ n }, axis) => Math.max(1, Math.round(([wide, tall][axis] * devicePixelRatio) / n)));
  const canvas = element("canvas", { width: sizes[0].n * cell[0], height: sizes[1].n * cell[1], tabIndex: 0 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${plane.name} slice; arrow keys move the cross, page keys the slice`);
  canvas.style.width = `${wide}px`;
  canvas.style.aspectRatio = `${wide} / ${tall}`;
  const picture = element("div", { className: "picture" }, canvas);
  ["left", "right", "top", "bottom"].forEach((side, n) => picture.append(element("span", { className: side, textContent: plane.letters[n] })));
  const slider = element("input", { type: "range", min: 0, max: volume.shape[plane.on] - 1, step: 1 });
  slider.setAttribute("aria-label", `${plane.name} slice`);
  const words = element("span");
  const frame = element("div", { className: "plane" }, picture, element("label", {}, words, slider));
  frame.style.width = `${wide}px`;
  const put = (axis, value) => {
    state.place[axis] = Math.min(volume.shape[axis] - 1, Math.max(0, value));
    state.moved();
  };
  const move = (event) => {
    const area = canvas.getBoundingClientRect();
    state.place[plane.across] = Math.min(sizes[0].n - 1, Math.max(0, sizes[0].n - 1 - Math.floor(((event.clientX - area.left) / area.width) * sizes[0].n)));
    put(plane.up, sizes[1].n - 1 - Math.floor(((event.clientY - area.top) / area.height) * sizes[1].n));
  };
  canvas.addEventListener("pointerdown", move);
  canvas.addEventListener("pointermove", (event) => event.buttons && event.pointerType !== "touch" && move(event));
  canvas.addEventListener("wheel", (event) => {
    const next = state.place[plane.on] - Math.sign(event.deltaY);
    if (next < 0 || next >= volume.shape[plane.on]) return; // at the last slice the page moves on
    event.preventDefault();
    put(plane.on, next);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = {
      ArrowLeft: [plane.across, 1], ArrowRight: [plane.across, -1], ArrowUp: [plane.up, 1], ArrowDown: [plane.up, -1],
      PageUp: [plane.on, 1], PageDown: [plane.on, -1],
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [axis, step] = steps[event.key];
    put(axis, state.place[axis] + step);
  });
  slider.addEventListener("input", () => put(plane.on, Number(slider.value)));
  const draw = () => {
    const slice = paintSlice(volume, plane, state.place[plane.on], state.shown, cell);
    const context = canvas.getContext("2d");
    context.putImageData(new ImageData(slice.bytes, slice.width, slice.height), 0, 0);
    slider.value = state.place[plane.on];
    words.textContent = `${plane.name} ${state.place[plane.on] + 1} of ${volume.shape[plane.on]}`;
    if (!state.shown.cross) return;
    const [x, y] = [plane.across, plane.up].map((axis, n) => (sizes[n].n - 1 - state.place[axis] + 0.5) * cell[n]);
    context.fillStyle = "rgba(255, 255, 255, 0.6)";
    context.fillRect(Math.floor(x), 0, 1, slice.height);
    context.fillRect(0, Math.floor(y), slice.width, 1);
  };
  return { frame, draw };
}

function showCase(box, volume) {
  const only = volume.classes.length > MANY_STRUCTURES ? volume.focus : 0;
  const state = { place: volume.start.slice(), shown: { label: true, prediction: true, cross: true, only } };
  const [right, front, up] = volume.shape.map((n, axis) => n * volume.edges_mm[axis]);
  const room = box.clientWidth - 60;
  const pixelsPerMm = Math.min(room / (2 * right + front), 420 / Math.max(front, up));
  const narrow = Math.min((room + 30) / Math.max(right, front), 420 / Math.max(front, up));
  const planes = PLANES.map((plane) => showPlane(volume, plane, state, room < 640 ? narrow : pixelsPerMm));
  const names = new Map(volume.classes.map(([value, name]) => [value, name]));
  const named = (array) => names.get(array[voxelAt(volume, state.place)]) ?? "background";
  const here = element("div", { className: "here" });
  here.setAttribute("role", "status");
  state.moved = () => {
    for (const plane of planes) plane.draw();
    here.textContent = `At the cross: reference ${named(volume.label)}, prediction ${named(volume.prediction)}.`;
  };
  const controls = element("div", { className: "controls" });
  for (const [part, words] of [["label", "reference (contour)"], ["prediction", "prediction (fill)"], ["cross", "cross"]]) {
    const tick = element("input", { type: "checkbox", checked: true });
    tick.addEventListener("change", () => { state.shown[part] = tick.checked; state.moved(); });
    controls.append(element("label", {}, tick, ` ${words}`));
  }
  const choice = element("select", {}, ...[[0, "all structures"], ...volume.classes].map(([value, name]) => element("option", { value, textContent: name })));
  choice.value = only;
  choice.addEventListener("change", () => { state.shown.only = Number(choice.value); state.moved(); });
  controls.append(element("label", {}, "show ", choice));
  const keys = element("ul", { className: "legend" }, ...volume.classes.map(([, name, rgb]) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = `rgb(${rgb.join(",")})`;
    return element("li", {}, swatch, name);
  }));
  const about = `${volume.about}. Click to move the cross; the wheel, the sliders and the keys change slices.`;
  box.append(element("div", { className: "planes" }, ...planes.map((plane) => plane.frame)), here, controls, keys, element("div", { className: "soft", textContent: about }));
  state.moved();
  planes[0].frame.querySelector("canvas").focus({ preventScroll: true });
}

if (typeof document === "undefined") module.exports = { unpackCase, paintSlice, PLANES };
