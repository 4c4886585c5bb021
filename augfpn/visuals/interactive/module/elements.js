// Elements, numbers and colours: what all views are made of.
//
// The module of the views is these files, one behind the other (view.py says in which order); they share their names.

const SVG = "http://www.w3.org/2000/svg";

// An element. Whatever comes from a data set (names of classes, of files) goes through here as attributes and text, and
// so never becomes markup. Attributes that begin with "on" are listeners; those that are null or false are left out.
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A control with its name before it.
function labelled(text, control) {
  return element("label", {}, element("span", {}, text), control);
}

function checkbox(text, checked, change, attributes = {}) {
  const box = element("input", { type: "checkbox", onchange: () => change(box.checked), ...attributes });
  box.checked = checked;
  return element("label", { class: "check" }, box, element("span", {}, text));
}

function choice(options, change, attributes = {}) {
  const made = element("select", { onchange: () => change(made.value), ...attributes });
  made.append(...options.map(([value, text]) => element("option", { value }, text)));
  return made;
}

function button(text, click, attributes = {}) {
  return element("button", { type: "button", onclick: click, ...attributes }, text);
}

// Numbers come as little-endian bytes in base64.
const KINDS = { int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };

function numbers(encoded, kind) {
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  return new KINDS[kind](bytes.buffer);
}

// The places of a mask of COCO's packed run lengths, column by column; 1 on the object.
function unpackMask(counts, height, width) {
  const mask = new Uint8Array(height * width);
  const lengths = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let more = true;
    let shift = 0;
    while (more) {
      const bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      more = (bits & 0x20) !== 0;
      shift += 5;
      if (!more && bits & 0x10) value |= -1 << shift;
    }
    lengths.push(lengths.length > 2 ? value + lengths[lengths.length - 2] : value);
  }
  let start = 0;
  lengths.forEach((length, run) => {
    if (run % 2) mask.fill(1, start, start + length);
    start += length;
  });
  return mask;
}

// Cividis, which colour-blind readers and greyscale printers see alike: some of its colours, and what lies between.
const CIVIDIS = [[0, 32, 76], [0, 46, 108], [65, 77, 107], [102, 104, 112], [124, 123, 120], [160, 152, 118],
  [199, 184, 106], [234, 217, 81], [255, 234, 70]];

function cividis(value) {
  return between(CIVIDIS, value);
}

// For values from −1 to 1, white in the middle: blue and orange, which colour-blind readers can tell apart.
const DIVERGING = [[0, 60, 120], [0, 114, 178], [96, 170, 214], [184, 215, 235], [247, 247, 247], [252, 218, 181],
  [240, 166, 96], [205, 97, 20], [122, 45, 0]];

function diverging(value) {
  return between(DIVERGING, (value + 1) / 2);
}

// The colour at a place, 0-1, along a scale.
function between(colours, place) {
  const at = Math.min(Math.max(place, 0), 1) * (colours.length - 1);
  const lower = Math.min(Math.floor(at), colours.length - 2);
  return colours[lower].map((from, band) => Math.round(from + (at - lower) * (colours[lower + 1][band] - from)));
}

// A picture of values, a pixel a cell, as a data URL; in 0-1 for cividis.
function heatmap(values, rows, columns, colour = cividis) {
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) pixels.data.set([...colour(values[cell]), 255], 4 * cell);
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

function scale(low, high, colours = CIVIDIS) {
  const stops = colours.map((colour) => `rgb(${colour})`).join(", ");
  return element("span", { class: "scale" }, low,
    element("span", { class: "ramp", role: "img", "aria-label": `colours from ${low} to ${high}`, style: `background: linear-gradient(to right, ${stops})` }), high);
}

function readableOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "black" : "white";
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function iou(one, other) {
  const width = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const height = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  if (width <= 0 || height <= 0) return 0;
  const both = width * height;
  return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
