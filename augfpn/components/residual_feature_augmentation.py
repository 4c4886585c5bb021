"""Residual Feature Augmentation (Section 3.2): context of several sizes, added to M5.

    context_k = upsample(conv1x1_k(ratio-invariant adaptive pooling of C5 by α_k))        to C5's size S = h × w
    M6        = Adaptive Spatial Fusion of all context_k

The pyramid adds M6 to M5 before its top-down path, and after M5 was copied for Consistent Supervision.

Departures: the paper writes the pooled scales as (α_1 × S, …) and gives no rounding; as in the release a pooled size is
``⌊α·h⌋ × ⌊α·w⌋`` and at least 1, and the upsampling is bilinear with aligned corners.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.components.adaptive_fusion import AdaptiveSpatialFusion
from augfpn.initialisation import xavier
from augfpn.structures import Fusion


class ResidualFeatureAugmentation(nn.Module):
    """Makes M6 from C5.

    Args:
        in_channels: channels of C5.
        out_channels: channels of the pyramid.
        ratios: the α of ratio-invariant adaptive pooling, each in (0, 1].
    """

    def __init__(self, in_channels: int, out_channels: int, ratios: Sequence[float] = (0.1, 0.2, 0.3)) -> None:
        super().__init__()
        self.ratios = tuple(ratios)
        self.convs = nn.ModuleList(xavier(nn.Conv2d(in_channels, out_channels, kernel_size=1)) for _ in self.ratios)
        self.fusion = AdaptiveSpatialFusion(out_channels, len(self.ratios))

    def forward(self, c5: Tensor) -> Fusion:
        """M6 ``(B, out_channels, h, w)`` from ``c5 (B, in_channels, h, w)``, and the weight of each ratio."""
        size = (c5.shape[-2], c5.shape[-1])
        contexts = [
            F.interpolate(conv(ratio_invariant_pooling(c5, ratio)), size=size, mode="bilinear", align_corners=True)
            for ratio, conv in zip(self.ratios, self.convs, strict=True)
        ]
        fusion: Fusion = self.fusion(torch.stack(contexts, dim=1))
        return fusion


def ratio_invariant_pooling(feature: Tensor, ratio: float) -> Tensor:
    """Average pooling to ``ratio`` of the height and of the width, so that the aspect ratio stays (up to rounding)."""
    height, width = (max(1, int(side * ratio)) for side in feature.shape[-2:])
    return F.adaptive_avg_pool2d(feature, (height, width))
