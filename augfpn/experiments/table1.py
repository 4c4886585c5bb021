"""Table 1: AugFPN in four detectors and on five backbones, on COCO test-dev.

Nine rows are quoted from others; twelve detectors were trained by the authors with FPN ("*") and with AugFPN ("ours").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from augfpn.experiments.config import (
    AnyDetectorConfig,
    BackboneConfig,
    FasterRCNNConfig,
    FCOSConfig,
    MaskConfig,
    RetinaNetConfig,
    TrainingConfig,
)
from augfpn.experiments.rows import Experiment, Published, QuotedRow
from augfpn.experiments.variants import with_augfpn


def _quoted(name: str, method: str, backbone: str, schedule: str, *figures: float) -> QuotedRow:
    return QuotedRow(
        id=f"table1/quoted_{name}",
        title=f"{method}, {backbone}",
        method=method,
        backbone=backbone,
        schedule=schedule,
        published=Published(*figures),
    )


# The numbers in brackets are those of the paper's references.
_QUOTED = (
    _quoted("yolov2", "YOLOv2 [32]", "DarkNet-19", "-", 21.6, 44.0, 19.2, 5.0, 22.4, 35.5),
    _quoted("ssd512", "SSD512 [26]", "ResNet-101", "-", 31.2, 50.4, 33.3, 10.2, 34.5, 49.8),
    _quoted("retinanet_r101", "RetinaNet [23]", "ResNet-101-FPN", "-", 39.1, 59.1, 42.3, 21.8, 42.7, 50.2),
    # Its figures after AP are RetinaNet's: see `augfpn.experiments.inconsistencies`.
    _quoted("faster_rcnn_r101", "Faster R-CNN [22]", "ResNet-101-FPN", "-", 36.2, 59.1, 42.3, 21.8, 42.7, 50.2),
    _quoted("libra_rcnn_r50", "Libra R-CNN [29]", "ResNet-50-FPN", "1x", 38.7, 59.9, 42.0, 22.5, 41.1, 48.7),
    _quoted("libra_rcnn_r101", "Libra R-CNN [29]", "ResNet-101-FPN", "1x", 40.3, 61.3, 43.9, 22.9, 43.1, 51.0),
    _quoted("deformable_rfcn", "Deformable R-FCN [4]", "Inception-ResNet-v2", "-", 37.5, 58.0, 40.8, 19.4, 40.1, 52.5),
    _quoted("mask_rcnn_r101", "Mask R-CNN [13]", "ResNet-101-FPN", "-", 38.2, 60.3, 41.7, 20.1, 41.1, 50.2),
    _quoted("grid_rcnn_r101", "Grid R-CNN [28]", "ResNet-101-FPN", "2x", 41.5, 60.9, 44.5, 23.31, 44.9, 53.1),
)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A detector with FPN and with AugFPN."""

    id: str
    detector: str
    backbone: str
    model: AnyDetectorConfig
    training: TrainingConfig
    fpn: tuple[float, ...]
    augfpn: tuple[float, ...]
    gain: float
    fpn_masks: tuple[float, ...] | None = None
    augfpn_masks: tuple[float, ...] | None = None
    mask_gain: float | None = None

    def with_fpn(self) -> Experiment:
        return self._row("FPN", "*", self.model, self.fpn, self.fpn_masks)

    def with_augfpn(self) -> Experiment:
        row = self._row("AugFPN", " (ours)", with_augfpn(self.model), self.augfpn, self.augfpn_masks)
        return replace(row, gain=self.gain, mask_gain=self.mask_gain)

    def _row(
        self,
        neck: str,
        mark: str,
        model: AnyDetectorConfig,
        figures: tuple[float, ...],
        of_masks: tuple[float, ...] | None,
    ) -> Experiment:
        family, schedule = self.id.rsplit("_", 1)
        backbone = f"{self.backbone}-{neck}"
        return Experiment(
            id=f"table1/{family}_{neck.lower()}_{schedule}",
            title=f"{self.detector} {backbone}, {schedule}",
            method=f"{self.detector}{mark}",
            backbone=backbone,
            schedule=schedule,
            model=model,
            published=Published(*figures),
            published_masks=None if of_masks is None else Published(*of_masks),
            baseline=f"table1/{family}_fpn_{schedule}",
            training=self.training,
        )


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


