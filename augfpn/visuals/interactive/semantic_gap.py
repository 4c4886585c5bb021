"""The semantic-gap explorer: how far the levels are apart before they are fused, and where in an image (Section 3.1).

Three views of the same pair of levels, the one that is clicked:

- the matrices of `augfpn.analysis.semantic_gap`, of one or several runs, at the end of training and wherever
  checkpoints were kept, and the pair's course along training;
- over an image, how alike the pair is at each place (`augfpn.analysis.gap_in_image`), for one or two runs;
- for an object that is clicked, what one classifier makes of it in each level.

Maps and predictions are of the model as it was measured last: at its end, if it has one yet.

Shapes: N objects, L levels, P pairs of different levels, h w places of the grid over the image, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor

from augfpn.analysis.gap_in_image import gap_in_image, predictions_of_objects
from augfpn.analysis.probe import Probe, probe_of
from augfpn.analysis.semantic_gap import MEASURES, MeasuredGap, check_same_objects
from augfpn.data.dataset import Sample
from augfpn.data.loading import open_dataset
from augfpn.detectors.detector import Detector
from augfpn.engine.runs import Run
from augfpn.engine.train import default_device
from augfpn.errors import UserError
from augfpn.ops.boxes import rescale
from augfpn.visuals.interactive.pictures import ShownImage
from augfpn.visuals.interactive.view import Answer, Request, View, encoded, names_of, position_in, rounded, signed
from augfpn.visuals.plots import semantic_gap_matrices

# Classes of which predictions tell the probability, besides the true one.
TOP_CLASSES = 3
# What a page by itself holds at most, images times runs: 50 images of two runs. At the paper's scale the answer for one
# image and run has 60 kB, beside a picture of 150 kB for the image.
HELD_MAPS = 100


@dataclass(frozen=True)
class ExploredRun:
    """A run, its model as it was measured last (after ``step`` steps; None for the end of training), and its probe."""

    run: Run
    step: int | None
    device: torch.device
    num_probe_images: int | None

    @cached_property
    def model(self) -> Detector:
        """Loaded when the first map is asked for."""
        return self.run.load_model(self.device, self.step)

    @cached_property
    def probe(self) -> Probe:
        """Trained when the first map is asked for: five seconds at ``micro``."""
        return probe_of(self.run, self.model, self.device, num_images=self.num_probe_images)

    def gap(self, sample: Sample) -> Answer:
        """The gap in an image for every pair of levels, and the predictions for its objects.

        ``similarity``, ``overlap``: ``(P, h, w)`` as bytes, of the pairs (0, 1), (0, 2) … (1, 2) … of ``levels``.
        ``classes (L, h, w)``: what the probe sees in each level. ``predictions``: by each classifier, for each object,
        in each level.
        """
        image = ShownImage(sample.image)
        images = image.as_seen(self.run.config.data).to(self.device)
        boxes = rescale(sample.boxes, torch.tensor(image.size), images.sizes[0].cpu()).to(self.device)
        gap = gap_in_image(self.model, images, self.probe)
        found = predictions_of_objects(self.model, images, boxes, self.probe)
        first, second = torch.triu_indices(len(gap.levels), len(gap.levels), offset=1)
        kind = "uint8" if len(self.run.categories) < 256 else "uint16"
        return {
            "levels": gap.levels,
            "rows": gap.classes.shape[1],
            "columns": gap.classes.shape[2],
            "similarity": signed(gap.similarity[first, second].numpy()),
            "overlap": rounded(gap.overlap[first, second].numpy()),
            "classes": {"kind": kind, "values": encoded(gap.classes.numpy(), kind)},
            "predictions": {
                classifier: [_of_object(*each) for each in zip(probabilities, sample.labels.tolist(), strict=True)]
                for classifier, probabilities in found.probabilities.items()
            },
        }


class SemanticGapExplorer(View):
    """Matrices of gaps, their course along training, and the gap in images, of one or several runs.

    Images are the validation images of the runs' data, all of them, in their order. Objects are those that the gap is
    measured on: crowds are not among them.

    Args:
        measured: of `augfpn.analysis.semantic_gap.measure_gaps`; which runs there are, and in which order, is taken
            from it.
        device: for what is computed when an image is shown; by default a GPU where there is one.
        num_probe_images: train probes on no more than so many images, as ``num_images`` of `measure_gaps`.

    Raises:
        UserError: if nothing was measured, or the runs are not of the same data.
    """

    def __init__(
        self,
        measured: Sequence[MeasuredGap],
        *,
        device: torch.device | None = None,
        num_probe_images: int | None = None,
    ) -> None:
        if not measured:
            raise UserError("There is no gap to explore; measure_gaps(runs, device) measures them.")
        self.runs = list(dict.fromkeys(one.run for one in measured))
        check_same_objects(self.runs)
        self.measured = measured
        self.explored = [
            ExploredRun(run, _last_step(run, measured), device or default_device(), num_probe_images)
            for run in self.runs
        ]
        self.dataset = open_dataset(self.runs[0].config.data, "val", check_images=False)

    def __repr__(self) -> str:
        return f"SemanticGapExplorer of {', '.join(names_of(self.runs))}: {len(self.dataset)} images"

    @property
    def title(self) -> str:
        return f"The semantic gap of {', '.join(names_of(self.runs))}"

    def answer(self, request: Request) -> Answer:
        match request["what"]:
            case "header":
                return self._header(len(self.dataset))
            case "image":
                return _image_answer(self.dataset[self._position(request)])
            case "gap":
                run = position_in(request, "run", len(self.explored))
                return self.explored[run].gap(self.dataset[self._position(request)])
        raise UserError(f"The semantic-gap explorer does not know {request['what']!r}.")

    def held_requests(self, num_images: int) -> Iterator[Request]:
        for image in range(self._num_held(num_images)):
            yield {"what": "image", "image": image}
            yield from ({"what": "gap", "image": image, "run": run} for run in range(len(self.runs)))

    def held_header(self, num_images: int) -> Answer:
        return self._header(self._num_held(num_images))

    def picture(self) -> PILImage.Image:
        """The matrices as they were measured last, by the probe."""
        steps = {explored.run: explored.step for explored in self.explored}
        last = [one for one in self.measured if one.gap.classifier == "probe" and one.step == steps[one.run]]
        return PILImage.open(io.BytesIO(semantic_gap_matrices(last).png())).convert("RGB")

    def _num_held(self, num_images: int) -> int:
        return min(num_images, len(self.dataset), max(1, HELD_MAPS // len(self.runs)))

    def _header(self, num: int) -> Answer:
        names = names_of(self.runs)
        config = self.runs[0].config
        return {
            "view": "semantic-gap",
            "title": self.title,
            "scale": config.scale,
            "classes": [category.name for category in self.runs[0].categories],
            "measures": MEASURES,
            "runs": [{"name": name, "step": one.step} for name, one in zip(names, self.explored, strict=True)],
            "images": {"names": self.dataset.file_names[:num], "total": len(self.dataset)},
            "gaps": self._gaps(),
        }

    def _gaps(self) -> list[Answer]:
        """All that was measured, once: the checkpoint of the last step is the end of training, where that was, too."""
        ends = {one.run: one.num_steps for one in self.measured if one.step is None}
        return [
            {"run": self.runs.index(one.run), "step": one.num_steps, "end": one.step is None, **one.gap.to_dict()}
            for one in self.measured
            if one.step is None or one.step != ends.get(one.run)
        ]

    def _position(self, request: Request) -> int:
        return position_in(request, "image", len(self.dataset))


def _last_step(run: Run, measured: Sequence[MeasuredGap]) -> int | None:
    steps = [one.step for one in measured if one.run == run]
    return None if None in steps else max(step for step in steps if step is not None)


def _image_answer(sample: Sample) -> Answer:
    columns = zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)
    objects = [{"box": [round(side, 2) for side in box], "label": label} for box, label in columns]
    return {**ShownImage(sample.image).to_answer(), "objects": objects}


def _of_object(probabilities: Tensor, label: int) -> list[dict[str, Any]]:
    """For each level of ``probabilities (L, K + 1)`` the likeliest classes, 0 for background, and the true one."""
    top = probabilities.topk(min(TOP_CLASSES, probabilities.shape[1] - 1), dim=1)
    return [
        {"top": [[one, round(value, 4)] for one, value in zip(classes, values, strict=True)], "true": round(true, 4)}
        for classes, values, true in zip(
            top.indices.tolist(), top.values.tolist(), probabilities[:, label].tolist(), strict=True
        )
    ]
