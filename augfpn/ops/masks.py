"""Masks of objects, cropped to RoIs: what the mask head is trained towards.

How finely torchvision's RoIAlign samples a mask depends on the RoI's size, so this is an operator of its own to
`torch.compile`, with a result of fixed shape.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def crop_masks(masks: Tensor, boxes: Tensor, objects: Tensor, wanted: Tensor, size: int) -> Tensor:
    """The part of an object's mask that lies in an RoI, averaged over its cells.

    Args:
        masks: ``(B, G, H, W)`` uint8. boxes: ``(B, R, 4)`` in their pixels. objects: ``(B, R)`` int64, in 0…G − 1.
        wanted: ``(B, R)`` bool; the others come out as zeros.
        size: cells a side, S.

    Returns:
        ``(B, R, S, S)`` in 0-1.
    """
    cropped: Tensor = _crop_masks(masks, boxes, objects, wanted, size)
    return cropped


@torch.library.custom_op("augfpn::crop_masks", mutates_args=())
def _crop_masks(masks: Tensor, boxes: Tensor, objects: Tensor, wanted: Tensor, size: int) -> Tensor:
    cropped = torch.zeros(*objects.shape, size, size, device=masks.device)
    for image in range(len(masks)):
        # Only the masks that are needed become floats: a crowded image has many, and each is as large as the image.
        chosen = wanted[image].nonzero().squeeze(1)
        used, positions = torch.unique(objects[image, chosen], return_inverse=True)
        rois = torch.cat([positions[:, None].float(), boxes[image, chosen].float()], dim=1)
        cropped[image, chosen] = torchvision.ops.roi_align(
            masks[image, used, None].float(), rois, output_size=size, aligned=False
        )[:, 0]
    return cropped


@_crop_masks.register_fake
def _(masks: Tensor, boxes: Tensor, objects: Tensor, wanted: Tensor, size: int) -> Tensor:
    return masks.new_empty((*objects.shape, size, size), dtype=torch.float32)
