"""Table 2: the effect of each component, on COCO val2017."""

from __future__ import annotations

from dataclasses import replace

from augfpn.experiments.config import (
    ConsistentSupervisionConfig,
    ResidualFeatureAugmentationConfig,
    SoftRoISelectionConfig,
)
from augfpn.experiments.rows import BASELINE, Experiment, Published


def _row(components: str, *figures: float) -> Experiment:
    """``components``: those that are switched on, joined by "+"."""
    chosen = components.split("+")
    return Experiment(
        id=f"table2/{components}",
        title="FPN" if components == "baseline" else " + ".join(name.upper() for name in chosen),
        settings={name.upper(): "✓" if name in chosen else "" for name in ("cs", "rfa", "srs")},
        model=replace(
            BASELINE,
            consistent_supervision=ConsistentSupervisionConfig() if "cs" in chosen else None,
            residual_feature_augmentation=ResidualFeatureAugmentationConfig() if "rfa" in chosen else None,
            soft_roi_selection=SoftRoISelectionConfig() if "srs" in chosen else None,
        ),
        published=Published(*figures),
        baseline="table2/baseline",
    )


ROWS = (
    _row("baseline", 36.3, 58.3, 39.0, 21.4, 40.3, 46.6),
    _row("cs", 37.2, 59.2, 40.1, 21.8, 40.9, 47.8),
    _row("rfa", 37.3, 59.8, 40.4, 22.5, 41.3, 47.2),
    _row("srs", 37.1, 59.1, 40.1, 21.8, 41.3, 47.5),
    _row("cs+rfa", 37.7, 60.0, 40.8, 22.8, 41.4, 48.4),
    _row("cs+srs", 38.0, 60.3, 41.5, 22.9, 41.9, 48.0),
    _row("rfa+srs", 37.9, 60.3, 40.7, 23.6, 41.8, 47.9),
    _row("cs+rfa+srs", 38.7, 61.2, 41.9, 24.1, 42.5, 49.5),
)
