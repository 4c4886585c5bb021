"""RoI features as others take them; AugFPN's own way is `augfpn.components.soft_roi_selection`.

FPN takes them from one level, chosen by the RoI's size (`augfpn.ops.level_assignment`); PANet from all of them, and
leaves the choice to the box head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.ops.level_assignment import FINEST_SIDE, NUM_ROI_LEVELS, assigned_levels
from augfpn.ops.roi_align import roi_align_assigned_level, roi_align_every_level
from augfpn.structures import Fusion, Pyramid


class SingleLevelPooling(nn.Module):
    """Pools every RoI from the level that its size assigns it to.

    Args:
        output_size: cells a side of the RoI's features: 7 for boxes, 14 for masks.
        finest_side: the side in pixels of the RoIs that P2 is meant for.
    """

    def __init__(self, output_size: int = 7, finest_side: float = FINEST_SIDE) -> None:
        super().__init__()
        self.output_size = output_size
        self.finest_side = finest_side

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Fusion:
        """The features ``(B · R, C, S, S)`` of ``boxes (B, R, 4)``; the weights are 1 for the assigned level."""
        levels = assigned_levels(boxes, self.finest_side)
        features, strides = pyramid.levels[:NUM_ROI_LEVELS], pyramid.strides[:NUM_ROI_LEVELS]
        pooled = roi_align_assigned_level(features, strides, boxes, levels, self.output_size)
        weights = F.one_hot(levels.flatten(), NUM_ROI_LEVELS).to(pooled.dtype)
        return Fusion(pooled, weights[:, :, None, None].expand(-1, -1, self.output_size, self.output_size))


class AdaptiveFeaturePooling(nn.Module):
    """Pools every RoI from P2…P5, for a box head that takes the largest of what it makes of each (PANet, Table 5).

    Args:
        output_size: cells a side of the RoI's features.
    """

    def __init__(self, output_size: int = 7) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Fusion:
        """The features ``(B · R, 4, C, S, S)`` of ``boxes (B, R, 4)``, of all levels with the same weight, 1."""
        features, strides = pyramid.levels[:NUM_ROI_LEVELS], pyramid.strides[:NUM_ROI_LEVELS]
        pooled = roi_align_every_level(features, strides, boxes, self.output_size)
        return Fusion(pooled, torch.ones_like(pooled[:, :, 0]))