_PAIRS = (
    _Pair(
        id="retinanet_r50_1x",
        detector="RetinaNet",
        backbone="ResNet-50",
        model=RetinaNetConfig(),
        training=_1X_RETINANET,
        fpn=(35.9, 55.9, 38.5, 19.7, 38.9, 44.9),
        augfpn=(37.5, 58.4, 40.1, 21.3, 40.5, 47.3),
        gain=1.6,
    ),
    _Pair(
        id="retinanet_mnv2_1x",
        detector="RetinaNet",
        backbone="MobileNet-v2",
        model=RetinaNetConfig(backbone=_MOBILENET),
        training=_1X_RETINANET,
        fpn=(32.7, 52.0, 34.7, 17.4, 34.6, 42.3),
        augfpn=(34.0, 54.0, 36.0, 18.6, 36.0, 44.0),
        gain=1.3,
    ),
    _Pair(
        id="fcos_r50_1x",
        detector="FCOS",
        backbone="ResNet-50",
        model=FCOSConfig(),
        training=_1X_FCOS,
        fpn=(37.0, 56.6, 39.4, 20.8, 39.8, 46.4),
        augfpn=(37.9, 58.0, 40.4, 21.2, 40.5, 47.9),
        gain=0.9,
    ),
    _Pair(
        id="faster_rcnn_r50_1x",
        detector="Faster R-CNN",
        backbone="ResNet-50",
        model=_faster_rcnn(_R50),
        training=_1X,
        fpn=(36.5, 58.7, 39.1, 21.5, 39.7, 44.6),
        augfpn=(38.8, 61.5, 42.0, 23.3, 42.1, 47.7),
        gain=2.3,
    ),
    _Pair(
        id="faster_rcnn_r101_1x",
        detector="Faster R-CNN",
        backbone="ResNet-101",
        model=_faster_rcnn(_R101),
        training=_1X,
        fpn=(38.9, 60.9, 42.3, 22.4, 42.4, 48.3),
        augfpn=(40.6, 63.2, 44.0, 24.0, 44.1, 51.0),
        gain=1.7,
    ),
    _Pair(
        id="faster_rcnn_r101_2x",
        detector="Faster R-CNN",
        backbone="ResNet-101",
        model=_faster_rcnn(_R101),
        training=_2X,
        fpn=(39.7, 61.4, 43.3, 22.3, 42.9, 50.4),
        augfpn=(41.5, 63.9, 45.1, 23.8, 44.7, 52.8),
        gain=1.8,
    ),
    _Pair(
        id="faster_rcnn_x101_32x4d_1x",
        detector="Faster R-CNN",
        backbone="ResNeXt-101-32x4d",
        model=_faster_rcnn(_X101_32),
        training=_1X_RESNEXT,
        fpn=(40.5, 62.8, 44.0, 24.3, 43.9, 50.2),
        augfpn=(41.9, 64.4, 45.6, 25.2, 45.4, 52.6),
        gain=1.4,
    ),
    _Pair(
        id="faster_rcnn_x101_64x4d_1x",
        detector="Faster R-CNN",
        backbone="ResNeXt-101-64x4d",
        model=_faster_rcnn(_X101_64),
        training=_1X_RESNEXT,
        fpn=(41.7, 64.1, 45.4, 25.0, 45.1, 52.1),
        augfpn=(43.0, 65.6, 46.9, 26.2, 46.5, 53.9),
        gain=1.3,
    ),
    _Pair(
        id="faster_rcnn_mnv2_1x",
        detector="Faster R-CNN",
        backbone="MobileNet-v2",
        model=_faster_rcnn(_MOBILENET),
        training=_1X,
        fpn=(32.6, 54.6, 34.3, 18.6, 34.5, 41.0),
        augfpn=(34.2, 56.6, 36.2, 19.6, 36.4, 43.1),
        gain=1.6,
    ),
    _Pair(
        id="mask_rcnn_r50_1x",
        detector="Mask R-CNN",
        backbone="ResNet-50",
        model=_mask_rcnn(_R50),
        training=_1X,
        fpn=(37.5, 59.4, 40.6, 22.1, 40.6, 46.2),
        fpn_masks=(34.4, 56.3, 36.6, 18.6, 37.2, 44.5),
        augfpn=(39.5, 61.8, 42.9, 23.4, 42.7, 49.1),
        gain=2.0,
        augfpn_masks=(36.3, 58.7, 38.8, 19.7, 39.2, 47.5),
        mask_gain=1.9,
    ),
    _Pair(
        id="mask_rcnn_r101_1x",
        detector="Mask R-CNN",
        backbone="ResNet-101",
        model=_mask_rcnn(_R101),
        training=_1X,
        fpn=(39.8, 61.6, 43.3, 22.9, 43.2, 49.7),
        fpn_masks=(36.3, 58.5, 38.7, 19.2, 39.3, 47.4),
        augfpn=(41.3, 63.5, 44.9, 24.2, 44.8, 52.0),
        gain=1.5,
        augfpn_masks=(37.8, 60.4, 40.4, 20.4, 41.0, 49.8),
        mask_gain=1.5,
    ),
    _Pair(
        id="mask_rcnn_r101_2x",
        detector="Mask R-CNN",
        backbone="ResNet-101",
        model=_mask_rcnn(_R101),
        training=_2X,
        fpn=(40.8, 62.2, 44.6, 22.7, 44.0, 51.8),
        fpn_masks=(36.9, 59.1, 39.6, 19.1, 39.9, 48.9),
        augfpn=(42.4, 64.4, 46.3, 24.6, 45.7, 54.0),
        gain=1.6,
        augfpn_masks=(38.6, 61.4, 41.4, 20.6, 41.6, 51.4),
        mask_gain=1.7,
    ),
)

# In the paper's order.
ROWS = (*_QUOTED, *(pair.with_fpn() for pair in _PAIRS), *(pair.with_augfpn() for pair in _PAIRS))
