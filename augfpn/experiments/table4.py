"""Table 4: how Residual Feature Augmentation pools its contexts and fuses them, on COCO val2017."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from augfpn.experiments.config import ResidualFeatureAugmentationConfig
from augfpn.experiments.rows import BASELINE, Experiment, Published

_FUSIONS: dict[str, Literal["sum", "asf", "psp"]] = {"sum": "sum", "ASF": "asf", "PSP": "psp"}
_POOLINGS: dict[str, Literal["ra-ap", "gap", "gmp", "psp"]] = {
    "RA-AP": "ra-ap",
    "GAP": "gap",
    "GMP": "gmp",
    "PSP": "psp",
}


def _row(fusion: str, pooling: str, ratios: tuple[float, ...], *figures: float) -> Experiment:
    """The table's first three columns."""
    augmentation = None
    name, title = "baseline", "FPN"
    if pooling != "baseline":
        augmentation = ResidualFeatureAugmentationConfig(
            pooling=_POOLINGS[pooling], ratios=ratios, fusion=_FUSIONS[fusion]
        )
        name = "_".join([fusion.lower(), _POOLINGS[pooling].replace("-", ""), *map(str, ratios)])
        title = f"{fusion} of {' '.join([pooling, *map(str, ratios)])}"
    return Experiment(
        id=f"table4/{name}",
        title=title,
        settings={"Fusion": fusion, "Pooling": pooling, "α": ",".join(map(str, ratios)) or "-"},
        model=replace(BASELINE, residual_feature_augmentation=augmentation),
        published=Published(*figures),
        baseline="table4/baseline",
    )


ROWS = (
    _row("sum", "baseline", (), 36.3, 58.3, 39.0, 21.4, 40.3, 46.6),
    _row("sum", "GMP", (), 34.5, 56.6, 36.8, 21.9, 38.3, 42.4),
    _row("sum", "GAP", (), 36.8, 59.3, 39.7, 22.1, 40.9, 46.7),
    _row("sum", "RA-AP", (0.1, 0.2, 0.3), 37.1, 59.8, 39.9, 22.7, 41.1, 47.3),
    _row("ASF", "RA-AP", (0.1,), 37.1, 59.6, 40.2, 22.3, 40.9, 47.2),
    _row("ASF", "RA-AP", (0.1, 0.2), 37.2, 59.4, 40.1, 22.4, 41.1, 47.7),
    _row("ASF", "RA-AP", (0.1, 0.2, 0.3), 37.3, 59.8, 40.4, 22.5, 41.1, 47.4),
    _row("ASF", "RA-AP", (0.1, 0.2, 0.3, 0.4), 37.4, 59.9, 40.5, 22.5, 41.1, 47.9),
    _row("ASF", "RA-AP", (0.1, 0.2, 0.4), 37.3, 59.7, 40.2, 22.9, 41.3, 47.2),
    _row("ASF", "RA-AP", (0.1, 0.2, 0.5), 37.2, 59.7, 40.3, 22.2, 41.1, 47.0),
    _row("ASF", "PSP", (), 37.0, 59.5, 40.1, 22.8, 40.9, 47.3),
    _row("PSP", "PSP", (), 36.9, 59.5, 39.6, 22.3, 40.9, 46.8),
)
