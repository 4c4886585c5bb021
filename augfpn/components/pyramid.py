"""The feature pyramid (Figure 2): FPN, and AugFPN's pyramid when it is given a Residual Feature Augmentation.

    M_l = conv1x1_l(C_l)                                                  lateral connections
    T_5 = M_5 (+ M_6 of Residual Feature Augmentation), T_l = M_l + upsample(T_{l+1})
    P_l = conv3x3_l(T_l)
    coarser levels: P_6 for two-stage detectors, P_6 and P_7 for one-stage ones (`SubsampledP6`, `ConvolvedP6P7`)

Consistent Supervision looks at the M_l, so they are returned too, always.

Departures: none from the release. Nearest-neighbour upsampling goes to the size of the finer level rather than by a
factor of two; the two are the same for sides divisible by 32, to which images are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.components.residual_feature_augmentation import ResidualFeatureAugmentation
from augfpn.initialisation import xavier
from augfpn.structures import Pyramid


class FeaturePyramid(nn.Module):
    """Builds the levels P_l from the last stages C_l of a backbone: P2…P6 from C2…C5, or P3…P7 from C3…C5.

    Args:
        in_channels: channels of the stages that it is built from.
        out_channels: channels of every level of the pyramid.
        strides: pixels a cell of those stages.
        residual_feature_augmentation: AugFPN's addition to M5, or None for FPN.
        top: makes the levels above P5; by default P6 for two-stage detectors.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        residual_feature_augmentation: ResidualFeatureAugmentation | None = None,
        top: SubsampledP6 | ConvolvedP6P7 | None = None,
    ) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(xavier(nn.Conv2d(c, out_channels, kernel_size=1)) for c in in_channels)
        self.output_convs = nn.ModuleList(
            xavier(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)) for _ in in_channels
        )
        self.residual_feature_augmentation = residual_feature_augmentation
        self.top = SubsampledP6() if top is None else top
        self.strides = (*strides, *(strides[-1] * 2**i for i in range(1, self.top.num_levels + 1)))

    def forward(self, features: Sequence[Tensor]) -> Pyramid:
        """``features``: C2…C5, each ``(B, C_l, H_l, W_l)``; those that it is not built from are ignored."""
        features = features[-len(self.lateral_convs) :]
        laterals = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        highest, context = laterals[-1], None
        if self.residual_feature_augmentation is not None:
            context = self.residual_feature_augmentation(features[-1]).fused
            highest = highest + context
        merged = [highest]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        levels = [conv(feature) for conv, feature in zip(self.output_convs, merged, strict=True)]
        levels += self.top(features[-1], levels[-1], context)
        return Pyramid(tuple(levels), tuple(laterals), self.strides)


class SubsampledP6(nn.Module):
    """P6 of two-stage detectors: P5 at every second cell."""

    num_levels = 1

    def forward(self, c5: Tensor, p5: Tensor, context: Tensor | None) -> list[Tensor]:
        return [F.max_pool2d(p5, kernel_size=1, stride=2)]


class ConvolvedP6P7(nn.Module):
    """P6 and P7 of one-stage detectors, by convolutions of stride 2.

    With Residual Feature Augmentation, the mean of its context M6 over the image is added to P6, before P7 is made from
    it. The paper does not speak of it; the release does it.

    Args:
        in_channels: channels of what P6 is made from.
        out_channels: channels of the pyramid.
        source: make P6 from "c5" (RetinaNet), or from "p5" with a ReLU before P7 (FCOS).
    """

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, source: Literal["c5", "p5"]) -> None:
        super().__init__()
        self.source = source
        self.p6 = xavier(nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1))
        self.p7 = xavier(nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=2, padding=1))

    def forward(self, c5: Tensor, p5: Tensor, context: Tensor | None) -> list[Tensor]:
        """P6 and P7 from C5, P5 and the context M6 ``(B, C, H_5, W_5)`` of Residual Feature Augmentation, or None."""
        p6 = self.p6(c5 if self.source == "c5" else p5)
        if context is not None:
            p6 = p6 + context.mean(dim=(2, 3), keepdim=True)
        return [p6, self.p7(p6 if self.source == "c5" else p6.relu())]
