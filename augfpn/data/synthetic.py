"""Synthetic images that need what the paper is about, made on the fly.

A scene has a smooth sky over rippled water, clutter that belongs to no class, and objects of very different sizes,
small ones in front of large ones, light within a dark outline. Colours say nothing about the class. What tells the
classes apart:

- ``disk`` and ``ring``, ``square`` and ``window`` differ by their holes only: fine detail, soon lost by down-sampling;
- ``kite`` and ``boat`` are the same triangle, a kite over the sky and a boat on the water: context, which no close-up
  of a small object shows.

Some images are empty; in some stands a crowd of tiny objects, marked as COCO marks crowds. Every image is a function of
(seed, index) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from augfpn.data.dataset import Category, DataProblem, Sample
from augfpn.data.segmentations import decode, encode
from augfpn.errors import UserError
from augfpn.files import write_json

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

# A shape is a signed distance: negative inside, in units of the shape's radius, of coordinates in such units.
Shape = Callable[[Any, Any], Any]


def _disk(x: Any, y: Any) -> Any:
    return np.hypot(x, y) - 1


def _ring(x: Any, y: Any) -> Any:
    return np.abs(np.hypot(x, y) - 0.72) - 0.28


def _square(x: Any, y: Any) -> Any:
    return np.maximum(np.abs(x), np.abs(y)) - 0.9


def _window(x: Any, y: Any) -> Any:
    panes = np.maximum(np.abs(np.abs(x) - 0.42), np.abs(np.abs(y) - 0.42)) - 0.24
    return np.maximum(_square(x, y), -panes)


def _triangle(x: Any, y: Any) -> Any:
    # A point up, a base of width 2 at y = 0.9.
    return np.maximum(y - 0.9, (np.abs(x) * 1.9 - y - 1.0) / 2.15)


SHAPES: dict[str, Shape] = {
    "disk": _disk,
    "ring": _ring,
    "square": _square,
    "window": _window,
    "kite": _triangle,
    "boat": _triangle,
}
CATEGORIES = tuple(Category(id, name) for id, name in enumerate(SHAPES, start=1))

# Of all images, so many have no object, and so many a crowd.
EMPTY, CROWDED = 0.04, 0.06
# An object that others hide by more than this is not annotated, nor drawn.
MOST_HIDDEN = 0.6


# Drawn images are kept up to this size.
CACHE_BYTES = 256 * 2**20

_Drawn = tuple[NDArray[np.uint8], list[dict[str, Any]]]


@dataclass(frozen=True)
class _Object:
    """``mask``: where it can be seen; ``area``: of how many pixels it would be if nothing were before it."""

    label: int
    mask: Mask
    area: int
    is_crowd: bool = False


@dataclass(frozen=True)
class _Scene:
    pixels: Array  # (H, W, 3) in 0-1
    objects: list[_Object]


class SyntheticDataset:
    """``num_images`` synthetic images, square, of ``size`` pixels, from index ``first`` on.

    Training and validation sets are different ranges of indices of the same seed. With ``masks``, samples carry what
    can be seen of each object.
    """

    categories = CATEGORIES
    problems: list[DataProblem] = []  # noqa: RUF012 (what is drawn is never wrong)

    def __init__(self, size: int, num_images: int, seed: int = 0, first: int = 0, masks: bool = False) -> None:
        if size < 32:
            raise UserError(
                f"Synthetic images need at least 32 pixels a side, not {size}: the smallest objects would vanish."
            )
        if num_images < 1:
            raise UserError(f"A data set needs at least one image, not {num_images}.")
        self.size = size
        self.num_images = num_images
        self.seed = seed
        self.first = first
        self.masks = masks
        self._cache: dict[int, _Drawn] = {}

    @property
    def file_names(self) -> list[str]:
        return [f"{id:012d}.png" for id in range(1, self.num_images + 1)]

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        pixels, objects = self._scene(index)
        seen = [o for o in objects if not o["iscrowd"]]
        boxes = torch.tensor([o["bbox"] for o in seen], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([o["category_id"] for o in seen], dtype=torch.int64)
        masks = decode([o["segmentation"] for o in seen], self.size, self.size) if self.masks else None
        return Sample(index + 1, torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), boxes, labels, masks)

    def ground_truth(self) -> dict[str, Any]:
        annotations = [
            {"id": 0, "image_id": index + 1, **annotation}
            for index in range(len(self))
            for annotation in self._scene(index)[1]
        ]
        for id, annotation in enumerate(annotations, start=1):
            annotation["id"] = id
        return {
            "info": {"description": f"AugFPN companion's synthetic set, seed {self.seed}, from {self.first}"},
            "images": [
                {"id": id, "file_name": name, "width": self.size, "height": self.size}
                for id, name in enumerate(self.file_names, start=1)
            ],
            "annotations": annotations,
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
        }

    def write(self, root: Path, split: str) -> Path:
        """Writes the images and their annotations below ``root`` in COCO's layout; returns the annotation file."""
        folder = root / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        truth = self.ground_truth()
        for index, image in enumerate(truth["images"]):
            Image.fromarray(self._scene(index)[0]).save(folder / image["file_name"])
        return write_json(root / "annotations" / f"instances_{split}2017.json", truth)

    def _scene(self, index: int) -> _Drawn:
        """The image as bytes, and its objects as COCO annotations without ids."""
        if not 0 <= index < self.num_images:
            raise IndexError(index)
        if index not in self._cache:
            drawn = self._draw(index)
            if len(self._cache) * drawn[0].nbytes > CACHE_BYTES:
                return drawn
            self._cache[index] = drawn
        return self._cache[index]

    def _draw(self, index: int) -> _Drawn:
        scene = draw_scene(self.size, np.random.default_rng((self.seed, self.first + index)))
        annotations = []
        for drawn in scene.objects:
            encoded: Any = encode(torch.from_numpy(drawn.mask[None]))[0]
            box = [float(side) for side in rle.toBbox(encoded)]
            annotations.append(
                {
                    "category_id": drawn.label,
                    "bbox": box,
                    # The box's area, so that small, medium and large mean the same for a ring as for a disk, and the
                    # same for masks as for boxes.
                    "area": box[2] * box[3],
                    "segmentation": encoded,
                    "iscrowd": int(drawn.is_crowd),
                }
            )
        return np.round(scene.pixels * 255).astype(np.uint8), annotations


