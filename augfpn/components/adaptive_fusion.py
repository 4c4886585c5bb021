"""Adaptive Spatial Fusion (Section 3.2, Figure 3a): several features of one size become one.

Used twice: Residual Feature Augmentation fuses context features with it, Soft RoI Selection fuses the RoI's features of
all levels.

    weights = sigmoid(conv3x3(relu(conv1x1(concatenated features))))        one map for each feature
    fused   = sum over i of weights_i · feature_i

Departures: none from the release. The paper does not say how the weights are normalised; the release applies a sigmoid
to each map by itself, so they need not sum to one, and so do we.
"""

from __future__ import annotations

from torch import Tensor, nn

from augfpn.initialisation import xavier
from augfpn.structures import Fusion


class AdaptiveSpatialFusion(nn.Module):
    """Fuses ``num_inputs`` features of ``channels`` channels.

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
