// How one goes from image to image, and what keys do, in views of many images.

// `go(place)` goes to an image by its place, from 0; `step(by)` to a neighbour.
function imageControls(go, step) {
  const goto = element("input", { type: "number", min: 1, class: "goto", "aria-label": "number of the image", onchange: () => go(Number(goto.value) - 1) });
  return {
    previous: button("◀", () => step(-1), { class: "previous", "aria-label": "previous image", title: "previous image (←)" }),
    goto,
    status: element("output", { class: "place", "aria-live": "polite" }),
    next: button("▶", () => step(1), { class: "next", "aria-label": "next image", title: "next image (→)" }),
  };
}

// Does what `actions` has for the key of an event, unless it is meant for a control.
function pressed(event, actions) {
  const target = event.composedPath()[0];
  const isControl = target.matches?.("input:not([type=checkbox]), select");
  if (isControl || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = actions[event.key];
  if (!action) return;
  // Notebooks have shortcuts of their own.
  event.preventDefault();
  event.stopPropagation();
  action();
}
