// How a view begins, in a notebook (anywidget calls `render`) and in a page (which calls `start`).

const VIEWS = { detections: DetectionViewer, "semantic-gap": SemanticGapExplorer };

// Keeps the view's styles and the page's apart.
async function start(place, source) {
  const shadow = place.attachShadow({ mode: "open" });
  const root = element("div", { class: "view", tabindex: 0, "data-lm-suppress-shortcuts": "true" });
  shadow.append(element("style", {}, STYLE), root);
  try {
    const header = await source.request({ what: "header" });
    filled(root, { role: "region", "aria-label": header.title, "data-view": header.view }, []);
    const view = new VIEWS[header.view](root, source, header);
    root.dataset.ready = "true";
    return view;
  } catch (error) {
    root.append(element("p", { class: "fault", role: "alert" }, error.message));
    throw error;
  }
}

async function render({ model, el }) {
  const source = kernelSource(model);
  const place = element("div");
  el.append(place);
  const silent = setTimeout(() => place.shadowRoot?.firstElementChild?.nextSibling.append(
    element("p", { class: "hint" }, "No kernel has answered yet. Run the cell again if this stays.")), 8000);
  const view = start(place, source).finally(() => clearTimeout(silent));
  model.on("msg:custom", async ({ changed }) => changed && (await view).reload());
}

export default { render };
