// The matrices of gaps between levels, one for each run, and the course of one pair of levels along training.

// Runs in a chart: colours of Okabe and Ito, and for each another line and another sign.
const COURSES = [["#0072B2", null, "●"], ["#D55E00", "7 3", "■"], ["#009E73", "2 3", "▲"], ["#CC79A7", "9 3 2 3", "◆"],
  ["#E69F00", "12 4", "▼"], ["#56B4E9", "4 2", "✚"], ["#8A8A8A", "1 3", "✖"], ["#B8A800", "12 3 2 3 2 3", "★"]];
const END = "end"; // of training, among the steps

class GapMatrices {
  // `state` has the `measure`, `classifier`, `step` and `pair` that are shown; `changed` is called when one of them is.
  constructor(header, state, changed) {
    Object.assign(this, { header, state, changed });
    const { gaps } = header;
    const steps = [...new Set(gaps.filter((gap) => !gap.end).map((gap) => gap.step))].sort((one, other) => one - other);
    this.steps = [...steps, ...(gaps.some((gap) => gap.end) ? [END] : [])];
    this.classifiers = [...new Set(gaps.map((gap) => gap.classifier))];
    this.gaps = new Map(gaps.map((gap) => [keyOf({ run: gap.run, step: gap.end ? END : gap.step, classifier: gap.classifier }), gap]));
    this.levels = header.runs.map((_, run) => gaps.find((gap) => gap.run === run).levels);
    Object.assign(state, { measure: "cka", classifier: "probe", step: this.steps.at(-1), pair: this.levels[0].slice(0, 2) });
    this.build();
  }

  // What was measured of a run; the classifier makes no difference to how alike features are.
  gap(run, step, measure) {
    const of = (classifier) => this.gaps.get(keyOf({ run, step, classifier }));
    return of(this.state.classifier) ?? (measure === "cka" || measure === "cosine" ? of("probe") : undefined);
  }

  // Between two levels; undefined where it was not measured, null where it has no value.
  value(run, step, [one, other], measure = this.state.measure) {
    const gap = this.gap(run, step, measure);
    const row = gap?.levels.indexOf(one);
    const column = gap?.levels.indexOf(other);
    return row >= 0 && column >= 0 ? gap[measure][row][column] : undefined;
  }

  build() {
    const { header, state } = this;
    const set = (name) => (value) => { state[name] = value; this.changed(); };
    this.slider = element("input", { type: "range", min: 0, max: this.steps.length - 1, value: this.steps.length - 1, class: "step",
      oninput: () => set("step")(this.steps[Number(this.slider.value)]) });
    this.stepText = element("output", { class: "step-text" });
    const classifiers = choice(this.classifiers.map((one) => [one, one]), set("classifier"), { class: "classifier" });
    this.cells = [];
    this.figures = header.runs.map((run, at) => this.matrix(run, at));
    this.key = element("div", { class: "key" });
    this.note = element("p", { class: "note-of" });
    this.heading = element("h3");
    this.chart = element("div", { class: "chart" });
    this.numbers = element("div");
    this.element = element("section", { class: "gaps", "aria-label": "gaps between levels" },
      element("div", { class: "bar" },
        labelled("measure", choice(Object.entries(header.measures), set("measure"), { class: "measure" })),
        this.classifiers.length > 1 ? labelled("classifier", classifiers) : null,
        this.steps.length > 1 ? labelled("training", this.slider) : null, this.stepText),
      element("div", { class: "matrices" }, ...this.figures), this.key,
      this.note,
      element("p", { class: "hint" }, "Click a cell: chart, map and predictions then speak of this pair of levels. “Right”: the share of objects whose ",
        "class the classifier sees in that level alone. CKA and cosine are of the features, whichever the classifier."),
      this.heading, element("div", { class: "course" }, this.chart, this.numbers));
  }

  matrix({ name }, run) {
    const levels = this.levels[run];
    const rows = levels.map((one, row) => {
      const cells = levels.map((other, column) => {
        const pair = row < column ? [one, other] : [other, one];
        // Both halves can be clicked; with the keyboard one comes to each pair once.
        const cell = row === column ? element("span", { class: "cell same" }) : button("", () => { this.state.pair = pair; this.changed(); }, {
          class: "cell", tabindex: row < column ? 0 : -1 });
        Object.assign(cell.dataset, { run, pair: pair.join("–") });
        this.cells.push({ cell, run, name, pair, isSame: row === column });
        return element("td", {}, cell);
      });
      return element("tr", {}, element("th", { scope: "row" }, one), ...cells);
    });
    const right = levels.map((level, at) => element("td", { class: "number", "data-level": level, "data-at": at }));
    const missing = element("p", { class: "missing" });
    const figure = element("figure", { class: "matrix", "data-run": run },
      element("figcaption", {}, name),
      element("table", {},
        element("thead", {}, element("tr", {}, element("td"), ...levels.map((level) => element("th", { scope: "col" }, level)))),
        element("tbody", {}, ...rows),
        element("tfoot", {}, element("tr", {}, element("th", { scope: "row" }, "right"), ...right))), missing);
    return Object.assign(figure, { right, missing });
  }

