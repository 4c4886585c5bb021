// The ASF explorer: what Soft RoI Selection took from each level for one detection (Section 3.3, Figure 4), and what
// Residual Feature Augmentation took from each of its contexts for an image (Section 3.2).

class FusionPanel {
  constructor(source, header) {
    Object.assign(this, { source, header });
    this.roi = element("section", { class: "fusion", "aria-label": "Soft RoI Selection" });
    this.contexts = element("div", { class: "contexts" });
    this.details = element("details", { ontoggle: () => this.showContexts() },
      element("summary", {}, "Contexts of Residual Feature Augmentation in this image"), this.contexts);
    this.element = element("div", {}, this.roi, header.runs.some((run) => run.contexts) ? this.details : null);
  }

  async show(image, at, selected) {
    Object.assign(this, { image, at });
    this.showContexts();
    const key = image && selected ? keyOf({ at, ...selected }) : null;
    if (key === this.key) return;
    this.key = key;
    // Of several calls for the same detection only the last may write.
    const turn = (this.turn = {});
    this.roi.replaceChildren();
    this.roi.dataset.state = "empty";
    if (key === null) return;
    const { run, index } = selected;
    try {
      const fusion = await this.source.request({ what: "fusion", image: at, run });
      if (this.turn !== turn) return;
      if (fusion.why) {
        this.roi.append(element("p", {}, fusion.why));
        this.roi.dataset.state = "ready";
        return;
      }
      const average = element("div");
      this.roi.append(...this.maps(fusion, image.runs[run][index], index), average);
      this.roi.dataset.state = "ready";
      const ratios = await this.source.request({ what: "ratios", run });
      if (this.turn !== turn) return;
      average.replaceWith(this.shares(fusion, index, ratios));
      this.roi.dataset.state = "complete";
    } catch (error) {
      if (this.turn !== turn) return;
      this.key = undefined;
      this.roi.append(element("p", { class: "fault", role: "alert" }, error.message));
    }
  }

  // Whatever was shown may be of another model now.
  forget() {
    this.key = this.contextsOf = undefined;
    this.turn = this.contextsTurn = {};
  }

  maps(fusion, detection, index) {
    const { levels, rows, columns, most } = fusion;
    const cells = rows * columns;
    const weights = numbers(fusion.weights, "uint8").subarray(index * levels.length * cells, (index + 1) * levels.length * cells);
    const readout = element("p", { class: "readout", "aria-live": "polite" }, "Point at a cell to read its weight.");
    const heuristic = fusion.heuristic[index];
    const figures = levels.map((level, at) => {
      const map = Array.from(weights.subarray(at * cells, (at + 1) * cells), (value) => value / 255);
      const average = fusion.means[index][at].toFixed(3);
      const caption = element("figcaption", {}, `${level} `, element("strong", { class: "mean" }, average),
        at === heuristic ? element("span", { class: "note" }, "FPN's level") : null);
      return element("figure", { "data-level": level },
        this.crop(detection.roi, map, rows, columns, `${level}: weights over the RoI, ${average} on average`,
          (row, column) => { readout.textContent = `${level}, row ${row + 1}, column ${column + 1}: ${(most * map[row * columns + column]).toFixed(2)}`; }), caption);
    });
    const side = Math.round(fusion.sides[index]);
    return [
      element("h3", {}, "What this detection is made of"),
      element("p", {}, `Its RoI (dashed in the image) is ${side} pixels a side as the model sees the image, the root of its area. `,
        element("strong", { class: "heuristic" }, `FPN would take it from ${levels[heuristic]} alone`),
        `, by that side; ${fusion.how}`),
      element("div", { class: "maps" }, ...figures, element("div", { class: "key" }, "weight ", scale("0", String(most)))),
      readout,
    ];
  }

