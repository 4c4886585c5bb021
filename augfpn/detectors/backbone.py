"""Backbones from timm, cut into the stages C2…C5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from augfpn.errors import UserError


class Backbone(nn.Module):
    """C2…C5 of a ResNet, or of another backbone with five levels that timm builds with ``features_only=True``.

    Args:
        name: timm's name of the architecture, such as ``resnet50``.
        weights: timm's tag of pretrained weights, such as ``tv_in1k``, or None for a random start.
        frozen_stages: how many stages to leave as they are; 1 freezes the stem and C2's stage.
        frozen_batch_norm: batch norm uses its stored statistics and is not trained.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, name: str, weights: str | None, frozen_stages: int, frozen_batch_norm: bool) -> None:
        super().__init__()
        full_name = name if weights is None else f"{name}.{weights}"
        try:
            body: Any = timm.create_model(
                full_name, pretrained=weights is not None, features_only=True, out_indices=(1, 2, 3, 4)
            )
        except OSError as error:
            # No network, or no such file on it: huggingface_hub's errors are of this kind.
            raise UserError(
                f"The pretrained weights {full_name!r} could not be fetched ({type(error).__name__}). They are needed "
                "once with a network, and then kept in Hugging Face's cache ($HF_HOME); weights=None starts at random."
            ) from error
        if tuple(body.feature_info.reduction()) != self.strides:
            raise UserError(
                f"The backbone {name!r} has strides {body.feature_info.reduction()}; C2…C5 need {self.strides}."
            )
        if frozen_batch_norm:
            body = freeze_batch_norm_2d(body)
        self.body = body
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        names = [parameter_name for parameter_name, _ in body.named_parameters()]
        if frozen_stages > 0 and not any(_stage(parameter_name) > 1 for parameter_name in names):
            raise UserError(f"The stages of {name!r} are not known by name; freeze none of them (frozen_stages=0).")
        for parameter_name, parameter in body.named_parameters():
            if _stage(parameter_name) <= frozen_stages:
                parameter.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Sequence[Tensor]:
        """C2…C5 of normalised ``pixels (B, 3, H, W)``."""
        features: Sequence[Tensor] = self.body(pixels)
        return features


def _stage(parameter_name: str) -> int:
    """1 for the first stage of a ResNet (``layer1``) and for the stem before it, 2 for the second …"""
    first = parameter_name.split(".")[0]
    return int(first.removeprefix("layer")) if first.startswith("layer") else 1
