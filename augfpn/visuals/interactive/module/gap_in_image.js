// The gap of one pair of levels at each place of an image, for one or two runs, and what is predicted from each level.

const MAPS = {
  similarity: { name: "similarity of features", short: "similarity", kind: "int8", one: 127, colour: diverging, colours: DIVERGING,
    low: "−1", high: "1" },
  overlap: { name: "overlap of the probe's classes", short: "overlap", kind: "uint8", one: 255, colour: cividis, colours: CIVIDIS,
    low: "0 no class in common", high: "1 the same" },
};
const OBJECT = { colour: "#FFFFFF", dash: null, wide: 1.5 };

// The answer for an image and a run, decoded.
class Maps {
  constructor(answer) {
    const { levels, rows, columns, classes, predictions } = answer;
    Object.assign(this, { levels, rows, columns, predictions });
    this.classes = numbers(classes.values, classes.kind);
    this.of = Object.fromEntries(Object.entries(MAPS).map(([what, { kind }]) => [what, numbers(answer[what], kind)]));
  }

  // The values of a pair of levels, or null if one of them is not there.
  values(what, [one, other]) {
    const at = [this.levels.indexOf(one), this.levels.indexOf(other)];
    if (at.includes(-1)) return null;
    const pairs = this.levels.flatMap((_, first) => this.levels.slice(first + 1).map((_, next) => `${first} ${first + 1 + next}`));
    const cells = this.rows * this.columns;
    const place = pairs.indexOf(at.join(" "));
    return Float32Array.from(this.of[what].subarray(place * cells, (place + 1) * cells), (value) => value / MAPS[what].one);
  }

  // Row and column of a place in 0-1 of the image's height and width.
  cell(down, across) {
    const index = (place, num) => Math.min(Math.max(Math.floor(place * num), 0), num - 1);
    return [index(down, this.rows), index(across, this.columns)];
  }

  label(level, row, column) {
    return this.classes[(this.levels.indexOf(level) * this.rows + row) * this.columns + column];
  }

  // Over the cells whose centre is in a box, of which sides are in 0-1 of the image's; the nearest one of small boxes.
  mean(values, [x1, y1, x2, y2]) {
    const inside = [];
    for (let row = 0; row < this.rows; row++) {
      for (let column = 0; column < this.columns; column++) {
        const [across, down] = [(column + 0.5) / this.columns, (row + 0.5) / this.rows];
        if (across >= x1 && across <= x2 && down >= y1 && down <= y2) inside.push(values[row * this.columns + column]);
      }
    }
    const [row, column] = this.cell((y1 + y2) / 2, (x1 + x2) / 2);
    return inside.length ? mean(inside) : values[row * this.columns + column];
  }
}

class GapInImage {
  // `state` has the `pair` and the `classifier` that are shown, as `GapMatrices` chooses them.
  constructor(root, source, header, state) {
    Object.assign(this, { root, source, header, state });
    this.names = header.runs.map((run) => run.name);
    // Which runs' maps are shown beside the plain image; null for none.
    this.chosen = [0, this.names.length > 1 ? 1 : null];
    Object.assign(this.state, { map: "similarity", opacity: 80, selected: null });
    this.place = 0;
    this.maps = [null, null];
    this.window = new Window();
    this.build();
  }

