"""Several features of one size become one (Figure 3), adaptively or not.

Adaptive Spatial Fusion, ASF (Section 3.2, Figure 3a), is the paper's. Residual Feature Augmentation fuses context
features with it, Soft RoI Selection fuses the RoI's features of all levels:

    weights = sigmoid(conv3x3(relu(conv1x1(concatenated features))))        one map for each feature
    fused   = sum over i of weights_i · feature_i

The other fusions are what the ablations put in its place: Adaptive Channel Fusion, ACF (Figure 3b), the sum and the
maximum in Table 5, the sum and PSPNet's convolution in Table 4.

Departures: none from the release, which has ASF only. The paper does not say how ASF's weights are normalised; the
release applies a sigmoid to each map by itself, so they need not sum to one, and so do we. Of ACF the text says that it
is "inspired by the SE module", of PSPNet's fusion that it convolves the concatenated features; their sizes are our
choice and stand with the classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from augfpn.initialisation import xavier
from augfpn.structures import Fusion

FusionName = Literal["asf", "acf", "sum", "max", "psp"]


def fusion_of(name: FusionName, channels: int, num_inputs: int) -> nn.Module:
    """The fusion that the paper calls by this name, of ``num_inputs`` features of ``channels`` channels.

    All of them take ``features (N, L, C, H, W)`` and return a `Fusion`.
    """
    match name:
        case "asf":
            return AdaptiveSpatialFusion(channels, num_inputs)
        case "acf":
            return AdaptiveChannelFusion(channels, num_inputs)
        case "sum":
            return SumFusion()
        case "max":
            return MaxFusion()
        case "psp":
            return ConvolutionalFusion(channels, num_inputs)


class AdaptiveSpatialFusion(nn.Module):
    """Weighs every place of every feature (Figure 3a).

    >>> fusion = AdaptiveSpatialFusion(channels=256, num_inputs=4)
    >>> sum(parameter.numel() for parameter in fusion.parameters())  # the paper's 0.27 M (Section 4.4)
    271620
    """

    def __init__(self, channels: int, num_inputs: int) -> None:
        super().__init__()
        self.reduce = xavier(nn.Conv2d(num_inputs * channels, channels, kernel_size=1))
        self.weigh = xavier(nn.Conv2d(channels, num_inputs, kernel_size=3, padding=1))

    def forward(self, features: Tensor) -> Fusion:
        """Fuses ``features (N, L, C, H, W)``; each weight is in 0-1."""
        weights = self.weigh(self.reduce(features.flatten(1, 2)).relu()).sigmoid()
        return Fusion((weights[:, :, None] * features).sum(dim=1), weights)


class AdaptiveChannelFusion(nn.Module):
    """Weighs every channel of every feature (Figure 3b), as a squeeze-and-excitation module would.

        squeezed = mean over places of the concatenated features
        weights  = sigmoid(fc(relu(fc(squeezed))))        one number for each channel of each feature

    Between the two layers it has C channels, as ASF has between its convolutions; SE's own reduction would have L·C/16.
    """

    def __init__(self, channels: int, num_inputs: int) -> None:
        super().__init__()
        self.reduce = xavier(nn.Linear(num_inputs * channels, channels))
        self.weigh = xavier(nn.Linear(channels, num_inputs * channels))

    def forward(self, features: Tensor) -> Fusion:
        """Fuses ``features (N, L, C, H, W)``; the weights are the means over the channels, the same at every place."""
        of_channels = self.channel_weights(features)
        weights = of_channels.mean(dim=2)[:, :, None, None].expand(-1, -1, *features.shape[3:])
        return Fusion((of_channels[..., None, None] * features).sum(dim=1), weights)

    def channel_weights(self, features: Tensor) -> Tensor:
        """The weight ``(N, L, C)`` of every channel of ``features (N, L, C, H, W)``."""
        squeezed = features.mean(dim=(3, 4)).flatten(1)
        of_channels: Tensor = self.weigh(self.reduce(squeezed).relu()).sigmoid()
        return of_channels.view(features.shape[:3])


class SumFusion(nn.Module):
    """Adds the features."""

    def forward(self, features: Tensor) -> Fusion:
        """Fuses ``features (N, L, C, H, W)``; the weights are 1."""
        return Fusion(features.sum(dim=1), torch.ones_like(features[:, :, 0]))


class MaxFusion(nn.Module):
    """Takes the largest value in every channel of every place."""

    def forward(self, features: Tensor) -> Fusion:
        """Fuses ``features (N, L, C, H, W)``; the weights are the share of the channels that a feature is taken in."""
        fused, chosen = features.max(dim=1)
        shares = [(chosen == index).to(fused.dtype).mean(dim=1) for index in range(features.shape[1])]
        return Fusion(fused, torch.stack(shares, dim=1))


class ConvolutionalFusion(nn.Module):
    """Convolves the concatenated features, as PSPNet does (Table 4).

    PSPNet concatenates the feature that it pooled, too; here M5 stays apart, and what is fused is added to it. No
    normalisation and no activation, as nowhere in the pyramid.
    """

    def __init__(self, channels: int, num_inputs: int) -> None:
        super().__init__()
        self.conv = xavier(nn.Conv2d(num_inputs * channels, channels, kernel_size=3, padding=1))

    def forward(self, features: Tensor) -> Fusion:
        """Fuses ``features (N, L, C, H, W)``, which have no weights."""
        return Fusion(self.conv(features.flatten(1, 2)), None)
