"""Reading image files of every kind as RGB: greyscale, CMYK, palettes, transparency, 16 bits, rotated by EXIF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from augfpn.errors import UserError

# The EXIF orientations by which width and height change places.
ORIENTATION_TAG, TURNED = 0x0112, {5, 6, 7, 8}
# How a whole file of a format ends, allowing for some bytes behind it.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TAIL_BYTES = 64


class ImageError(UserError):
    """What is wrong with an image file; the message does not repeat its name."""


class ImageSizeError(ImageError):
    """An image of another size than annotated. ``size``: its height and width, upright."""

    def __init__(self, size: tuple[int, int], annotated: tuple[int, int], stored: tuple[int, int]) -> None:
        super().__init__(
            f"the image is {stored[1]} × {stored[0]} pixels, but annotated as {annotated[1]} × {annotated[0]}."
        )
        self.size = size


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """The image as ``(3, H, W)`` uint8, RGB.

    A rotation in the EXIF data is applied, as viewers and most annotation tools do, unless the annotated ``size``
    (height, width) fits the unrotated image only.
    """
    with _opened(path) as opened:
        image = _upright(opened, size)
        if image.mode.startswith("I"):
            # 16 bits a pixel; Pillow's own conversion would clip instead of scale.
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def check_image(path: Path, size: tuple[int, int], *, whole: bool = False) -> None:
    """Raises an ImageError if the file is missing, no image, truncated, or not of the annotated (height, width).

    Only the header and the end are read, so that a large data set is checked in seconds; ``whole``: all pixels, and
    damage in the middle of a file is found, too.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION_TAG) in TURNED
        format = image.format or ""
    if size != (height, width) and not (turned and size == (width, height)):
        upright = (width, height) if turned else (height, width)
        raise ImageSizeError(upright, annotated=size, stored=(height, width))
    if whole:
        read_image(path, size)
        return
    with path.open("rb") as file:
        file.seek(-min(TAIL_BYTES, path.stat().st_size), 2)
        if format not in ENDS or ENDS[format] not in file.read():
            # No proper end: perhaps other bytes stand behind it. Decoding tells.
            read_image(path, size)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file opened by Pillow; what Pillow raises while it is read becomes an ImageError."""
    try:
        if path.is_fifo():
            raise OSError("a pipe, which would be waited for")
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise ImageError("there is no such file.") from error
    except IsADirectoryError as error:
        raise ImageError("this is a folder, not an image file.") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image in a known format.") from error
    # Of bytes at random, Pillow's readers raise nearly anything.
    except Exception as error:
        raise ImageError(f"the image cannot be read ({error}); it may be truncated.") from error


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if size is None or turned.size == (size[1], size[0]):
        return turned
    return image