  draw() {
    const { measure, step, pair } = this.state;
    const name = this.header.measures[measure];
    const [colour, colours, low] = measure === "cosine" ? [diverging, DIVERGING, "−1"] : [cividis, CIVIDIS, "0"];
    for (const { cell, run, name: of, pair: [one, other], isSame } of this.cells) {
      const value = this.value(run, step, [one, other]);
      const text = asText(value, 2);
      cell.textContent = text;
      cell.style.cssText = typeof value === "number" ? `background: rgb(${colour(value)}); color: ${readableOn(colour(value))}` : "";
      if (isSame) continue;
      cell.setAttribute("aria-label", `${of}: ${one}–${other}, ${name} ${text}`);
      cell.setAttribute("aria-pressed", String(one === pair[0] && other === pair[1]));
    }
    this.figures.forEach((figure, run) => {
      const gap = this.gap(run, step, "disagreement");
      figure.right.forEach((cell, at) => { cell.textContent = asText(gap?.accuracy[at], 2); });
      figure.missing.textContent = this.why(run, step);
    });
    const [atLow, atHigh] = measure === "disagreement" ? ["always the same class", "never"] : ["", "alike"];
    this.key.replaceChildren(`${name} `, scale(`${low} ${atLow}`.trim(), `1 ${atHigh}`, colours));
    this.stepText.textContent = step === END ? "at the end of training" : `after ${step.toLocaleString("en")} steps`;
    this.slider.setAttribute("aria-valuetext", this.stepText.textContent);
    const isOfHead = measure === "disagreement" && this.state.classifier === "auxiliary head";
    this.note.textContent = isOfHead ? "A head that sees background in every level disagrees nowhere: look at what it gets right, too." : "";
    this.heading.textContent = `${pair.join("–")}${this.steps.length > 1 ? " along training" : ""}: ${name}`
      + (measure === "disagreement" ? ` of the ${this.state.classifier}` : "");
    this.chart.replaceChildren(...(this.steps.length > 1 ? [this.course(name)] : []));
    this.numbers.replaceChildren(this.table());
  }

  // Why a matrix is empty, or half so.
  why(run, step) {
    if (!this.gap(run, step, "cka")) return step === END ? "not trained to its end yet" : "no checkpoint of this step";
    return this.gap(run, step, "disagreement") ? "" : "no auxiliary head: trained without Consistent Supervision";
  }

  stepOf(run, step) {
    return step === END ? this.header.gaps.find((gap) => gap.run === run && gap.end)?.step : step;
  }

  // Values of the pair over the steps, a line for each run.
  course(name) {
    const { pair, step: now } = this.state;
    const lines = this.header.runs.map((_, run) => this.steps.map((step) => [this.stepOf(run, step), this.value(run, step, pair)])
      .filter(([, value]) => typeof value === "number"));
    const [width, height, left, bottom, top, right] = [460, 210, 44, 34, 10, 14];
    const values = lines.flat().map(([, value]) => value);
    const steps = lines.flat().map(([step]) => step);
    const lowest = Math.floor(Math.min(...values, Infinity) * 10 - 1e-6) / 10;
    const highest = Math.max(Math.ceil(Math.max(...values, -Infinity) * 10 + 1e-6) / 10, lowest + 0.2);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const x = (step) => left + ((step - first) / Math.max(last - first, 1)) * (width - left - right);
    const y = (value) => height - bottom - ((value - lowest) / (highest - lowest)) * (height - bottom - top);
    const description = `${name} of ${pair.join("–")} over the steps of training; the table beside it has the numbers`;
    const svg = shape("svg", { class: "lines", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": description });
    if (!values.length) return svg;
    const tick = highest - lowest > 0.55 ? 0.2 : highest - lowest > 0.25 ? 0.1 : 0.05;
    for (let value = Math.ceil(lowest / tick - 1e-6) * tick; value <= highest + 1e-6; value += tick) {
      svg.append(shape("line", { class: "rule", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(tick < 0.1 ? 2 : 1)));
    }
    const shown = [...new Set(steps)].sort((one, other) => one - other);
    // No more than fit beside one another.
    const every = Math.ceil(shown.length / 7);
    for (const step of shown.filter((_, at) => (shown.length - 1 - at) % every === 0)) {
      svg.append(shape("text", { x: x(step), y: height - bottom + 16, "text-anchor": "middle" }, step.toLocaleString("en")));
    }
    svg.append(shape("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, "steps"));
    const at = now === END ? last : now;
    svg.append(shape("line", { class: "now", x1: x(at), x2: x(at), y1: top, y2: height - bottom }));
    lines.forEach((line, run) => {
      const [colour, dash, sign] = COURSES[run % COURSES.length];
      svg.append(shape("polyline", { points: line.map(([step, value]) => `${x(step)},${y(value)}`).join(" "), stroke: colour, "stroke-dasharray": dash }),
        ...line.map(([step, value]) => shape("text", { class: "sign", x: x(step), y: y(value), fill: colour },
          shape("title", {}, `${this.header.runs[run].name}, ${step} steps: ${value.toFixed(3)}`), sign)));
    });
    return svg;
  }

  table() {
    const { pair, step: now } = this.state;
    const heads = this.steps.map((step) => element("th", { scope: "col", class: "number", "data-now": step === now },
      step === END ? "end" : step.toLocaleString("en")));
    const rows = this.header.runs.map(({ name }, run) => {
      const [colour, , sign] = COURSES[run % COURSES.length];
      const cells = this.steps.map((step) => element("td", { class: "number", "data-step": step, "data-now": step === now },
        asText(this.value(run, step, pair), 3)));
      return element("tr", { "data-run": run }, element("th", { scope: "row" },
        this.steps.length > 1 ? element("span", { style: `color: ${colour}`, "aria-hidden": "true" }, `${sign} `) : null, name), ...cells);
    });
    return element("table", { class: "values" }, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "steps"), ...heads)),
      element("tbody", {}, ...rows));
  }
}

// A minus sign rather than a hyphen; a dash where there is nothing.
function asText(value, digits) {
  return typeof value === "number" ? value.toFixed(digits).replace("-", "−") : "–";
}
