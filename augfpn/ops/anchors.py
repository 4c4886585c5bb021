"""Anchors: the boxes at every cell of every level that the region proposal network scores and refines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AnchorGenerator:
    """Anchors of several shapes at the centre of every cell.

    ``scales``: side of a square anchor in strides of its level (the paper's settings: 8, so 32 px at P2).
    ``ratios``: height over width. ``centre``: where in a cell the anchor sits, 0.5 for its middle as in the release
    (there written as half of "stride − 1", by its inclusive corners), 0 for its corner as in torchvision.
    """

    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    centre: float = 0.5

    @property
    def num_per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def __call__(self, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Anchors of each level, ``(H_l · W_l · num_per_cell, 4)``: row by row, cell by cell, ratios within scales."""
        anchors = []
        for feature, stride in zip(features, strides, strict=True):
            height, width = feature.shape[-2:]
            y = (torch.arange(height, device=feature.device, dtype=torch.float32) + self.centre) * stride
            x = (torch.arange(width, device=feature.device, dtype=torch.float32) + self.centre) * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            shapes = [
                torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1) for w, h in self._shapes(stride)
            ]
            anchors.append(torch.stack(shapes, dim=2).reshape(-1, 4))
        return anchors

    def _shapes(self, stride: int) -> list[tuple[float, float]]:
        """Widths and heights of a cell's anchors. The area is the same for every ratio."""
        sides = [stride * scale for scale in self.scales]
        return [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for side in sides for ratio in self.ratios]
