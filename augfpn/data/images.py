"""Reading image files of every kind as RGB: greyscale, CMYK, palettes, transparency, 16 bits, rotated by EXIF.

Of an animation it is the first picture. EXIF data and colour profiles that cannot be read count as none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from augfpn.errors import UserError

# What is read, whatever a file is called. Pillow knows more, but gives EPS to Ghostscript, which runs what is in the
# file, and takes a JPEG 2000 that ends before its pixels for whole.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")
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


def image_path(folder: Path, name: str) -> Path:
    """The file of a name in an annotation file; an ImageError if that leads out of the folder of the images."""
    if Path(name).is_absolute() or Path(os.path.normpath(name)).parts[:1] == ("..",):
        raise ImageError("the file name leads out of the folder of the images.")
    return folder / name


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """The image as ``(3, H, W)`` uint8, RGB.

    A rotation in the EXIF data is applied, as viewers and most annotation tools do, unless the annotated ``size``
    (height, width) fits the unrotated image only. An ImageError if it fits neither.
    """
    with _opened(path) as opened:
        if size is not None:
            _check_size(opened, size)
        pixels = np.array(_eight_bits(_upright(opened, size)).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def check_image(path: Path, size: tuple[int, int], *, whole: bool = False) -> None:
    """Raises an ImageError if the file is missing, no image, truncated, or not of the annotated (height, width).

    Only the header and the end are read, so that a large data set is checked in seconds; ``whole``: all pixels, and
    damage in the middle of a file is found, too.
    """
    with _opened(path) as image:
        format = image.format or ""
        _check_size(image, size)
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
        _check_ordinary(path)
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("there is no such file.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image in a known format ({', '.join(FORMATS)}).") from error
    except Exception as error:
        # Besides its own, Pillow's decoders raise whatever they come upon: struct.error, EOFError, KeyError …
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"the file cannot be opened: {error.strerror}.") from error
        raise ImageError(f"the image cannot be read ({error}); it may be truncated.") from error


def _check_ordinary(path: Path) -> None:
    """An ImageError for what is there but no file; a pipe would be waited for without an end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("this is a folder, not an image file.")
    if not stat.S_ISREG(mode):
        raise ImageError("this is a pipe or a device, not an image file.")


def _check_size(image: Image.Image, size: tuple[int, int]) -> None:
    """An ImageSizeError if an image fits the annotated (height, width) neither as it is stored nor upright."""
    stored = image.height, image.width
    upright = stored[::-1] if image.getexif().get(ORIENTATION_TAG) in TURNED else stored
    if size not in (stored, upright):
        raise ImageSizeError(upright, annotated=size, stored=stored)


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if size is None or turned.size == (size[1], size[0]):
        return turned
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits a pixel scaled to 8, which Pillow would clip. What has no known range is an ImageError."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ImageError("its pixels have more than 16 bits, and nobody knows which value is white; convert them to 8.")
    return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
