"""One page that shows what a set of runs found. It holds its pictures itself and needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
import torch
from torch import Tensor

from augfpn.analysis.comparison import check_comparable, comparison, tables_with
from augfpn.analysis.level_ratios import level_ratios_of_run
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.experiments.paper import TABLES
from augfpn.files import write_text
from augfpn.visuals import plots
from augfpn.visuals.plots import name_of
from augfpn.visuals.samples import sample_detections, sample_fusion, sample_images

# Images that are shown with detections.
SHOWN = 4

_ENVIRONMENT = jinja2.Environment(loader=jinja2.PackageLoader("augfpn.visuals"), autoescape=True)


@dataclass(frozen=True)
class _Picture:
    source: str
    description: str


def write_report(runs: list[Run], out: Path, device: torch.device) -> Path:
    """Writes the page about evaluated runs, of one scale, data set and training, to ``out``."""
    check_comparable(runs)
    if len({name_of(run) for run in runs}) < len(runs):
        raise UserError("Two of these runs are the same experiment with the same seed; name one of them.")
    tables = {TABLES[table].title: _table_html(comparison(runs, table)) for table in tables_with(runs)}
    samples = sample_images(runs[0], SHOWN)
    columns: dict[str, Sequence[dict[str, Tensor]]] = {"ground truth": samples.ground_truth}
    columns |= {name_of(run): sample_detections(run, samples, device) for run in runs}
    names = [category.name for category in runs[0].categories]
    figures = {
        "curves": (plots.training_curves(runs), "Loss and learning rate of each run over the steps"),
        "losses": (plots.losses_by_component(runs[-1]), f"Losses of {name_of(runs[-1])} by component"),
        "detections": (
            plots.side_by_side(samples.images, columns, names),
            "Ground truth and the detections of each model on the same images",
        ),
    }
    fused = next((run for run in runs if getattr(run.config.model, "soft_roi_selection", None) is not None), None)
    if fused is not None:
        ratios = level_ratios_of_run(fused, device)
        figures["ratios"] = (plots.level_ratio_bars(ratios), "Share of each level in the RoIs of each level")
        rois = sample_fusion(fused, samples, device)
        if rois.crops:
            figures["weights"] = (
                plots.weight_maps(rois.crops, rois.weights, rois.titles),
                "The surest detection of each image with its four weight maps",
            )
    page = _ENVIRONMENT.get_template("report.html").render(
        runs=runs,
        names=[name_of(run) for run in runs],
        scale=runs[0].config.scale,
        tables=tables,
        pictures={name: _picture(figure, description) for name, (figure, description) in figures.items()},
    )
    return write_text(out, page)


def _table_html(table: pd.DataFrame) -> str:
    """The rows that were run; every figure of ours with the paper's in small print below it."""
    figures = [name.removeprefix("paper ") for name in table.columns if name.startswith("paper ")]
    head = "".join(f"<th>{name}</th>" for name in ["", *figures])
    rows = []
    for _, row in table[table["AP"].notna()].iterrows():
        seed = f" <small>seed {row['seed']:.0f}</small>" if row["seed"] else ""
        cells = [f"<th>{html.escape(row['method'])}{seed}</th>"]
        for name in figures:
            ours, paper = ("–" if pd.isna(figure) else f"{figure:.1f}" for figure in (row[name], row[f"paper {name}"]))
            cells.append(f"<td>{ours}<br><small>paper {paper}</small></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _picture(figure: plots.Figure, description: str) -> _Picture:
    return _Picture(f"data:image/png;base64,{base64.b64encode(figure.png()).decode()}", description)
