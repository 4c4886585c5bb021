"""The size at which an image is looked at."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as v2


def resized_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width so that the shorter side is ``short_side``, or less where ``long_side`` would be passed.

    >>> resized_size(480, 640, 800, 1333), resized_size(100, 400, 800, 1333), resized_size(2, 3000, 800, 1333)
    ((800, 1066), (333, 1333), (1, 1333))
    """
    factor = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * factor)), max(1, int(width * factor))


def resize(image: torch.Tensor, short_side: int, long_side: int, antialias: bool = True) -> torch.Tensor:
    """``image (3, H, W)`` at `resized_size`, or boxes or masks (`tv_tensors` of these kinds) along with it."""
    height, width = v2.get_size(image)
    size = list(resized_size(height, width, short_side, long_side))
    resized: torch.Tensor = v2.resize(image, size, antialias=antialias)
    return resized
