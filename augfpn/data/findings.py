"""What can be wrong with a data set in COCO's format: its kinds, how bad each is, and one place where it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from augfpn.data.dataset import DataProblem

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """``error``: training refuses it. ``warning``: training goes on with less or other data than was meant, or figures
    mean less than they seem to. ``note``: worth knowing, and nothing wrong."""

    severity: Severity
    meaning: str


KINDS = {
    # The folder and its annotation files.
    "no-split": Kind("error", "no annotation file annotations/instances_SPLIT.json"),
    "several-files": Kind("error", "several annotation files for one split"),
    "no-folder": Kind("error", "annotation files without a folder of images"),
    "broken-file": Kind("error", "annotation files that cannot be read"),
    "missing-list": Kind("error", "lists that annotation files lack"),
    "empty-list": Kind("error", "lists without an entry"),
    "different-categories": Kind("error", "splits with other categories"),
    # Entries of annotation files.
    "broken-entry": Kind("error", "entries with missing or wrong fields"),
    "repeated-image-id": Kind("error", "ids of several images"),
    "repeated-category-id": Kind("error", "ids of several categories"),
    "unknown-image": Kind("error", "objects in images that are not listed"),
    "unknown-category": Kind("error", "objects of categories that are not listed"),
    "box-no-area": Kind("warning", "boxes without area"),
    "box-outside": Kind("warning", "boxes outside their image"),
    "box-cut": Kind("warning", "boxes that leave their image"),
    "broken-segmentation": Kind("warning", "segmentations that give no mask"),
    "repeated-annotation-id": Kind("warning", "ids of several objects"),
    "missing-annotation-id": Kind("warning", "objects without an id, by file"),
    # Image files.
    "missing-image": Kind("error", "image files that are not there"),
    "broken-image": Kind("error", "image files that cannot be read"),
    "image-size": Kind("error", "image files of another size than annotated"),
    "image-outside": Kind("error", "image files outside the folder of their split"),
    "image-twice": Kind("warning", "files listed as several images"),
    "same-content": Kind("warning", "files with the content of another one"),
    "shared-image": Kind("warning", "images that another split has, too"),
    # Nothing wrong.
    "no-segmentation": Kind("note", "objects without a segmentation, by file"),
    "repeated-category-name": Kind("note", "names of several categories"),
    "missing-split": Kind("note", "splits that training asks for"),
    "unlisted-image": Kind("note", "image files that no annotation file lists"),
}


@dataclass(frozen=True)
class Finding(DataProblem):
    """Something wrong in one place.

    ``kind``: a name in `KINDS`. ``entry``: the list and the position in it, such as ``("annotations", 3)``; None for
    what is no entry. ``split``: such as ``train2017``; empty for what is of no split.
    """

    kind: str = "broken-entry"
    entry: tuple[str, int] | None = None
    split: str = ""

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity
