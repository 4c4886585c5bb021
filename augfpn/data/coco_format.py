"""Reading COCO's annotation format, and finding everything that is wrong with it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augfpn.data.dataset import Category, DataProblem
from augfpn.data.segmentations import SegmentationError, compress
from augfpn.errors import UserError

# An overhang of a box in pixels that is rounding, not a mistake.
ROUNDING = 1.0
# Problems that an error message shows before it counts the rest.
SHOWN = 8


class DataError(UserError):
    """A data set that cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True)
class CocoImage:
    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class CocoBox:
    """``corners``: x1, y1, x2, y2 within the image. ``annotation``: all of COCO's fields, with the box cut likewise.

    Where masks are asked for, the annotation's ``segmentation`` is packed run lengths, whatever the file has.
    """

    image_id: int
    category_id: int
    corners: tuple[float, float, float, float]
    is_crowd: bool
    annotation: dict[str, Any]


@dataclass(frozen=True)
class CocoContent:
    """The usable content of an annotation file; ``problems`` are the objects that were dropped or cut."""

    info: dict[str, Any]
    categories: tuple[Category, ...]
    images: tuple[CocoImage, ...]
    boxes: list[CocoBox]
    problems: list[DataProblem]


def read_annotations(path: Path, masks: bool = False, annotated: bool = True) -> CocoContent:
    """Reads an annotation file. What cannot be used is a DataError that names the file, the entry and the field.

    With ``masks``, an object without a usable one is a problem and dropped; without, nobody looks at them. Not
    ``annotated``: only its images and categories are read, as of COCO's ``image_info`` files.
    """
    content = _load(path, () if annotated else ("annotations",))
    categories = _collect(path, content["categories"], "categories", _category)
    if not categories:
        raise DataError(f"{path}: the list 'categories' is empty; the number of classes is taken from it.")
    images = _collect(path, content["images"], "images", _image)
    refuse_any(path, _repeated([category.id for category in categories], "categories"))
    refuse_any(path, _repeated([image.id for image in images], "images"))

    image_of = {image.id: image for image in images}
    category_ids = {category.id for category in categories}
    checked = _collect(
        path,
        content["annotations"],
        "annotations",
        lambda entry, where: _box(entry, where, image_of, category_ids, masks),
    )
    return CocoContent(
        info=content.get("info", {}),
        categories=tuple(sorted(categories, key=lambda category: category.id)),
        images=tuple(images),
        boxes=[box for box, _ in checked if box is not None],
        problems=[problem for _, problem in checked if problem is not None],
    )


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, such as ``train2017``."""
    layout = (
        f"Expected COCO's layout: {root}/annotations/instances_{split}2017.json and {root}/{split}2017/ with the "
        "images (any year, or none)."
    )
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. {layout}")
    found = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(found) != 1:
        what = f"several: {', '.join(file.name for file in found)}" if found else "no annotation file"
        raise DataError(f"{root}: found {what} for the split {split!r}. {layout}")
    name = found[0].stem.removeprefix("instances_")
    for folder in (root / name, root / "images" / name, root / split, root / "images" / split, root / "images"):
        if folder.is_dir():
            return folder, found[0]
    raise DataError(f"{root}: {found[0].name} is there, but no folder {name}/ with its images. {layout}")


def refuse_any(path: Path, problems: Sequence[DataProblem]) -> None:
    """Raises a DataError that shows the problems, if there are any."""
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:{lines}{more}")


def _load(path: Path, ignored: Sequence[str] = ()) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    text = path.read_bytes()
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected JSON with images, annotations and categories.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); the file may be truncated.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with images, annotations and categories, not {_shown(content)}.")
    content |= {name: [] for name in ignored}
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name), list):
            raise DataError(f"{path}: the field {name!r} is missing or not a list.")
    if not content["images"]:
        raise DataError(f"{path}: the list 'images' is empty.")
    return content


class _EntryError(Exception):
    """What is wrong with one entry."""


def _collect(path: Path, entries: list[Any], kind: str, parse: Any) -> list[Any]:
    """Every entry of a list, parsed; a DataError shows all that could not be."""
    parsed, faults = [], []
    for position, entry in enumerate(entries):
        where = f"{kind}[{position}]"
        if isinstance(entry, dict) and "id" in entry:
            where += f" (id {_shown(entry['id'])})"
        try:
            parsed.append(parse(entry, where))
        except _EntryError as fault:
            faults.append(DataProblem(where, str(fault)))
    refuse_any(path, faults)
    return parsed


def _category(entry: Any, where: str) -> Category:
    return Category(_integer(entry, "id"), _string(entry, "name"))


def _image(entry: Any, where: str) -> CocoImage:
    image = CocoImage(
        _integer(entry, "id"), _string(entry, "file_name"), _integer(entry, "width"), _integer(entry, "height")
    )
    if image.width < 1 or image.height < 1:
        raise _EntryError(f"width and height must be positive, found {image.width} × {image.height}.")
    return image


def _box(
    entry: Any, where: str, image_of: dict[int, CocoImage], category_ids: set[int], masks: bool
) -> tuple[CocoBox | None, DataProblem | None]:
    """The box as far as it can be used, and what is wrong with it."""
    image_id, category_id = _integer(entry, "image_id"), _integer(entry, "category_id")
    if image_id not in image_of:
        raise _EntryError(f"image_id {image_id} is not among the images.")
    if category_id not in category_ids:
        raise _EntryError(f"category_id {category_id} is not among the categories {sorted(category_ids)}.")
    image = image_of[image_id]
    x, y, width, height = _bbox(entry)
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, float(image.width)), min(y + height, float(image.height))
    place = f"{where}, bbox {[x, y, width, height]} in {image.file_name} of {image.width} × {image.height}"
    if width <= 0 or height <= 0:
        return None, DataProblem(place, "the box has no area; dropped.")
    if x2 <= x1 or y2 <= y1:
        return None, DataProblem(place, "the box is outside its image; dropped.")
    overhang = max(x1 - x, y1 - y, x + width - x2, y + height - y2)
    problem = DataProblem(place, "the box leaves its image; cut to it.") if overhang > ROUNDING else None
    is_crowd = entry.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        raise _EntryError(f"'iscrowd' must be 0 or 1, found {_shown(is_crowd)}.")
    area = entry.get("area")
    annotation = {
        **entry,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(area) if _is_number(area) else (x2 - x1) * (y2 - y1),
        "iscrowd": int(is_crowd),
    }
    if masks:
        try:
            annotation["segmentation"] = compress(entry.get("segmentation"), image.height, image.width)
        except SegmentationError as error:
            return None, DataProblem(f"{where} in {image.file_name}", f"the segmentation {error}; dropped.")
    return CocoBox(image_id, category_id, (x1, y1, x2, y2), bool(is_crowd), annotation), problem


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, dict):
        raise _EntryError(f"expected an object, found {_shown(entry)}.")
    if name not in entry:
        raise _EntryError(f"the field {name!r} is missing.")
    return entry[name]


def _integer(entry: Any, name: str) -> int:
    value = _field(entry, name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _EntryError(f"{name!r} must be an integer, found {_shown(value)}.")
    return value


def _string(entry: Any, name: str) -> str:
    value = _field(entry, name)
    if not isinstance(value, str) or not value:
        raise _EntryError(f"{name!r} must be a text, found {_shown(value)}.")
    return value


def _bbox(entry: Any) -> list[float]:
    values = _field(entry, "bbox")
    if not isinstance(values, list) or len(values) != 4 or not all(_is_number(value) for value in values):
        raise _EntryError(f"'bbox' must be four finite numbers (x, y, width, height), found {_shown(values)}.")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _repeated(ids: list[int], kind: str) -> list[DataProblem]:
    return [DataProblem(kind, f"the id {id} is used {n} times.") for id, n in Counter(ids).items() if n > 1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
