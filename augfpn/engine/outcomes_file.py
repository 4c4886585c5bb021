"""The outcomes of an evaluated run in one file, of which an image's part is read at a time.

``outcomes.safetensors`` in the run directory holds columns: all objects of all images behind one another, and all
detections. A viewer of 5,000 images with 500,000 detections opens it at once, where ``detections.json`` alone takes
seconds to read. It is made from that and from the truth, by the evaluation or else by whoever asks first, made again
when one of them has changed, and can be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from augfpn.data.coco_format import find_split
from augfpn.data.loading import open_dataset
from augfpn.data.segmentations import Rle
from augfpn.engine.outcomes import OF_FOUND, OF_OBJECTS, Array, Found, ImageOutcomes, Objects, Overview, outcomes_of
from augfpn.engine.runs import Run, RunError
from augfpn.files import written_whole

# Files of another form are made again.
_FORM = "1"
_OF_OBJECTS = ("boxes", "labels", "crowd", "found_by")
_OF_FOUND = ("boxes", "labels", "scores", "outcomes", "of_object", "ious", "rois")


class Outcomes:
    """The file of a run, opened; made first where there is none that fits.

    Attributes:
        ids: of the images, as their data set has them. names: of their files, or what they would be called.
        sizes: their heights and widths.
        folder: of the image files; None for synthetic images.
        has_rois: whether detections know what they were refined from; those of older evaluations do not.
        has_masks: whether objects and detections have masks.
    """

    def __init__(self, run: Run) -> None:
        path = _path(run)
        # Before they are read: what changes while it is read is noticed the next time.
        sources = sources_of(run)
        if not _is_whole(path, sources):
            results = run.detections
            # Of images that are not shown, nobody needs to know whether they can be read.
            truth = open_dataset(run.config.data, "val", check_images=False).ground_truth()
            _check_same_data(run, truth, results)
            try:
                write_outcomes(run, truth, results, sources)
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"{path} is needed to look at the run, and cannot be written ({error}). Copy the run to "
                    "a folder of yours."
                ) from error
        self._file = _opened(path)
        images = json.loads(self._file.metadata()["images"])
        self.ids: list[int] = images["ids"]
        self.names: list[str] = images["names"]
        self.sizes: list[tuple[int, int]] = [(height, width) for height, width in images["sizes"]]
        folder = _folder(run)
        self.folder = None if folder is None else Path(folder)
        columns = self._file.keys()
        self.has_rois, self.has_masks = "found.rois" in columns, "found.masks" in columns
        self._starts = {kind: self._file.get_tensor(f"{kind}.starts").tolist() for kind in ("objects", "found")}

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, position: int) -> ImageOutcomes:
        """The outcomes of the image at this position."""
        of_objects, of_found = (self._columns(kind, position) for kind in ("objects", "found"))
        return ImageOutcomes(Objects(**of_objects), Found(**of_found))

    def overview(self) -> Overview:
        starts = {kind: np.array(values) for kind, values in self._starts.items()}
        objects = {name: self._file.get_tensor(f"objects.{name}") for name in OF_OBJECTS}
        found = {name: self._file.get_tensor(f"found.{name}") for name in OF_FOUND}
        return Overview(starts["objects"], objects, starts["found"], found)

    def _columns(self, kind: str, position: int) -> dict[str, Any]:
        start, end = self._starts[kind][position : position + 2]
        names = _OF_OBJECTS if kind == "objects" else _OF_FOUND
        present = [name for name in names if name != "rois" or self.has_rois]
        columns: dict[str, Any] = {name: self._slice(f"{kind}.{name}", start, end) for name in present}
        return {**columns, "masks": self._masks(kind, position, start, end) if self.has_masks else None}

    def _slice(self, name: str, start: int, end: int) -> Array:
        column = self._file.get_slice(name)
        values: Array
        if start < end:
            values = column[start:end]
        else:
            # The library knows no empty slices.
            values = column[0:1][:0] if column.get_shape()[0] else self._file.get_tensor(name)
        return values

    def _masks(self, kind: str, position: int, start: int, end: int) -> list[Rle]:
        ends = self._slice(f"{kind}.mask_starts", start, end + 1).tolist()
        packed = self._slice(f"{kind}.masks", ends[0], ends[-1]).tobytes()
        texts = (packed[one - ends[0] : other - ends[0]].decode() for one, other in pairwise(ends))
        return [{"size": list(self.sizes[position]), "counts": text} for text in texts]


def write_outcomes(
    run: Run, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], sources: str | None = None
) -> None:
    """Writes the file of a run of which ``results`` are the detections, in COCO's format, and ``truth`` its data.

    ``sources``: `sources_of` the run when they were read; by default as they are now.
    """
    of_images = list(outcomes_of(truth, results))
    columns: dict[str, Array] = {}
    for kind, names in (("objects", _OF_OBJECTS), ("found", _OF_FOUND)):
        parts: list[Any] = [getattr(of_image, kind) for of_image in of_images]
        columns[f"{kind}.starts"] = np.cumsum([0, *(len(part.boxes) for part in parts)])
        for name in names:
            if all(getattr(part, name) is not None for part in parts):
                columns[f"{kind}.{name}"] = np.concatenate([getattr(part, name) for part in parts])
        if run.config.data.masks:
            packed = [mask["counts"].encode() for part in parts for mask in part.masks or []]
            columns[f"{kind}.masks"] = np.frombuffer(b"".join(packed), dtype=np.uint8)
            columns[f"{kind}.mask_starts"] = np.cumsum([0, *map(len, packed)])
    images = {
        "ids": [image["id"] for image in truth["images"]],
        "names": [image["file_name"] for image in truth["images"]],
        "sizes": [(image["height"], image["width"]) for image in truth["images"]],
    }
    metadata = {"sources": sources or sources_of(run), "images": json.dumps(images)}
    with written_whole(_path(run)) as temporary:
        save_file(columns, temporary, metadata)


def _path(run: Run) -> Path:
    return run.path / "outcomes.safetensors"


def _opened(path: Path) -> Any:
    # Only what is asked for is read.
    return safe_open(path, framework="numpy")


def _is_whole(path: Path, sources: str) -> bool:
    """Whether the file is there, made from these sources, and each of its columns as long as it should be."""
    try:
        file = _opened(path)
        metadata = file.metadata() or {}
        if metadata.get("sources") != sources:
            return False
        images = json.loads(metadata["images"])
        numbers = {len(images[name]) for name in ("ids", "names", "sizes")}
        present = file.keys()
        for kind, names in (("objects", _OF_OBJECTS), ("found", _OF_FOUND)):
            starts = file.get_tensor(f"{kind}.starts")
            columns = [f"{kind}.{name}" for name in names if name != "rois" or f"{kind}.rois" in present]
            lengths = {file.get_slice(column).get_shape()[0] for column in columns}
            if numbers != {len(starts) - 1} or lengths != {int(starts[-1])} or starts[0] or (np.diff(starts) < 0).any():
                return False
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False
    return True


def sources_of(run: Run) -> str:
    """What the file is made from, as far as one sees without reading it."""
    files = [run.path / "detections.json"]
    if run.config.data.root is not None:
        files.append(_split(run)[1])
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return json.dumps([_FORM, _folder(run), stats])


def _check_same_data(run: Run, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """A RunError if the data are not those that the run was evaluated on, as far as one sees."""
    ids = {image["id"] for image in truth["images"]}
    same_classes = [category["id"] for category in truth["categories"]] == [one.id for one in run.categories]
    if not same_classes or any(result["image_id"] not in ids for result in results):
        raise RunError(
            f"The data of {run.path} have other classes or images than when it was evaluated; evaluate it again with "
            f"`augfpn evaluate {run.path}`, or give it its data back."
        )


def _folder(run: Run) -> str | None:
    return None if run.config.data.root is None else str(_split(run)[0])


def _split(run: Run) -> tuple[Path, Path]:
    """The image folder and the annotation file of a run's validation data."""
    data = run.config.data
    assert data.root is not None
    return find_split(Path(data.root), "val" if data.overfit is None else "train")
