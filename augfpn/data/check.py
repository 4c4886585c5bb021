"""Everything that is wrong with a folder in COCO's layout, found in one pass: `augfpn data check`.

What stands in annotation files is examined by the code that training reads them with (`augfpn.data.coco_format`), and
image files by the code that opens them (`augfpn.data.images`), but to the last pixel. What no file shows alone is found
here: images that are there twice or in two splits, categories that differ, files that nobody lists.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from augfpn.data.coco_format import (
    SPLITS,
    DataError,
    Examined,
    annotation_files,
    different_categories,
    examine,
    image_folder,
    layout,
    no_image_folder,
    printable,
    without_segmentation,
)
from augfpn.data.findings import KINDS, Finding
from augfpn.data.images import ImageError, ImageSizeError, check_image, read_image

# An image file, and the height and width that it is annotated with.
_Task = tuple[str, tuple[int, int]]
# Image files that one process reads at a time.
CHUNK = 32
# Fewer image files are read sooner than other processes start.
ALONE = 1000
# Findings of a kind that the text shows.
EXAMPLES = 3
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Look:
    """What an image file is like.

    ``checksum``: of its bytes; empty where there are none. ``kind`` and ``what``: of the finding, if there is one.
    ``size``: its own height and width, where it is not the annotated one.
    """

    checksum: str = ""
    kind: str = ""
    what: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Split:
    """A split as it was found; ``looks`` has the image files by the position of their entry."""

    name: str
    annotations: Path
    folder: Path | None
    examined: Examined
    looks: dict[int, Look]

    @property
    def categories(self) -> list[Any]:
        return sorted(filter(None, self.examined.categories), key=lambda category: category.id)

    def file(self, position: int) -> Path:
        image = self.examined.images[position]
        assert self.folder is not None
        assert image is not None
        return self.folder / image.file_name

    def without(self, positions: Iterable[int]) -> Split:
        """The split as if the images at some positions were not listed."""
        left_out = set(positions)
        images = [None if position in left_out else image for position, image in enumerate(self.examined.images)]
        looks = {position: look for position, look in self.looks.items() if position not in left_out}
        return replace(self, examined=replace(self.examined, images=images), looks=looks)

    def repeats(self) -> Iterator[tuple[int, int, str]]:
        """Positions of images that an earlier entry lists, too; that entry's; and the kind of the finding."""
        by_name: dict[str, int] = {}
        by_content: dict[str, int] = {}
        for position, image in enumerate(self.examined.images):
            if image is None:
                continue
            name = os.path.normpath(image.file_name)
            checksum = self.whole(position) or f"none of {position}"
            if name in by_name:
                # The same id is another finding.
                first = self.examined.images[by_name[name]]
                if first is not None and first.id != image.id:
                    yield position, by_name[name], "image-twice"
            elif checksum in by_content:
                yield position, by_content[checksum], "same-content"
            by_name.setdefault(name, position)
            by_content.setdefault(checksum, position)

    def whole(self, position: int) -> str:
        """The checksum of an image file that can be read."""
        look = self.looks.get(position, Look())
        return look.checksum if look.kind in ("", "image-size") else ""


