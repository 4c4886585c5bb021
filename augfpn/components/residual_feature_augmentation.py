"""Residual Feature Augmentation (Section 3.2): context of several sizes, added to M5.

    context_k = upsample(conv1x1_k(ratio-invariant adaptive pooling of C5 by α_k))        to C5's size S = h × w
    M6        = Adaptive Spatial Fusion of all context_k

The pyramid adds M6 to M5 before its top-down path, and after M5 was copied for Consistent Supervision.

Table 4 puts other poolings and other fusions (`augfpn.components.adaptive_fusion`) in their places: one context of the
whole image by global average or maximum pooling, or PSPNet's contexts, which have fixed sizes whatever the image.

Departures: the paper writes the pooled scales as (α_1 × S, …) and gives no rounding; as in the release a pooled size is
``⌊α·h⌋ × ⌊α·w⌋`` and at least 1, and the upsampling is bilinear with aligned corners. Of PSPNet's pooling the paper
says only that its sizes are fixed: they are PSPNet's own, 1, 2, 3 and 6 cells a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.components.adaptive_fusion import FusionName, fusion_of
from augfpn.initialisation import xavier
from augfpn.structures import Fusion

# Sides of PSPNet's contexts, in cells.
PSP_SIZES = (1, 2, 3, 6)

PoolingName = Literal["ra-ap", "gap", "gmp", "psp"]


class ResidualFeatureAugmentation(nn.Module):
    """Makes M6 from C5.

    Args:
        in_channels: channels of C5.
        out_channels: channels of the pyramid.
        pooling: ratio-invariant adaptive ("ra-ap"), global average ("gap"), global maximum ("gmp") or PSPNet's ("psp").
        ratios: the α of ratio-invariant adaptive pooling, each in (0, 1]; the others have none.
        fusion: how the contexts become one, see `augfpn.components.adaptive_fusion`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pooling: PoolingName = "ra-ap",
        ratios: Sequence[float] = (0.1, 0.2, 0.3),
        fusion: FusionName = "asf",
    ) -> None:
        super().__init__()
        self.poolings = _poolings(pooling, ratios)
        self.convs = nn.ModuleList(xavier(nn.Conv2d(in_channels, out_channels, kernel_size=1)) for _ in self.poolings)
        self.fusion = fusion_of(fusion, out_channels, len(self.poolings))

    def forward(self, c5: Tensor) -> Fusion:
        """M6 ``(B, out_channels, h, w)`` from ``c5 (B, in_channels, h, w)``, and the weight of each context."""
        size = (c5.shape[-2], c5.shape[-1])
        contexts = [
            F.interpolate(conv(pool(c5)), size=size, mode="bilinear", align_corners=True)
            for pool, conv in zip(self.poolings, self.convs, strict=True)
        ]
        fusion: Fusion = self.fusion(torch.stack(contexts, dim=1))
        return fusion


def _poolings(name: PoolingName, ratios: Sequence[float]) -> tuple[Callable[[Tensor], Tensor], ...]:
    """One for each context."""
    match name:
        case "ra-ap":
            return tuple(partial(ratio_invariant_pooling, ratio=ratio) for ratio in ratios)
        case "gap":
            return (partial(F.adaptive_avg_pool2d, output_size=1),)
        case "gmp":
            return (partial(F.adaptive_max_pool2d, output_size=1),)
        case "psp":
            return tuple(partial(F.adaptive_avg_pool2d, output_size=size) for size in PSP_SIZES)


def ratio_invariant_pooling(feature: Tensor, ratio: float) -> Tensor:
    """Average pooling to ``ratio`` of the height and of the width, so that the aspect ratio stays (up to rounding)."""
    return F.adaptive_avg_pool2d(feature, pooled_size(feature.shape[-2], feature.shape[-1], ratio))


def pooled_size(height: int, width: int, ratio: float) -> tuple[int, int]:
    """Cells of a context that is pooled by ``ratio`` from a feature of ``height`` × ``width``.

    >>> pooled_size(25, 42, 0.3), pooled_size(4, 4, 0.4)
    ((7, 12), (1, 1))
    """
    return max(1, int(height * ratio)), max(1, int(width * ratio))
