// The detection viewer: the images of one run, or of two side by side, with what became of each detection and object.

// Colours of Okabe and Ito, which colour-blind readers can tell apart, and for each another line and another sign.
const OUTCOMES = [
  { name: "correct", colour: "#009E73", dash: null, sign: "✓", what: "matched with an object of its class" },
  { name: "duplicate", colour: "#56B4E9", dash: "7 3", sign: "×2", what: "fits an object that a better detection has" },
  { name: "wrong class", colour: "#CC79A7", dash: "10 3 2 3", sign: "≠", what: "fits an object of another class" },
  { name: "badly placed", colour: "#E69F00", dash: "12 5", sign: "↔", what: "overlaps an object of its class by less than a half" },
  { name: "background", colour: "#D55E00", dash: "2 3", sign: "∅", what: "no object of its class there" },
  { name: "ignored", colour: "#BBBBBB", dash: "1 4", sign: "~", what: "in a crowd, counts as nothing" },
  { name: "missed", colour: "#F0E442", dash: "4 2", sign: "!", what: "an object that no detection has" },
];
const CORRECT = 0;
const IGNORED = 5;
const MISSED = 6;
const ERRORS = [1, 2, 3, 4];
const TRUTH = { colour: "#FFFFFF", dash: null, wide: 1 };
const NEVER = 255; // found_with of objects that no detection has
const SCORES_IN_PERCENT = 1000; // of the whole numbers that scores are

// Counts of every image and the orders that follow from them, for any threshold and choice of classes.
class Counts {
  constructor(header) {
    const { objects, found } = header;
    this.num = header.images.names.length;
    this.labels = numbers(objects.labels, "uint16");
    this.crowd = numbers(objects.crowd, "uint8");
    this.starts = numbers(objects.starts, "int32");
    this.runs = found.map((run) => ({
      starts: numbers(run.starts, "int32"), labels: numbers(run.labels, "uint16"), percents: numbers(run.percents, "uint8"),
      outcomes: numbers(run.outcomes, "uint8"), foundWith: numbers(run.found_with, "uint8"), losses: run.losses }));
  }

  // For each run: `table`, kinds of outcomes and MISSED for each image; `scores`, their mean; `surest`, of the errors.
  at(threshold, isShown) {
    return this.runs.map((run) => {
      const table = new Int32Array(this.num * OUTCOMES.length);
      const scores = new Float32Array(this.num).fill(NaN);
      const surest = new Float32Array(this.num).fill(-1);
      for (let image = 0; image < this.num; image++) {
        let sum = 0;
        let count = 0;
        for (let one = run.starts[image]; one < run.starts[image + 1]; one++) {
          const percent = run.percents[one];
          if (percent < threshold || !isShown(run.labels[one])) continue;
          table[image * OUTCOMES.length + run.outcomes[one]]++;
          sum += percent;
          count++;
          if (ERRORS.includes(run.outcomes[one])) surest[image] = Math.max(surest[image], percent);
        }
        if (count) scores[image] = sum / count;
        for (let one = this.starts[image]; one < this.starts[image + 1]; one++) {
          if (!this.crowd[one] && isShown(this.labels[one]) && this.isMissed(run, one, threshold)) table[image * OUTCOMES.length + MISSED]++;
        }
      }
      return { table, scores, surest, losses: run.losses };
    });
  }

  isMissed(run, object, threshold) {
    return run.foundWith[object] === NEVER || run.foundWith[object] < threshold;
  }

  // How many objects of an image one of the two runs finds and the other does not.
  different(image, threshold, isShown) {
    const [one, other] = this.runs;
    let count = 0;
    for (let object = this.starts[image]; object < this.starts[image + 1]; object++) {
      if (this.crowd[object] || !isShown(this.labels[object])) continue;
      if (this.isMissed(one, object, threshold) !== this.isMissed(other, object, threshold)) count++;
    }
    return count;
  }
}

