"use strict";
// Sorting of tables, values of charts under the mouse, and the buttons that load volumes. Nothing is fetched.

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

// Points of a chart that are meant at a place of it: all of the nearest epoch, or the nearest dot.
function nearestPoints(points, x, y, byEpoch) {
  const distance = (point) => (byEpoch ? Math.abs(point.x - x) : Math.hypot(point.x - x, point.y - y));
  let nearest = null;
  for (const point of points) if (nearest === null || distance(point) < distance(nearest)) nearest = point;
  if (nearest === null || (!byEpoch && distance(nearest) > 16)) return [];
  return byEpoch ? points.filter((point) => point.x === nearest.x) : [nearest];
}

// Values under the mouse, or step by step with the arrow keys.
function sayValues(svg, tip) {
  const byEpoch = svg.parentElement.classList.contains("by-epoch");
  const points = Array.from(svg.querySelectorAll("circle"), (circle) => ({
    x: Number(circle.getAttribute("cx")), y: Number(circle.getAttribute("cy")), says: circle.firstChild.textContent,
  }));
  if (!points.length) return;
  const stops = byEpoch ? Array.from(new Set(points.map((point) => point.x))).sort((a, b) => a - b) : points;
  const mark = document.createElementNS("http://www.w3.org/2000/svg", byEpoch ? "line" : "circle");
  mark.setAttribute("class", "mark");
  let step = -1;
  const scale = () => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const hide = () => { tip.hidden = true; mark.remove(); };
  const show = (found) => {
    if (!found.length) return hide();
    const area = svg.getBoundingClientRect(), [{ x, y }] = found;
    const place = byEpoch ? { x1: x, x2: x, y1: 10, y2: svg.viewBox.baseVal.height - 34 } : { cx: x, cy: y, r: 6 };
    for (const [name, value] of Object.entries(place)) mark.setAttribute(name, value);
    svg.appendChild(mark);
    tip.textContent = found.map((point) => point.says).join("\n");
    tip.hidden = false;
    const left = area.left + x * scale() + 14, top = area.top + Math.min(...found.map((point) => point.y)) * scale() + 10;
    tip.style.left = `${Math.max(4, left + tip.offsetWidth > innerWidth - 4 ? left - tip.offsetWidth - 28 : left)}px`;
    tip.style.top = `${Math.max(4, Math.min(top, innerHeight - tip.offsetHeight - 4))}px`;
  };
  svg.classList.add("says");
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    show(nearestPoints(points, (event.clientX - area.left) / scale(), (event.clientY - area.top) / scale(), byEpoch));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    step = Math.min(stops.length - 1, Math.max(0, step + (event.key === "ArrowRight" ? 1 : -1)));
    show(byEpoch ? points.filter((point) => point.x === stops[step]) : [stops[step]]);
  });
}

function start() {
  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((cell, column) => cell.addEventListener("click", () => sortTable(table, column)));
  }
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.appendChild(tip);
  for (const svg of document.querySelectorAll("figure.chart svg")) sayValues(svg, tip);
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

if (typeof document === "undefined") module.exports = { sortTable, nearestPoints };
else start();
