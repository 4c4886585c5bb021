"""Detectors by a plain call, for people who want no experiment.

>>> import augfpn
>>> detector = augfpn.retinanet(num_classes=20, backbone="resnet18", weights=None)
>>> [name for name, _ in detector.named_children()]
['preprocessing', 'backbone', 'pyramid', 'consistent_supervision', 'head']
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from augfpn.detectors.build import build_from_config
from augfpn.detectors.detector import Detector
from augfpn.experiments.checks import require
from augfpn.experiments.config import (
    AnyDetectorConfig,
    BackboneConfig,
    FasterRCNNConfig,
    FCOSConfig,
    MaskConfig,
    RetinaNetConfig,
)
from augfpn.experiments.variants import from_scratch, with_augfpn

Neck = Literal["fpn", "augfpn"]


def faster_rcnn(
    num_classes: int,
    *,
    neck: Neck = "augfpn",
    backbone: str = "resnet50",
    weights: str | None = "default",
    short_side: int = 800,
    long_side: int = 1333,
) -> Detector:
    """Faster R-CNN with the paper's settings.

    Args:
        num_classes: K, without background.
        neck: "augfpn", or "fpn" without any of the paper's components.
        backbone: timm's name of an architecture.
        weights: what the backbone starts from: a tag of timm's, "default" for the one that timm takes (the paper's for
            its ResNets), a file or a URL; None for a random start, with nothing frozen.
        short_side: pixels of an image's shorter side after resizing, unless the longer one would pass ``long_side``.
        long_side: the most pixels of an image's longer side.
    """
    return _build(FasterRCNNConfig(), num_classes, neck, backbone, weights, short_side, long_side)


def mask_rcnn(
    num_classes: int,
    *,
    neck: Neck = "augfpn",
    backbone: str = "resnet50",
    weights: str | None = "default",
    short_side: int = 800,
    long_side: int = 1333,
) -> Detector:
    """Mask R-CNN; its arguments are those of `faster_rcnn`."""
    return _build(FasterRCNNConfig(mask=MaskConfig()), num_classes, neck, backbone, weights, short_side, long_side)


def retinanet(
    num_classes: int,
    *,
    neck: Neck = "augfpn",
    backbone: str = "resnet50",
    weights: str | None = "default",
    short_side: int = 800,
    long_side: int = 1333,
) -> Detector:
    """RetinaNet; its arguments are those of `faster_rcnn`."""
    return _build(RetinaNetConfig(), num_classes, neck, backbone, weights, short_side, long_side)


def fcos(
    num_classes: int,
    *,
    neck: Neck = "augfpn",
    backbone: str = "resnet50",
    weights: str | None = "default",
    short_side: int = 800,
    long_side: int = 1333,
) -> Detector:
    """FCOS; its arguments are those of `faster_rcnn`."""
    return _build(FCOSConfig(), num_classes, neck, backbone, weights, short_side, long_side)


def _build(
    config: AnyDetectorConfig,
    num_classes: int,
    neck: Neck,
    backbone: str,
    weights: str | None,
    short_side: int,
    long_side: int,
) -> Detector:
    require(neck in ("fpn", "augfpn"), f"neck must be 'fpn' or 'augfpn', not {neck!r}.")
    if neck == "augfpn":
        config = with_augfpn(config)
    config = replace(config, backbone=BackboneConfig(name=backbone, weights=weights))
    if weights is None:
        config = from_scratch(config)
    return build_from_config(config, num_classes, short_side=short_side, long_side=long_side)
