"""Data sets in COCO's format: any categories, any ids, images without objects, crowds, odd image files.

Everything is checked when the data set is opened, before any training. What cannot be used is an error that names the
file or the field; a box without area, or outside its image, is reported and dropped, or refused with ``strict``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augfpn.data.dataset import Category, Sample
from augfpn.data.images import ImageProblem, check_image, read_image

# An overhang of a box that is rounding, not a mistake.
ROUNDING = 1.0
# Problems that an error message shows before it counts the rest.
SHOWN = 8


class DataError(ValueError):
    """A data set that cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True)
class DataProblem:
    """Something wrong in one place of a data set."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class _Image:
    id: int
    file_name: str
    width: int
    height: int


class CocoDataset:
    """The images of a folder with annotations in COCO's format.

    Args:
        images: the folder of the images.
        annotations: the JSON file.
        strict: refuse faulty boxes.

    Attributes:
        problems: the boxes that were dropped or cut, and why.
    """

    def __init__(self, images: Path, annotations: Path, strict: bool = False) -> None:
        self.folder = images
        self.annotation_file = annotations
        content = _read_annotation_file(annotations)
        self.categories = _read_categories(content, annotations)
        self._images = _read_images(content, annotations)
        _refuse(annotations, _image_problems(self._images, images))
        boxes, self.problems = _read_boxes(content, self._images, self.categories, annotations)
        if strict:
            _refuse(annotations, self.problems)

        # Objects of all images behind one another; those of image i at starts[i]:starts[i + 1]. No Python objects, so
        # that workers share the memory.
        of_image: dict[int, list[_Box]] = {image.id: [] for image in self._images}
        for box in boxes:
            if not box.is_crowd:
                of_image[box.image_id].append(box)
        label_of = {category.id: label for label, category in enumerate(self.categories, start=1)}
        ordered = [box for image in self._images for box in of_image[image.id]]
        self._starts = np.cumsum([0] + [len(of_image[image.id]) for image in self._images])
        self._boxes = np.array([box.corners for box in ordered], dtype=np.float32).reshape(-1, 4)
        self._labels = np.array([label_of[box.category_id] for box in ordered], dtype=np.int64)

    @classmethod
    def open(cls, root: Path, split: str, strict: bool = False) -> CocoDataset:
        """The split ``train``, ``val`` or ``test`` of a folder in COCO's layout."""
        images, annotations = find_split(root, split)
        return cls(images, annotations, strict)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        objects = slice(self._starts[index], self._starts[index + 1])
        try:
            pixels = read_image(self.path(index), (image.height, image.width))
        except ImageProblem as problem:
            raise DataError(f"{self.path(index)}: {problem}") from problem
        return Sample(image.id, pixels, _tensor(self._boxes[objects]), _tensor(self._labels[objects]))

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / self._images[index].file_name

    def ground_truth(self) -> dict[str, Any]:
        # Read again: the evaluation needs every field, and training need not carry them.
        content = _read_annotation_file(self.annotation_file)
        boxes, _ = _read_boxes(content, self._images, self.categories, self.annotation_file)
        # Ids from 1, because COCO's evaluation takes an annotation of id 0 for no match.
        return {
            "info": content.get("info", {}),
            "images": [vars(image) for image in self._images],
            "annotations": [{**box.annotation, "id": id} for id, box in enumerate(boxes, start=1)],
            "categories": [vars(category) for category in self.categories],
        }


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, for example ``train2017`` and its ``instances_….json``."""
    layout = (
        f"Expected COCO's layout: {root}/annotations/instances_{split}2017.json and {root}/{split}2017/ with the images "
        "(any year, or none)."
    )
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. {layout}")
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(found) != 1:
        what = "no annotation file" if not found else f"several: {', '.join(file.name for file in found)}"
        raise DataError(f"{root}: found {what} for the split {split!r}. {layout}")
    name = found[0].stem.removeprefix("instances_")
    for folder in (root / name, root / "images" / name, root / split, root / "images" / split, root / "images"):
        if folder.is_dir():
            return folder, found[0]
    raise DataError(f"{root}: {found[0].name} is there, but no folder {name}/ or images/ with its images. {layout}")


@dataclass(frozen=True)
class _Box:
    image_id: int
    category_id: int
    corners: tuple[float, float, float, float]
    is_crowd: bool
    annotation: dict[str, Any]


def _read_annotation_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    text = path.read_bytes()
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected JSON with images, annotations and categories.")
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); the file may be truncated.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object with images, annotations and categories, found a {type(content).__name__}.")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list):
            raise DataError(f"{path}: the field {name!r} is missing or not a list.")
    if not content["images"]:
        raise DataError(f"{path}: the list 'images' is empty.")
    return content


def _read_categories(content: dict[str, Any], path: Path) -> tuple[Category, ...]:
    categories = [
        Category(_field(entry, "id", int, f"categories[{position}]", path), str(_field(entry, "name", str, f"categories[{position}]", path)))
        for position, entry in enumerate(content["categories"])
    ]
    if not categories:
        raise DataError(f"{path}: the list 'categories' is empty; the number of classes is taken from it.")
    _refuse_duplicates([category.id for category in categories], "category id", path)
    return tuple(sorted(categories, key=lambda category: category.id))


def _read_images(content: dict[str, Any], path: Path) -> tuple[_Image, ...]:
    images = []
    for position, entry in enumerate(content["images"]):
        where = f"images[{position}]"
        image = _Image(
            _field(entry, "id", int, where, path),
            _field(entry, "file_name", str, where, path),
            _field(entry, "width", int, where, path),
            _field(entry, "height", int, where, path),
        )
        if image.width < 1 or image.height < 1:
            raise DataError(f"{path}: {where} ({image.file_name}): width and height must be positive, found {image.width} × {image.height}.")
        images.append(image)
    _refuse_duplicates([image.id for image in images], "image id", path)
    return tuple(images)


def _image_problems(images: tuple[_Image, ...], folder: Path) -> list[DataProblem]:
    problems = []
    for image in images:
        try:
            check_image(folder / image.file_name, (image.height, image.width))
        except ImageProblem as problem:
            problems.append(DataProblem(str(folder / image.file_name), str(problem)))
    return problems


def _read_boxes(
    content: dict[str, Any], images: tuple[_Image, ...], categories: tuple[Category, ...], path: Path
) -> tuple[list[_Box], list[DataProblem]]:
    """The boxes that can be used, and what was wrong with the others."""
    image_of = {image.id: image for image in images}
    category_ids = {category.id for category in categories}
    boxes: list[_Box] = []
    dropped: list[DataProblem] = []
    errors: list[DataProblem] = []
    for position, annotation in enumerate(content["annotations"]):
        name = f"annotations[{position}]" + (f" (id {annotation['id']})" if isinstance(annotation, dict) and "id" in annotation else "")
        try:
            image_id = _field(annotation, "image_id", int, name, path)
            category_id = _field(annotation, "category_id", int, name, path)
            x, y, width, height = _numbers(annotation, "bbox", 4, name, path)
        except DataError as error:
            errors.append(DataProblem(name, str(error).removeprefix(f"{path}: {name}: ")))
            continue
        if image_id not in image_of:
            errors.append(DataProblem(name, f"image_id {image_id} is not among the images."))
            continue
        if category_id not in category_ids:
            errors.append(DataProblem(name, f"category_id {category_id} is not among the categories {sorted(category_ids)}."))
            continue
        image = image_of[image_id]
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + width, image.width), min(y + height, image.height)
        at = f"{name}, bbox {[x, y, width, height]} in {image.file_name} of {image.width} × {image.height}"
        if width <= 0 or height <= 0:
            dropped.append(DataProblem(at, "the box has no area; dropped."))
            continue
        if x2 <= x1 or y2 <= y1:
            dropped.append(DataProblem(at, "the box is outside its image; dropped."))
            continue
        if max(x1 - x, y1 - y, x + width - x2, y + height - y2) > ROUNDING:
            dropped.append(DataProblem(at, "the box leaves its image; cut to it."))
        is_crowd = bool(annotation.get("iscrowd", 0))
        clean = {
            **annotation,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(annotation.get("area") or (x2 - x1) * (y2 - y1)),
            "iscrowd": int(is_crowd),
        }
        boxes.append(_Box(image_id, category_id, (x1, y1, x2, y2), is_crowd, clean))
    _refuse(path, errors)
    return boxes, dropped


def _field(entry: Any, name: str, kind: type, where: str, path: Path) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: {where}: expected an object, found {entry!r}.")
    if name not in entry:
        raise DataError(f"{path}: {where}: the field {name!r} is missing.")
    value = entry[name]
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{path}: {where}: {name!r} must be {'an integer' if kind is int else 'a string'}, found {value!r}.")
    return value


def _numbers(entry: dict[str, Any], name: str, count: int, where: str, path: Path) -> list[float]:
    values = entry.get(name)
    good = (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values)
    )
    if not good:
        raise DataError(f"{path}: {where}: {name!r} must be {count} finite numbers, found {values!r}.")
    assert isinstance(values, list)
    return [float(value) for value in values]


def _refuse(path: Path, problems: list[DataProblem]) -> None:
    if problems:
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        raise DataError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:{lines}{more}")


def _refuse_duplicates(ids: list[int], what: str, path: Path) -> None:
    repeated = [id for id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: the same {what} is used more than once: {repeated[:SHOWN]}.")


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy())
