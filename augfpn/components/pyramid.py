"""The feature pyramid (Figure 2): FPN, and AugFPN's pyramid when it is given a Residual Feature Augmentation.

    M_l = conv1x1_l(C_l)                                                  lateral connections
    T_5 = M_5 (+ M_6 of Residual Feature Augmentation), T_l = M_l + upsample(T_{l+1})
    P_l = conv3x3_l(T_l);  P_6 = P_5 at every second cell

Consistent Supervision looks at the M_l, so they are returned too, always.

Departures: none from the release. Nearest-neighbour upsampling goes to the size of the finer level rather than by a
factor of two; the two are the same for sides divisible by 32, to which images are padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.components.residual_feature_augmentation import ResidualFeatureAugmentation
from augfpn.initialisation import xavier
from augfpn.structures import Pyramid


class FeaturePyramid(nn.Module):
    """Builds P2…P6 from C2…C5.

    Args:
        in_channels: channels of C2…C5.
        out_channels: channels of every level of the pyramid.
        strides: pixels a cell of C2…C5.
        residual_feature_augmentation: AugFPN's addition to M5, or None for FPN.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        residual_feature_augmentation: ResidualFeatureAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.strides = (*strides, 2 * strides[-1])
        self.lateral_convs = nn.ModuleList(xavier(nn.Conv2d(c, out_channels, kernel_size=1)) for c in in_channels)
        self.output_convs = nn.ModuleList(
            xavier(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)) for _ in in_channels
        )
        self.residual_feature_augmentation = residual_feature_augmentation

    def forward(self, features: Sequence[Tensor]) -> Pyramid:
        """``features``: C2…C5, each ``(B, C_l, H_l, W_l)``."""
        laterals = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        top = laterals[-1]
        if self.residual_feature_augmentation is not None:
            top = top + self.residual_feature_augmentation(features[-1]).fused
        merged = [top]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        levels = [conv(feature) for conv, feature in zip(self.output_convs, merged, strict=True)]
        levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return Pyramid(tuple(levels), tuple(laterals), self.strides)
