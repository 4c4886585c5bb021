// The semantic-gap explorer: matrices, course, map and predictions of the same pair of levels.

class SemanticGapExplorer {
  constructor(root, source, header) {
    Object.assign(this, { root, source });
    root.addEventListener("keydown", (event) => this.key(event));
    this.begin(header);
  }

  begin(header) {
    const state = {};
    this.matrices = new GapMatrices(header, state, () => this.draw());
    this.image = new GapInImage(this.root, this.source, header, state);
    this.root.replaceChildren(this.matrices.element, this.image.element,
      element("p", { class: "hint" }, "Keys: Tab to the cells of a matrix, ← → image, ↑ ↓ object, 0 whole image, Esc nothing chosen."));
    this.draw();
    this.image.go(0);
  }

  draw() {
    this.matrices.draw();
    this.image.draw();
  }

  key(event) {
    const { image } = this;
    pressed(event, {
      ArrowRight: () => image.step(1), ArrowLeft: () => image.step(-1), ArrowDown: () => image.selectNext(1), ArrowUp: () => image.selectNext(-1),
      0: () => image.window.fit(), Escape: () => image.select(null),
    });
  }

  // What it shows has changed, as by the controls of a notebook.
  async reload() {
    this.source.forget();
    this.begin(await this.source.request({ what: "header" }));
  }
}