  build() {
    const { names, state } = this;
    const controls = imageControls((place) => this.go(place), (by) => this.step(by));
    Object.assign(this, controls); // previous, goto, status, next
    this.heading = element("h3");
    this.plain = new Stage(this.window, "the image");
    this.stages = this.chosen.map((run, side) => new Stage(this.window, this.runChoice(run, side)));
    this.notes = this.stages.map((stage) => {
      const note = element("p", { class: "note-of", role: "status" });
      stage.element.append(note);
      return note;
    });
    for (const stage of [this.plain, ...this.stages]) {
      stage.svg.addEventListener("pointermove", (event) => this.point(stage.place(event)));
      stage.svg.addEventListener("pointerleave", () => this.point(null));
    }
    this.readout = element("p", { class: "readout", "aria-live": "polite" });
    this.key = element("div", { class: "key" });
    this.hint = element("p", { class: "hint" });
    this.objects = element("div", { class: "objects", role: "group", "aria-label": "objects" });
    this.predictions = element("div", { class: "predictions" });
    this.fault = element("p", { class: "fault", role: "alert", hidden: true });
    const maps = Object.entries(MAPS).map(([what, { name }]) => [what, name]);
    const shownStages = [this.plain, ...(names.length > 1 ? this.stages : this.stages.slice(0, 1))];
    const opacity = element("input", { type: "range", min: 0, max: 100, value: state.opacity, class: "opacity",
      title: "of the map over the image; at its end its colours are those of the scale",
      oninput: () => { state.opacity = Number(opacity.value); this.draw(); } });
    this.element = element("section", { class: "gap-in-image", "aria-label": "the gap in an image" },
      this.heading,
      element("div", { class: "bar" }, controls.previous, controls.goto, controls.status, controls.next,
        labelled("map", choice(maps, (what) => { state.map = what; this.draw(); }, { class: "map-of" })),
        labelled("strength", opacity),
        element("span", { class: "group" },
          button("−", () => this.window.zoom(0.5), { "aria-label": "zoom out" }),
          button("+", () => this.window.zoom(2), { "aria-label": "zoom in", title: "or double click, or Ctrl and the wheel; drag to move" }),
          button("fit", () => this.window.fit(), { title: "whole image (0)" }))),
      this.fault,
      element("div", { class: "stages gap-stages" }, ...shownStages.map((stage) => stage.element)),
      this.readout, this.key, this.hint, this.objects, this.predictions);
  }

  // In the place of a stage's heading: whose map it shows.
  runChoice(run, side) {
    const { names } = this;
    if (names.length === 1) return names[0];
    const runs = names.map((name, at) => [String(at), name]);
    const made = choice(side ? [...runs, ["", "no second run"]] : runs, (value) => {
      this.chosen[side] = value === "" ? null : Number(value);
      this.ask();
    }, { class: "run-of", "data-side": side, "aria-label": side ? "run of the second map" : "run of the first map" });
    made.value = run === null ? "" : String(run);
    return made;
  }

  step(by) {
    this.go(this.place + by);
  }

  async go(place) {
    const { names, total } = this.header.images;
    this.place = Math.min(Math.max(Number.isFinite(place) ? place : 0, 0), names.length - 1);
    this.goto.value = this.place + 1;
    const of = names.length < total ? `of ${names.length} (${total} in the data)` : `of ${total}`;
    this.status.textContent = `${of}: ${names[this.place]}`;
    const at = this.place;
    if (at === this.at) return;
    this.at = at;
    this.state.selected = null;
    this.maps = [null, null];
    // Until the answer is there, nothing of the image before stands under this one's name.
    this.image = null;
    this.objects.replaceChildren();
    for (const stage of [this.plain, ...this.stages]) stage.clear();
    this.draw();
    let answer;
    try {
      answer = await this.source.request({ what: "image", image: at });
    } catch (error) {
      if (at === this.at) this.fail(error);
      return;
    }
    // Another image may have been asked for in the meantime.
    if (at !== this.at) return;
    this.fault.hidden = true;
    this.image = answer;
    this.window.part = null;
    const { picture, width, height } = answer;
    for (const stage of [this.plain, ...this.stages]) stage.show(picture, width, height, names[at]);
    this.plain.picture.setAttribute("role", "img");
    this.plain.picture.setAttribute("aria-label", `${names[at]} without a map`);
    this.listObjects();
    this.root.dataset.image = names[at];
    await this.ask();
    const ahead = at + 1;
    if (ahead < names.length) this.source.request({ what: "image", image: ahead }).catch(() => {});
  }

  fail(error) {
    this.fault.textContent = error.message;
    this.fault.hidden = false;
    // It may be asked for again.
    this.at = undefined;
    for (const stage of [this.plain, ...this.stages]) stage.empty();
  }

  // The maps of the chosen runs, one after the other: the first of a run takes its time.
  async ask() {
    const { at } = this;
    if (!this.image) return;
    const chosen = [...this.chosen];
    const isStill = () => at === this.at && chosen.every((run, side) => run === this.chosen[side]);
    this.root.dataset.maps = "asked";
    this.maps = [null, null];
    chosen.forEach((run, side) => { this.notes[side].textContent = run === null ? "" : "computing…"; });
    this.draw();
    for (const [side, run] of chosen.entries()) {
      if (run === null) continue;
      try {
        const maps = new Maps(await this.source.request({ what: "gap", image: at, run }));
        if (!isStill()) return;
        this.maps[side] = maps;
        this.notes[side].textContent = "";
      } catch (error) {
        if (!isStill()) return;
        this.notes[side].textContent = error.message;
      }
      this.draw();
    }
    this.root.dataset.maps = "ready";
  }

