"""Instance masks as COCO writes them, and as run-length encodings (RLE) that take a thousandth of their pixels' space.

COCO knows polygons (one or several an object), run lengths as a list of numbers, and run lengths packed into a text.
pycocotools turns each into the other, but trusts them: it reads beyond a text that is cut off, and takes a polygon of
two points for a box. So everything is checked here first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

# From this probability on, a pixel belongs to the object.
MASK_THRESHOLD = 0.5
# A polygon may leave its image by so many times the image's size; drawing one far outside would fill the memory.
MOST_OUTSIDE = 1.0
# pycocotools counts pixels in 32 bits, and draws a polygon by all the places on its outline.
LONGEST_MASK_SIDE = 65_535

# A mask as COCO's results have it: ``size`` [H, W], and the packed run lengths ``counts`` as text.
Rle = dict[str, Any]


class SegmentationError(ValueError):
    """What is wrong with a segmentation."""


def compress(segmentation: Any, height: int, width: int) -> Rle:
    """An annotation's segmentation in an image of that size, whichever of COCO's kinds it is, as packed run lengths.

    Raises:
        SegmentationError: if it is of no such kind, broken, of another size, or has no pixels in the image.
    """
    if max(height, width) > LONGEST_MASK_SIDE:
        raise SegmentationError(
            f"is of an image of {width} × {height}; sides may have {LONGEST_MASK_SIDE} pixels at most"
        )
    if isinstance(segmentation, list):
        packed = rle.merge(rle.frPyObjects(_polygons(segmentation, height, width), height, width))
    elif isinstance(segmentation, dict):
        packed = _run_lengths(segmentation, height, width)
    else:
        raise SegmentationError("is missing" if segmentation is None else "is neither polygons nor run lengths")
    if not rle.area(packed):
        raise SegmentationError("covers no pixel")
    return _as_text(packed)


def encode(masks: Tensor) -> list[Rle]:
    """Each of ``masks``, ``(D, 1, H, W)`` probabilities or ``(D, H, W)`` of 0 and 1, as packed run lengths."""
    # pycocotools wants the masks last, and columns before rows in memory.
    pixels = np.asfortranarray(binary(masks).permute(1, 2, 0).numpy())
    return [_as_text(packed) for packed in rle.encode(pixels)] if len(masks) else []


def decode(encoded: Any, height: int, width: int) -> Tensor:
    """The masks ``(D, H, W)`` uint8 of a list of `Rle` of images of that size."""
    if not encoded:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    return torch.from_numpy(rle.decode(encoded)).permute(2, 0, 1).contiguous()


def binary(masks: Tensor) -> Tensor:
    """``(D, H, W)`` uint8 on the host of ``(D, 1, H, W)`` probabilities; what is such a mask already stays the same."""
    return (masks.reshape(len(masks), *masks.shape[-2:]) >= MASK_THRESHOLD).to("cpu", torch.uint8)


def _polygons(polygons: list[Any], height: int, width: int) -> Any:
    if not polygons:
        raise SegmentationError("is empty")
    size = np.array([width, height])
    for polygon in polygons:
        corners = _numbers(polygon, "a polygon")
        if len(corners) % 2 or len(corners) < 6:
            raise SegmentationError(
                f"has a polygon of {len(corners)} coordinates; expected x, y of three points or more"
            )
        points = corners.reshape(-1, 2)
        if (points < -MOST_OUTSIDE * size).any() or (points > (1 + MOST_OUTSIDE) * size).any():
            raise SegmentationError(f"has a polygon far outside its image of {width} × {height}")
        steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
        # Around every pixel of the image and of as much around it as a polygon may take.
        if steps.sum() > 4 * ((1 + 2 * MOST_OUTSIDE) * size).prod():
            raise SegmentationError("has a polygon that goes back and forth over its whole image")
    return polygons


def _run_lengths(segmentation: dict[str, Any], height: int, width: int) -> Any:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise SegmentationError(f"is of size {size}; its image is of {[height, width]} (height, width)")
    if isinstance(counts, str):
        lengths = _unpacked(counts)
    elif isinstance(counts, list):
        lengths = _numbers(counts, "'counts'")
    else:
        raise SegmentationError("has no run lengths: 'counts' must be a text or a list")
    whole = (lengths >= 0) & (lengths <= height * width) & (lengths == np.round(lengths))
    if not whole.all() or lengths.sum() != height * width:
        raise SegmentationError(f"has broken run lengths: they must be whole and add up to {height} × {width} pixels")
    packed: Any = {"size": [height, width], "counts": lengths.astype(int).tolist()}
    return rle.frPyObjects(packed, height, width)


def _unpacked(text: str) -> NDArray[Any]:
    """The run lengths that are packed into a text.

    Six bits a character, from "0" on: five of a number, lowest first, and one that says that the number goes on. From
    the fourth number on each is the difference to the one two places before it, and may be negative.
    """
    characters = np.frombuffer(text.encode(errors="replace"), dtype=np.uint8).astype(np.int64) - ord("0")
    if len(characters) == 0 or characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        raise SegmentationError("has broken run lengths: the text is no packed RLE, or cut off")
    ends = np.flatnonzero(characters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise SegmentationError("has broken run lengths: a number is too long")
    numbers = np.add.reduceat((characters & 31) << (5 * place), starts)
    negative = characters[ends] & 16 != 0
    numbers -= np.where(negative, 1 << (5 * (place[ends] + 1)), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _numbers(values: Any, what: str) -> NDArray[Any]:
    try:
        numbers = np.array(values)
    except (ValueError, OverflowError):  # lists of several lengths in one another
        numbers = np.array(None)
    if not isinstance(values, list) or numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise SegmentationError(f"has {what} that is no list of numbers")
    if not np.isfinite(numbers).all():
        raise SegmentationError(f"has {what} with a number that is not finite")
    return numbers


def _as_text(packed: Any) -> Rle:
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}
