"""The paper's experiments with its published figures: every row of Tables 1 to 5, and what Section 4.5 measures.

Every row that can be run is a baseline with its difference applied, so the ablation is the difference. Rows of several
tables can be the same model; `augfpn.experiments.scales.run_as` says as which row it is run.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from augfpn.errors import UserError
from augfpn.experiments import table1, table2, table3, table4, table5
from augfpn.experiments.rows import Experiment, Row


@dataclass(frozen=True)
class Table:
    """``data``: the part of COCO that its figures are of."""

    title: str
    data: str


TABLES = {
    "table1": Table("Table 1. Comparison with the state-of-the-art methods", "test-dev"),
    "table2": Table("Table 2. Effect of each component", "val2017"),
    "table3": Table("Table 3. Ablation studies of Consistent Supervision", "val2017"),
    "table4": Table("Table 4. Ablation studies of Residual Feature Augmentation", "val2017"),
    "table5": Table("Table 5. Ablation studies of Soft RoI Selection", "val2017"),
}

# In the paper's order.
PAPER: dict[str, Row] = {row.id: row for table in (table1, table2, table3, table4, table5) for row in table.ROWS}

# The rows that can be run.
EXPERIMENTS: dict[str, Experiment] = {id: row for id, row in PAPER.items() if isinstance(row, Experiment)}


@dataclass(frozen=True, kw_only=True)
class PublishedRuntime:
    """Hours of training an epoch (8 GPUs, 16 images a step), and images a second at inference, on Tesla V100."""

    hours_per_epoch: float
    images_per_second: float


SECTION_4_5 = {
    "table2/baseline": PublishedRuntime(hours_per_epoch=0.9, images_per_second=13.4),
    "table2/cs+rfa+srs": PublishedRuntime(hours_per_epoch=1.1, images_per_second=11.1),
}


def find_experiment(id: str) -> Experiment:
    """The experiment of that id; a UserError lists the valid ones."""
    row = PAPER.get(id)
    if isinstance(row, Experiment):
        return row
    if row is not None:
        raise UserError(f"{id} is a row that the paper quotes from others ({row.title}): there is nothing to run.")
    raise UserError(unknown("experiment", id, EXPERIMENTS))


def unknown(kind: str, name: str, valid: object) -> str:
    """A message for a name that is not among the valid ones, with the closest one first."""
    names = list(valid)  # type: ignore[call-overload]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"There is no {kind} {name!r}{hint} Valid: {', '.join(names)}"
