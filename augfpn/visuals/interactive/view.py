"""What all interactive views are: a header, answers to requests, and one JavaScript module that shows them.

A view shows itself in three ways, all by the same module:

- in a notebook as a widget (anywidget), whose requests the kernel answers;
- in a page of `augfpn viewer`, whose requests the command answers;
- in a self-contained page, `View.to_html`, which holds the answers that it needs and loads nothing.

Where no script may run, as on GitHub, it is a picture.
"""

from __future__ import annotations

import base64
import html
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from PIL import Image as PILImage

from augfpn.engine.outcomes import Array
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.visuals.plots import name_of

if TYPE_CHECKING:
    from augfpn.visuals.interactive.widget import ViewWidget

# A request and an answer are dictionaries as JSON has them; a request says with `what` what it is about.
Request = dict[str, Any]
Answer = dict[str, Any]

# Images that a notebook keeps of a view.
KEPT_IMAGES = 8

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__name__.rpartition(".")[0]), autoescape=True, trim_blocks=True, lstrip_blocks=True
)

# The files of the module, in their order: one plain ES module without imports, as notebooks need it.
_FILES = (
    "elements",
    "stage",
    "source",
    "navigation",
    "fusion",
    "detections",
    "gap_matrices",
    "gap_in_image",
    "semantic_gap",
    "start",
)


class View(ABC):
    """An interactive view.

    Shown as the value of a notebook's cell it is a widget; a page of itself and a picture are kept with the notebook.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """What a page of it is called."""

    @abstractmethod
    def answer(self, request: Request) -> Answer:
        """What the module asks for. ``{"what": "header"}`` comes first; a UserError is shown to the reader."""

    @abstractmethod
    def held_requests(self, num_images: int) -> Iterator[Request]:
        """The requests that a page with so many images has to answer by itself, apart from the header."""

    @abstractmethod
    def held_header(self, num_images: int) -> Answer:
        """The header of such a page."""

    @abstractmethod
    def picture(self) -> PILImage.Image:
        """What is shown where no script runs."""

    def to_html(self, num_images: int = 50) -> str:
        """A page that opens from disk and needs no network: up to ``num_images`` images with all that can be asked."""
        return self._page(self._fragment(num_images, self._jpeg()), asks="'none'")

    def to_served_html(self, token: str) -> str:
        """A page that asks the command that served it, by `augfpn.visuals.interactive.server`."""
        return self._page(_element(f"serverSource({json.dumps(token)})"), asks="'self'")

    def _fragment(self, num_images: int, picture: str) -> str:
        """`to_html` as a part of another page. Until its script runs, it is the ``picture``, a JPEG in base64."""
        held = {_key({"what": "header"}): {"answer": self.held_header(num_images)}}
        held |= {_key(request): self._answer_or_error(request) for request in self.held_requests(num_images)}
        # Nothing in the data can end the element that it stands in.
        data = json.dumps(held).replace("<", "\\u003c")
        shown = f'<img src="data:image/jpeg;base64,{picture}" alt="{html.escape(repr(self))}">'
        return _element(f"pageSource({data})", shown)

    def widget(self) -> ViewWidget:
        """A widget of the view, for use among other widgets; needs the extra ``notebooks``."""
        try:
            from augfpn.visuals.interactive.widget import ViewWidget
        except ImportError as error:
            raise UserError(
                "Widgets need anywidget and ipywidgets: pip install 'augfpn[notebooks]'. "
                "`to_html()` makes a page without them."
            ) from error
        return ViewWidget(self)

    def kept_forms(self) -> dict[str, str]:
        """What a notebook keeps of the view for those without a kernel, by its kind: a page, a picture, a text."""
        picture = self._jpeg()
        return {"text/html": self._fragment(KEPT_IMAGES, picture), "image/jpeg": picture, "text/plain": repr(self)}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        try:
            live = self.widget()._repr_mimebundle_()
        except UserError:
            return self.kept_forms()
        return {**(live[0] if live else {}), **self.kept_forms()}

    def _page(self, element: str, asks: str) -> str:
        return _TEMPLATES.get_template("page.html").render(title=self.title, element=element, asks=asks)

    def _answer_or_error(self, request: Request) -> Answer:
        try:
            return {"answer": self.answer(request)}
        except UserError as error:
            return {"error": str(error)}

    def _jpeg(self) -> str:
        return jpeg(self.picture())


def _element(source: str, fallback: str = "") -> str:
    """An element that becomes the view when its script runs, which begins the module with a source of answers."""
    # In a page nobody imports the module.
    inline = module().replace("export default", "const view =")
    return _TEMPLATES.get_template("element.html").render(module=inline, source=source, fallback=fallback)


@cache
def module() -> str:
    """The JavaScript module, with the styles."""
    folder = resources.files(__package__) / "module"
    style = (folder / "views.css").read_text(encoding="utf-8")
    parts = ((folder / f"{name}.js").read_text(encoding="utf-8") for name in _FILES)
    return "\n".join([f"const STYLE = {json.dumps(style)};", *parts])


def _key(request: Request) -> str:
    """As the module makes it (source.js)."""
    return json.dumps([[name, request[name]] for name in sorted(request)], separators=(",", ":"))


def position_in(request: Request, name: str, num: int) -> int:
    """A position in a request; a UserError if there is none such."""
    position = request.get(name)
    if not isinstance(position, int) or not 0 <= position < num:
        raise UserError(f"There is no {name} {position!r}: they are counted from 0 to {num - 1}.")
    return position


def encoded(values: Array, kind: str) -> str:
    """Numbers as the module reads them: little-endian bytes in base64; ``kind`` as in NumPy."""
    return base64.b64encode(values.astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()


def rounded(weights: Array) -> str:
    """Values in 0-1 as bytes: they are seen as colours."""
    return encoded(np.rint(np.clip(weights, 0, 1) * 255), "uint8")


def signed(values: Array) -> str:
    """Values in −1 to 1 likewise, as signed bytes in units of 1/127: 0 stays 0."""
    return encoded(np.rint(np.clip(values, -1, 1) * 127), "int8")


def names_of(runs: Sequence[Run]) -> list[str]:
    """What the runs are called beside one another; with their paths where several are called the same."""
    names = [name_of(run) for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({run.path})" for name, run in zip(names, runs, strict=True)]


def jpeg(picture: PILImage.Image) -> str:
    """An image as a JPEG in base64."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()
