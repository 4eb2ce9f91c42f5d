"use strict";

// Tables: a click on a heading sorts by it, a second one the other way round; numbers by their value, empty cells last.
function cellValue(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = text === "" ? NaN : Number(text.split(" ")[0]);
  return Number.isNaN(number) ? text : number;
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
  return sign * a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(head) {
  const table = head.closest("table"), body = table.tBodies[0];
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const rows = [...body.rows].map(row => [cellValue(row, head.cellIndex), row]);
  rows.sort((a, b) => compare(a[0], b[0], sign));
  body.append(...rows.map(row => row[1]));
}

for (const head of document.querySelectorAll("thead th")) {
  head.tabIndex = 0;
  head.addEventListener("click", () => sortBy(head));
  head.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sortBy(head); }
  });
}

// Slices: a slider chooses among pictures that the page holds.
for (const stack of document.querySelectorAll(".stack")) {
  const held = JSON.parse(stack.querySelector("script").textContent);
  const slider = stack.querySelector("input"), shown = stack.querySelector("output");
  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    shown.textContent = held.slices[place] + 1;
    slider.setAttribute("aria-valuetext", shown.textContent);
    for (const [layer, [kind, pictures]] of Object.entries(held.layers)) {
      stack.querySelector("img." + layer).src = kind + pictures[place];
    }
  });
}

for (const browser of document.querySelectorAll(".browser")) {
  for (const box of browser.querySelectorAll("input[data-layer]")) {
    const show = () => {
      for (const image of browser.querySelectorAll("img." + box.dataset.layer)) image.hidden = !box.checked;
      for (const scale of browser.querySelectorAll(".scale." + box.dataset.layer)) scale.hidden = !box.checked;
    };
    box.addEventListener("change", show);
    show();
  }
  const opacity = browser.querySelector("input[data-opacity]");
  if (opacity !== null) {
    const fade = () => {
      for (const image of browser.querySelectorAll(".layers img:not(:first-child)")) image.style.opacity = opacity.value / 100;
    };
    opacity.addEventListener("input", fade);
    fade();
  }
}

// The viewer: unpacked and started when it is asked for, so that the page opens at once.
async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function startViewer(viewer) {
  const settings = JSON.parse(viewer.querySelector("script").textContent);
  if (window.niivue === undefined) {
    const script = document.createElement("script");
    script.textContent = await unpacked(document.getElementById("niivue-bundle").textContent);
    document.head.append(script);
  }
  // The patient's right on the left and the front of sagittal slices on the left, as in the slices of the page.
  const view = new niivue.Niivue({
    logLevel: "error", backColor: [0, 0, 0, 1], dragAndDropEnabled: false, show3Dcrosshair: true,
    isRadiologicalConvention: true, sagittalNoseLeft: true,
    crosshairWidthUnit: "percent", crosshairWidth: 0.3, crosshairColor: [0.9, 0.62, 0, 1],
  });
  await view.attachToCanvas(viewer.querySelector("canvas"));
  await view.loadVolumes(settings.volumes.map(({ colours, ...volume }) => volume));
  settings.volumes.forEach(({ colours }, place) => {
    if (colours !== undefined) view.volumes[place].setColormapLabel(colours);
  });
  if (settings.at !== null) view.scene.crosshairPos = view.mm2frac(settings.at);
  view.setSliceType(view.sliceTypeMultiplanar);
  view.updateGLVolume();
  const choice = viewer.querySelector("select");
  choice.addEventListener("change", () => view.setSliceType(Number(choice.value)));
  const opacity = viewer.querySelector("input[type=range]");
  if (opacity !== null) {
    opacity.addEventListener("input", () => view.setOpacity(settings.volumes.length - 1, opacity.value / 100));
  }
}

for (const viewer of document.querySelectorAll(".viewer")) {
  const button = viewer.querySelector("button"), said = viewer.querySelector(".said");
  button.addEventListener("click", async () => {
    if (document.createElement("canvas").getContext("webgl2") === null) {
      said.textContent = "This browser has no WebGL 2, which the viewer needs; all else on this page does without.";
      return;
    }
    button.disabled = true;
    said.textContent = "Opening …";
    viewer.querySelector(".stage").hidden = false;
    try {
      await startViewer(viewer);
      said.textContent = "";
      button.hidden = true;
      viewer.dataset.open = "1";
    } catch (problem) {
      said.textContent = "The viewer could not be opened: " + problem.message;
    }
  });
}
