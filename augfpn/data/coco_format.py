"""Reading COCO's annotation format, and finding everything that is wrong with it.

`examine` finds all faults of a file and goes on; `read_annotations` is for training, and refuses a file with errors.
`augfpn data check` shows what `examine` finds, so that the two never disagree.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from augfpn.data.dataset import Category, DataProblem
from augfpn.data.findings import Finding
from augfpn.data.segmentations import Rle, SegmentationError, compress
from augfpn.errors import UserError

# An overhang of a box in pixels that is rounding, not a mistake.
ROUNDING = 1.0
# A side in pixels below which a box has no area: of less, nothing may be left in single precision.
SMALLEST = 1 / 32
# A longer side of an image is a mistake; masks of such a size would fill the memory.
LONGEST_SIDE = 2**18
# Problems that an error message shows before it counts the rest.
SHOWN = 8
SPLITS = ("train", "val", "test")
LISTS = ("categories", "images", "annotations")

# What is done about segmentations: nothing; an object without a usable one is dropped; faults of those that are there
# are found, and nothing is dropped.
Segmentations = Literal["ignored", "needed", "examined"]
Entry = TypeVar("Entry")


class DataError(UserError):
    """A data set that cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True)
class CocoImage:
    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class CocoBox:
    """``corners``: x1, y1, x2, y2 within the image. ``entry``: as it stands in the file.

    ``mask``: packed run lengths, whatever the file has; None where masks are not needed.
    """

    image_id: int
    category_id: int
    corners: tuple[float, float, float, float]
    is_crowd: bool
    entry: dict[str, Any]
    mask: Rle | None

    @property
    def annotation(self) -> dict[str, Any]:
        """All of COCO's fields, with the box cut to the image, and the mask where it is needed."""
        x1, y1, x2, y2 = self.corners
        area: Any = self.entry.get("area")
        return {
            **self.entry,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(area) if _is_number(area) else (x2 - x1) * (y2 - y1),
            "iscrowd": int(self.is_crowd),
            **({} if self.mask is None else {"segmentation": self.mask}),
        }


@dataclass(frozen=True)
class CocoContent:
    """What can be used of an annotation file; ``problems``: the objects that were dropped, cut or numbered anew."""

    info: dict[str, Any]
    categories: tuple[Category, ...]
    images: tuple[CocoImage, ...]
    boxes: list[CocoBox]
    problems: list[DataProblem]


@dataclass(frozen=True)
class Examined:
    """All of an annotation file.

    ``content``: the file's JSON, with three lists in any case. ``categories``, ``images`` and ``boxes`` are as long as
    those lists, with None for what cannot be used.
    """

    content: dict[str, Any]
    categories: list[Category | None]
    images: list[CocoImage | None]
    boxes: list[CocoBox | None]
    findings: list[Finding]


def read_annotations(path: Path, masks: bool = False, annotated: bool = True) -> CocoContent:
    """Reads an annotation file. What cannot be used is a DataError that names the file, the entry and the field.

    With ``masks``, an object without a usable one is a problem and dropped; without, nobody looks at them. Not
    ``annotated``: only its images and categories are read, as of COCO's ``image_info`` files.
    """
    examined = examine(path, "needed" if masks else "ignored", annotated)
    refuse_any(path, [finding for finding in examined.findings if finding.severity == "error"])
    return CocoContent(
        info=examined.content.get("info", {}),
        categories=tuple(sorted(_usable(examined.categories), key=lambda category: category.id)),
        images=tuple(_usable(examined.images)),
        boxes=_usable(examined.boxes),
        problems=[finding for finding in examined.findings if finding.severity == "warning"],
    )


def examine(path: Path, segmentations: Segmentations = "ignored", annotated: bool = True) -> Examined:
    """Everything that is wrong with an annotation file, and what of it can be used. Raises nothing."""
    with no_garbage():
        try:
            content = _load(path)
        except _FaultError as fault:
            empty: dict[str, Any] = {name: [] for name in LISTS}
            return Examined(empty, [], [], [], [Finding(str(path), fault.what, fault.kind)])
        if not annotated:
            content["annotations"] = []
        return examine_content(content, str(path), segmentations)


