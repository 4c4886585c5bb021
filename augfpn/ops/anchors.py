"""Anchors: the boxes in every cell of every level that a region proposal network or a one-stage head refines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AnchorGenerator:
    """Anchors of several shapes in every cell.

    ``scales``: side of a square anchor in strides of its level (the paper's settings: 8, so 32 px at P2).
    ``ratios``: height over width. ``centre``: where in a cell the anchor sits, 0.5 for its middle as in the release
    (there written as half of "stride − 1", by its inclusive corners), 0 for its corner as in torchvision.
    ``whole_pixels``: torchvision's form, with corners in whole pixels around the centre, and cells whose spacing is the
    image's side over the number of cells, which is a little less than a stride where a level has been rounded up.
    """

    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    centre: float = 0.5
    whole_pixels: bool = False

    @property
    def num_per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def __call__(self, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Anchors of each level, ``(H_l · W_l · num_per_cell, 4)``: row by row, cell by cell, scales within ratios."""
        image_height, image_width = (side * strides[0] for side in features[0].shape[-2:])
        anchors = []
        for feature, stride in zip(features, strides, strict=True):
            height, width = feature.shape[-2:]
            down, right = (image_height // height, image_width // width) if self.whole_pixels else (stride, stride)
            y = (torch.arange(height, device=feature.device, dtype=torch.float32) + self.centre) * down
            x = (torch.arange(width, device=feature.device, dtype=torch.float32) + self.centre) * right
            y, x = torch.meshgrid(y, x, indexing="ij")
            shapes = [torch.stack([x - w, y - h, x + w, y + h], dim=-1) for w, h in self._half_sides(stride)]
            anchors.append(torch.stack(shapes, dim=2).reshape(-1, 4))
        return anchors

    def _half_sides(self, stride: int) -> list[tuple[float, float]]:
        """Half the width and height of a cell's anchors. The area is the same for every ratio."""
        sides = [stride * scale for scale in self.scales]
        if self.whole_pixels:
            sides = [float(int(side)) for side in sides]
        halves = [(side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2) for ratio in self.ratios for side in sides]
        return [(float(round(w)), float(round(h))) for w, h in halves] if self.whole_pixels else halves
