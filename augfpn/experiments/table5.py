"""Table 5: how the RoI's features of all levels become one, on COCO val2017."""

from __future__ import annotations

from dataclasses import replace

from augfpn.experiments.config import FasterRCNNConfig, SoftRoISelectionConfig
from augfpn.experiments.rows import BASELINE, Experiment, Published


def _row(setting: str, fusion: str, model: FasterRCNNConfig, *figures: float) -> Experiment:
    name = f"{setting}_{fusion}".lower().removeprefix("_")
    return Experiment(
        id=f"table5/{name}",
        title="FPN" if fusion == "baseline" else f"{setting}, {fusion}",
        settings={"Setting": setting, "Fusion": fusion},
        model=model,
        published=Published(*figures),
        baseline="table5/baseline",
    )


_SUM, _MAX, _ACF, _ASF = (
    replace(BASELINE, soft_roi_selection=SoftRoISelectionConfig(fusion=fusion))
    for fusion in ("sum", "max", "acf", "asf")
)
_PANET = replace(BASELINE, adaptive_feature_pooling=True)

ROWS = (
    _row("", "baseline", BASELINE, 36.3, 58.3, 39.0, 21.4, 40.3, 46.6),
    _row("SRS", "sum", _SUM, 36.6, 59.0, 39.1, 22.3, 40.6, 46.4),
    _row("SRS", "max", _MAX, 36.5, 58.5, 39.2, 21.6, 40.2, 46.9),
    _row("SRS", "ACF", _ACF, 37.0, 59.2, 39.8, 22.0, 41.2, 46.8),
    _row("SRS", "ASF", _ASF, 37.1, 59.1, 40.1, 21.8, 41.3, 47.5),
    _row("PANet", "max", _PANET, 36.9, 59.0, 39.7, 21.6, 40.7, 47.5),
)
