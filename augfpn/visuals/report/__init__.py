"""The report: a folder of pages that show what a set of runs found. They hold all they show and need no network.

index.html              the paper's tables with our rows, and FPN and AugFPN side by side
runs.html               every run: where it comes from, and what it took
notebooks/NAME.html     each executed notebook, with NAME.ipynb and, where there is one, its result NAME.json
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import jinja2
import torch

from augfpn.analysis.comparison import check_comparable, evaluated_runs, tables_with
from augfpn.analysis.significance import differences_to_baselines
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.files import folder_written_whole, write_text
from augfpn.visuals.drawing import LEAST_SCORE
from augfpn.visuals.report.notebooks import highlighting, report_notebooks
from augfpn.visuals.report.runs import report_run
from augfpn.visuals.report.side_by_side import chosen_pair, pictures_of
from augfpn.visuals.report.tables import report_table

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader(__name__), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def write_report(folders: Sequence[Path], out: Path, device: torch.device) -> Path:
    """Writes the report about all evaluated runs in or below ``folders`` to the folder ``out``; gives its first page.

    Runs are of one scale and data set. An older report in ``out`` stays until the new one is whole.
    """
    runs = _find_runs(folders)
    with folder_written_whole(out) as site:
        with_detections = [run for run in runs if (run.path / "detections.json").is_file()]
        differences = differences_to_baselines(with_detections)
        pair = chosen_pair(runs)
        notebooks = report_notebooks(folders, runs)
        common = {"scale": runs[0].config.scale, "runs": [report_run(run) for run in runs], "notebooks": notebooks}
        index = _PAGES.get_template("index.html").render(
            common,
            tables=[report_table(table, runs, differences) for table in tables_with(runs)],
            pair=[report_run(run) for run in pair],
            pictures=pictures_of(pair, device) if pair else {},
            least_score=LEAST_SCORE,
        )
        write_text(site / "index.html", index)
        write_text(site / "runs.html", _PAGES.get_template("runs.html").render(common))
        for notebook in notebooks:
            copy = site / "notebooks" / f"{notebook.name}.ipynb"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(notebook.path, copy)
            if notebook.result is not None:
                shutil.copyfile(notebook.result, copy.with_suffix(".json"))
            if notebook.body is not None:
                page = _PAGES.get_template("notebook.html").render(notebook=notebook, highlighting=highlighting())
                write_text(copy.with_suffix(".html"), page)
    return out / "index.html"


def _find_runs(folders: Sequence[Path]) -> list[Run]:
    """All evaluated runs in or below the folders, each once; a UserError if they cannot stand in the same tables."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name those with your runs.")
    runs = list({run.path.resolve(): run for folder in folders for run in evaluated_runs(folder)}.values())
    if not runs:
        raise UserError(f"There is no evaluated run in {', '.join(map(str, folders))}; make some with `make demo`.")
    check_comparable(runs)
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        first = seen.setdefault((run.config.experiment, run.config.seed), run)
        if first is not run:
            raise UserError(
                f"{first.path} and {run.path} are the same experiment with the same seed; name folders with only one."
            )
    return runs


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _printed(value: float) -> str:
    """As the paper prints it, with one decimal and once with two."""
    return f"{value:.2f}".removesuffix("0")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")


def _duration(seconds: float | None) -> str:
    """In hours, minutes and seconds."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


_PAGES.filters.update(figure=_figure, printed=_printed, signed=_signed, duration=_duration)
