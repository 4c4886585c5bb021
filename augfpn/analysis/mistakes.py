"""How often a run's detections are right, and wrong in which way (`augfpn.engine.outcomes`), over all images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from augfpn.engine.outcomes import SCORES_IN_ONE, Array, Outcome
from augfpn.engine.outcomes_file import Outcomes
from augfpn.engine.runs import Run
from augfpn.errors import UserError

MISSED = "missed"


def outcome_counts(run: Run, threshold: float) -> pd.Series:
    """Detections of each kind with a score of at least ``threshold``, and the objects that none of them was matched
    with."""
    overview = Outcomes(run).overview()
    kinds = overview.found["outcomes"][overview.found["scores"] >= round(threshold * SCORES_IN_ONE)]
    counts = {str(kind): int((kinds == kind).sum()) for kind in Outcome}
    found, crowd = _is_found(run, threshold)
    return pd.Series({**counts, MISSED: int((~found & ~crowd).sum())}, name="count")


def found_by_which(run: Run, other: Run, threshold: float) -> pd.Series:
    """How many objects both runs find, only one of them, or neither; crowds left out. For runs of the same data."""
    (one, crowd), (two, others_crowd) = (_is_found(some, threshold) for some in (run, other))
    if len(one) != len(two) or (crowd != others_crowd).any():
        raise UserError(f"{run.path} and {other.path} were evaluated on different objects; name runs of one data set.")
    counts = {"both": one & two, "only the first": one & ~two, "only the second": two & ~one, "neither": ~one & ~two}
    return pd.Series({name: int((which & ~crowd).sum()) for name, which in counts.items()}, name="objects")


def _is_found(run: Run, threshold: float) -> tuple[Array, Array]:
    """``(N)`` of all objects: whether a detection above the threshold was matched with it; whether it is a crowd."""
    overview = Outcomes(run).overview()
    found_by = overview.objects["found_by"]
    # Positions among an image's detections become positions among all.
    first = np.repeat(overview.found_starts[:-1], np.diff(overview.object_starts))
    is_found = found_by >= 0
    is_found[is_found] = overview.found["scores"][(first + found_by)[is_found]] >= round(threshold * SCORES_IN_ONE)
    return is_found, overview.objects["crowd"].astype(bool)


def outcome_table(runs: Sequence[Run], names: Sequence[str], threshold: float) -> pd.DataFrame:
    """`outcome_counts` of several runs, a column each."""
    return pd.DataFrame(
        {name: outcome_counts(run, threshold) for name, run in zip(names, runs, strict=True)}
    ).rename_axis("detections")
