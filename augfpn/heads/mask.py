"""The mask branch of Mask R-CNN: which pixels of a box belong to its object."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.initialisation import kaiming
from augfpn.ops.masks import crop_masks
from augfpn.ops.ranks import normaliser
from augfpn.structures import Detections, Pyramid, RoISamples, Targets

# Cells a side of the pooled RoI, and of the mask that is made from it.
MASK_ROI_SIZE = 14
MASK_SIZE = 28


class MaskSamples(NamedTuple):
    """RoIs with what their masks should be: ``rois`` of R an image, ``masks (B, R, 28, 28)`` in 0-1.

    Only foreground RoIs (``rois.labels > 0``) have a mask.
    """

    rois: RoISamples
    masks: Tensor

    def repeated(self, times: int) -> MaskSamples:
        """Every RoI ``times`` times in a row, as when it is pooled from so many levels."""
        return MaskSamples(self.rois.repeated(times), self.masks.repeat_interleave(times, dim=1))


class MaskHead(nn.Module):
    """Predicts a mask for each class from RoI features ``(N, in_channels, 14, 14)``: four convolutions, twice the size.

    Args:
        in_channels: channels of the RoI's features.
        num_classes: K, without background.
        width: channels of the convolutions.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 256, num_convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            kaiming(nn.Conv2d(in_channels if i == 0 else width, width, kernel_size=3, padding=1))
            for i in range(num_convs)
        )
        self.upsample = kaiming(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
        self.classifier = kaiming(nn.Conv2d(width, num_classes + 1, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, K + 1, 28, 28)``; those of background, the first, are unused."""
        for conv in self.convs:
            features = conv(features).relu()
        logits: Tensor = self.classifier(self.upsample(features).relu())
        # So its loss is in fp32, also in mixed precision.
        return logits.float()


class MaskBranch(nn.Module):
    """Pools RoIs at 14 × 14 and segments them.

    Args:
        roi_pooling: SingleLevelPooling or, where the detector has it, a Soft RoI Selection of its own.
        head: predicts the masks.
    """

    def __init__(self, roi_pooling: nn.Module, head: MaskHead) -> None:
        super().__init__()
        self.roi_pooling = roi_pooling
        self.head = head

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        """Logits ``(B · R, K + 1, 28, 28)`` of ``boxes (B, R, 4)``."""
        logits: Tensor = self.head(self.roi_pooling(pyramid, boxes).fused)
        return logits

    def segment(self, pyramid: Pyramid, detections: Detections) -> Tensor:
        """The probability ``(B, D, 28, 28)`` of each detection's object in its box."""
        logits = _of_labels(self(pyramid, detections.boxes), detections.labels.flatten())
        return logits.sigmoid().view(*detections.labels.shape, *logits.shape[1:])


def mask_samples(samples: RoISamples, targets: Targets, num: int) -> MaskSamples:
    """The first ``num`` RoIs of each image, which hold all its foreground, with their masks."""
    assert targets.masks is not None, "targets without masks were let in"
    rois = samples.first(num)
    return MaskSamples(rois, crop_masks(targets.masks, rois.boxes, rois.objects, rois.labels > 0, MASK_SIZE))


def mask_loss(logits: Tensor, samples: MaskSamples) -> Tensor:
    """Binary cross-entropy of the true class's mask, averaged over the cells of all foreground RoIs of the batch."""
    labels = samples.rois.labels.flatten()
    foreground = labels > 0
    of_rois = F.binary_cross_entropy_with_logits(
        _of_labels(logits, labels), samples.masks.flatten(0, 1), reduction="none"
    ).mean(dim=(1, 2))
    return (of_rois * foreground).sum() / normaliser(foreground.sum())


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """``logits (N, K + 1, S, S)`` of the class ``labels (N)``: ``(N, S, S)``."""
    return logits[torch.arange(len(labels), device=labels.device), labels]
