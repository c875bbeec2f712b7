"use strict";
// Sorting of tables, and a viewer of small volumes in three planes. Nothing is fetched: volumes lie in the page.

function sortTable(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = Array.from(table.tBodies[0].rows);
  const number = (row) => row.cells[column].className === "number";
  const key = (row) => row.cells[column].getAttribute("data-order");
  rows.sort((one, two) => {
    const a = key(one), b = key(two);
    if (a === "" || b === "") return (a === "") - (b === ""); // undefined values last, whichever way
    const order = number(one) ? Number(a) - Number(b) : a < b ? -1 : a > b ? 1 : 0;
    return down ? -order : order;
  });
  for (const row of rows) table.tBodies[0].appendChild(row);
}

// World axes of a plane: the one that it stands on, that from right to left of the picture, that from bottom to top.
const PLANES = [
  { name: "axial", on: 2, across: 0, up: 1, letters: "RLAP" },
  { name: "coronal", on: 1, across: 0, up: 2, letters: "RLSI" },
  { name: "sagittal", on: 0, across: 1, up: 2, letters: "APSI" },
];

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

// RGBA bytes of one slice; both the patient's right, or front, and the head are the last index of their axis.
function paintSlice(volume, plane, index, shown) {
  const width = volume.shape[plane.across], height = volume.shape[plane.up];
  const strides = [1, volume.shape[0], volume.shape[0] * volume.shape[1]];
  const colours = new Map(volume.classes.map(([value, , rgb]) => [value, rgb]));
  const bytes = new Uint8ClampedArray(4 * width * height);
  const at = (column, row) =>
    index * strides[plane.on] + (width - 1 - column) * strides[plane.across] + (height - 1 - row) * strides[plane.up];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const voxel = at(column, row);
      const grey = volume.image ? volume.image[voxel] : 40;
      let rgb = [grey, grey, grey];
      const found = shown.prediction ? volume.prediction[voxel] : 0;
      if (found && colours.has(found)) rgb = rgb.map((part, c) => 0.62 * part + 0.38 * colours.get(found)[c]);
      const truth = shown.label ? volume.label[voxel] : 0;
      if (truth && colours.has(truth)) {
        const outside = (c, r) => c < 0 || r < 0 || c >= width || r >= height || volume.label[at(c, r)] !== truth;
        const border = outside(column - 1, row) || outside(column + 1, row) || outside(column, row - 1) || outside(column, row + 1);
        if (border) rgb = colours.get(truth);
      }
      bytes.set([rgb[0], rgb[1], rgb[2], 255], 4 * (row * width + column));
    }
  }
  return { bytes, width, height };
}

function showCase(box, volume) {
  const place = volume.start.slice();
  const shown = { label: true, prediction: true };
  const planes = document.createElement("div");
  planes.className = "planes";
  const longest = Math.max(...volume.shape.map((n, axis) => n * volume.edges_mm[axis]));
  const scale = 350 / longest; // pixels of the screen a millimetre
  const redraw = () => views.forEach((view) => view());
  const views = PLANES.map((plane) => {
    const frame = document.createElement("div");
    frame.className = "plane";
    const canvas = document.createElement("canvas");
    canvas.width = volume.shape[plane.across];
    canvas.height = volume.shape[plane.up];
    const wide = Math.max(60, canvas.width * volume.edges_mm[plane.across] * scale);
    const tall = (wide * canvas.height * volume.edges_mm[plane.up]) / (canvas.width * volume.edges_mm[plane.across]);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${tall}px`;
    frame.appendChild(canvas);
    const spots = [["left", "2px", "top", "45%"], ["right", "2px", "top", "45%"], ["left", "48%", "top", "0"], ["left", "48%", "bottom", "0"]];
    [...plane.letters].forEach((letter, n) => {
      const mark = document.createElement("span");
      mark.textContent = letter;
      mark.style[spots[n][0]] = spots[n][1];
      mark.style[spots[n][2]] = spots[n][3];
      frame.appendChild(mark);
    });
    const where = document.createElement("span");
    where.style.left = "2px";
    where.style.bottom = "2px";
    frame.appendChild(where);
    const move = (event) => {
      const area = canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - area.left) / area.width) * canvas.width);
      const row = Math.floor(((event.clientY - area.top) / area.height) * canvas.height);
      place[plane.across] = canvas.width - 1 - Math.min(canvas.width - 1, Math.max(0, column));
      place[plane.up] = canvas.height - 1 - Math.min(canvas.height - 1, Math.max(0, row));
      redraw();
    };
    canvas.addEventListener("pointerdown", move);
    canvas.addEventListener("pointermove", (event) => event.buttons && move(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const next = place[plane.on] - Math.sign(event.deltaY);
      place[plane.on] = Math.min(volume.shape[plane.on] - 1, Math.max(0, next));
      redraw();
    }, { passive: false });
    planes.appendChild(frame);
    return () => {
      const slice = paintSlice(volume, plane, place[plane.on], shown);
      canvas.getContext("2d").putImageData(new ImageData(slice.bytes, slice.width, slice.height), 0, 0);
      where.textContent = `${place[plane.on] + 1}/${volume.shape[plane.on]}`;
    };
  });
  const controls = document.createElement("div");
  controls.className = "controls";
  for (const [part, words] of [["label", "reference (contour)"], ["prediction", "prediction (fill)"]]) {
    const choice = document.createElement("label");
    const tick = document.createElement("input");
    tick.type = "checkbox";
    tick.checked = true;
    tick.addEventListener("change", () => { shown[part] = tick.checked; redraw(); });
    choice.append(tick, ` ${words}`);
    controls.appendChild(choice);
  }
  const keys = document.createElement("div");
  for (const [, name, rgb] of volume.classes) {
    const key = document.createElement("span");
    key.className = "key";
    key.style.background = `rgb(${rgb.join(",")})`;
    keys.append(key, name);
  }
  const about = document.createElement("div");
  about.className = "soft";
  about.textContent = `${volume.about}. Click to move, turn the wheel for the next slice.`;
  box.append(planes, controls, keys, about);
  redraw();
}

function start() {
  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((cell, column) => cell.addEventListener("click", () => sortTable(table, column)));
  }
  for (const button of document.querySelectorAll(".case button")) {
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const packed = JSON.parse(document.getElementById(button.dataset.volumes).textContent);
        showCase(button.parentElement, await unpackCase(packed));
        button.remove();
      } catch (error) {
        button.textContent = `cannot be shown in this browser: ${error}`;
      }
    });
  }
}

if (typeof document === "undefined") module.exports = { sortTable, unpackCase, paintSlice, PLANES };
else start();
