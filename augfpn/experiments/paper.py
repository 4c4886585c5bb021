"""The paper's experiments with its published figures. So far: Table 2, the effect of each component.

Every row is the baseline with its difference applied, so the ablation is the difference.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from augfpn.errors import UserError
from augfpn.experiments.config import (
    ConsistentSupervisionConfig,
    FasterRCNNConfig,
    ResidualFeatureAugmentationConfig,
    SoftRoISelectionConfig,
)


@dataclass(frozen=True)
class Published:
    """The paper's figures in percent, named as COCO's evaluation names ours."""

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A row of one of the paper's tables.

    ``id`` reads ``table/row``; ``baseline`` is the id of the row that it is compared with (itself for the baseline).
    """

    id: str
    title: str
    model: FasterRCNNConfig
    published: Published
    baseline: str

    @property
    def table(self) -> str:
        return self.id.split("/")[0]


# Section 4.4: "The baseline method for all ablation studies is Faster R-CNN with ResNet50-FPN."
BASELINE = FasterRCNNConfig()

# Table 2, on val2017: the letters name the components that are switched on. The check marks of the printed table are in
# this order.
_TABLE_2: dict[str, tuple[float, ...]] = {
    "baseline": (36.3, 58.3, 39.0, 21.4, 40.3, 46.6),
    "cs": (37.2, 59.2, 40.1, 21.8, 40.9, 47.8),
    "rfa": (37.3, 59.8, 40.4, 22.5, 41.3, 47.2),
    "srs": (37.1, 59.1, 40.1, 21.8, 41.3, 47.5),
    "cs+rfa": (37.7, 60.0, 40.8, 22.8, 41.4, 48.4),
    "cs+srs": (38.0, 60.3, 41.5, 22.9, 41.9, 48.0),
    "rfa+srs": (37.9, 60.3, 40.7, 23.6, 41.8, 47.9),
    "cs+rfa+srs": (38.7, 61.2, 41.9, 24.1, 42.5, 49.5),
}


def _table_2_row(name: str, figures: tuple[float, ...]) -> Experiment:
    components = name.split("+")
    model = replace(
        BASELINE,
        consistent_supervision=ConsistentSupervisionConfig() if "cs" in components else None,
        residual_feature_augmentation=ResidualFeatureAugmentationConfig() if "rfa" in components else None,
        soft_roi_selection=SoftRoISelectionConfig() if "srs" in components else None,
    )
    title = "FPN" if name == "baseline" else " + ".join(component.upper() for component in components)
    return Experiment(
        id=f"table2/{name}", title=title, model=model, published=Published(*figures), baseline="table2/baseline"
    )


PAPER: dict[str, Experiment] = {
    experiment.id: experiment for experiment in (_table_2_row(name, figures) for name, figures in _TABLE_2.items())
}


def find_experiment(id: str) -> Experiment:
    """The experiment of that id; a UserError lists the valid ones."""
    if id not in PAPER:
        raise UserError(unknown("experiment", id, PAPER))
    return PAPER[id]


def unknown(kind: str, name: str, valid: object) -> str:
    """A message for a name that is not among the valid ones, with the closest one first."""
    names = list(valid)  # type: ignore[call-overload]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"There is no {kind} {name!r}{hint} Valid: {', '.join(names)}"
