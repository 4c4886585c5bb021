"""The detection viewer: images with objects and detections, of one run, or of two side by side.

What became of each detection is COCO's matching's word (`augfpn.engine.outcomes`). For the detection that is clicked,
the ASF explorer shows what it was made of (`augfpn.visuals.interactive.fusion`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from augfpn.engine.outcomes import SCORES_IN_ONE, Array, ImageOutcomes, Overview
from augfpn.engine.runs import Run
from augfpn.engine.train import default_device
from augfpn.errors import UserError
from augfpn.visuals.drawing import LEAST_SCORE, READABLE_SIDE, draw_detections
from augfpn.visuals.interactive.fusion import fusion_answer, has_contexts
from augfpn.visuals.interactive.pictures import Pictures, ShownImage
from augfpn.visuals.interactive.sides import EvaluatedRun, Side
from augfpn.visuals.interactive.view import Answer, Request, View, encoded, names_of, position_in

# Of objects that no detection was matched with; others have the percents of their detection's score.
NEVER = 255
# The images that the averages of Figure 4 are taken over, unless somebody asks for others.
RATIO_IMAGES = 50


class DetectionView(View):
    """Images with what became of each detection and object, of one side or of two.

    Args:
        sides: on the same images.
        pictures: the images, by their positions.
        image_names: their names.
        class_names: those of the labels 1…K.
        threshold: the score from which detections are shown at first, 0-1.
        ratio_images: how many validation images the averages of Figure 4 are taken over.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        pictures: Pictures | Sequence[ShownImage],
        image_names: Sequence[str],
        class_names: Sequence[str],
        threshold: float,
        ratio_images: int = RATIO_IMAGES,
    ) -> None:
        self.sides = sides
        self.pictures = pictures
        self.image_names = image_names
        self.class_names = class_names
        self.threshold = threshold
        self.ratio_images = ratio_images
        self._ratios: dict[int, Answer] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self._names}: {len(self.image_names)} images"

    @property
    def title(self) -> str:
        return f"Detections of {self._names}"

    @property
    def _names(self) -> str:
        return " and ".join(side.name for side in self.sides)

    def answer(self, request: Request) -> Answer:
        match request["what"]:
            case "header":
                return self._header(len(self.image_names))
            case "image":
                return self._image(self._position(request))
            case "fusion":
                position = self._position(request)
                side, image = self.sides[self._run(request)], self.pictures[position]
                return fusion_answer(side.model, side.run.config, image, side.image(position).found.rois, side.device)
            case "ratios":
                return self._ratios_of(self._run(request))
        raise UserError(f"The detection viewer does not know {request['what']!r}.")

    def held_requests(self, num_images: int) -> Iterator[Request]:
        for run in range(len(self.sides)):
            yield {"what": "ratios", "run": run}
            yield from ({"what": "fusion", "image": image, "run": run} for image in self._held(num_images))
        yield from ({"what": "image", "image": image} for image in self._held(num_images))

    def held_header(self, num_images: int) -> Answer:
        return self._header(len(self._held(num_images)))

    def picture(self) -> PILImage.Image:
        """The first image that has objects and can be read, with the detections of the first side."""
        starts = self.sides[0].overview().object_starts
        for position in np.flatnonzero(np.diff(starts) > 0).tolist():
            try:
                pixels = self.pictures[position].pixels
            except UserError:
                continue
            found = self.sides[0].image(position).found
            detections = {
                "boxes": torch.from_numpy(found.boxes),
                "labels": torch.from_numpy(found.labels),
                "scores": torch.from_numpy(found.scores) / SCORES_IN_ONE,
            }
            return draw_detections(pixels, detections, self.class_names, self.threshold)
        return PILImage.new("RGB", (READABLE_SIDE, READABLE_SIDE), "grey")

    def _position(self, request: Request) -> int:
        return position_in(request, "image", len(self.image_names))

    def _run(self, request: Request) -> int:
        return position_in(request, "run", len(self.sides))

    def _held(self, num_images: int) -> range:
        return range(min(num_images, len(self.image_names)))

    def _header(self, num: int) -> Answer:
        overviews = [side.overview() for side in self.sides]
        objects, stop = overviews[0].objects, int(overviews[0].object_starts[num])
        return {
            "view": "detections",
            "title": self.title,
            "classes": list(self.class_names),
            "threshold": round(100 * self.threshold),
            "masks": any(side.has_masks for side in self.sides),
            "runs": [{"name": side.name, "contexts": has_contexts(side.run.config)} for side in self.sides],
            "images": {"names": list(self.image_names[:num]), "total": len(self.image_names)},
            "objects": {
                "starts": encoded(overviews[0].object_starts[: num + 1], "int32"),
                "labels": encoded(objects["labels"][:stop], "uint16"),
                "crowd": encoded(objects["crowd"][:stop], "uint8"),
            },
            "found": [
                {**_columns(overview, num), "losses": _losses(side, num)}
                for overview, side in zip(overviews, self.sides, strict=True)
            ],
        }

    def _image(self, position: int) -> Answer:
        of_sides = [side.image(position) for side in self.sides]
        return {
            **self.pictures[position].to_answer(),
            "objects": objects_of(of_sides[0]),
            "found_by": [of_side.objects.found_by.tolist() for of_side in of_sides],
            "runs": [detections_of(of_side) for of_side in of_sides],
        }

    def _ratios_of(self, run: int) -> Answer:
        if run not in self._ratios:
            self._ratios[run] = {**self.sides[run].ratios(self.ratio_images).to_dict(), "num_images": self.ratio_images}
        return self._ratios[run]