def draw_scene(size: int, rng: np.random.Generator) -> _Scene:
    """Draws a scene of ``size`` × ``size`` pixels."""
    horizon = rng.uniform(0.35, 0.65) * size
    pixels = _background(size, horizon, rng)
    _add_clutter(pixels, rng)
    if rng.random() < EMPTY:
        return _Scene(_finished(pixels, rng), [])
    objects: list[_Object] = []
    if rng.random() < CROWDED:
        objects.append(_draw_crowd(pixels, rng))
    for radius in _radii(size, rng):
        drawn = _draw_object(pixels, horizon, radius, objects, rng)
        if drawn is not None:
            # What is drawn later stands in front.
            objects = [replace(o, mask=o.mask & ~drawn.mask) for o in objects] + [drawn]
    return _Scene(_finished(pixels, rng), [o for o in objects if o.mask.any()])


def _radii(size: int, rng: np.random.Generator) -> list[float]:
    """The half sides of a scene's objects, large ones first. With 128 pixels: 54-62, 17-46 and 4.5-15."""
    large = rng.uniform(0.42, 0.49, size=int(rng.random() < 0.35))
    medium = np.exp(rng.uniform(np.log(0.13), np.log(0.36), size=rng.integers(0, 3)))
    small = np.exp(rng.uniform(np.log(0.035), np.log(0.12), size=rng.integers(1, 5)))
    return sorted((np.concatenate([large, medium, small]) * size).tolist(), reverse=True)


