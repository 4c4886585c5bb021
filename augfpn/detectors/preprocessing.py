"""From images of any size to what the backbone takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from augfpn.ops.resize import resize
from augfpn.structures import Images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(nn.Module):
    """Resizes and normalises, as in the paper: with ImageNet's statistics, and zeros in the padding.

    Args:
        short_side: pixels of an image's shorter side after resizing, unless the longer one would pass ``long_side``.
        long_side: the most pixels of an image's longer side.
        antialias: smooth images before making them smaller.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, short_side: int, long_side: int, antialias: bool = True) -> None:
        super().__init__()
        self.short_side = short_side
        self.long_side = long_side
        self.antialias = antialias
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def resize(self, image: Tensor) -> Tensor:
        """``image (3, H, W)`` at the size that the detector works at."""
        return resize(image, self.short_side, self.long_side, self.antialias)

    def normalise(self, images: Images) -> Tensor:
        """Normalised pixels ``(B, 3, H, W)``, 0 in the padding; channels last in memory."""
        pixels = images.pixels
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        height, width = images.sizes[:, 0, None], images.sizes[:, 1, None]
        rows = torch.arange(pixels.shape[2], device=pixels.device) < height
        columns = torch.arange(pixels.shape[3], device=pixels.device) < width
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return (((pixels - self.mean) / self.std) * inside).contiguous(memory_format=torch.channels_last)