  // A box of the image with a map over it, or over a part of the image that is a little larger.
  crop(box, values, rows, columns, description, point = null, [left, top, right, bottom] = box) {
    const [x1, y1, x2, y2] = box;
    const { picture, width, height } = this.image;
    // A sliver is shown as wide as it can be seen.
    const ratio = Math.min(Math.max((y2 - y1) / Math.max(x2 - x1, 1e-6), 0.25), 4);
    const svg = shape("svg", { viewBox: `${x1} ${y1} ${Math.max(x2 - x1, 1e-6)} ${Math.max(y2 - y1, 1e-6)}`, preserveAspectRatio: "none", role: "img",
      "aria-label": description, class: "crop", style: `aspect-ratio: ${1 / ratio}` },
      shape("image", { href: picture, width, height, preserveAspectRatio: "none" }),
      shape("image", { href: heatmap(values, rows, columns), x: left, y: top, width: right - left, height: bottom - top, preserveAspectRatio: "none", class: "map" }));
    svg.addEventListener("pointermove", (event) => {
      const place = svg.getBoundingClientRect();
      const cell = (from, size, num) => Math.min(Math.max(Math.floor((from / size) * num), 0), num - 1);
      point?.(cell(event.clientY - place.top, place.height, rows), cell(event.clientX - place.left, place.width, columns));
    });
    return svg;
  }

  // Figure 4 for this RoI: its shares beside the average of the RoIs that FPN takes from the same level.
  shares(fusion, index, ratios) {
    const { levels } = fusion;
    const heuristic = fusion.heuristic[index];
    const means = fusion.means[index];
    const sum = means.reduce((total, value) => total + value, 0) || 1;
    const average = ratios.shares[heuristic];
    const count = ratios.counts[heuristic];
    const rows = levels.map((level, at) => {
      const share = means[at] / sum;
      const bar = element("span", { class: "bar-of" }, element("span", { style: `width: ${100 * share}%` }),
        count ? element("i", { style: `left: ${100 * average[at]}%` }) : null);
      const cells = [element("td", { class: "number" }, share.toFixed(3)), element("td", { class: "number" }, count ? average[at].toFixed(3) : "–"), element("td", {}, bar)];
      return element("tr", { "data-level": level }, element("th", { scope: "row" }, level), ...cells);
    });
    const head = ["share of", "this RoI", `RoIs of ${levels[heuristic]}`, "bar: this RoI; line: the average"];
    return element("div", {},
      element("table", { class: "shares" }, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))), element("tbody", {}, ...rows)),
      element("p", { class: "hint" }, `Average over the ${count.toLocaleString("en")} RoIs of ${levels[heuristic]} on ${ratios.num_images} images, as in Figure 4.`));
  }

  async showContexts() {
    if (!this.details.open || !this.image) return;
    const { at } = this;
    if (this.contextsOf === at) return;
    this.contextsOf = at;
    const turn = (this.contextsTurn = {});
    this.contexts.replaceChildren();
    for (const [run, { name, contexts }] of this.header.runs.entries()) {
      if (!contexts) continue;
      try {
        const { contexts: found } = await this.source.request({ what: "fusion", image: at, run });
        if (this.contextsTurn !== turn) return;
        if (!found) {
          this.contexts.append(element("p", {}, `${name} weighs no contexts.`));
          continue;
        }
        const maps = numbers(found.maps, "uint8");
        const cells = found.rows * found.columns;
        const over = [0, 0, this.image.width * found.covers[1], this.image.height * found.covers[0]];
        const figures = found.names.map((context, which) => {
          const map = Array.from(maps.subarray(which * cells, (which + 1) * cells), (value) => value / 255);
          const average = found.means[which].toFixed(3);
          return element("figure", { "data-context": context }, this.crop([0, 0, this.image.width, this.image.height], map, found.rows, found.columns,
            `${context}: weights over the image, ${average} on average`, null, over), element("figcaption", {}, `${context} `, element("strong", { class: "mean" }, average)));
        });
        this.contexts.append(element("p", {}, `${name}: the weight of each context over the ${found.rows} × ${found.columns} cells of C5 that the image covers.`),
          element("div", { class: "maps" }, ...figures, element("div", { class: "key" }, "weight ", scale("0", "1"))));
      } catch (error) {
        if (this.contextsTurn !== turn) return;
        this.contextsOf = undefined;
        this.contexts.append(element("p", { class: "fault", role: "alert" }, error.message));
      }
    }
  }
}
