"""The paper's experiments with its published figures. So far: what Table 1 re-implements, and Table 2.

Every row is a baseline with its difference applied, so the ablation is the difference.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from augfpn.errors import UserError
from augfpn.experiments.config import (
    AnyDetectorConfig,
    BackboneConfig,
    ConsistentSupervisionConfig,
    FasterRCNNConfig,
    FCOSConfig,
    MaskConfig,
    ResidualFeatureAugmentationConfig,
    RetinaNetConfig,
    SoftRoISelectionConfig,
    TrainingConfig,
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
    ``training``: the paper's own. ``published_masks``: the figures of instance masks, for Mask R-CNN.
    """

    id: str
    title: str
    model: AnyDetectorConfig
    published: Published
    baseline: str
    training: TrainingConfig = TrainingConfig()
    published_masks: Published | None = None

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


def from_scratch(model: AnyDetectorConfig) -> AnyDetectorConfig:
    """A detector whose backbone starts at random, and so has nothing to keep frozen."""
    return replace(model, backbone=replace(model.backbone, weights=None, frozen_stages=0, frozen_batch_norm=False))


def with_augfpn(model: AnyDetectorConfig) -> AnyDetectorConfig:
    """A detector with FPN as it is with AugFPN: all three components, or the two that one-stage detectors can have."""
    model = replace(
        model,
        consistent_supervision=ConsistentSupervisionConfig(),
        residual_feature_augmentation=ResidualFeatureAugmentationConfig(),
    )
    return replace(model, soft_roi_selection=SoftRoISelectionConfig()) if isinstance(model, FasterRCNNConfig) else model


@dataclass(frozen=True, kw_only=True)
class _Table1Pair:
    """Two rows of Table 1, on test-dev: a detector that the authors trained with FPN and with AugFPN."""

    id: str
    title: str
    model: AnyDetectorConfig
    training: TrainingConfig
    fpn: tuple[float, ...]
    augfpn: tuple[float, ...]
    fpn_masks: tuple[float, ...] | None = None
    augfpn_masks: tuple[float, ...] | None = None

    def rows(self) -> tuple[Experiment, Experiment]:
        family, schedule = self.id.rsplit("_", 1)
        ids = [f"table1/{family}_{neck}_{schedule}" for neck in ("fpn", "augfpn")]
        models = (self.model, with_augfpn(self.model))
        figures = ((self.fpn, self.fpn_masks), (self.augfpn, self.augfpn_masks))
        fpn, augfpn = (
            Experiment(
                id=id,
                title=f"{self.title}-{neck}, {schedule}",
                model=model,
                published=Published(*boxes),
                baseline=ids[0],
                training=self.training,
                published_masks=None if masks is None else Published(*masks),
            )
            for id, neck, model, (boxes, masks) in zip(ids, ("FPN", "AugFPN"), models, figures, strict=True)
        )
        return fpn, augfpn


_R50, _R101 = BackboneConfig(), BackboneConfig(name="resnet101")
# The release's ResNeXt weights came from mmcv's model zoo (--backbone-weights FILE takes them); these are timm's.
_X101_32, _X101_64 = (
    BackboneConfig(name="resnext101_32x4d", weights="gluon_in1k"),
    BackboneConfig(name="resnext101_64x4d", weights="tv_in1k"),
)
_MOBILENET = BackboneConfig(name="mobilenetv2_100", weights="ra_in1k")

_1X = TrainingConfig()
_2X = replace(_1X, epochs=24, milestones=(16 / 24, 22 / 24))
# One image a GPU: 0.01 for 8.
_1X_RESNEXT = replace(_1X, batch_size=8)
_1X_RETINANET = replace(_1X, learning_rate=0.01)
_1X_FCOS = replace(_1X_RETINANET, clip_norm=None, warmup="constant", bias_rate=2.0, bias_decay=False)


def _faster_rcnn(backbone: BackboneConfig) -> FasterRCNNConfig:
    return FasterRCNNConfig(backbone=backbone)


def _mask_rcnn(backbone: BackboneConfig) -> FasterRCNNConfig:
    return FasterRCNNConfig(backbone=backbone, mask=MaskConfig())


