"""Which ground truth an anchor or RoI is trained towards, and which of them are trained at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from augfpn.ops.boxes import pairwise_iou
from augfpn.ops.ranks import rand
from augfpn.structures import Targets

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """``kinds (B, N)``: foreground 1, background 0, ignored −1. ``indices (B, N)``: the matched object of each box."""

    kinds: Tensor
    indices: Tensor


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """Matches boxes to ground truth by overlap.

    A box is foreground from ``foreground_iou`` on, background below ``background_iou``, and ignored in between. With
    ``lowest_best_iou``, the boxes that overlap an object best are foreground too, if they overlap it at least by so
    much: the region proposal network's rule, by which no object stays without an anchor. ``best_of``: such a box is
    matched to the "object" of which it is the best, or to the one that it overlaps most ("overlap"). An object that
    overlaps no box at all, as one outside the image, has no best one, or all boxes would be its.
    """

    foreground_iou: float
    background_iou: float
    lowest_best_iou: float | None = None
    best_of: Literal["object", "overlap"] = "object"

    def __call__(self, boxes: Tensor, targets: Targets, usable: Tensor | None = None) -> Matches:
        """Matches ``boxes (B, N, 4)`` or ``(N, 4)``, the same for all images, to the objects of each image.

        Boxes that are not ``usable (B, N)`` are ignored, and none of them is the best of an object.
        """
        num_images, num_objects = targets.labels.shape
        iou = pairwise_iou(targets.boxes, boxes.expand(num_images, *boxes.shape[-2:]))
        iou = torch.where(targets.valid[:, :, None], iou, -1.0)
        if usable is not None:
            iou = torch.where(usable[:, None, :], iou, -1.0)
        best_iou, indices = iou.max(dim=1)
        kinds = torch.full_like(indices, IGNORED)
        kinds = torch.where(best_iou < self.background_iou, BACKGROUND, kinds)
        kinds = torch.where(best_iou >= self.foreground_iou, FOREGROUND, kinds)
        if self.lowest_best_iou is not None:
            best_of_object = iou.max(dim=2, keepdim=True).values
            is_best = (iou == best_of_object) & (best_of_object >= self.lowest_best_iou) & (best_of_object > 0)
            if self.best_of == "object":
                # An anchor that is the best of several objects goes to the last of them, as in the release.
                last = num_objects - 1 - is_best.flip(1).to(torch.uint8).argmax(dim=1)
                indices = torch.where(is_best.any(dim=1), last, indices)
            kinds = torch.where(is_best.any(dim=1), FOREGROUND, kinds)
        if usable is not None:
            kinds = torch.where(usable, kinds, IGNORED)
        return Matches(kinds, indices)


class Sample(NamedTuple):
    """``indices (B, num)`` of the sampled boxes, foreground first; ``valid (B, num)``: false for padding."""

    indices: Tensor
    valid: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws ``num`` boxes an image at random, at most ``foreground_fraction`` of them foreground."""

    num: int
    foreground_fraction: float

    @property
    def most_foreground(self) -> int:
        """The sampled boxes after this many are background."""
        return int(self.num * self.foreground_fraction)

    def __call__(self, kinds: Tensor) -> Sample:
        """Samples from ``kinds (B, N)``, with PyTorch's global random numbers."""
        num = min(self.num, kinds.shape[1])
        most_foreground = min(self.most_foreground, num)
        lot = rand(kinds.shape, kinds.device)
        foreground_lot = torch.where(kinds == FOREGROUND, lot, -1.0)
        drawn, where = foreground_lot.topk(most_foreground, dim=1)
        is_drawn = torch.zeros_like(kinds, dtype=torch.bool).scatter(1, where, drawn >= 0)
        # Priorities: drawn foreground above 1, background in 0-1, everything else below 0.
        priority = torch.where(kinds == BACKGROUND, lot, -1.0)
        priority = torch.where(is_drawn, lot + 2, priority)
        priority, indices = priority.topk(num, dim=1)
        return Sample(indices, priority >= 0)
