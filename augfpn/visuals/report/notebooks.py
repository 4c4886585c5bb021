"""Executed notebooks as pages that need no network."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from augfpn.engine.runs import Run
from augfpn.visuals.plots import name_of

# What an output is shown as, if it is there in several forms. Widgets, which would load their code from a network, are
# not among them: views have themselves as HTML, too.
_FORMS = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain")


# In the prose of notebooks; neither within a page nor elsewhere in the world.
_RELATIVE_LINK = re.compile(r'<a href="(?![#/]|[a-z]+:)([^"]+)"[^>]*>(.*?)</a>', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ReportNotebook:
    """An executed notebook.

    Attributes:
        name: of its files in the report, without their suffix.
        title: its heading, or its file's name.
        run: the one that it made, if it made one.
        result: the file of the figures that it came to.
        problem: why it cannot be shown, or that it did not run to its end.
        body: its cells and outputs as HTML; None if it cannot be shown.
    """

    path: Path
    name: str
    title: str
    run: Run | None = None
    result: Path | None = None
    problem: str | None = None
    body: str | None = None


def report_notebooks(folders: Sequence[Path], runs: Sequence[Run]) -> list[ReportNotebook]:
    """Those in the ``notebooks`` of the folders, each with its result in ``results``.

    That of a run stands there as the run does in the folder: ``notebooks/table2/cs/seed0.ipynb``.
    """
    notebooks, names = [], set[str]()
    for path, name, run, result in _found(folders, runs):
        # Notebooks of several folders can have the same name.
        free = next(
            n for number in itertools.count(1) if (n := name if number == 1 else f"{name}-{number}") not in names
        )
        names.add(free)
        notebooks.append(_read(path, free, run, result))
    return [one if one.body is None else replace(one, body=_with_links(one.body, names)) for one in notebooks]


def _with_links(body: str, names: Container[str]) -> str:
    """Links between notebooks lead to their pages; those to files that the report has not become plain text."""

    def link(found: re.Match[str]) -> str:
        target, text = found.groups()
        name = target.removesuffix(".ipynb")
        return f'<a href="{name}.html">{text}</a>' if name != target and name in names else text

    return _RELATIVE_LINK.sub(link, body)


def highlighting() -> str:
    """The style of code, for light and dark pages."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "monokai"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _found(folders: Sequence[Path], runs: Sequence[Run]) -> Iterator[tuple[Path, str, Run | None, Path | None]]:
    of_run = {run.path.resolve(): run for run in runs}
    for folder in folders:
        for path in sorted((folder / "notebooks").rglob("*.ipynb")):
            name = path.relative_to(folder / "notebooks").with_suffix("")
            result = folder / "results" / f"{name}.json"
            run = of_run.get((folder / name).resolve())
            yield path, "_".join(name.parts), run, result if result.is_file() else None


def _read(path: Path, name: str, run: Run | None, result: Path | None) -> ReportNotebook:
    title, problem, body = path.name, None, None
    try:
        notebook = nbformat.read(path, as_version=4)
        headings = (
            line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
        )
        title = next((line[2:].strip() for line in headings if line.startswith("# ")), title)
        if notebook.metadata.get("papermill", {}).get("exception"):
            problem = "It did not run to its end."
        exporter = HTMLExporter(
            template_name="basic", config=Config({"NbConvertBase": {"display_data_priority": list(_FORMS)}})
        )
        # Its warnings are about alternative texts, which a plot in a notebook has not.
        exporter.log.setLevel(logging.ERROR)
        body, _ = exporter.from_notebook_node(notebook)
    except Exception as error:  # whatever is wrong with the file, the others can be shown
        problem = f"It cannot be read: {error}"
    if run is not None:
        title = f"{name_of(run)}: {title}"
    return ReportNotebook(path=path, name=name, title=title, run=run, result=result, problem=problem, body=body)