def examine_content(content: dict[str, Any], where: str, segmentations: Segmentations = "ignored") -> Examined:
    """Likewise for what an annotation file has; ``where`` names it in findings."""
    findings = []
    for name in LISTS:
        if not isinstance(content.get(name), list):
            what = f"the field {name!r} is missing or not a list."
            findings.append(Finding(where, what, "missing-list"))
        elif not content[name] and name != "annotations":
            reason = "; the number of classes is taken from it." if name == "categories" else "."
            findings.append(Finding(where, f"the list {name!r} is empty{reason}", "empty-list"))
    content = content | {name: content[name] if isinstance(content.get(name), list) else [] for name in LISTS}

    categories = _parsed(content, "categories", _category, findings)
    images = _parsed(content, "images", _image, findings)
    findings += _repeated([category.id for category in _usable(categories)], "categories", "repeated-category-id")
    findings += _repeated([image.id for image in _usable(images)], "images", "repeated-image-id")
    names = Counter(category.name for category in set(_usable(categories)))
    findings += [
        Finding("categories", f"the name {name!r} is used {n} times.", "repeated-category-name")
        for name, n in names.items()
        if n > 1
    ]

    objects = _Objects(content, _usable(categories), _usable(images), segmentations)
    boxes = [objects.examine(position, entry) for position, entry in enumerate(content["annotations"])]
    findings += objects.findings
    return Examined(content, categories, images, boxes, findings + _numbering(content["annotations"]))


class _Objects:
    """Examines annotations one after the other; collects what is wrong with them in ``findings``."""

    def __init__(
        self,
        content: dict[str, Any],
        categories: list[Category],
        images: list[CocoImage],
        segmentations: Segmentations,
    ) -> None:
        self.segmentations = segmentations
        self.findings: list[Finding] = []
        self._image_of = {image.id: image for image in reversed(images)}
        self._category_ids = {category.id for category in categories}
        # Objects of an entry that is broken itself are no fault of their own; without any entry, each would be one.
        self._broken_images = _ids(content["images"]) - self._image_of.keys()
        self._broken_categories = _ids(content["categories"]) - self._category_ids
        self._has = {name: bool(content[name]) for name in LISTS}

    def examine(self, position: int, entry: Any) -> CocoBox | None:
        try:
            return self._box(position, entry)
        except _FaultError as fault:
            where = _place("annotations", position, entry)
            self.findings.append(Finding(f"{where}{fault.where}", fault.what, fault.kind, ("annotations", position)))
            return None

    def _box(self, position: int, entry: Any) -> CocoBox | None:
        image_id, category_id = _integer(entry, "image_id"), _integer(entry, "category_id")
        x, y, width, height = _bbox(entry)
        is_crowd = entry.get("iscrowd", 0)
        if is_crowd not in (0, 1):
            raise _FaultError("broken-entry", f"'iscrowd' must be 0 or 1, found {shown(is_crowd)}.")
        image = self._image_of.get(image_id)
        if image is None and self._has["images"] and image_id not in self._broken_images:
            raise _FaultError("unknown-image", f"image_id {image_id} is not among the images.")
        if category_id not in self._category_ids:
            if self._has["categories"] and category_id not in self._broken_categories:
                known = shown(sorted(self._category_ids))
                raise _FaultError("unknown-category", f"category_id {category_id} is not among the categories {known}.")
            return None
        if image is None:
            return None
        x1, y1 = max(x, 0.0), max(y, 0.0)
        x2, y2 = min(x + width, float(image.width)), min(y + height, float(image.height))
        if width < SMALLEST or height < SMALLEST:
            raise _FaultError("box-no-area", "the box has no area; dropped.", _box_place(entry, image))
        if x2 - x1 < SMALLEST or y2 - y1 < SMALLEST:
            raise _FaultError("box-outside", "the box is outside its image; dropped.", _box_place(entry, image))
        mask = self._mask(position, entry, image)
        if max(x1 - x, y1 - y, x + width - x2, y + height - y2) > ROUNDING:
            where = f"{_place('annotations', position, entry)}{_box_place(entry, image)}"
            what = "the box leaves its image; cut to it."
            self.findings.append(Finding(where, what, "box-cut", ("annotations", position)))
        return CocoBox(image_id, category_id, (x1, y1, x2, y2), bool(is_crowd), entry, mask)

    def _mask(self, position: int, entry: dict[str, Any], image: CocoImage) -> Rle | None:
        segmentation = entry.get("segmentation")
        if self.segmentations == "ignored" or (self.segmentations == "examined" and _is_without(segmentation)):
            return None
        try:
            mask = compress(segmentation, image.height, image.width)
        except SegmentationError as error:
            where = f" in {printable(image.file_name)}"
            fault = _FaultError("broken-segmentation", f"the segmentation {error}; dropped.", where)
            if self.segmentations == "needed":
                raise fault from error
            where = f"{_place('annotations', position, entry)}{where}"
            self.findings.append(Finding(where, fault.what, fault.kind, ("annotations", position)))
            return None
        return mask if self.segmentations == "needed" else None