def _background(size: int, horizon: float, rng: np.random.Generator) -> Array:
    """A sky with a gradient over water with ripples; colours at random."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    sky = _colour(rng) + (y[..., None] / size - 0.5) * rng.uniform(-0.4, 0.4, 3)
    swell = np.sin(2 * np.pi * x / rng.uniform(20, 60) + rng.uniform(0, 6))
    phase = 2 * np.pi * y / rng.uniform(3.5, 6.0) + 2 * swell
    water = _colour(rng) + rng.uniform(0.06, 0.14) * np.sin(phase)[..., None]
    pixels: Array = np.where((y < horizon)[..., None], sky, water).astype(np.float32)
    return pixels


def _add_clutter(pixels: Array, rng: np.random.Generator) -> None:
    """Scratches, crosses and patches of noise that belong to no class."""
    size = len(pixels)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(rng.integers(2, 7)):
        angle, offset, width = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9) * size, rng.uniform(0.6, 1.6)
        along = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
        across = (y - offset) * np.cos(angle) - (x - offset) * np.sin(angle)
        start, length = rng.uniform(-0.5, 0.3) * size, rng.uniform(0.08, 0.4) * size
        _paint(
            pixels,
            np.maximum(np.abs(across) - width, np.abs(along - start) - length),
            _colour(rng),
            rng.uniform(0.3, 0.8),
        )
    for _ in range(rng.integers(0, 3)):
        side = int(rng.uniform(0.06, 0.25) * size)
        top, left = rng.integers(0, size - side, size=2)
        pixels[top : top + side, left : left + side] += rng.normal(0, 0.12, (side, side, 1))


def _draw_object(
    pixels: Array, horizon: float, radius: float, others: list[_Object], rng: np.random.Generator
) -> _Object | None:
    """Draws an object into the scene where it hides no other too much; None if no such place was found."""
    label = int(rng.integers(1, len(CATEGORIES) + 1))
    name = CATEGORIES[label - 1].name
    aspect = np.exp(rng.uniform(-0.25, 0.25))
    angle = 0.0 if SHAPES[name] is _triangle else rng.uniform(-0.35, 0.35)
    for _ in range(10):
        centre = rng.uniform(radius * 0.9, len(pixels) - radius * 0.9, size=2)
        if (name == "kite" and centre[1] > horizon - 2) or (name == "boat" and centre[1] < horizon + 2):
            continue
        distance = _distance(len(pixels), SHAPES[name], centre, radius, aspect, angle)
        mask = distance < 0
        if mask.sum() >= 12 and not any(_hides_too_much(mask, other) for other in others):
            _paint_object(pixels, distance, rng)
            return _Object(label, mask, int(mask.sum()))
    return None


def _draw_crowd(pixels: Array, rng: np.random.Generator) -> _Object:
    """A heap of tiny objects of one class, too close to be told apart."""
    size = len(pixels)
    label = int(rng.integers(1, 5))
    shape = SHAPES[CATEGORIES[label - 1].name]
    heap = rng.uniform(0.15, 0.85, size=2) * size
    region = np.zeros((size, size), dtype=bool)
    for _ in range(rng.integers(15, 30)):
        centre = np.clip(heap + rng.normal(0, 0.07, size=2) * size, 3, size - 3)
        distance = _distance(size, shape, centre, 0.022 * size + 0.6, 1.0, 0.0)
        _paint_object(pixels, distance, rng)
        region |= distance < 0
    return _Object(label, region, int(region.sum()), is_crowd=True)


def _distance(
    size: int, shape: Shape, centre: NDArray[np.float64], radius: float, aspect: float, angle: float
) -> Array:
    """The signed distance in pixels from every pixel's middle to a shape."""
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    x, y = x - centre[0], y - centre[1]
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance: Array = shape(x / (radius * np.sqrt(aspect)), y * np.sqrt(aspect) / radius) * radius
    return distance


def _paint(pixels: Array, distance: Array, colour: Array, opacity: float) -> None:
    """Paints where the distance is negative, with an edge one pixel soft."""
    coverage = (np.clip(0.5 - distance, 0, 1) * opacity)[..., None]
    pixels[:] = pixels * (1 - coverage) + colour * coverage


def _paint_object(pixels: Array, distance: Array, rng: np.random.Generator) -> None:
    """Paints an object: a light colour at random within a dark outline."""
    outline = 1.0 + 0.03 * -float(distance.min())
    _paint(pixels, distance, rng.uniform(0.0, 0.15, 3).astype(np.float32), 1.0)
    _paint(pixels, distance + outline, rng.uniform(0.35, 1.0, 3).astype(np.float32), 1.0)


def _hides_too_much(mask: Mask, other: _Object) -> bool:
    return bool((other.mask & ~mask).sum() < (1 - MOST_HIDDEN) * other.area)


def _colour(rng: np.random.Generator) -> Array:
    return rng.uniform(0.1, 0.9, 3).astype(np.float32)


def _finished(pixels: Array, rng: np.random.Generator) -> Array:
    noisy = pixels + rng.normal(0, 0.015, pixels.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)
