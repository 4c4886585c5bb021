"""How often a run's detections are right, and wrong in which way (`augfpn.engine.outcomes`), over all images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from augfpn.engine.outcomes import SCORES_IN_ONE, Array, Outcome, Overview
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
    missed = ~_is_found(overview, threshold) & (overview.objects["crowd"] == 0)
    return pd.Series({**counts, MISSED: int(missed.sum())}, name="count")


def found_by_which(run: Run, other: Run, threshold: float) -> pd.Series:
    """How many objects both runs find, only one of them, or neither; crowds left out. For runs of the same data."""
    overviews = [Outcomes(some).overview() for some in (run, other)]
    crowd, others_crowd = (overview.objects["crowd"].astype(bool) for overview in overviews)
    if not np.array_equal(crowd, others_crowd):
        raise UserError(f"{run.path} and {other.path} were evaluated on different objects; name runs of one data set.")
    one, two = (_is_found(overview, threshold) for overview in overviews)
    counts = {"both": one & two, "only the first": one & ~two, "only the second": two & ~one, "neither": ~one & ~two}
    return pd.Series({name: int((which & ~crowd).sum()) for name, which in counts.items()}, name="objects")


def _is_found(overview: Overview, threshold: float) -> Array:
    """``(N)`` of all objects: whether a detection above the threshold was matched with it."""
    found: Array = overview.found_with() >= max(round(threshold * SCORES_IN_ONE), 0)
    return found


def outcome_table(runs: Sequence[Run], names: Sequence[str], threshold: float) -> pd.DataFrame:
    """`outcome_counts` of several runs, a column each."""
    return pd.DataFrame(
        {name: outcome_counts(run, threshold) for name, run in zip(names, runs, strict=True)}
    ).rename_axis("detections")
