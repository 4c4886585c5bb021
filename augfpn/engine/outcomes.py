"""What became of every detection and of every object, image by image, as COCO's matching sees it.

pycocotools matches the detections of a class with its objects, best first, where the IoU of their boxes is 0.5 or more.
What is left unmatched is told apart by the objects around it:

    correct       matched with an object of its class
    duplicate     fits an object of its class (IoU of 0.5 or more) that a better detection was matched with
    wrong class   fits an object of another class
    badly placed  overlaps an object of its class (IoU of 0.1 or more)
    background    none of these
    ignored       matched with a crowd, which counts as nothing

An object that no detection was matched with is missed. Better detections are matched first, so a threshold on the
scores changes only who is there: an object whose detection lies below it is missed, and all else stays.

These are the errors of TIDE (Bolya et al., 2020), which looks at bad placement before it looks at the class, and gives
detections that are wrong in both a kind of their own; here they are background.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.data.segmentations import Rle

# From these IoU on, a detection fits an object, and overlaps it.
FITS, OVERLAPS = 0.5, 0.1
# Scores are whole numbers of this unit, as results have them, so that they can be compared without rounding.
SCORES_IN_ONE = 100_000

Array = NDArray[Any]


class Outcome(IntEnum):
    CORRECT = 0
    DUPLICATE = 1
    WRONG_CLASS = 2
    BADLY_PLACED = 3
    BACKGROUND = 4
    IGNORED = 5

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Objects:
    """The G objects of an image, crowds too.

    ``boxes (G, 4)``; ``labels (G)`` 1…K; ``crowd (G)`` bool; ``found_by (G)``: the position of the detection that it
    was matched with among the image's, or −1. ``masks``: packed run lengths, or None.
    """

    boxes: Array
    labels: Array
    crowd: Array
    found_by: Array
    masks: list[Rle] | None = None


@dataclass(frozen=True)
class Found:
    """The D detections of an image, best first.

    ``boxes (D, 4)``; ``labels (D)`` 1…K; ``scores (D)`` in units of 1 / `SCORES_IN_ONE`; ``outcomes (D)``, of
    `Outcome`. ``of_object (D)``: the position of the object that it was matched with, or that makes it what it is, or
    −1; ``ious (D)``: of the two boxes, 0 without an object; with a crowd, the share of the detection that is in it.
    ``rois (D, 4)``: what it was refined from, or None. ``masks``: packed run lengths, or None.
    """

    boxes: Array
    labels: Array
    scores: Array
    outcomes: Array
    of_object: Array
    ious: Array
    rois: Array | None = None
    masks: list[Rle] | None = None


@dataclass(frozen=True)
class ImageOutcomes:
    """Boxes in the pixels of the image as its data set has it."""

    objects: Objects
    found: Found


# What an overview has of objects and of detections.
OF_OBJECTS, OF_FOUND = ("labels", "crowd", "found_by"), ("labels", "scores", "outcomes")


@dataclass(frozen=True)
class Overview:
    """All I images, N objects and M detections; those of image i from ``starts[i]`` to ``starts[i + 1]``.

    ``object_starts``, ``found_starts``: ``(I + 1)``. ``objects``: ``labels``, ``crowd`` and ``found_by (N)`` as in
    `Objects`; ``found``: ``labels``, ``scores`` and ``outcomes (M)`` as in `Found`.
    """

    object_starts: Array
    objects: dict[str, Array]
    found_starts: Array
    found: dict[str, Array]

    def found_with(self) -> Array:
        """``(N)``, the score of the detection that each object was matched with; −1 for objects that are missed."""
        found_by = self.objects["found_by"]
        # Positions among an image's detections become positions among all.
        first = np.repeat(self.found_starts[:-1], np.diff(self.object_starts))
        scores = np.full(len(found_by), -1, dtype=np.int32)
        is_found = found_by >= 0
        scores[is_found] = self.found["scores"][(first + found_by)[is_found]]
        return scores

    @staticmethod
    def of(images: Sequence[ImageOutcomes]) -> Overview:
        objects, found = [image.objects for image in images], [image.found for image in images]
        return Overview(
            np.cumsum([0, *(len(of_image.boxes) for of_image in objects)]),
            {name: np.concatenate([getattr(of_image, name) for of_image in objects]) for name in OF_OBJECTS},
            np.cumsum([0, *(len(of_image.boxes) for of_image in found)]),
            {name: np.concatenate([getattr(of_image, name) for of_image in found]) for name in OF_FOUND},
        )


def outcomes_of(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[ImageOutcomes]:
    """The outcomes of every image of ``truth``, in its order.

    Args:
        truth: the data set in COCO's annotation format; labels are the positions in its list of categories plus 1.
        results: detections in COCO's result format; ``roi``, where all of them have it, is a box like ``bbox``.
    """
    label_of = {category["id"]: label for label, category in enumerate(truth["categories"], start=1)}
    objects: dict[int, list[Any]] = {image["id"]: [] for image in truth["images"]}
    found: dict[int, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    matched = _matches(truth, results, label_of)
    # With the id of the annotation that each was matched with; those of equal scores stay in their order.
    for result, match in sorted(zip(results, matched, strict=True), key=lambda pair: -pair[0]["score"]):
        found[result["image_id"]].append((result, match))
    has_rois = all("roi" in result for result in results)
    for image in truth["images"]:
        yield _of_image(objects[image["id"]], found[image["id"]], label_of, has_rois)


def _matches(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], label_of: Mapping[int, int]) -> list[int]:
    """For each result the id of the annotation that COCO's evaluation matches it with, 0 for none.

    pycocotools goes through every class of every image, most of which are not there. Here all are of one class, and
    boxes of different labels so far apart that they cannot overlap: the same matches, several times faster.
    """
    matched = [0] * len(results)
    if not results:
        return matched
    apart = 2.0 * max(max(image["width"], image["height"]) for image in truth["images"])

    def moved(entry: Mapping[str, Any]) -> dict[str, Any]:
        x, y, width, height = entry["bbox"]
        kept = {name: entry[name] for name in ("image_id", "score", "id", "area", "iscrowd") if name in entry}
        return {**kept, "category_id": 1, "bbox": [x + apart * label_of[entry["category_id"]], y, width, height]}

    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO()
        annotations = [moved(annotation) for annotation in truth["annotations"]]
        dataset: Any = {"images": truth["images"], "annotations": annotations, "categories": [{"id": 1, "name": ""}]}
        ours.dataset = dataset
        ours.createIndex()
        # It gives the results the ids 1, 2, …
        evaluation = COCOeval(ours, ours.loadRes([moved(result) for result in results]), "bbox")
        evaluation.params.iouThrs = np.array([FITS])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [len(results)]
        evaluation.evaluate()
    for evaluated in filter(None, evaluation.evalImgs):
        for result, match in zip(evaluated["dtIds"], evaluated["dtMatches"][0], strict=True):
            matched[result - 1] = int(match)
    return matched


def _of_image(
    annotations: Sequence[Any], found: Sequence[tuple[Any, int]], label_of: Mapping[int, int], has_rois: bool
) -> ImageOutcomes:
    results = [result for result, _ in found]
    of_objects, of_results = (
        np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
        for entries in (annotations, results)
    )
    crowd = np.array([bool(annotation["iscrowd"]) for annotation in annotations], dtype=bool)
    labels, result_labels = (
        np.array([label_of[entry["category_id"]] for entry in entries], dtype=np.int32)
        for entries in (annotations, results)
    )
    position = {annotation["id"]: index for index, annotation in enumerate(annotations)}
    of_object = np.array([position.get(match, -1) for _, match in found], dtype=np.int32)
    outcomes = np.full(len(found), Outcome.BACKGROUND, dtype=np.uint8)
    ious = np.zeros(len(found))
    if len(annotations) and len(found):
        # Its types know run lengths only.
        every_iou: Any = rle.iou(of_results, of_objects, crowd.tolist())  # type: ignore[arg-type]
        same = result_labels[:, None] == labels
        of_object, outcomes = _told_apart(every_iou, same, crowd, of_object)
        ious = np.where(of_object >= 0, every_iou[np.arange(len(found)), of_object], 0)
    found_by = np.full(len(annotations), -1, dtype=np.int32)
    is_match = (outcomes == Outcome.CORRECT) | (outcomes == Outcome.IGNORED)
    # A crowd can have many; the best stays. Better detections come first.
    found_by[of_object[is_match][::-1]] = np.flatnonzero(is_match)[::-1]
    rois = np.array([result["roi"] for result in results], dtype=np.float64).reshape(-1, 4) if has_rois else None
    return ImageOutcomes(
        Objects(_corners(of_objects), labels, crowd, found_by, _masks(annotations)),
        Found(
            boxes=_corners(of_results),
            labels=result_labels,
            scores=np.array([round(result["score"] * SCORES_IN_ONE) for result in results], dtype=np.int32),
            outcomes=outcomes,
            of_object=of_object,
            ious=ious.astype(np.float32),
            rois=None if rois is None else _corners(rois),
            masks=_masks(results),
        ),
    )


def _told_apart(ious: Array, same: Array, crowd: Array, matched: Array) -> tuple[Array, Array]:
    """The object that makes each detection what it is, or −1, and its outcome.

    Args:
        ious, same: ``(D, G)``, of detections with objects, and whether they are of one class.
        crowd: ``(G)``. matched: ``(D)``, the object that COCO's evaluation matched each detection with, or −1.
    """
    of_class, of_another = (np.where(allowed & ~crowd, ious, -1.0) for allowed in (same, ~same))
    nearest, nearest_other = of_class.argmax(axis=1), of_another.argmax(axis=1)
    nearest_iou, other_iou = of_class.max(axis=1), of_another.max(axis=1)
    # The first that holds.
    rules = {
        Outcome.IGNORED: (matched >= 0) & crowd[matched],
        Outcome.CORRECT: matched >= 0,
        Outcome.DUPLICATE: nearest_iou >= FITS,
        Outcome.WRONG_CLASS: other_iou >= FITS,
        Outcome.BADLY_PLACED: nearest_iou >= OVERLAPS,
    }
    objects = [matched, matched, nearest, nearest_other, nearest]
    of_object = np.select(list(rules.values()), objects, default=-1).astype(np.int32)
    return of_object, np.select(list(rules.values()), list(rules), default=Outcome.BACKGROUND).astype(np.uint8)


def _corners(boxes: Array) -> Array:
    """``(x, y, width, height)`` as ``(x1, y1, x2, y2)``."""
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(np.float32)


def _masks(entries: Sequence[Any]) -> list[Rle] | None:
    """The masks, if all have one as packed run lengths; data sets that are read without them may have other kinds."""
    masks = [entry.get("segmentation") for entry in entries]
    packed = all(isinstance(mask, dict) and isinstance(mask.get("counts"), str) for mask in masks)
    return masks if packed and masks else None