def boxes_as_listed(annotations: list[Any]) -> dict[int, list[list[float]]]:
    """By their image's id, all boxes (x, y, width, height) that have four numbers, whatever else is wrong with them."""
    boxes = defaultdict(list)
    for entry in annotations:
        with suppress(_FaultError):
            boxes[_integer(entry, "image_id")].append(_bbox(entry))
    return boxes


def id_of(entry: Any, name: str = "id") -> int | None:
    """An id of an entry; None where there is none that can be used."""
    try:
        return _integer(entry, name)
    except _FaultError:
        return None


def without_segmentation(examined: Examined) -> int:
    """How many objects have none at all, as in data sets of boxes only."""
    return sum(_is_without(box.entry.get("segmentation")) for box in _usable(examined.boxes))


def annotation_files(root: Path, split: str = "") -> list[Path]:
    """The annotation files below a folder in COCO's layout; of a split such as ``train``, or all."""
    return sorted((root / "annotations").glob(f"instances_{split or '?'}*.json"))


def image_folder(root: Path, annotations: Path) -> Path | None:
    """The folder with the images of an annotation file; None if there is none."""
    name = annotations.stem.removeprefix("instances_")
    split = next((split for split in SPLITS if name.startswith(split)), name)
    candidates = (root / name, root / "images" / name, root / split, root / "images" / split, root / "images")
    return next((folder for folder in candidates if folder != root and folder.is_dir()), None)


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, such as ``train2017``."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. {layout(root, split)}")
    found = annotation_files(root, split)
    if len(found) != 1:
        what = f"several: {', '.join(file.name for file in found)}" if found else "no annotation file"
        raise DataError(f"{root}: found {what} for the split {split!r}. {layout(root, split)}")
    folder = image_folder(root, found[0])
    if folder is None:
        raise DataError(f"{root}: {no_image_folder(found[0])} {layout(root, split)}")
    return folder, found[0]


def no_image_folder(annotations: Path) -> str:
    name = annotations.stem.removeprefix("instances_")
    return f"{annotations.name} is there, but no folder {name}/ with its images."


def layout(root: Path, split: str) -> str:
    """COCO's layout, in words."""
    return (
        f"Expected COCO's layout: {root}/annotations/instances_{split}2017.json and {root}/{split}2017/ with the "
        "images (any year, or none)."
    )


def different_categories(one: Sequence[Category], other: Sequence[Category]) -> str:
    """The names of categories that only one of two splits has, or under another id, in words; empty if there are none.

    >>> different_categories([Category(1, "cat")], [Category(1, "dog")])
    "['cat', 'dog']"
    """
    names = sorted({category.name for category in set(one) ^ set(other)})
    return shown(names) if names else ""


def refuse_any(path: Path, problems: Sequence[DataProblem]) -> None:
    """Raises a DataError that shows the problems, if there are any."""
    for problem in problems:
        # What is wrong with the file as a whole stands alone.
        if problem.where == str(path):
            raise DataError(str(problem))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        num_more = len(problems) - SHOWN
        more = f"\n  … and {num_more} more; `augfpn data check` lists all." if num_more > 0 else ""
        raise DataError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:{lines}{more}")


@contextmanager
def no_garbage() -> Iterator[None]:
    """Python looks for garbage among new objects; among millions that all stay, it takes longer than to make them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _FaultError(Exception):
    """What is wrong with a file or an entry; ``where`` is what an entry's place has behind its number."""

    def __init__(self, kind: str, what: str, where: str = "") -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.where = where


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _FaultError("broken-file", "there is no such file.")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _FaultError("broken-file", f"the file cannot be read ({error.strerror}).") from error
    if not text.strip():
        raise _FaultError("broken-file", "the file is empty; expected JSON with images, annotations and categories.")
    try:
        content = json.loads(text)
    # Of numbers with thousands of digits, Python raises a bare ValueError.
    except (ValueError, RecursionError) as error:
        raise _FaultError("broken-file", f"not valid JSON ({error}); the file may be truncated.") from error
    if not isinstance(content, dict):
        what = f"expected an object with images, annotations and categories, not {shown(content)}."
        raise _FaultError("broken-file", what)
    return content


