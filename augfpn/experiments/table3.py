"""Table 3: which levels Consistent Supervision supervises, and with which weight, on COCO val2017."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from augfpn.experiments.config import ConsistentSupervisionConfig
from augfpn.experiments.rows import BASELINE, Experiment, Published

# "single level supervision … only applies supervision signals to the feature map that RoIs are assigned to according to
# the assignment strategy of RoIs in FPN" (Section 4.4).
_LEVELS: dict[str, Literal["all", "assigned"]] = {"single level": "assigned", "all level": "all"}


def _row(setting: str, weight: float, *figures: float) -> Experiment:
    """``weight``: the table's second column, λ of Equation 1 (`augfpn.experiments.inconsistencies`)."""
    is_baseline = setting == "no supervision"
    supervision = None if is_baseline else ConsistentSupervisionConfig(weight=weight, levels=_LEVELS[setting])
    return Experiment(
        id="table3/none" if is_baseline else f"table3/{setting.replace(' ', '_')}_{weight}",
        title="FPN" if is_baseline else f"CS, {setting}, λ {weight}",
        settings={"Setting": setting, "λ": str(weight)},
        model=replace(BASELINE, consistent_supervision=supervision),
        published=Published(*figures),
        baseline="table3/none",
    )


ROWS = (
    _row("no supervision", 0.0, 36.3, 58.3, 39.0, 21.4, 40.3, 46.6),
    _row("single level", 1.2, 36.7, 58.5, 39.7, 21.3, 40.1, 47.3),
    _row("single level", 1.0, 37.0, 58.9, 40.2, 21.8, 40.4, 47.5),
    _row("single level", 0.5, 36.9, 58.7, 40.0, 21.7, 40.9, 47.4),
    _row("single level", 0.25, 36.7, 58.7, 39.8, 21.5, 40.3, 47.2),
    _row("all level", 0.5, 36.9, 58.8, 39.9, 21.8, 40.7, 47.1),
    _row("all level", 0.25, 37.2, 59.2, 40.1, 21.8, 40.9, 47.8),
    _row("all level", 0.125, 37.1, 58.9, 40.1, 22.3, 40.9, 47.4),
)
