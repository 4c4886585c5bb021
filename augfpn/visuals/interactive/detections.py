"""The detection viewer: images with objects and detections, of one run, or of two side by side.

What became of each detection is COCO's matching's word (`augfpn.engine.outcomes`). For the detection that is clicked,
the ASF explorer shows what it was made of (`augfpn.visuals.interactive.fusion`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from augfpn.analysis.image_losses import kept_image_losses
from augfpn.analysis.level_ratios import level_ratios_of_run
from augfpn.detectors.detector import Detector
from augfpn.engine.outcomes import SCORES_IN_ONE, Array, ImageOutcomes
from augfpn.engine.outcomes_file import Outcomes, Overview
from augfpn.engine.runs import Run
from augfpn.engine.train import default_device
from augfpn.errors import UserError
from augfpn.visuals.drawing import LEAST_SCORE, draw_detections
from augfpn.visuals.interactive.fusion import fusion_answer, has_contexts
from augfpn.visuals.interactive.pictures import Pictures, ShownImage
from augfpn.visuals.interactive.view import Answer, Request, View, encoded, names_of

# Of objects that no detection was matched with; others have the percents of their detection's score.
NEVER = 255
# The images that the averages of Figure 4 are taken over, unless somebody asks for others.
RATIO_IMAGES = 50


@dataclass(frozen=True)
class Side:
    """A run as the viewer shows it, alone or beside another one."""

    run: Run
    device: torch.device
    outcomes: Outcomes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcomes", Outcomes(self.run))

    @cached_property
    def model(self) -> Detector:
        """Loaded when the first detection is clicked."""
        return self.run.load_model(self.device)

    def image(self, position: int) -> ImageOutcomes:
        return self.outcomes.image(position)

    def fusion(self, image: ShownImage, position: int) -> Answer:
        return fusion_answer(self.model, self.run.config, image, self.image(position).found.rois, self.device)

    def ratios(self, num_images: int) -> Answer:
        num = min(num_images, len(self.outcomes))
        ratios = level_ratios_of_run(self.run, self.device, num_images=num, model=self.model)
        return {**ratios.to_dict(), "num_images": num}


class DetectionViewer(View):
    """Images with what became of each detection and object; click a detection to see what it was made of.

    Args:
        runs: an evaluated run, or two of the same data to be compared.
        device: for what is computed when a detection is clicked; by default a GPU where there is one.
        threshold: the score from which detections are shown at first, 0-1.
        ratio_images: how many validation images the averages of Figure 4 are taken over.

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
        self.runs = runs
        self.threshold = threshold
        self.ratio_images = ratio_images
        self.sides = [Side(run, device or default_device()) for run in runs]
        self.outcomes = self.sides[0].outcomes
        _check_same_images(self.sides)
        self.pictures = Pictures(runs[0].config.data, self.outcomes)
        self.class_names = [category.name for category in runs[0].categories]
        self._ratios: dict[int, Answer] = {}

    def __repr__(self) -> str:
        return f"DetectionViewer of {' and '.join(self._names)}: {len(self.outcomes)} images"

    def answer(self, request: Request) -> Answer:
        match request["what"]:
            case "header":
                return self._header(len(self.outcomes))
            case "image":
                return self._image(request["image"])
            case "fusion":
                position = request["image"]
                return self.sides[request["run"]].fusion(self.pictures[position], position)
            case "ratios":
                return self._ratios_of(request["run"])
        raise UserError(f"The detection viewer does not know {request['what']!r}.")

    def held_requests(self, num_images: int) -> Iterator[Request]:
        for run in range(len(self.sides)):
            yield {"what": "ratios", "run": run}
            yield from ({"what": "fusion", "image": image, "run": run} for image in self._held(num_images))
        yield from ({"what": "image", "image": image} for image in self._held(num_images))

    def held_header(self, num_images: int) -> Answer:
        return self._header(len(self._held(num_images)))

    def picture(self) -> PILImage.Image:
        """The first image with objects, with the detections of the first run."""
        starts = self.outcomes.overview().object_starts
        position = int(np.argmax(np.diff(starts) > 0))
        found = self.sides[0].image(position).found
        detections = {
            "boxes": torch.from_numpy(found.boxes),
            "labels": torch.from_numpy(found.labels),
            "scores": torch.from_numpy(found.scores) / SCORES_IN_ONE,
        }
        return draw_detections(self.pictures[position].pixels, detections, self.class_names, self.threshold)

    def _held(self, num_images: int) -> range:
        return range(min(num_images, len(self.outcomes)))

    @property
    def _names(self) -> list[str]:
        return names_of(self.runs)

    def _header(self, num: int) -> Answer:
        overviews = [side.outcomes.overview() for side in self.sides]
        objects, stop = overviews[0].objects, int(overviews[0].object_starts[num])
        return {
            "view": "detections",
            "title": f"Detections of {' and '.join(self._names)}",
            "classes": self.class_names,
            "threshold": round(100 * self.threshold),
            "masks": any(side.outcomes.has_masks for side in self.sides),
            "runs": [
                {"name": name, "contexts": has_contexts(side.run.config)}
                for name, side in zip(self._names, self.sides, strict=True)
            ],
            "images": {"names": self.outcomes.names[:num], "total": len(self.outcomes)},
            "objects": {
                "starts": encoded(overviews[0].object_starts[: num + 1], "int32"),
                "labels": encoded(objects["labels"][:stop], "uint16"),
                "crowd": encoded(objects["crowd"][:stop], "uint8"),
            },
            "found": [
                {**_columns(overview, num), "losses": _losses(side.run, num)}
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
            self._ratios[run] = self.sides[run].ratios(self.ratio_images)
        return self._ratios[run]


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
    objects = int(overview.object_starts[num])
    found_by = overview.objects["found_by"][:objects]
    # Positions among an image's detections become positions among all.
    first = np.repeat(overview.found_starts[:num], np.diff(overview.object_starts[: num + 1]))
    found_with = np.full(objects, NEVER, dtype=np.uint8)
    is_found = found_by >= 0
    found_with[is_found] = percents(found["scores"][(first + found_by)[is_found]])
    return {
        "starts": encoded(overview.found_starts[: num + 1], "int32"),
        "labels": encoded(found["labels"][:stop], "uint16"),
        "percents": encoded(percents(found["scores"][:stop]), "uint8"),
        "outcomes": encoded(found["outcomes"][:stop], "uint8"),
        "found_with": encoded(found_with, "uint8"),
    }


def _losses(run: Run, num: int) -> list[float] | None:
    losses = kept_image_losses(run)
    return None if losses is None else [round(loss, 5) for loss in losses[:num]]


def _boxes(boxes: Array) -> list[list[float]]:
    rounded: list[list[float]] = np.round(boxes.astype(float), 2).tolist()
    return rounded


def _check_same_images(sides: Sequence[Side]) -> None:
    first, *others = sides
    for other in others:
        if other.run.categories != first.run.categories:
            raise UserError(
                f"{first.run.path} and {other.run.path} have different classes; compare runs of one data set."
            )
        if (other.outcomes.ids, other.outcomes.sizes) != (first.outcomes.ids, first.outcomes.sizes):
            raise UserError(f"{first.run.path} and {other.run.path} were evaluated on different images.")
        if other.run.config.data.synthetic != first.run.config.data.synthetic:
            raise UserError(f"{first.run.path} and {other.run.path} were evaluated on different synthetic images.")
