"""How weights start, as in the release.

Departure: in two-stage detectors the release never initialises the auxiliary heads of Consistent Supervision, so that
they start with PyTorch's defaults; here they start like the heads that they mirror.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def xavier(layer: Layer) -> Layer:
    """Glorot's uniform weights and a bias of zero: pyramid, fusion and fully connected layers."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def gaussian(layer: Layer, std: float, bias: float = 0.0) -> Layer:
    """Normal weights of the given standard deviation and a constant bias: the layers that predict."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
    return layer


def kaiming(layer: Layer) -> Layer:
    """He's normal weights for layers before a ReLU and a bias of zero: the mask head."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
