"""Boxes: overlap, clipping, and the deltas that regressors predict.

All functions take boxes ``(…, 4)`` as ``(x1, y1, x2, y2)`` and broadcast over leading dimensions, which is why they are
here and not taken from torchvision: its `box_iou` and `clip_boxes_to_image` know one image at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Regressors may not enlarge a box by more than this factor a side: exp() of an untrained output would overflow.
LARGEST_GROWTH = math.log(1000.0 / 16)


def area(boxes: Tensor) -> Tensor:
    """Areas ``(…)`` of boxes ``(…, 4)`` in square pixels.

    >>> area(torch.tensor([0.0, 0.0, 9.0, 9.0])).item()
    81.0
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union ``(…, M, N)`` of boxes ``(…, M, 4)`` and others ``(…, N, 4)``; 0 where both are empty."""
    # A side at a time: at 250,000 anchors these are the largest tensors of a training step.
    intersection = _overlap(boxes, others, 0) * _overlap(boxes, others, 1)
    union = area(boxes)[..., :, None] + area(others)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def _overlap(boxes: Tensor, others: Tensor, axis: int) -> Tensor:
    """By how many pixels boxes overlap along the x axis (0) or the y axis (1): ``(…, M, N)``."""
    first = torch.maximum(boxes[..., :, None, axis], others[..., None, :, axis])
    last = torch.minimum(boxes[..., :, None, axis + 2], others[..., None, :, axis + 2])
    return (last - first).clamp(min=0)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes ``(B, N, 4)`` cut to their images of ``sizes (B, 2)``, height and width."""
    height, width = sizes.to(boxes.dtype).unbind(-1)
    limits = torch.stack([width, height, width, height], dim=-1)[:, None, :]
    return torch.minimum(boxes.clamp(min=0), limits)


def rescale(boxes: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """``boxes (N, 4)`` in an image of size ``before (2)``, height and width, as it is resized to ``after (2)``."""
    return boxes * (after / before).flip(0).repeat(2).to(boxes)


def take_boxes(boxes: Tensor, indices: Tensor) -> Tensor:
    """``boxes (B, N, 4)`` at ``indices (B, M)`` of their own image: ``(B, M, 4)``."""
    return boxes.gather(1, indices[..., None].expand(-1, -1, 4))


@dataclass(frozen=True)
class BoxCoder:
    """Faster R-CNN's box deltas: shift of the centre over the size, logarithm of the growth, each over a scale.

    ``stds`` are the target standard deviations: (1, 1, 1, 1) for proposals, (0.1, 0.1, 0.2, 0.2) for the box head.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas ``(…, 4)`` that turn ``references (…, 4)`` into ``boxes (…, 4)``; both must have an area."""
        reference_centre, reference_size = _centre_and_size(references)
        centre, size = _centre_and_size(boxes)
        shift = (centre - reference_centre) / reference_size
        growth = torch.log(size / reference_size)
        return self._scaled(torch.cat([shift, growth], dim=-1), [1 / std for std in self.stds])

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes ``(…, 4)`` from ``deltas (…, 4)`` and ``references (…, 4)``."""
        deltas = self._scaled(deltas, self.stds)
        reference_centre, reference_size = _centre_and_size(references)
        centre = reference_centre + deltas[..., :2] * reference_size
        half = 0.5 * reference_size * deltas[..., 2:].clamp(max=LARGEST_GROWTH).exp()
        return torch.cat([centre - half, centre + half], dim=-1)

    @staticmethod
    def _scaled(deltas: Tensor, factors: Sequence[float]) -> Tensor:
        # A number at a time: a tensor made from a list would have to be copied to the device and waited for.
        return torch.stack([delta * factor for delta, factor in zip(deltas.unbind(-1), factors, strict=True)], dim=-1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
