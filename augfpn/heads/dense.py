"""What the heads of one-stage detectors share: towers of convolutions, and the choice of detections.

A one-stage detector predicts at every place: at each anchor (RetinaNet) or each cell (FCOS, whose "anchor" is the cell
itself, a square of one stride). A head has

- ``forward(pyramid)``: `DensePredictions` at all places of all levels;
- ``losses(predictions, targets)``;
- ``scores(predictions, threshold)`` and ``boxes(predictions)``, from which `select` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from augfpn.initialisation import gaussian
from augfpn.ops.best import best_of_each_level
from augfpn.ops.boxes import clip, take_boxes
from augfpn.ops.nms import batched_nms
from augfpn.structures import Detections

# Before training, each class has this probability at every place: at one half, the many places without an object would
# be all that the first steps learn from (Lin et al., Focal Loss, Section 3.3).
PRIOR = 0.01
PRIOR_LOGIT = -math.log((1 - PRIOR) / PRIOR)


@dataclass(frozen=True)
class DensePredictions:
    """Of all places, level after level.

    ``logits``: ``(B, A, K)``, no background. ``deltas``: ``(B, A, 4)``, whose meaning is the head's.
    ``centerness``: ``(B, A)`` logits, or None. ``anchors``: ``(A, 4)``. ``num_anchors``: of each level.
    """

    logits: Tensor
    deltas: Tensor
    centerness: Tensor | None
    anchors: Tensor
    num_anchors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which predictions become detections.

    Those of more than ``score_threshold``; of these the best ``num_before_nms`` of each level; of these the ones that
    overlap no better one of their class by more than ``nms_iou``; of these the best ``num`` of an image.
    """

    score_threshold: float = 0.05
    num_before_nms: int = 1000
    nms_iou: float = 0.5
    num: int = 100


def select(
    scores: Tensor, boxes: Tensor, anchors: Tensor, num_anchors: Sequence[int], sizes: Tensor, selection: Selection
) -> Detections:
    """The detections of each image.

    Departure: the release keeps the best places of each level and looks at all classes there; here, as in torchvision,
    the best pairs of a place and a class are kept.

    Args:
        scores: ``(B, A, K)``; those that are below the threshold, negative. boxes: ``(B, A, 4)``.
        anchors: ``(A, 4)``. num_anchors: of each level. sizes: ``(B, 2)`` of the images.
    """
    num_classes = scores.shape[-1]
    scores = scores.flatten(1)
    pairs = best_of_each_level(scores, [num * num_classes for num in num_anchors], selection.num_before_nms)
    places, labels = pairs // num_classes, pairs % num_classes + 1
    scores = scores.gather(1, pairs)
    boxes = clip(take_boxes(boxes, places), sizes)
    kept, valid = batched_nms(boxes, scores, labels, scores >= 0, selection.nms_iou, selection.num)
    return Detections(
        boxes=take_boxes(boxes, kept),
        scores=scores.gather(1, kept) * valid,
        labels=labels.gather(1, kept) * valid,
        valid=valid,
        rois=anchors[places.gather(1, kept)],
    )


class Tower(nn.Module):
    """Convolutions of 3 × 3 with a ReLU after each, and group norm before it or not."""

    def __init__(self, channels: int, num_convs: int, *, group_norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        # 0.01 at the release's 256 channels; narrower towers, which sum fewer terms, start with the same spread.
        std = 0.01 * math.sqrt(256 / channels)
        self.convs = nn.ModuleList(
            gaussian(nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=bias), std=std)
            for _ in range(num_convs)
        )
        # 32 groups, or as many of at least two channels as narrow models have room for: the coarsest level of a small
        # image is a single cell, and a single number has no spread to normalise.
        num_groups = math.gcd(32, channels // math.gcd(2, channels))
        self.norms = nn.ModuleList(
            nn.GroupNorm(num_groups, channels) if group_norm else nn.Identity() for _ in range(num_convs)
        )

    def forward(self, features: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = norm(conv(features)).relu()
        return features


def flatten_places(output: Tensor, width: int) -> Tensor:
    """``(B, N · width, H, W)`` as ``(B, H · W · N, width)``: cell by cell, anchor by anchor."""
    return output.permute(0, 2, 3, 1).reshape(len(output), -1, width)


def is_class(labels: Tensor, num_classes: int) -> Tensor:
    """``labels (…)`` in 0…K as 0 or 1 for each class ``(…, K)``; background is no class."""
    return labels[..., None] == torch.arange(1, num_classes + 1, device=labels.device)
