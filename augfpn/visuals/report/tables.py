"""The paper's tables as the report shows them: every row, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from augfpn.analysis.comparison import comparison, gains, is_ablation, one_of_each, runs_in
from augfpn.analysis.significance import Difference
from augfpn.engine.runs import Run
from augfpn.experiments.paper import EXPERIMENTS, TABLES
from augfpn.experiments.scales import run_as
from augfpn.visuals import plots
from augfpn.visuals.report.pictures import Picture, picture


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """A row of the paper; its figures are in percent, and None where there is none.

    ``figures``: ours, means over the seeds, each with the paper's. ``spread``: the standard deviation of our AP over
    the seeds. ``gain``: of our AP over the baseline's; ``difference`` is the same with its interval, where there are
    detections to draw from.
    """

    id: str
    method: str
    num_seeds: int
    figures: dict[str, tuple[float | None, float | None]]
    spread: float | None
    gain: float | None
    difference: Difference | None
    paper_gain: float | None

    @property
    def state(self) -> str:
        """Why there is nothing of ours; empty where there is."""
        return "" if self.num_seeds else "not run" if self.id in EXPERIMENTS else "quoted"


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table of the paper; without pictures where nothing was run but baselines."""

    id: str
    title: str
    data: str
    rows: list[ReportRow]
    pictures: list[Picture]

    @property
    def num_run(self) -> int:
        return sum(row.num_seeds > 0 for row in self.rows)


def report_table(id: str, runs: Sequence[Run], differences: Mapping[str, Difference]) -> ReportTable:
    """One table of the paper. ``differences``: to the baselines, by the ids that their runs have."""
    table = comparison(runs, id)
    of_run = {row.id: differences.get(run_as(row.id, runs[0].config.scale)) for row in EXPERIMENTS.values()}
    gain_of = gains(table)["gain"]
    rows = []
    for row_id in table["experiment"].unique():
        of_row = table[table["experiment"] == row_id]
        first, ours, compared = of_row.iloc[0], of_row[of_row["AP"].notna()], is_ablation(row_id)
        names = [name for name in table.columns if f"paper {name}" in table.columns and name != "gain"]
        rows.append(
            ReportRow(
                id=row_id,
                method=first["method"],
                num_seeds=len(ours),
                figures={
                    name: (_figure(_floats(ours[name]).mean()), _figure(first[f"paper {name}"])) for name in names
                },
                spread=_figure(_floats(ours["AP"]).std()),
                gain=_figure(gain_of[first["method"]]) if compared else None,
                difference=of_run[row_id] if compared else None,
                paper_gain=_figure(first["paper gain"]) if compared else None,
            )
        )
    has_gains = any(row.gain is not None for row in rows)
    described = TABLES[id]
    pictures = _pictures(described.title, table, one_of_each(runs_in(id, runs))) if has_gains else []
    return ReportTable(id=id, title=described.title, data=described.data, rows=rows, pictures=pictures)


def _pictures(title: str, table: pd.DataFrame, runs: Sequence[Run]) -> list[Picture]:
    gained = f"{title}: the difference in AP to the baseline of each row, ours beside the paper's"
    curves = f"{title}: the detector's loss and the learning rate over the steps, the first seed of each row"
    return [picture(plots.ap_beside_paper(table), gained), picture(plots.training_curves(runs), curves)]


def _floats(column: pd.Series) -> pd.Series:
    """None, which pandas keeps as an object, becomes NaN."""
    return column.astype(float)


def _figure(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