_TABLE_1 = (
    _Table1Pair(
        id="retinanet_r50_1x",
        title="RetinaNet ResNet-50",
        model=RetinaNetConfig(),
        training=_1X_RETINANET,
        fpn=(35.9, 55.9, 38.5, 19.7, 38.9, 44.9),
        augfpn=(37.5, 58.4, 40.1, 21.3, 40.5, 47.3),
    ),
    _Table1Pair(
        id="retinanet_mnv2_1x",
        title="RetinaNet MobileNet-v2",
        model=RetinaNetConfig(backbone=_MOBILENET),
        training=_1X_RETINANET,
        fpn=(32.7, 52.0, 34.7, 17.4, 34.6, 42.3),
        augfpn=(34.0, 54.0, 36.0, 18.6, 36.0, 44.0),
    ),
    _Table1Pair(
        id="fcos_r50_1x",
        title="FCOS ResNet-50",
        model=FCOSConfig(),
        training=_1X_FCOS,
        fpn=(37.0, 56.6, 39.4, 20.8, 39.8, 46.4),
        augfpn=(37.9, 58.0, 40.4, 21.2, 40.5, 47.9),
    ),
    _Table1Pair(
        id="faster_rcnn_r50_1x",
        title="Faster R-CNN ResNet-50",
        model=_faster_rcnn(_R50),
        training=_1X,
        fpn=(36.5, 58.7, 39.1, 21.5, 39.7, 44.6),
        augfpn=(38.8, 61.5, 42.0, 23.3, 42.1, 47.7),
    ),
    _Table1Pair(
        id="faster_rcnn_r101_1x",
        title="Faster R-CNN ResNet-101",
        model=_faster_rcnn(_R101),
        training=_1X,
        fpn=(38.9, 60.9, 42.3, 22.4, 42.4, 48.3),
        augfpn=(40.6, 63.2, 44.0, 24.0, 44.1, 51.0),
    ),
    _Table1Pair(
        id="faster_rcnn_r101_2x",
        title="Faster R-CNN ResNet-101",
        model=_faster_rcnn(_R101),
        training=_2X,
        fpn=(39.7, 61.4, 43.3, 22.3, 42.9, 50.4),
        augfpn=(41.5, 63.9, 45.1, 23.8, 44.7, 52.8),
    ),
    _Table1Pair(
        id="faster_rcnn_x101_32x4d_1x",
        title="Faster R-CNN ResNeXt-101-32x4d",
        model=_faster_rcnn(_X101_32),
        training=_1X_RESNEXT,
        fpn=(40.5, 62.8, 44.0, 24.3, 43.9, 50.2),
        augfpn=(41.9, 64.4, 45.6, 25.2, 45.4, 52.6),
    ),
    _Table1Pair(
        id="faster_rcnn_x101_64x4d_1x",
        title="Faster R-CNN ResNeXt-101-64x4d",
        model=_faster_rcnn(_X101_64),
        training=_1X_RESNEXT,
        fpn=(41.7, 64.1, 45.4, 25.0, 45.1, 52.1),
        augfpn=(43.0, 65.6, 46.9, 26.2, 46.5, 53.9),
    ),
    _Table1Pair(
        id="faster_rcnn_mnv2_1x",
        title="Faster R-CNN MobileNet-v2",
        model=_faster_rcnn(_MOBILENET),
        training=_1X,
        fpn=(32.6, 54.6, 34.3, 18.6, 34.5, 41.0),
        augfpn=(34.2, 56.6, 36.2, 19.6, 36.4, 43.1),
    ),
    _Table1Pair(
        id="mask_rcnn_r50_1x",
        title="Mask R-CNN ResNet-50",
        model=_mask_rcnn(_R50),
        training=_1X,
        fpn=(37.5, 59.4, 40.6, 22.1, 40.6, 46.2),
        fpn_masks=(34.4, 56.3, 36.6, 18.6, 37.2, 44.5),
        augfpn=(39.5, 61.8, 42.9, 23.4, 42.7, 49.1),
        augfpn_masks=(36.3, 58.7, 38.8, 19.7, 39.2, 47.5),
    ),
    _Table1Pair(
        id="mask_rcnn_r101_1x",
        title="Mask R-CNN ResNet-101",
        model=_mask_rcnn(_R101),
        training=_1X,
        fpn=(39.8, 61.6, 43.3, 22.9, 43.2, 49.7),
        fpn_masks=(36.3, 58.5, 38.7, 19.2, 39.3, 47.4),
        augfpn=(41.3, 63.5, 44.9, 24.2, 44.8, 52.0),
        augfpn_masks=(37.8, 60.4, 40.4, 20.4, 41.0, 49.8),
    ),
    _Table1Pair(
        id="mask_rcnn_r101_2x",
        title="Mask R-CNN ResNet-101",
        model=_mask_rcnn(_R101),
        training=_2X,
        fpn=(40.8, 62.2, 44.6, 22.7, 44.0, 51.8),
        fpn_masks=(36.9, 59.1, 39.6, 19.1, 39.9, 48.9),
        augfpn=(42.4, 64.4, 46.3, 24.6, 45.7, 54.0),
        augfpn_masks=(38.6, 61.4, 41.4, 20.6, 41.6, 51.4),
    ),
)

PAPER: dict[str, Experiment] = {
    experiment.id: experiment
    for experiment in (
        *(row for pair in _TABLE_1 for row in pair.rows()),
        *(_table_2_row(name, figures) for name, figures in _TABLE_2.items()),
    )
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
