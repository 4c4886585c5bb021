"""From images of any size to what the backbone takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from augfpn.ops.resize import resize
from augfpn.structures import Images


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What a backbone takes: (pixels - ``mean``) / ``std`` of pixels in 0-1, with the channels in this order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Literal["RGB", "BGR"] = "RGB"


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Pixels in 0-255 less their mean, as the original ResNets were trained; the numbers are Detectron's.
CAFFE = Normalisation(
    mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255), std=(1 / 255, 1 / 255, 1 / 255), channels="BGR"
)
_OF_STYLE = {"pytorch": IMAGENET, "caffe": CAFFE}


class Preprocessing(nn.Module):
    """Resizes and normalises, as in the paper: with the statistics of the backbone's data, and zeros in the padding.

    Args:
        short_side: pixels of an image's shorter side after resizing, unless the longer one would pass ``long_side``.
        long_side: the most pixels of an image's longer side.
        style: the backbone's (`augfpn.detectors.backbone`), which its `Normalisation` follows from.
        antialias: smooth images before making them smaller.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        short_side: int,
        long_side: int,
        style: Literal["pytorch", "caffe"] = "pytorch",
        antialias: bool = True,
    ) -> None:
        super().__init__()
        self.short_side = short_side
        self.long_side = long_side
        self.antialias = antialias
        self.normalisation = _OF_STYLE[style]
        self.register_buffer("mean", torch.tensor(self.normalisation.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.normalisation.std).view(3, 1, 1), persistent=False)

    def resize(self, image: Tensor) -> Tensor:
        """``image (3, H, W)`` at the size that the detector works at."""
        return resize(image, self.short_side, self.long_side, self.antialias)

    def normalise(self, images: Images) -> Tensor:
        """Normalised pixels ``(B, 3, H, W)``, 0 in the padding; channels last in memory."""
        pixels = images.pixels
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if self.normalisation.channels == "BGR":
            pixels = pixels.flip(1)
        height, width = images.sizes[:, 0, None], images.sizes[:, 1, None]
        rows = torch.arange(pixels.shape[2], device=pixels.device) < height
        columns = torch.arange(pixels.shape[3], device=pixels.device) < width
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return (((pixels - self.mean) / self.std) * inside).contiguous(memory_format=torch.channels_last)
