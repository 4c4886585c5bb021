"""Backbones from timm, cut into the stages C2…C5."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from augfpn.detectors.weights import find_weights, load_weights
from augfpn.errors import UserError

# The families whose size is fixed unless they are told otherwise.
_SWIN = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")


class Backbone(nn.Module):
    """C2…C5 of a backbone that timm builds with ``features_only=True``.

    Args:
        name: timm's name of the architecture, such as ``resnet50``.
        weights: timm's tag of pretrained weights, such as ``tv_in1k``, a file or an http(s) URL
            (`augfpn.detectors.weights`), or None for a random start.
        frozen_stages: how many stages to leave as they are; 1 freezes all that C2 is computed from, stem included.
        frozen_batch_norm: batch norm uses its stored statistics and is not trained.
        style: where a ResNet's bottleneck has its stride: in the 3 × 3 convolution (``pytorch``), or in the first 1 × 1
            as in the original weights (``caffe``), which also want other pixels (`augfpn.detectors.preprocessing`).

    A UserError says what is wrong with an architecture that is unknown, lacks a stride, or takes one image size only.
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        name: str,
        weights: str | None,
        frozen_stages: int,
        frozen_batch_norm: bool,
        style: Literal["pytorch", "caffe"] = "pytorch",
    ) -> None:
        super().__init__()
        body: Any = _features(name)
        strides = body.feature_info.reduction()
        if not set(self.strides) <= set(strides):
            raise UserError(
                f"The backbone {name!r} has the strides {', '.join(map(str, sorted(set(strides))))}; C2…C5 need "
                f"{', '.join(map(str, self.strides))}. Choose a hierarchical one, such as resnet50 or convnext_tiny."
            )
        if style == "caffe":
            _stride_in_first_convolution(body, name)
        if weights is not None:
            load_weights(body, name, find_weights(name, weights))
        if frozen_batch_norm:
            body = freeze_batch_norm_2d(body)
        # The deepest feature of each stride.
        self._positions = [len(strides) - 1 - strides[::-1].index(stride) for stride in self.strides]
        # Only timm's wrappers say so; what others give has its channels first.
        self._channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        self.body = body
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels()[position] for position in self._positions)
        self._frozen_norms: list[nn.Module] = []
        self._freeze(name, frozen_stages)

    def forward(self, pixels: Tensor) -> Sequence[Tensor]:
        """C2…C5 of normalised ``pixels (B, 3, H, W)``."""
        features = self.body(pixels)
        stages = [features[position] for position in self._positions]
        return [stage.permute(0, 3, 1, 2) for stage in stages] if self._channels_last else stages

    def checkpoint_activations(self, enable: bool) -> None:
        """Whether a training step keeps what the stages' layers compute, or computes it again for the gradients.

        The step takes longer then and needs less memory; its result stays the same.
        """
        if enable and not hasattr(self.body, "set_grad_checkpointing"):
            raise UserError(f"{type(self.body).__name__} of timm has no activation checkpointing; train without.")
        if hasattr(self.body, "set_grad_checkpointing"):
            self.body.set_grad_checkpointing(enable)

    def _freeze(self, name: str, frozen_stages: int) -> None:
        """Freezes what the first stages are computed from, which autograd's graph knows of any architecture."""
        stages = self._stages_of_a_small_image(name)
        if frozen_stages == 0:
            return
        sources = [_sources(stage) for stage in stages[: frozen_stages + 1]]
        if any(not earlier < later for earlier, later in itertools.pairwise(sources)):
            raise UserError(
                f"The stages of {name!r} are not made one from the other, so that the first cannot be frozen alone; "
                "freeze none of them (frozen_stages=0)."
            )
        for parameter in sources[frozen_stages - 1]:
            parameter.requires_grad_(False)
        self._frozen_norms = [
            module
            for module in self.body.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight in sources[frozen_stages - 1]
        ]
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Batch norm in frozen stages keeps its statistics also where that of others does not."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def _stages_of_a_small_image(self, name: str) -> Sequence[Tensor]:
        """C2…C5 of a small black image, without a trace in random numbers or batch norm."""
        device = next(self.parameters()).device
        was_training = self.training
        try:
            with torch.enable_grad():
                stages: Sequence[Tensor] = self.eval()(torch.zeros(1, 3, 64, 96, device=device))
                return stages
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"The backbone {name!r} does not take images of any size (64 × 96 pixels: {error}). Choose another."
            ) from error
        finally:
            self.train(was_training)


def _features(name: str) -> nn.Module:
    """timm's model of that name, with a random start, as a list of features."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
        raise UserError(f"timm has no backbone {name!r}{hint} timm.list_models() lists them.")
    is_swin = any(timm.list_models(name, module=module) for module in _SWIN)
    options = {"strict_img_size": False} if is_swin else {}
    try:
        body: nn.Module = timm.create_model(name, features_only=True, **options)
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        raise UserError(f"timm cannot cut the backbone {name!r} into stages: {error}") from error
    return body


def _sources(stage: Tensor) -> set[Tensor]:
    """The parameters that a stage is computed from: the leaves of its graph."""
    leaves, seen, waiting = set(), set(), [stage.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        waiting += [source for source, _ in node.next_functions]
    return leaves


def _stride_in_first_convolution(body: nn.Module, name: str) -> None:
    """From PyTorch's bottlenecks to the original ones, which Caffe's weights were trained with."""
    strided = [module for module in body.modules() if isinstance(module, Bottleneck) and module.conv2.stride != (1, 1)]
    if not strided:
        raise UserError(
            f"The style 'caffe' is for ResNets of bottlenecks, such as resnet50; {name!r} has none with a stride in "
            "its 3 × 3 convolution. Use the style 'pytorch'."
        )
    for block in strided:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