@dataclass(frozen=True)
class Report:
    """All that is wrong with the folder ``root``."""

    root: Path
    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]

    @property
    def is_faulty(self) -> bool:
        return any(finding.severity != "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For programs. ``findings`` have ``kind``, ``severity``, ``split``, ``entry``, ``where`` and ``what``.

        ``entry`` is such as ``annotations[3]``, counted from 0, or null; ``where`` says the place in words; ``counts``
        are of findings by severity. New fields may be added; these stay.
        """
        return {
            "root": str(self.root),
            "splits": [
                {
                    "name": split.name,
                    "annotations": str(split.annotations),
                    "folder": None if split.folder is None else str(split.folder),
                    **_sizes(split),
                }
                for split in self.splits
            ],
            "counts": {severity: self._count(severity) for severity in SEVERITIES},
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "split": finding.split or None,
                    "entry": None if finding.entry is None else "{}[{}]".format(*finding.entry),
                    "where": finding.where,
                    "what": finding.what,
                }
                for finding in self.findings
            ],
        }

    def as_text(self) -> str:
        """A table of kinds, the worst first, with examples of each."""
        lines = [str(self.root)]
        width = max((len(split.name) for split in self.splits), default=0)
        for split in self.splits:
            sizes = ", ".join(f"{n} {name}" for name, n in _sizes(split).items())
            lines.append(f"  {split.name:{width}}  {sizes}")
        of_kind = defaultdict(list)
        for finding in self.findings:
            of_kind[finding.kind].append(finding)
        for severity in SEVERITIES:
            for kind in (kind for kind in KINDS if KINDS[kind].severity == severity and kind in of_kind):
                found = of_kind[kind]
                lines += ["", f"{severity:8} {kind:24} {len(found):>7}  {KINDS[kind].meaning}"]
                lines += [f"    {self._line(finding)}" for finding in found[:EXAMPLES]]
                if len(found) > EXAMPLES:
                    lines.append(f"    … and {len(found) - EXAMPLES} more")
        return "\n".join([*lines, "", self._summary()])

    def _line(self, finding: Finding) -> str:
        # Below the root, its name says nothing new.
        text = f"{finding}".replace(f"{self.root}{os.sep}", "")
        place = f"{finding.split}: " if finding.split else ""
        entry = "{}[{}] ".format(*finding.entry) if finding.entry and not text.startswith(finding.entry[0]) else ""
        return f"{place}{entry}{text}"

    def _summary(self) -> str:
        counts = {severity: self._count(severity) for severity in SEVERITIES}
        told = ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in counts.items())
        if not self.is_faulty:
            return f"Nothing is wrong ({told})."
        if counts["error"]:
            return f"{told}. Training refuses this folder; --fix OUT writes a mended copy."
        return f"{told}. Training goes on in spite of warnings; --fix OUT writes a mended copy."

    def _count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)


def check(root: Path, jobs: int | None = None) -> Report:
    """Examines all splits of a folder, and reads all of their images.

    Args:
        root: in COCO's layout.
        jobs: processes that read images; by default one for each core.

    Raises:
        DataError: if there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. {layout(root, 'train')}")
    found = []
    for path in annotation_files(root):
        examined = examine(path, segmentations="examined")
        found.append(Split(path.stem.removeprefix("instances_"), path, image_folder(root, path), examined, {}))
    splits = tuple(_looked(found, jobs))
    findings = list(_of_folder(root, splits))
    for split in splits:
        findings += [replace(finding, split=split.name) for finding in _of_split(split)]
    findings += [*_shared(splits), *_unlisted(splits)]
    return Report(root, splits, tuple(findings))


def shared_images(splits: Iterable[Split]) -> Iterator[tuple[Split, int, Split, int]]:
    """Images that a split before it has, too: the split and the position, and those of the one that keeps the image.

    A validation or a test set keeps what it shares, and train comes last: figures stay comparable so.
    """
    holders: dict[str, tuple[Split, int]] = {}
    for split in sorted(splits, key=lambda split: (_rank(split.name), split.name)):
        of_split: dict[str, tuple[Split, int]] = {}
        for position in split.looks:
            checksum = split.whole(position)
            if checksum in holders:
                yield split, position, *holders[checksum]
            elif checksum:
                of_split.setdefault(checksum, (split, position))
        holders |= of_split


def _rank(name: str) -> int:
    ranks = {"val": 0, "test": 1, "train": 3}
    return next((rank for split, rank in ranks.items() if name.startswith(split)), 2)


def _of_folder(root: Path, splits: tuple[Split, ...]) -> Iterator[Finding]:
    if not splits:
        yield Finding(str(root), f"no annotation file. {layout(root, 'train')}", "no-split")
        return
    for name in SPLITS:
        files = [split.annotations.name for split in splits if split.name.startswith(name)]
        if len(files) > 1:
            what = f"found several for the split {name!r}: {', '.join(files)}."
            yield Finding(str(root / "annotations"), what, "several-files")
        elif not files and name != "test":
            yield Finding(str(root), f"no annotation file for the split {name!r}.", "missing-split")
    known = sorted(
        (split for split in splits if split.categories), key=lambda split: not split.name.startswith("train")
    )
    for split in known[1:]:
        different = different_categories(known[0].categories, split.categories)
        if different:
            what = f"other categories than {known[0].name}; these differ: {different}."
            yield Finding(str(split.annotations), what, "different-categories", split=split.name)


def _of_split(split: Split) -> Iterator[Finding]:
    """What is wrong within a split."""
    yield from split.examined.findings
    without = without_segmentation(split.examined)
    if without:
        what = f"of {len(split.examined.boxes)} objects, {without} have no segmentation; Mask R-CNN needs one."
        yield Finding("annotations", what, "no-segmentation")
    if split.folder is None:
        yield Finding(str(split.annotations), no_image_folder(split.annotations), "no-folder")
        return
    for position, look in split.looks.items():
        path, image = split.file(position), split.examined.images[position]
        assert image is not None
        if look.kind:
            yield Finding(printable(str(path)), look.what, look.kind, ("images", position))
        if leaves_folder(image.file_name):
            what = "the file name leaves the folder of the split."
            yield Finding(printable(str(path)), what, "image-outside", ("images", position))
    for position, first, kind in split.repeats():
        other = f"images[{first}] ({printable(split.file(first).name)})"
        what = f"the same file as {other}." if kind == "image-twice" else f"the same content as {other}."
        yield Finding(printable(str(split.file(position))), what, kind, ("images", position))


def leaves_folder(file_name: str) -> bool:
    normal = os.path.normpath(file_name)
    return os.path.isabs(normal) or normal.split(os.sep)[0] in ("..", ".")


def _shared(splits: tuple[Split, ...]) -> Iterator[Finding]:
    for split, position, keeper, kept in shared_images(splits):
        what = f"{keeper.name} has this image, too: images[{kept}] ({printable(keeper.file(kept).name)})."
        where = printable(str(split.file(position)))
        yield Finding(where, what, "shared-image", ("images", position), split.name)


def _unlisted(splits: tuple[Split, ...]) -> Iterator[Finding]:
    listed = {os.path.normpath(split.file(position)) for split in splits for position in split.looks}
    suffixes = Image.registered_extensions()
    for folder in sorted({split.folder for split in splits if split.folder is not None}):
        for parent, _, names in os.walk(folder):
            for name in sorted(names):
                path = os.path.normpath(os.path.join(parent, name))
                if os.path.splitext(name)[1].lower() in suffixes and path not in listed:
                    yield Finding(printable(path), "no annotation file lists this image.", "unlisted-image")


def _looked(splits: list[Split], jobs: int | None) -> Iterator[Split]:
    """The splits with a look at each image file."""
    tasks = [
        (str(split.folder / image.file_name), (image.height, image.width))
        for split in splits
        if split.folder is not None
        for image in split.examined.images
        if image is not None
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    looks = iter(_look_at_all(tasks, jobs or cores))
    for split in splits:
        positions = [] if split.folder is None else [p for p, image in enumerate(split.examined.images) if image]
        yield replace(split, looks={position: next(looks) for position in positions})


def _look_at_all(tasks: list[_Task], jobs: int) -> list[Look]:
    def shown(looks: Iterable[Look]) -> list[Look]:
        return list(tqdm(looks, "reading images", len(tasks), unit="image", disable=not sys.stderr.isatty()))

    if jobs == 1 or len(tasks) < ALONE:
        return shown(map(_look, tasks))
    context = multiprocessing.get_context("forkserver")
    # Imported once, before the processes are forked.
    context.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(min(jobs, len(tasks) // CHUNK), context) as pool:
            return shown(pool.map(_look, tasks, chunksize=CHUNK))
    except BrokenProcessPool as error:
        raise DataError(
            "A process that reads images was killed, perhaps because the memory is full. Try fewer (--jobs 1)."
        ) from error


def _look(task: _Task) -> Look:
    name, size = task
    # A pipe would be waited for without end.
    if not os.path.isfile(name):
        return Look(kind="missing-image", what=f"there is no such file{', but a folder' * os.path.isdir(name)}.")
    path = Path(name)
    try:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        return Look(kind="broken-image", what=f"the image cannot be read ({error.strerror}).")
    with warnings.catch_warnings():
        # What a library wonders about in a file that it reads.
        warnings.simplefilter("ignore")
        try:
            check_image(path, size, whole=True)
        except ImageSizeError as error:
            try:
                read_image(path)
            except ImageError as worse:
                return Look(checksum, "broken-image", str(worse))
            return Look(checksum, "image-size", str(error), error.size)
        except ImageError as error:
            return Look(checksum, "broken-image", str(error))
    return Look(checksum)


def _sizes(split: Split) -> dict[str, int]:
    return {
        "images": len(split.examined.content["images"]),
        "objects": len(split.examined.content["annotations"]),
        "categories": len(split.examined.content["categories"]),
    }
