"""The paper's tables as data and as text, with what was run here."""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from augfpn.experiments.checks import require
from augfpn.experiments.config import RunConfig
from augfpn.experiments.inconsistencies import INCONSISTENCIES, notes_of
from augfpn.experiments.paper import PAPER, TABLES
from augfpn.experiments.rows import FIGURES, Experiment, Row
from augfpn.experiments.scales import SCALES, plan, run_as


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run, in the folder ``path``, came to: COCO's figures, 0-1.

    A UserError if figures are missing, or if its description is of nothing that there is.
    """

    path: str
    config: RunConfig
    metrics: Mapping[str, float | None]

    def __post_init__(self) -> None:
        missing = [name for name in self.names if name not in self.metrics]
        require(not missing, f"{self.path} has no figures {', '.join(missing)}.")

    @property
    def names(self) -> list[str]:
        return [*FIGURES, *(f"mask_{name}" for name in FIGURES if self.config.data.masks)]

    @property
    def as_planned(self) -> bool:
        """Whether data and training are the scale's own; at the paper's scale, any folder can be COCO's."""
        config = self.config
        root = None if SCALES[config.scale].data.synthetic is not None else config.data.root
        planned = plan(config.experiment, config.scale, seed=config.seed, data=root, strict=config.data.strict)
        return planned == config


def entries(results: Iterable[Result] = ()) -> list[dict[str, Any]]:
    """Every row of Tables 1 to 5 in the paper's order, as JSON can have it. Figures are in percent.

    ``published``: AP to APl, for Mask R-CNN mask_AP to mask_APl too. ``data``: the part of COCO that they are of.
    ``run_as``: the row under whose id the model is run at the paper's scale; None for rows that the paper quotes.
    ``notes``: what does not fit in the paper. ``results``: the runs of this row's model, with the row that they are
    named after, their scale, seed and folder of data (None for synthetic images); ``as_planned`` tells whether data and
    training are the scale's own.
    """
    results = list(results)
    return [_entry(row) | {"results": _results_of(row, results)} for row in PAPER.values()]


def _entry(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "table": row.table,
        "title": row.title,
        "method": row.method,
        "backbone": row.backbone,
        "schedule": row.schedule,
        "settings": row.settings,
        "data": TABLES[row.table].data,
        "published": asdict(row.published)
        | ({} if row.published_masks is None else {f"mask_{k}": v for k, v in asdict(row.published_masks).items()}),
        "gain": row.gain,
        "mask_gain": row.mask_gain,
        "runnable": isinstance(row, Experiment),
        "baseline": row.baseline if isinstance(row, Experiment) else None,
        "run_as": run_as(row.id, "paper") if isinstance(row, Experiment) else None,
        "notes": [INCONSISTENCIES[number - 1].what for number in notes_of(row.id)],
    }


def _results_of(row: Row, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Those of the row's model, whichever row its runs are named after."""
    if not isinstance(row, Experiment):
        return []
    return [_result(one) for one in results if one.config.experiment == run_as(row.id, one.config.scale)]


def _result(result: Result) -> dict[str, Any]:
    config = result.config
    figures = {name: result.metrics[name] for name in result.names}
    return {
        "run_as": config.experiment,
        "scale": config.scale,
        "seed": config.seed,
        "data": config.data.root,
        "run": result.path,
        "as_planned": result.as_planned,
        **{name: None if figure is None else round(100 * figure, 2) for name, figure in figures.items()},
    }


def as_text(listed: Sequence[dict[str, Any]]) -> str:
    """Entries, printed like the paper's tables: the columns of each table, its figures, and ours."""
    blocks = []
    for name, table in TABLES.items():
        rows = [entry for entry in listed if entry["table"] == name]
        if rows:
            blocks.append(f"{table.title} on COCO {table.data}\n{_table_text(rows)}")
    if any(entry["notes"] for entry in listed):
        blocks.append(_notes_text(listed))
    return "\n\n".join(blocks)


def _table_text(rows: Sequence[dict[str, Any]]) -> str:
    settings = list(rows[0]["settings"])
    head = ["id", *(settings or ["Method", "Backbone", "Schedule"]), *FIGURES, "here"]
    lines = [head]
    for row in rows:
        marks = "".join(f" ({number})" for number in notes_of(row["id"]))
        columns = [row["settings"][name] for name in settings] or [row["method"], row["backbone"], row["schedule"]]
        lines.append([row["id"] + marks, *columns, *_figures(row, "", row["gain"]), _here(row, "AP")])
        if "mask_AP" in row["published"]:
            empty = [""] * (len(columns) - 1)
            lines.append(["", "masks", *empty, *_figures(row, "mask_", row["mask_gain"]), _here(row, "mask_AP")])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _figures(row: dict[str, Any], prefix: str, gain: float | None) -> list[str]:
    figures = [f"{row['published'][prefix + name]:.2f}".removesuffix("0") for name in FIGURES]
    if gain is not None:
        figures[0] += f" [+{gain}]"
    return figures


def _here(row: dict[str, Any], figure: str) -> str:
    """Our mean over the seeds for each scale, with its standard deviation; or why there is none.

    Of several runs with the same data and seed, the first counts.
    """
    if not row["runnable"]:
        return "quoted"
    of_seeds: dict[tuple[str, str | None, str], dict[int, float]] = defaultdict(dict)
    for result in row["results"]:
        if result["as_planned"] and result[figure] is not None:
            of_seeds[result["scale"], result["data"], result["run_as"]].setdefault(result["seed"], result[figure])
    texts = []
    for (scale, _, same), by_seed in of_seeds.items():
        values = list(by_seed.values())
        spread = f" ± {statistics.stdev(values):.1f}, {len(values)} seeds" if len(values) > 1 else ""
        only_here = f" (as {same})" if same not in (row["id"], row["run_as"]) else ""
        texts.append(f"{scale} {statistics.mean(values):.1f}{spread}{only_here}")
    if row["run_as"] != row["id"] and figure == "AP":
        texts.append(f"= {row['run_as']}")
    return "; ".join(texts) or "–"


def _notes_text(listed: Sequence[dict[str, Any]]) -> str:
    numbers = sorted({number for entry in listed for number in notes_of(entry["id"])})
    notes = [f"({number}) {INCONSISTENCIES[number - 1].what} {INCONSISTENCIES[number - 1].here}" for number in numbers]
    return "\n".join(textwrap.fill(note, 120, subsequent_indent="    ") for note in notes)