class DetectionViewer(DetectionView):
    """The images of an evaluated run; click a detection to see what it was made of.

    Args:
        runs: an evaluated run, or two of the same data, side by side.
        device: for what is computed when a detection is clicked; by default a GPU where there is one.
        threshold, ratio_images: see `DetectionView`.

    Raises:
        UserError: if the runs are not evaluated, or not on the same images and classes.
    """

    def __init__(
        self,
        *runs: Run,
        device: torch.device | None = None,
        threshold: float = LEAST_SCORE,
        ratio_images: int = RATIO_IMAGES,
    ) -> None:
        if len(runs) not in (1, 2):
            raise UserError(f"The viewer shows one run, or two side by side, not {len(runs)}.")
        device = device or default_device()
        sides = [EvaluatedRun(run, name, device) for run, name in zip(runs, names_of(runs), strict=True)]
        _check_same_images(sides[0], sides[-1])
        outcomes = sides[0].outcomes
        class_names = [category.name for category in runs[0].categories]
        pictures = Pictures(runs[0].config.data, outcomes)
        num = min(ratio_images, len(outcomes))
        super().__init__(sides, pictures, outcomes.names, class_names, threshold, num)


def objects_of(image: ImageOutcomes) -> list[dict[str, Any]]:
    """The objects of an image as the module reads them."""
    objects = image.objects
    columns = zip(_boxes(objects.boxes), objects.labels.tolist(), objects.crowd.tolist(), strict=True)
    return [{"box": box, "label": label, "crowd": bool(crowd)} for box, label, crowd in columns]


def detections_of(image: ImageOutcomes) -> list[dict[str, Any]]:
    """The detections of an image as the module reads them, best first."""
    found = image.found
    num = len(found.boxes)
    rois: Sequence[Any] = [None] * num if found.rois is None else _boxes(found.rois)
    masks: Sequence[Any] = found.masks or [None] * num
    columns = (found.labels, found.scores, found.outcomes, found.of_object, np.round(found.ious.astype(float), 4))
    names = ("box", "roi", "mask", "label", "score", "outcome", "object", "iou")
    rows = zip(_boxes(found.boxes), rois, masks, *(column.tolist() for column in columns), strict=True)
    return [{name: value for name, value in zip(names, row, strict=True) if value is not None} for row in rows]


def percents(scores: Array) -> Array:
    """Scores in whole percents, rounded down: a threshold of p percent is met by those of at least p."""
    whole: Array = scores // (SCORES_IN_ONE // 100)
    return whole


def _columns(overview: Overview, num: int) -> dict[str, str]:
    """The first ``num`` images as the module counts them."""
    stop, found = int(overview.found_starts[num]), overview.found
    scores = overview.found_with()[: int(overview.object_starts[num])]
    found_with = np.where(scores < 0, NEVER, percents(scores))
    return {
        "starts": encoded(overview.found_starts[: num + 1], "int32"),
        "labels": encoded(found["labels"][:stop], "uint16"),
        "percents": encoded(percents(found["scores"][:stop]), "uint8"),
        "outcomes": encoded(found["outcomes"][:stop], "uint8"),
        "found_with": encoded(found_with, "uint8"),
    }


def _losses(side: Side, num: int) -> list[float | None] | None:
    losses = side.losses()
    # JSON has no NaN.
    return None if losses is None else [None if math.isnan(loss) else round(loss, 5) for loss in losses[:num]]


def _boxes(boxes: Array) -> list[list[float]]:
    rounded: list[list[float]] = np.round(boxes.astype(float), 2).tolist()
    return rounded


def _check_same_images(first: EvaluatedRun, other: EvaluatedRun) -> None:
    paths = f"{first.run.path} and {other.run.path}"
    if other.run.categories != first.run.categories:
        raise UserError(f"{paths} have different classes; compare runs of one data set.")
    same_files = (other.outcomes.ids, other.outcomes.sizes) == (first.outcomes.ids, first.outcomes.sizes)
    one, two = first.overview(), other.overview()
    same_objects = np.array_equal(one.object_starts, two.object_starts) and all(
        np.array_equal(one.objects[name], two.objects[name]) for name in ("labels", "crowd")
    )
    if same_files and not same_objects:
        raise UserError(
            f"{paths} were evaluated on different objects of the same images: the annotations have changed, or one "
            "leaves out objects without a usable mask. Compare runs of one data set, evaluated on the same annotations."
        )
    if not same_files or other.run.config.data.synthetic != first.run.config.data.synthetic:
        raise UserError(f"{paths} were evaluated on different images; compare runs of one data set.")