def _parsed(
    content: dict[str, Any], name: str, parse: Callable[[Any], Entry], findings: list[Finding]
) -> list[Entry | None]:
    """Every entry of a list, None for those that cannot be used; what is wrong with them goes to the findings."""
    parsed: list[Entry | None] = []
    for position, entry in enumerate(content[name]):
        try:
            parsed.append(parse(entry))
        except _FaultError as fault:
            parsed.append(None)
            findings.append(Finding(_place(name, position, entry), fault.what, fault.kind, (name, position)))
    return parsed


def _category(entry: Any) -> Category:
    return Category(_integer(entry, "id"), _string(entry, "name"))


def _image(entry: Any) -> CocoImage:
    image = CocoImage(
        _integer(entry, "id"), _string(entry, "file_name"), _integer(entry, "width"), _integer(entry, "height")
    )
    sides = f"{image.width} × {image.height}"
    if image.width < 1 or image.height < 1:
        raise _FaultError("broken-entry", f"width and height must be positive, found {sides}.")
    if max(image.width, image.height) > LONGEST_SIDE:
        raise _FaultError("broken-entry", f"width and height must be at most {LONGEST_SIDE}, found {sides}.")
    return image


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, dict):
        raise _FaultError("broken-entry", f"expected an object, found {shown(entry)}.")
    if name not in entry:
        raise _FaultError("broken-entry", f"the field {name!r} is missing.")
    return entry[name]


def _integer(entry: Any, name: str) -> int:
    value = _field(entry, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _FaultError("broken-entry", f"{name!r} must be an integer, found {shown(value)}.")
    if not -(2**63) <= value < 2**63:
        raise _FaultError("broken-entry", f"{name!r} must be an integer of 64 bits, found {shown(value)}.")
    return value


def _string(entry: Any, name: str) -> str:
    value = _field(entry, name)
    if not isinstance(value, str) or not value:
        raise _FaultError("broken-entry", f"{name!r} must be a text, found {shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates
        raise _FaultError(
            "broken-entry", f"{name!r} must be a text of whole characters, found {shown(value)}."
        ) from error
    return value


def _bbox(entry: Any) -> list[float]:
    values = _field(entry, "bbox")
    if not isinstance(values, list) or len(values) != 4 or not all(_is_number(value) for value in values):
        raise _FaultError(
            "broken-entry", f"'bbox' must be four finite numbers (x, y, width, height), found {shown(values)}."
        )
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _is_without(segmentation: Any) -> bool:
    return segmentation is None or segmentation == []


def _ids(entries: list[Any]) -> set[int]:
    """The ids of entries, also of those that are broken otherwise."""
    return {id for id in map(id_of, entries) if id is not None}


def _repeated(ids: list[int], name: str, kind: str) -> list[Finding]:
    return [Finding(name, f"the id {id} is used {n} times.", kind) for id, n in Counter(ids).items() if n > 1]


def _numbering(annotations: list[Any]) -> list[Finding]:
    """Of annotations nobody needs the ids but other programs: training numbers them anew."""
    ids = [id_of(entry) for entry in annotations]
    findings = _repeated([id for id in ids if id is not None], "annotations", "repeated-annotation-id")
    # What is no object at all is reported as that.
    without = [position for position, id in enumerate(ids) if id is None and isinstance(annotations[position], dict)]
    if without:
        what = f"of {len(annotations)} objects, {len(without)} have no id that is an integer; numbered anew."
        findings.append(Finding("annotations", what, "missing-annotation-id", ("annotations", without[0])))
    return findings


def _usable(entries: list[Entry | None]) -> list[Entry]:
    return [entry for entry in entries if entry is not None]


def _place(name: str, position: int, entry: Any) -> str:
    where = f"{name}[{position}]"
    return f"{where} (id {shown(entry['id'])})" if isinstance(entry, dict) and "id" in entry else where


def _box_place(entry: Any, image: CocoImage) -> str:
    return f", bbox {_bbox(entry)} in {printable(image.file_name)} of {image.width} × {image.height}"


def shown(value: Any) -> str:
    """A value from a file as a message shows it: on one line, and short."""
    try:
        text = repr(value)
    except RecursionError:
        return "…"
    return text if len(text) <= 80 else f"{text[:80]}…"


def printable(name: str) -> str:
    """A file's name as a message shows it: control characters would reach the terminal."""
    return name if name.isprintable() else repr(name)
