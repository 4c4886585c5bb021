"""A mended copy of a folder in COCO's layout, with a list of all that was changed: `augfpn data check --fix`.

What cannot be used is left out, and what has only one meaning is put right:

- An image that is missing, broken, or listed by a broken entry is left out with its objects.
- Entries of images or categories that have the same id are merged if they are the same; otherwise nobody knows which
  of them objects belong to, and all are left out with their objects.
- An image of another size than annotated gets its own size if that holds all of its boxes. It is left out if not, or if
  it is the annotated image at another scale, on which the boxes would be in the wrong place.
- An image that several splits have stays in val, else in test, and is left out of train: figures stay comparable.
- Files of the same content, or listed several times, become one image with the objects of all; objects that several of
  them have become one. Where they are annotated in different sizes, the first stays.
- Splits with different categories get the categories of all. Those of one name are the same; train's ids are kept.
- Boxes are cut to their image; without area or outside, they are left out. A segmentation that gives no mask is left
  out, and the object keeps its box. Repeated and missing ids of objects get new numbers; the first keeps its own.
- A file outside the folder of its split is brought into it. Files that no annotation file lists are not copied.
- A split of which nothing is left, or nothing can be read, is left out.

Of several annotation files for one split, none can be chosen: that is for people.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from augfpn.data.check import EXAMPLES, Report, Split, leaves_folder, shared_images
from augfpn.data.coco_format import (
    LONGEST_SIDE,
    ROUNDING,
    CocoBox,
    CocoImage,
    DataError,
    boxes_as_listed,
    examine_content,
    id_of,
    printable,
)
from augfpn.errors import UserError
from augfpn.files import folder_written_whole, write_json

CHANGES = "changes.json"


@dataclass(frozen=True)
class Change:
    """``kind``: of the finding that it mends. ``where``: the entry as the original file has it."""

    split: str
    kind: str
    where: str
    what: str


def mend(report: Report, out: Path) -> list[Change]:
    """Writes a copy of a checked folder in which a check finds no error and no warning, and the list of changes.

    Images are hard links to the original files where the file system allows it, else copies. ``changes.json`` in the
    copy has a list of objects with ``split``, ``kind``, ``where`` and ``what``.

    Raises:
        UserError: if ``out`` is in use or would take the place of the original, or nothing usable is left.
    """
    if report.root.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} holds the data to be mended; name another folder (--fix).")
    for finding in report.findings:
        if finding.kind in ("several-files", "no-split"):
            raise DataError(f"{finding} This cannot be mended.")
    changes: list[Change] = []
    copies = [_Copy(split, changes) for split in report.splits if _is_usable(split, changes)]
    for copy in copies:
        copy.leave_out_categories()
        copy.leave_out_images()
    by_name = {copy.split.name: copy for copy in copies}
    for split, position, keeper, _ in list(shared_images(copy.rest for copy in copies)):
        by_name[split.name].leave_out(position, "shared-image", f"{keeper.name} has it, too.")
    for copy in copies:
        copy.join_repeats()
    _unite_categories(copies, changes)
    contents = [(copy, copy.content()) for copy in copies]
    contents = [(copy, content) for copy, content in contents if _is_left(copy, content, changes)]
    if not contents:
        raise DataError(f"{report.root}: nothing would be left of it; there is nothing to mend.")
    with folder_written_whole(out) as folder:
        for copy, content in contents:
            copy.write(folder, content)
        described = {"root": str(report.root), "changes": [asdict(change) for change in changes]}
        write_json(folder / CHANGES, described, indent=1)
    return changes


def as_text(changes: list[Change]) -> str:
    """How many changes of each kind, with examples."""
    of_kind: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        of_kind[change.kind].append(change)
    lines = []
    for kind, found in of_kind.items():
        lines.append(f"{kind:24} {len(found):>7}")
        lines += [f"    {change.split}: {change.where}: {change.what}" for change in found[:EXAMPLES]]
        if len(found) > EXAMPLES:
            lines.append(f"    … and {len(found) - EXAMPLES} more")
    return "\n".join(lines)


class _Copy:
    """A split in the making. Images are known by the position of their entry in the original file."""

    def __init__(self, split: Split, changes: list[Change]) -> None:
        self.split = split
        # By id: the entry and its name.
        self.categories = {
            category.id: (category.name, entry)
            for category, entry in zip(split.examined.categories, split.examined.content["categories"], strict=True)
            if category is not None
        }
        self.category_ids = {id: id for id in self.categories}
        self.list_of_categories: list[Any] = []
        self._changes = changes
        self._left_out: set[int] = set()
        self._joined: dict[int, int] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._num_objects = Counter(id_of(entry, "image_id") for entry in split.examined.content["annotations"])
        self._boxes = boxes_as_listed(split.examined.content["annotations"])

    @property
    def rest(self) -> Split:
        """The split without the images that were left out so far."""
        return self.split.without(self._left_out)

    def leave_out_categories(self) -> None:
        examined = self.split.examined
        for finding in examined.findings:
            if finding.entry is not None and finding.entry[0] == "categories":
                self._changed(finding.kind, finding.where, f"{finding.what} Left out with its objects.")
        for id, entries in _grouped(examined.categories):
            what = "the same category; merged."
            if len({category.name for category in entries.values()}) > 1:
                what = "different categories; left out with their objects."
                del self.categories[id], self.category_ids[id]
            self._changed("repeated-category-id", f"categories, id {id}", what)

    def leave_out_images(self) -> None:
        """Those that are broken, or of which nobody knows which is meant; sizes are put right."""
        examined = self.split.examined
        for finding in examined.findings:
            if finding.entry is not None and finding.entry[0] == "images":
                self._changed(finding.kind, finding.where, f"{finding.what} Left out with its objects.")
        for _, entries in _grouped(examined.images):
            is_same = len(set(entries.values())) == 1
            for position in list(entries)[is_same:]:
                what = "the same image; merged." if is_same else "the id of different images."
                self.leave_out(position, "repeated-image-id", what, with_objects=not is_same)
        for position, look in list(self.rest.looks.items()):
            if look.kind and not (look.size and self._put_right(position, *look.size)):
                self.leave_out(position, look.kind, look.what)

    def _put_right(self, position: int, height: int, width: int) -> bool:
        """Gives an image its own size, if that is certain enough."""
        image = self._image(position)
        boxes = self._boxes.get(image.id, [])
        holds_all = all(
            min(x, y) >= -ROUNDING and x + w <= width + ROUNDING and y + h <= height + ROUNDING for x, y, w, h in boxes
        )
        is_scaled = abs(height * image.width - image.height * width) <= image.width
        if not holds_all or (is_scaled and boxes) or max(height, width) > LONGEST_SIDE:
            return False
        self._sizes[position] = (height, width)
        what = f"annotated as {image.width} × {image.height}; now {width} × {height}, as the file is."
        self._changed("image-size", self._name(position), what)
        return True

    def join_repeats(self) -> None:
        """Makes one image of those that are the same."""
        for position, first, kind in list(self.rest.repeats()):
            if self._size(position) == self._size(first):
                self._joined[self._image(position).id] = self._image(first).id
                what = f"the same as {self._name(first)}, which has its objects now."
                self.leave_out(position, kind, what, with_objects=False)
            else:
                self.leave_out(position, kind, f"the same as {self._name(first)}, but annotated in another size.")

    def leave_out(self, position: int, kind: str, what: str, *, with_objects: bool = True) -> None:
        if with_objects:
            num = self._num_objects[self._image(position).id]
            what += f" Left out with its {num} object{'s' * (num != 1)}."
        self._changed(kind, self._name(position), what)
        self._left_out.add(position)

    def content(self) -> dict[str, Any]:
        """What the annotation file of the copy has."""
        original = self.split.examined.content
        images, names = [], _file_names(self.rest)
        for finding in self.split.examined.findings:
            if finding.kind == "missing-list":
                self._changed(finding.kind, self.split.annotations.name, f"{finding.what} It is empty now.")
        for position, name in names.items():
            height, width = self._size(position)
            entry = original["images"][position]
            if leaves_folder(entry["file_name"]):
                self._changed("image-outside", self._name(position), f"brought into the folder as {name}.")
            images.append({**entry, "file_name": name, "height": height, "width": width})
        left = {self._image(position).id for position in names}
        listed = {id for id in map(id_of, original["images"]) if id is not None}
        # Categories of other splits may have the ids of those that were left out or are missing here.
        without = {id_of(entry) for entry in original["categories"]}
        objects = {}
        for position, entry in enumerate(original["annotations"]):
            image_id, category_id = id_of(entry, "image_id"), id_of(entry, "category_id")
            if image_id in self._joined:
                entry = {**entry, "image_id": self._joined[image_id]}
            elif image_id in listed and image_id not in left:
                # Left out with its image.
                continue
            if category_id is not None and category_id not in self.category_ids:
                if category_id not in without:
                    what = f"category_id {category_id} is not among the categories; left out."
                    self._changed("unknown-category", f"annotations[{position}]", what)
                continue
            if category_id is not None:
                entry = {**entry, "category_id": self.category_ids[category_id]}
            objects[position] = entry
        content = original | {"images": images, "categories": self.list_of_categories}
        return content | {"annotations": self._numbered(self._mended(content, objects))}

    def write(self, root: Path, content: dict[str, Any]) -> None:
        write_json(root / "annotations" / f"instances_{self.split.name}.json", content)
        folder = root / self.split.name
        folder.mkdir()
        for position, name in _file_names(self.rest).items():
            _link(self.split.file(position), folder / name)

    def _mended(self, content: dict[str, Any], objects: dict[int, Any]) -> dict[int, Any]:
        """The objects that can be used, by their original positions; boxes are cut."""
        examined = examine_content(content | {"annotations": list(objects.values())}, "", "examined")
        positions = list(objects)
        mended = {p: objects[p] for p, box in zip(positions, examined.boxes, strict=True) if box is not None}
        of_joined = set(self._joined.values())
        known: dict[CocoKey, int] = {}
        for position, box in zip(positions, examined.boxes, strict=True):
            if box is not None and box.image_id in of_joined and known.setdefault(_key(box), position) != position:
                del mended[position]
                self._changed("same-content", f"annotations[{position}]", "another image of it has this object, too.")
        faulty = [f for f in examined.findings if f.entry and f.entry[0] == "annotations" and f.severity != "note"]
        faulty = [finding for finding in faulty if finding.kind != "missing-annotation-id"]
        for finding in faulty:
            assert finding.entry is not None
            position = positions[finding.entry[1]]
            where = finding.where.replace(f"annotations[{finding.entry[1]}]", f"annotations[{position}]", 1)
            what = finding.what
            box = examined.boxes[finding.entry[1]]
            if box is None:
                what = what.removesuffix("; dropped.").removesuffix(".") + "; left out."
            elif position in mended and finding.kind == "box-cut":
                mended[position] = {**mended[position], "bbox": box.annotation["bbox"]}
            elif position in mended:
                mended[position] = {k: value for k, value in mended[position].items() if k != "segmentation"}
                what = what.replace("dropped", "left out, the box stays")
            self._changed(finding.kind, where, what)
        # What is cut may be too small then, by a rounding.
        return self._mended(content, mended) if faulty else mended

    def _numbered(self, objects: dict[int, Any]) -> list[Any]:
        ids = {position: id_of(entry) for position, entry in objects.items()}
        # No id that another object had in the original.
        taken = {id_of(entry) for entry in self.split.examined.content["annotations"]}
        free = (id for id in count(1) if id not in taken)
        used, numbered = set(), []
        for position, entry in objects.items():
            id = ids[position]
            if id is None or id in used:
                kind = "missing-annotation-id" if id is None else "repeated-annotation-id"
                id = next(free)
                self._changed(kind, f"annotations[{position}]", f"now has the id {id}.")
                entry = {**entry, "id": id}
            used.add(id)
            numbered.append(entry)
        return numbered

    def _image(self, position: int) -> CocoImage:
        image = self.split.examined.images[position]
        assert image is not None
        return image

    def _size(self, position: int) -> tuple[int, int]:
        image = self._image(position)
        return self._sizes.get(position, (image.height, image.width))

    def _name(self, position: int) -> str:
        image = self._image(position)
        return f"images[{position}] (id {image.id}), {printable(image.file_name)}"

    def _changed(self, kind: str, where: str, what: str) -> None:
        self._changes.append(Change(self.split.name, kind, where, what))


CocoKey = tuple[int, int, tuple[float, float, float, float], bool]


def _key(box: CocoBox) -> CocoKey:
    return box.image_id, box.category_id, box.corners, box.is_crowd


def _grouped(entries: Iterable[Any]) -> Iterator[tuple[int, dict[int, Any]]]:
    """The ids that several entries have, and those entries by their position."""
    groups: dict[int, dict[int, Any]] = defaultdict(dict)
    for position, entry in enumerate(entries):
        if entry is not None:
            groups[entry.id][position] = entry
    return ((id, group) for id, group in groups.items() if len(group) > 1)


def _is_usable(split: Split, changes: list[Change]) -> bool:
    if split.folder is not None and any(split.examined.images) and any(split.examined.categories):
        return True
    faults = [f for f in split.examined.findings if f.entry is None and f.severity == "error"]
    why = faults[0] if faults else None
    kind, what = (why.kind, why.what) if why else ("no-folder", "there is no folder with its images.")
    changes.append(Change(split.name, kind, split.annotations.name, f"{what} The split is left out."))
    return False


def _is_left(copy: _Copy, content: dict[str, Any], changes: list[Change]) -> bool:
    if content["images"] and content["categories"]:
        return True
    what = "no image or no category is left of it; the split is left out."
    changes.append(Change(copy.split.name, "empty-list", copy.split.annotations.name, what))
    return False


def _unite_categories(copies: list[_Copy], changes: list[Change]) -> None:
    """Gives all splits the same categories, if they differ."""
    ordered = sorted(copies, key=lambda copy: not copy.split.name.startswith("train"))
    used = {id for copy in copies for id in copy.categories}
    free = (id for id in count(1) if id not in used)
    united: dict[tuple[str, int], tuple[int, Any]] = {}
    for copy in ordered:
        seen: Counter[str] = Counter()
        for id, (name, entry) in sorted(copy.categories.items()):
            # A name may stand for several categories of a split.
            key = (name, seen[name])
            seen[name] += 1
            if key not in united:
                taken = {other for other, _ in united.values()}
                new = next(free) if id in taken else id
                united[key] = (new, {**entry, "id": new})
            copy.category_ids[id] = united[key][0]
    for copy in copies:
        before = {(id, name) for id, (name, _) in copy.categories.items()}
        copy.list_of_categories = [entry for _, entry in sorted(united.values(), key=lambda item: item[0])]
        if before != {(id, name) for (name, _), (id, _) in united.items()}:
            what = "has the categories of all splits now; those of one name have one id."
            changes.append(Change(copy.split.name, "different-categories", copy.split.annotations.name, what))


def _file_names(split: Split) -> dict[int, str]:
    """The names of a split's images in the copy's folder, by position: as they were, if they do not leave it."""
    images = {position: image for position, image in enumerate(split.examined.images) if image is not None}
    names = {position: os.path.normpath(image.file_name) for position, image in images.items()}
    taken = {part for name in names.values() for part in (name, name.split(os.sep)[0])}
    for position, name in names.items():
        if leaves_folder(name):
            base = os.path.basename(name)
            new = next(new for new in (base, *(f"{n}_{base}" for n in range(1, len(taken) + 2))) if new not in taken)
            taken.add(new)
            names[position] = new
    return names


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        # Another file system, or one without links.
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise DataError(f"{source}: cannot be copied ({error.strerror}).") from error