  draw() {
    const { pair, map, opacity } = this.state;
    const { name, short, colour, colours, low, high } = MAPS[map];
    this.heading.textContent = `${pair.join("–")} in an image`;
    this.key.replaceChildren(`${name} `, scale(low, high, colours));
    this.hint.textContent = this.honest(map);
    this.stages[1].element.hidden = this.chosen[1] === null;
    for (const [side, stage] of [null, ...this.stages].entries()) if (stage) this.drawMap(stage, side - 1, { short, colour, opacity });
    if (this.image) {
      this.plain.clear();
      this.drawObjects(this.plain, true);
    }
    for (const made of this.objects.querySelectorAll("button")) {
      made.setAttribute("aria-pressed", String(Number(made.dataset.index) === this.state.selected));
    }
    this.point(null);
    this.drawPredictions();
  }

  drawMap(stage, side, { short, colour, opacity }) {
    const { pair, map } = this.state;
    stage.clear();
    const maps = this.maps[side];
    if (!this.image || !maps) return;
    const { width, height } = this.image;
    const values = maps.values(map, pair);
    const of = this.names[this.chosen[side]];
    if (values === null) {
      this.notes[side].textContent = `${of} has no ${pair.filter((level) => !maps.levels.includes(level)).join(" and no ")}.`;
    } else {
      this.notes[side].textContent = "";
      const description = `${of}: ${short} of ${pair.join(" and ")} over ${this.header.images.names[this.at]}, ${asText(mean([...values]), 2)} on average`;
      stage.addMap(values, maps.rows, maps.columns, [0, 0, width, height],
        { role: "img", "aria-label": description, style: `opacity: ${opacity / 100}` }, colour);
    }
    this.drawObjects(stage, false);
  }

  drawObjects(stage, hasLabels) {
    const { selected } = this.state;
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const entries = this.image.objects.map((object, index) => ({ ...object, index }));
    // Small boxes above large ones, so that all can be clicked.
    for (const { box, index } of [...entries].sort((one, other) => area(other) - area(one))) {
      const isSelected = index === selected;
      const group = stage.addBox(box, { ...OBJECT, wide: isSelected ? 4 : OBJECT.wide, dash: isSelected ? "8 4" : null },
        { class: `box object${isSelected ? " selected" : ""}`, "data-index": index, onclick: () => this.select(index) });
      group.append(shape("title", {}, this.objectName(index)));
    }
    if (hasLabels) for (const { box, index } of entries) stage.addLabel(this.objectName(index), OBJECT.colour, box);
    stage.look();
  }

  className(label) {
    return label === 0 ? "background" : this.header.classes[label - 1];
  }

  objectName(index) {
    return `${this.className(this.image.objects[index].label)} (${index + 1})`;
  }

  listObjects() {
    const made = this.image.objects.map((_, index) => button(this.objectName(index), () => this.select(index), { "data-index": index }));
    this.objects.replaceChildren(element("span", {}, made.length ? "Objects:" : "No objects in this image."), ...made);
  }

  select(index) {
    this.state.selected = index === this.state.selected ? null : index;
    this.draw();
  }

  selectNext(by) {
    const num = this.image?.objects.length;
    if (!num) return;
    const { selected } = this.state;
    this.state.selected = selected === null ? (by > 0 ? 0 : num - 1) : (selected + by + num) % num;
    this.draw();
  }

