"""What a row of one of the paper's tables is."""

from __future__ import annotations

from dataclasses import dataclass, field

from augfpn.experiments.config import AnyDetectorConfig, FasterRCNNConfig, TrainingConfig


@dataclass(frozen=True)
class Published:
    """The paper's figures in percent, named as COCO's evaluation names ours."""

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float


FIGURES = tuple(Published.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of one of the paper's tables.

    Attributes:
        id: reads ``table/row``.
        title: how it is called in legends.
        published: the paper's figures; ``published_masks`` those of instance masks, for Mask R-CNN.
        method, backbone, schedule: Table 1's columns, names spelt alike; the ablations are all of one detector.
        settings: the columns that the row's table has besides, such as Table 3's weight.
        gain: the difference in AP to the row's baseline where the paper prints it, in brackets; ``mask_gain`` likewise.
    """

    id: str
    title: str
    published: Published
    published_masks: Published | None = None
    method: str = "Faster R-CNN"
    backbone: str = "ResNet-50-FPN"
    schedule: str = "1x"
    settings: dict[str, str] = field(default_factory=dict, hash=False)
    gain: float | None = None
    mask_gain: float | None = None

    @property
    def table(self) -> str:
        return self.id.split("/")[0]


@dataclass(frozen=True, kw_only=True)
class QuotedRow(Row):
    """A row that the paper quotes from others: figures, and nothing to run."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Row):
    """A row that can be run.

    Attributes:
        model: the detector.
        baseline: the id of the row that it is compared with; its own for a baseline.
        training: the paper's own, at other scales than `paper` replaced by theirs.
    """

    model: AnyDetectorConfig
    baseline: str
    training: TrainingConfig = TrainingConfig()


# Section 4.4: "The baseline method for all ablation studies is Faster R-CNN with ResNet50-FPN."
BASELINE = FasterRCNNConfig()
