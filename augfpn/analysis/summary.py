"""Recorded results as a table of a few words a row, such as the README's.

Read from small files, so that anybody can make the table again: the runs' figures, and `differences.json`, which was
written while their detections were at hand.
"""

from __future__ import annotations

import json
from pathlib import Path

from augfpn.analysis.comparison import comparison, find_runs, gains
from augfpn.analysis.significance import Difference
from augfpn.errors import UserError
from augfpn.experiments.paper import TABLES
from augfpn.experiments.scales import run_as

_HEAD = """\
| | AP | over its baseline | 95 % interval | larger than noise | the paper's |
| --- | --- | --- | --- | --- | --- |
"""


def as_markdown(results: Path) -> str:
    """Every row that was run of every table: our AP in percent, and what it gains, ours and the paper's."""
    path = results / "differences.json"
    if not path.is_file():
        raise UserError(f"There is no {path}; `augfpn compare RUNS --out {path}` makes it.")
    content = json.loads(path.read_text(encoding="utf-8"))["differences"]
    differences = {id: Difference(**values) for id, values in content.items()}
    runs = find_runs(results)
    scale = runs[0].config.scale
    lines = []
    for table, described in TABLES.items():
        rows = comparison(runs, table)
        rows = rows[rows["AP"].notna()]
        if rows.empty:
            continue
        lines.append(f"| **{described.title}** | | | | | |")
        ours, papers = (gains(rows)[column].dropna().to_dict() for column in ("gain", "paper gain"))
        for id, of_row in rows.groupby("experiment", sort=False):
            method, ap = of_row["method"].iloc[0], of_row["AP"].astype(float).mean()
            seeds = f" ({len(of_row)} seeds)" if len(of_row) > 1 else ""
            cells = [f"{method}{seeds}", f"{ap:.1f}"]
            cells += _gain(ours.get(method), differences.get(run_as(str(id), scale)), papers.get(method))
            lines.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n"


def _gain(ours: float | None, difference: Difference | None, paper: float | None) -> list[str]:
    """The cells behind AP; empty for a baseline, and for rows whose baseline was not run."""
    if ours is None or paper is None:
        return ["", "", "", ""]
    if difference is None:
        return [_signed(ours), "", "", _signed(paper)]
    interval = f"{_signed(difference.low)} to {_signed(difference.high)}"
    return [_signed(ours), interval, difference.verdict, _signed(paper)]


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")