  // The values at a place of the image, in its pixels, for all maps that are shown.
  point(place) {
    for (const stage of [this.plain, ...this.stages]) stage.over.replaceChildren();
    const inside = place && this.image && place[0] >= 0 && place[1] >= 0 && place[0] < this.image.width && place[1] < this.image.height;
    if (!inside) {
      this.readout.textContent = "Point at a place to read its value; click an object to see what is predicted from each level.";
      return;
    }
    const { pair, map } = this.state;
    const { width, height } = this.image;
    const said = this.maps.flatMap((maps, side) => {
      const values = maps?.values(map, pair);
      if (!values) return [];
      const [row, column] = maps.cell(place[1] / height, place[0] / width);
      const [cellHeight, cellWidth] = [height / maps.rows, width / maps.columns];
      const box = [column * cellWidth, row * cellHeight, (column + 1) * cellWidth, (row + 1) * cellHeight];
      for (const stage of [this.plain, this.stages[side]]) stage.over.append(stageLine(box, "pointed"));
      const [one, other] = pair.map((level) => this.className(maps.label(level, row, column)));
      const seen = one === other ? `the probe sees ${one} in both` : `the probe sees ${one} in ${pair[0]} and ${other} in ${pair[1]}`;
      return [`${this.names[this.chosen[side]]}, row ${row + 1}, column ${column + 1}: ${asText(values[row * maps.columns + column], 2)}; ${seen}`];
    });
    this.readout.textContent = said.length ? `${pair.join("–")} ${MAPS[map].short}. ${said.join(". ")}.` : "No map yet.";
  }

  drawPredictions() {
    const { selected, classifier } = this.state;
    this.predictions.replaceChildren();
    if (selected === null || !this.image) return;
    const tables = this.chosen.map((run, side) => (run === null || !this.maps[side] ? null : this.table(run, this.maps[side])));
    this.predictions.append(element("h3", {}, `What the ${classifier} makes of ${this.objectName(selected)} in each level`),
      element("div", { class: "tables" }, ...tables.filter((table) => table !== null)));
  }

  table(run, maps) {
    const { selected, classifier, pair, map } = this.state;
    const { box, label } = this.image.objects[selected];
    const { width, height } = this.image;
    const values = maps.values(map, pair);
    const average = values && maps.mean(values, [box[0] / width, box[1] / height, box[2] / width, box[3] / height]);
    const of = element("p", {}, element("strong", {}, this.names[run]),
      values ? `: ${MAPS[map].short} of ${pair.join("–")} over its box ` : null, values ? element("span", { class: "mean" }, asText(average, 2)) : null);
    const predicted = maps.predictions[classifier]?.[selected];
    const made = element("div", { class: "of-run", "data-run": run }, of);
    if (!predicted) {
      made.append(element("p", {}, "It has no auxiliary head: it was trained without Consistent Supervision."));
      return made;
    }
    const rows = predicted.map(({ top, true: probability }, at) => {
      const isRight = top[0][0] === label;
      const classes = top.map(([one, share]) => {
        const text = `${this.className(one)} ${share.toFixed(2)}`;
        return element("td", {}, one === label ? element("strong", { class: "true-class" }, `✓ ${text}`) : text);
      });
      const level = maps.levels[at];
      return element("tr", { "data-level": level, "data-right": String(isRight), class: pair.includes(level) ? "selected" : null },
        element("th", { scope: "row" }, level), element("td", { class: isRight ? "right" : "wrong" }, isRight ? "✓ right" : "✗ wrong"),
        ...classes, element("td", { class: "number" }, probability.toFixed(2)));
    });
    const heads = ["level", "seen as", ...predicted[0].top.map((_, at) => ["likeliest", "second", "third"][at]), `${this.className(label)} (true)`];
    made.append(element("table", {}, element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows)));
    return made;
  }

  // What a map can and cannot tell.
  honest(map) {
    const { runs, scale: size } = this.header;
    const micro = " At the scale micro, M2–M5 is near zero with and without Consistent Supervision; the difference that can be seen is "
      + "in M2–M3.";
    const what = {
      similarity: "Similarity: the cosine of the features that the two levels have at a place; 0 if they have nothing in common. It can be "
        + `compared between models.${size === "micro" ? micro : ""}`,
      overlap: "Overlap: how much the class probabilities that the probe sees in the two levels agree. Compare places and levels of one "
        + "model by it, not models with one another: classifiers that are surer overlap less. The probe knows no background: where no "
        + "object is, the classes that it sees mean little.",
    }[map];
    const steps = runs.filter((run) => run.step !== null).map((run) => `${run.name}: after ${run.step.toLocaleString("en")} steps`);
    const when = steps.length ? `as they were measured last (${steps.join("; ")})` : "at the end of training";
    return `${what} Maps and predictions are of the models ${when}, whatever step the matrices show.`;
  }
}
