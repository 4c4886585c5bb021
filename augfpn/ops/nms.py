"""Non-maximum suppression of a whole batch, with a result of fixed shape.

How many boxes survive depends on the data, so this is an operator of its own to `torch.compile`: it takes padded boxes
and gives a fixed number of indices. Inside stands torchvision's kernel, an image at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor


class Kept(NamedTuple):
    """``indices (B, num)`` of the surviving boxes, best first; ``valid (B, num)``: false for padding (index 0)."""

    indices: Tensor
    valid: Tensor


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, num: int) -> Kept:
    """Suppresses boxes that overlap a better one of their own image and group (a class, or a level).

    Args:
        boxes: ``(B, N, 4)``. scores: ``(B, N)``. groups: ``(B, N)`` int64. valid: ``(B, N)`` bool.
        iou_threshold: boxes that overlap by more are suppressed.
        num: how many to keep an image.
    """
    return Kept(*_batched_nms(boxes, scores, groups, valid, iou_threshold, num))


@torch.library.custom_op("augfpn::batched_nms", mutates_args=())
def _batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    indices = torch.zeros(len(boxes), num, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros(len(boxes), num, dtype=torch.bool, device=boxes.device)
    for image in range(len(boxes)):
        candidates = valid[image].nonzero().squeeze(1)
        survivors = torchvision.ops.batched_nms(
            boxes[image, candidates].float(),
            scores[image, candidates].float(),
            groups[image, candidates],
            iou_threshold,
        )[:num]
        indices[image, : len(survivors)] = candidates[survivors]
        kept[image, : len(survivors)] = True
    return indices, kept


@_batched_nms.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], num)
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape, dtype=torch.bool)
