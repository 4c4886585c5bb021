// A picture with boxes, masks and maps on it, which can be zoomed and moved.

const LABEL_SIZE = 12; // of letters, in pixels of the screen

// What all stages of a view look at: the part of the image that is seen, null for all of it.
class Window {
  constructor() {
    this.part = null;
    this.stages = [];
  }

  fit() {
    this.set(null);
  }

  set(part) {
    this.part = part;
    for (const stage of this.stages) stage.look();
  }

  // Around a place of the image, which stays where it is on the screen.
  zoom(factor, place = null) {
    const { width, height } = this.stages[0];
    const now = this.part ?? { x: 0, y: 0, width, height };
    const [x, y] = place ?? [now.x + now.width / 2, now.y + now.height / 2];
    if (now.width / factor >= width) return this.fit();
    this.set(this.inside({ x: x - (x - now.x) / factor, y: y - (y - now.y) / factor, width: now.width / factor, height: now.height / factor }));
  }

  inside(part) {
    const { width, height } = this.stages[0];
    const x = Math.min(Math.max(part.x, 0), width - part.width);
    const y = Math.min(Math.max(part.y, 0), height - part.height);
    return { ...part, x, y };
  }
}

class Stage {
  constructor(window, heading) {
    this.window = window;
    window.stages.push(this);
    this.width = this.height = 1;
    this.picture = shape("image", { preserveAspectRatio: "none", x: 0, y: 0 });
    this.under = shape("g", { class: "under" });
    this.boxes = shape("g", { class: "boxes" });
    this.texts = shape("g", { class: "texts" });
    this.over = shape("g", { class: "over" });
    this.svg = shape("svg", { class: "stage", role: "group" }, this.picture, this.under, this.boxes, this.texts, this.over);
    this.element = element("figure", {}, heading === null ? null : element("figcaption", {}, heading), this.svg);
    this.labels = [];
    this.svg.addEventListener("wheel", (event) => {
      // Without a key the page is scrolled, as everywhere.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.window.zoom(event.deltaY < 0 ? 1.25 : 0.8, this.place(event));
    }, { passive: false });
    this.svg.addEventListener("dblclick", (event) => this.window.zoom(2, this.place(event)));
    this.svg.addEventListener("pointerdown", (event) => this.drag(event));
    new ResizeObserver(() => this.look()).observe(this.svg);
  }

  // In pixels of the image.
  place(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return [at.x, at.y];
  }

  drag(down) {
    const part = this.window.part;
    if (part === null || down.button !== 0) return;
    const perPixel = part.width / this.svg.clientWidth;
    const move = (event) => this.window.set(this.window.inside({
      ...part, x: part.x - (event.clientX - down.clientX) * perPixel, y: part.y - (event.clientY - down.clientY) * perPixel }));
    const end = () => { removeEventListener("pointermove", move); removeEventListener("pointerup", end); };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
  }

  show(source, width, height, description) {
    Object.assign(this, { width, height });
    filled(this.picture, { href: source, width, height }, []);
    this.svg.setAttribute("aria-label", description);
    this.clear();
    this.look();
  }

  empty() {
    this.clear();
    this.picture.removeAttribute("href");
  }

  clear() {
    for (const layer of [this.under, this.boxes, this.texts, this.over]) layer.replaceChildren();
    this.labels = [];
  }

  // Lines keep their width on the screen, letters their size.
  look() {
    const { x, y, width, height } = this.window.part ?? { x: 0, y: 0, width: this.width, height: this.height };
    this.svg.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
    // An image that is higher than its room is narrower than it.
    const perPixel = Math.max(width / (this.svg.clientWidth || 400), height / (this.svg.clientHeight || 400));
    const size = LABEL_SIZE * perPixel;
    const taken = [];
    for (const { background, text, box } of this.labels) {
      const wide = 0.6 * size * [...text.textContent].length + 0.5 * size;
      const high = 1.3 * size;
      const left = Math.max(Math.min(box[0], x + width - wide), x);
      // Above the box, or where no other label is; always where one sees it.
      const tops = [box[1] - high, box[1], box[3], box[3] - high, box[1] + high].filter((top) => top >= y && top + high <= y + height);
      const at = tops.map((top) => [left, top, left + wide, top + high]);
      const place = at.find((one) => taken.every((other) => iou(one, other) === 0)) ?? at[0] ?? [left, Math.max(box[1], y), left + wide, Math.max(box[1], y) + high];
      taken.push(place);
      filled(background, { x: left, y: place[1], width: wide, height: high }, []);
      filled(text, { x: left + 0.25 * size, y: place[1] + size, "font-size": size }, []);
    }
  }

  // A line of `colour`, `dash` and width `wide`, with a dark one beneath, so that it is seen over any image.
  addBox(box, style, attributes = {}) {
    const [x1, y1, x2, y2] = box;
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    const group = shape("g", { class: "box", ...attributes });
    const wide = style.wide ?? 2;
    group.append(shape("rect", { ...place, class: "casing", "stroke-width": wide + 2.5 }),
      shape("rect", { ...place, class: "line", stroke: style.colour, "stroke-width": wide, "stroke-dasharray": style.dash }));
    this.boxes.append(group);
    return group;
  }

  // Above all boxes, on a ground of its own, so that it can be read over any image. The first ones get the best places.
  addLabel(label, colour, box) {
    const background = shape("rect", { fill: colour, class: "label" });
    const text = shape("text", { fill: readableOn(rgb(colour)) }, label);
    this.texts.append(background, text);
    this.labels.push({ background, text, box });
  }

  // Masks of the image's size, one above the other, each in a colour of its own.
  addMasks(masks) {
    if (masks.length === 0) return;
    const [rows, columns] = masks[0].mask.size;
    const canvas = element("canvas", { width: columns, height: rows });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    for (const { mask, colour } of masks) {
      const inside = unpackMask(mask.counts, rows, columns);
      for (let place = 0; place < inside.length; place++) {
        const cell = (place % rows) * columns + Math.floor(place / rows);
        if (inside[place]) pixels.data.set([...rgb(colour), 110], 4 * cell);
      }
    }
    context.putImageData(pixels, 0, 0);
    this.addPicture(canvas.toDataURL(), [0, 0, this.width, this.height], { class: "masks" });
  }

  // A map of values over a box of the image; in 0-1 for cividis.
  addMap(values, rows, columns, box, attributes = {}, colour = cividis) {
    this.addPicture(heatmap(values, rows, columns, colour), box, { class: "map", ...attributes });
  }

  addPicture(source, [x1, y1, x2, y2], attributes) {
    this.under.append(shape("image", { href: source, x: x1, y: y1, width: x2 - x1, height: y2 - y1, preserveAspectRatio: "none", ...attributes }));
  }
}