class DetectionViewer {
  constructor(root, source, header) {
    Object.assign(this, { root, source, header });
    this.counts = new Counts(header);
    this.names = header.runs.map((run) => run.name);
    this.state = {
      place: 0, // in `this.order`
      threshold: header.threshold, // percent
      classes: new Set(header.classes.map((_, at) => at + 1)),
      outcomes: new Set(OUTCOMES.keys()),
      shown: { boxes: true, masks: true, labels: true, truth: true },
      order: "file",
      onlyWith: false,
      onlyDifferent: false,
      selected: null, // { run, index }
    };
    this.window = new Window();
    this.stages = this.names.map((name, run) => new Stage(this.window, this.names.length > 1 ? name : null));
    this.fusion = new FusionPanel(source, header, () => this.state.selected);
    this.build();
    this.rank();
  }

  isShown = (label) => this.state.classes.has(label);

  build() {
    const { header } = this;
    const several = this.names.length > 1;
    Object.assign(this, imageControls((place) => this.go(place), (by) => this.step(by))); // previous, goto, status, next
    this.slider = element("input", { type: "range", min: 0, max: 100, step: 1, value: this.state.threshold, class: "threshold",
      oninput: () => this.setThreshold(Number(this.slider.value)) });
    this.thresholdText = element("output", { class: "threshold-text" });
    this.orders = choice(this.orderNames(), (order) => { this.state.order = order; this.rank(); }, { class: "order" });
    const show = Object.keys(this.state.shown).filter((what) => what !== "masks" || header.masks).map((what) =>
      checkbox(what === "truth" ? "ground truth" : what, true, (on) => { this.state.shown[what] = on; this.draw(); }, { name: what }));
    this.legend = element("tbody");
    const heads = this.names.flatMap(() => [element("th", { scope: "col" }, "here"), element("th", { scope: "col" }, `in all ${this.counts.num}`)]);
    const owners = several ? element("tr", {}, element("td"), ...this.names.map((name) => element("th", { scope: "colgroup", colspan: 2 }, name))) : null;
    this.readout = element("p", { class: "readout", "aria-live": "polite" });
    this.table = element("tbody");
    this.fault = element("p", { class: "fault", role: "alert", hidden: true });
    this.root.append(
      element("div", { class: "bar" },
        this.previous, this.goto, this.status, this.next,
        labelled("order", this.orders),
        labelled("score from", this.slider), this.thresholdText),
      element("div", { class: "bar" }, element("span", { class: "group", role: "group", "aria-label": "what to show" }, ...show),
        this.classChooser(),
        checkbox("only images with these", false, (on) => { this.state.onlyWith = on; this.rank(); }, { name: "only-with" }),
        several ? checkbox("only differences", false, (on) => { this.state.onlyDifferent = on; this.draw(); }, { name: "only-different" }) : null,
        element("span", { class: "group" },
          button("−", () => this.window.zoom(0.5), { "aria-label": "zoom out" }),
          button("+", () => this.window.zoom(2), { "aria-label": "zoom in", title: "or double click, or Ctrl and the wheel; drag to move" }),
          button("fit", () => this.window.fit(), { title: "whole image (0)" }))),
      this.fault,
      element("div", { class: "main" },
        element("div", { class: "stages" }, ...this.stages.map((stage) => stage.element)),
        element("table", { class: "legend" },
          element("thead", {}, owners, element("tr", {}, element("th", { scope: "col" }, "detections"), ...heads)), this.legend)),
      this.readout,
      this.fusion.element,
      element("details", { class: "list" }, element("summary", {}, "All of these as a table"),
        element("table", {}, element("thead", {}, element("tr", {},
          ...["run", "class", "score", "what it is", "IoU", "object"].map((head) => element("th", { scope: "col" }, head)))), this.table)),
      element("p", { class: "hint" }, "Keys: ← → image, ↑ ↓ detection, − + score, 0 whole image, Esc nothing chosen."));
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  classChooser() {
    const boxes = this.header.classes.map((name, at) => checkbox(name, true, (on) => {
      if (on) this.state.classes.add(at + 1);
      else this.state.classes.delete(at + 1);
      this.choseClasses();
    }, { value: at + 1 }));
    const all = (on) => {
      this.state.classes = new Set(on ? this.header.classes.map((_, at) => at + 1) : []);
      for (const box of boxes) box.querySelector("input").checked = on;
      this.choseClasses();
    };
    this.classSummary = element("summary", {}, "classes: all");
    return element("details", { class: "classes" }, this.classSummary,
      element("div", { class: "menu" }, element("div", {}, button("all", () => all(true)), button("none", () => all(false))), ...boxes));
  }

  choseClasses() {
    const { classes } = this.state;
    const all = classes.size === this.header.classes.length;
    const first = this.header.classes[[...classes][0] - 1];
    this.classSummary.textContent = `classes: ${all ? "all" : classes.size === 1 ? first : `${classes.size} of ${this.header.classes.length}`}`;
    this.rank();
  }

  orderNames() {
    const of = (run) => (this.names.length > 1 ? ` of ${this.names[run]}` : "");
    const names = [["file", "as in the data"]];
    if (this.names.length > 1) names.push(["different", "most differences"]);
    this.names.forEach((_, run) => {
      names.push([`missed ${run}`, `most missed${of(run)}`], [`errors ${run}`, `most errors${of(run)}`],
        [`surest ${run}`, `surest error${of(run)}`], [`score ${run}`, `lowest scores${of(run)}`]);
      if (this.counts.runs[run].losses) names.push([`loss ${run}`, `highest loss${of(run)}`]);
    });
    return names;
  }

  // Counts all images and puts them in order; the image that is shown stays, if it is still among them.
  rank() {
    const { threshold, order, onlyWith, outcomes } = this.state;
    const current = this.order?.[this.state.place];
    const counted = this.counts.at(threshold, this.isShown);
    this.counted = counted;
    const of = (table, image, kinds) => kinds.reduce((sum, kind) => sum + table[image * OUTCOMES.length + kind], 0);
    const [by, run] = order.split(" ");
    const values = {
      file: (image) => -image,
      different: (image) => this.counts.different(image, threshold, this.isShown),
      missed: (image) => of(counted[run].table, image, [MISSED]),
      errors: (image) => of(counted[run].table, image, ERRORS),
      surest: (image) => counted[run].surest[image],
      score: (image) => -(Number.isNaN(counted[run].scores[image]) ? Infinity : counted[run].scores[image]),
      loss: (image) => counted[run].losses[image] ?? -Infinity,
    }[by];
    const images = [...Array(this.counts.num).keys()];
    const kept = onlyWith ? images.filter((image) => counted.some(({ table }) => of(table, image, [...outcomes]) > 0)) : images;
    const ranks = new Map(kept.map((image) => [image, values(image)]));
    this.order = kept.sort((one, other) => ranks.get(other) - ranks.get(one) || one - other);
    // By another order one wants to see what comes first in it.
    const stays = this.ranked === order ? this.order.indexOf(current) : -1;
    this.ranked = order;
    return this.go(stays < 0 ? 0 : stays);
  }

  step(by) {
    this.go(this.state.place + by);
  }

  async go(place) {
    const last = Math.max(this.order.length - 1, 0);
    this.state.place = Math.min(Math.max(Number.isFinite(place) ? place : 0, 0), last);
    const image = this.order[this.state.place];
    this.goto.value = this.order.length ? this.state.place + 1 : 0;
    const total = this.header.images.total;
    const of = this.order.length < total ? `of ${this.order.length} (${total} in the data)` : `of ${total}`;
    if (image === undefined) {
      this.status.textContent = "no image has any of these";
      this.empty();
      this.fault.hidden = true;
      return;
    }
    this.status.textContent = `${of}: ${this.header.images.names[image]}`;
    if (image === this.at) return this.draw();
    this.at = image;
    this.state.selected = null;
    // Until the answer is there, nothing of the image before stands under this one's name.
    this.image = null;
    for (const stage of this.stages) stage.clear();
    let answer;
    try {
      answer = await this.source.request({ what: "image", image });
    } catch (error) {
      if (image === this.at) this.fail(error);
      return;
    }
    // Another image may have been asked for in the meantime.
    if (image !== this.at) return;
    this.fault.hidden = true;
    this.image = answer;
    this.window.part = null;
    this.stages.forEach((stage, run) => stage.show(answer.picture, answer.width, answer.height, this.description(image, run)));
    this.draw();
    this.root.dataset.image = this.header.images.names[image];
    for (const next of [1, -1]) {
      const ahead = this.order[this.state.place + next];
      if (ahead !== undefined) this.source.request({ what: "image", image: ahead }).catch(() => {});
    }
  }

  fail(error) {
    this.fault.textContent = error.message;
    this.fault.hidden = false;
    this.empty();
  }

  // No image; the same one may be asked for again.
  empty() {
    this.image = null;
    this.at = undefined;
    for (const stage of this.stages) stage.empty();
    this.draw();
  }

  setThreshold(percent) {
    this.state.threshold = Math.min(Math.max(percent, 0), 100);
    this.slider.value = this.state.threshold;
    this.rank();
  }

  description(image, run) {
    const { table } = this.counted[run];
    const counts = OUTCOMES.map(({ name }, kind) => [table[image * OUTCOMES.length + kind], name]).filter(([count]) => count);
    const of = this.names.length > 1 ? `${this.names[run]} on ` : "";
    return `${of}${this.header.images.names[image]}: ${counts.map(([count, name]) => `${count} ${name}`).join(", ") || "nothing detected"}`;
  }

  // What of an image is there at this threshold and choice, of one run.
  visible(run) {
    const { threshold, outcomes, onlyDifferent } = this.state;
    const { objects, runs, found_by } = this.image;
    const isAbove = (detection) => detection.score >= threshold * SCORES_IN_PERCENT;
    const isFound = (of, object) => found_by[of][object] >= 0 && isAbove(runs[of][found_by[of][object]]);
    const other = runs.length > 1 ? 1 - run : null;
    const onlyHere = (detection) => {
      if (other === null) return false;
      if (detection.outcome === CORRECT) return !isFound(other, detection.object);
      return !runs[other].some((one) => isAbove(one) && one.label === detection.label && one.outcome !== CORRECT && iou(one.box, detection.box) >= 0.5);
    };
    const detections = runs[run].map((detection, index) => ({ ...detection, index, different: onlyHere(detection) }))
      .filter((one) => isAbove(one) && this.isShown(one.label) && outcomes.has(one.outcome) && (!onlyDifferent || one.different));
    const missed = objects.map((object, index) => ({ ...object, index, different: other !== null && isFound(other, index) }))
      .filter((one) => !one.crowd && this.isShown(one.label) && outcomes.has(MISSED) && !isFound(run, one.index) && (!onlyDifferent || one.different));
    return { detections, missed };
  }

  draw() {
    this.thresholdText.textContent = (this.state.threshold / 100).toFixed(2);
    this.drawLegend();
    this.table.replaceChildren();
    if (this.image) this.stages.forEach((stage, run) => this.drawRun(stage, run));
    this.say(null);
    this.fusion.show(this.image, this.at, this.state.selected);
  }

  drawRun(stage, run) {
    const { shown, selected } = this.state;
    const { objects, runs } = this.image;
    const { detections, missed } = this.visible(run);
    stage.clear();
    stage.svg.setAttribute("aria-label", this.description(this.at, run));
    const name = (label) => this.header.classes[label - 1];
    if (shown.masks) stage.addMasks([...detections].reverse().filter((one) => one.mask).map((one) => ({ mask: one.mask, colour: OUTCOMES[one.outcome].colour })));
    if (shown.truth) {
      for (const object of objects.filter((one) => this.isShown(one.label))) {
        stage.addBox(object.box, { ...TRUTH, dash: object.crowd ? "1 4" : null }, { class: "box truth" });
      }
    }
    const entries = [...detections, ...missed.map((object) => ({ ...object, outcome: MISSED, isObject: true }))];
    // Small boxes above large ones, so that all can be pointed at.
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    for (const entry of shown.boxes ? [...entries].sort((one, other) => area(other) - area(one)) : []) {
      const { colour, dash } = OUTCOMES[entry.outcome];
      const isSelected = !entry.isObject && selected?.run === run && selected.index === entry.index;
      const group = stage.addBox(entry.box, { colour, dash, wide: isSelected ? 4 : entry.different ? 3.5 : 2 }, {
        class: `box ${entry.isObject ? "missed" : "detection"}${isSelected ? " selected" : ""}${entry.different ? " different" : ""}`,
        "data-run": run, "data-index": entry.index, "data-outcome": OUTCOMES[entry.outcome].name,
        onpointerenter: () => this.point(stage, run, entry), onpointerleave: () => this.point(stage, run, null),
        onclick: () => this.select(entry.isObject ? null : { run, index: entry.index }),
      });
      group.append(shape("title", {}, this.sentence(run, entry)));
    }
    for (const entry of shown.boxes && shown.labels ? entries : []) {
      const { colour, sign } = OUTCOMES[entry.outcome];
      stage.addLabel(`${sign} ${name(entry.label)}${entry.isObject ? "" : ` ${this.score(entry)}`}${entry.different ? " ◆" : ""}`, colour, entry.box);
    }
    if (selected?.run === run && runs[run][selected.index]?.roi) {
      stage.over.append(stageLine(runs[run][selected.index].roi, "roi"));
    }
    stage.look();
    this.table.append(...entries.map((entry) => this.row(run, entry)));
  }

  score(detection) {
    return (Math.floor(detection.score / 1000) / 100).toFixed(2);
  }

  row(run, entry) {
    const label = this.header.classes[entry.label - 1];
    const isSelected = !entry.isObject && this.state.selected?.run === run && this.state.selected.index === entry.index;
    const first = entry.isObject ? element("span", {}, label) : button(label, () => this.select({ run, index: entry.index }), { "aria-pressed": String(isSelected) });
    const cells = [this.names[run], first, entry.isObject ? "–" : (entry.score / 100000).toFixed(5),
      `${OUTCOMES[entry.outcome].sign} ${OUTCOMES[entry.outcome].name}${entry.different ? " ◆ only here" : ""}`,
      entry.isObject || entry.object < 0 ? "–" : entry.iou.toFixed(2), this.objectName(entry) ?? "–"];
    return element("tr", { "data-run": run, "data-index": entry.index, class: isSelected ? "selected" : null }, ...cells.map((cell) => element("td", {}, cell)));
  }

  objectName(entry) {
    const at = entry.isObject ? entry.index : entry.object;
    return at < 0 ? null : `${this.header.classes[this.image.objects[at].label - 1]} (${at + 1})`;
  }

  // All that is known of a detection, or of a missed object, in words.
  sentence(run, entry) {
    const name = this.header.classes[entry.label - 1];
    const { sign, name: outcome, what } = OUTCOMES[entry.outcome];
    const only = entry.different ? (this.names.length > 1 && entry.isObject ? `; ${this.names[1 - run]} has it` : "; only here") : "";
    if (entry.isObject) return `${sign} ${name}, object ${entry.index + 1}: ${outcome}, ${what}${only}`;
    const object = entry.object < 0 ? "" : `, IoU ${entry.iou.toFixed(2)} with ${this.objectName(entry)}`;
    return `${sign} ${name} ${(entry.score / 100000).toFixed(3)}: ${outcome}, ${what}${object}${only}`;
  }

  point(stage, run, entry) {
    stage.over.querySelectorAll(".matched").forEach((old) => old.remove());
    if (entry && !entry.isObject && entry.object >= 0) stage.over.append(stageLine(this.image.objects[entry.object].box, "matched"));
    this.say(entry && this.sentence(run, entry));
  }

  say(text) {
    const { selected } = this.state;
    const chosen = selected && this.image?.runs[selected.run][selected.index];
    this.readout.textContent = text ?? (chosen ? this.sentence(selected.run, chosen) : "Point at a box to read what it is; click a detection to see what it is made of.");
  }

  select(selected) {
    this.state.selected = selected;
    this.draw();
  }

  // The next detection that can be seen, in the order of the runs and of scores.
  selectNext(by) {
    if (!this.image) return;
    const all = this.names.flatMap((_, run) => this.visible(run).detections.map(({ index }) => ({ run, index })));
    const { selected } = this.state;
    const now = all.findIndex((one) => one.run === selected?.run && one.index === selected?.index);
    if (all.length) this.select(all[now < 0 ? (by > 0 ? 0 : all.length - 1) : (now + by + all.length) % all.length]);
  }

  drawLegend() {
    const counts = (run, kind) => {
      const { table } = this.counted[run];
      let sum = 0;
      for (let image = 0; image < this.counts.num; image++) sum += table[image * OUTCOMES.length + kind];
      const here = this.image ? table[this.at * OUTCOMES.length + kind] : 0;
      return [element("td", { class: "here" }, String(here)), element("td", { class: "all" }, sum.toLocaleString("en"))];
    };
    const focused = this.legend.getRootNode().activeElement?.name;
    this.legend.replaceChildren(...OUTCOMES.map(({ name, colour, dash, sign, what }, kind) => {
      const line = shape("svg", { class: "swatch", viewBox: "0 0 28 12", "aria-hidden": "true" },
        shape("rect", { x: 2, y: 2, width: 24, height: 8, class: "casing", "stroke-width": 4 }),
        shape("rect", { x: 2, y: 2, width: 24, height: 8, class: "line", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash }));
      const box = checkbox(`${sign} ${name}`, this.state.outcomes.has(kind), (on) => {
        if (on) this.state.outcomes.add(kind);
        else this.state.outcomes.delete(kind);
        this.rank();
      }, { name });
      box.prepend(line);
      return element("tr", { title: what, "data-outcome": name }, element("th", { scope: "row" }, box), ...this.names.flatMap((_, run) => counts(run, kind)));
    }));
    // The table is new; whoever uses the keyboard is still where they were.
    if (focused) this.legend.querySelector(`input[name="${focused}"]`)?.focus();
  }

  key(event) {
    pressed(event, {
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1), ArrowDown: () => this.selectNext(1), ArrowUp: () => this.selectNext(-1),
      "+": () => this.setThreshold(this.state.threshold + 5), "=": () => this.setThreshold(this.state.threshold + 5),
      "-": () => this.setThreshold(this.state.threshold - 5), 0: () => this.window.fit(), Escape: () => this.select(null),
    });
  }

  // What it shows has changed, as by the controls of a notebook.
  async reload() {
    const { selected } = this.state;
    this.source.forget();
    this.fusion.forget();
    this.header = await this.source.request({ what: "header" });
    this.counts = new Counts(this.header);
    this.at = undefined;
    await this.rank();
    // The first side is as it was.
    if (selected?.run === 0) this.select(selected);
  }
}

function stageLine([x1, y1, x2, y2], kind) {
  const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  return shape("g", { class: kind }, shape("rect", { ...place, class: "casing", "stroke-width": 4.5 }), shape("rect", { ...place, class: "line", "stroke-width": 2 }));
}
