"""Soft RoI Selection (Section 3.3): every RoI takes its features from all levels, by weights that it learns.

    features_l = RoIAlign of the RoI from P_l, l = 2…5
    RoI features = Adaptive Spatial Fusion of all features_l

It stands where FPN has its single level by the RoI's size (`augfpn.heads.roi_pooling.SingleLevelPooling`). Table 5
fuses by Adaptive Channel Fusion, the sum or the maximum, too.
"""

from __future__ import annotations

from torch import Tensor, nn

from augfpn.components.adaptive_fusion import FusionName, fusion_of
from augfpn.ops.level_assignment import NUM_ROI_LEVELS
from augfpn.ops.roi_align import roi_align_every_level
from augfpn.structures import Fusion, Pyramid


class SoftRoISelection(nn.Module):
    """Pools every RoI from P2…P5 and fuses the four.

    Args:
        channels: channels of the pyramid.
        output_size: cells a side of the RoI's features: 7 for boxes, 14 for masks.
        fusion: how the levels become one, see `augfpn.components.adaptive_fusion`.
    """

    def __init__(self, channels: int, output_size: int = 7, fusion: FusionName = "asf") -> None:
        super().__init__()
        self.output_size = output_size
        self.fusion = fusion_of(fusion, channels, NUM_ROI_LEVELS)

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Fusion:
        """The features ``(B · R, C, S, S)`` of ``boxes (B, R, 4)`` and the weights ``(B · R, 4, S, S)`` of P2…P5."""
        features, strides = pyramid.levels[:NUM_ROI_LEVELS], pyramid.strides[:NUM_ROI_LEVELS]
        fusion: Fusion = self.fusion(roi_align_every_level(features, strides, boxes, self.output_size))
        return fusion
