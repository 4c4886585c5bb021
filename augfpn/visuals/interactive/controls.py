"""Live controls: turn Soft RoI Selection's weights by hand, or a component off, and see the detections change."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import ipywidgets
import torch

from augfpn.analysis.alterations import Alteration, altered, applicable
from augfpn.analysis.level_ratios import LEVELS
from augfpn.data.dataset import SelectedImages
from augfpn.data.loading import Batch, evaluation_batches, open_dataset
from augfpn.detectors.detector import Detector
from augfpn.engine.evaluate import coco_results
from augfpn.engine.outcomes import ImageOutcomes, outcomes_of
from augfpn.engine.runs import Run
from augfpn.engine.train import default_device
from augfpn.errors import UserError
from augfpn.visuals.drawing import LEAST_SCORE
from augfpn.visuals.interactive.detections import RATIO_IMAGES, DetectionView
from augfpn.visuals.interactive.pictures import ShownImage
from augfpn.visuals.interactive.sides import Computed

_AS_TRAINED = "as trained"


class AlteredDetections(DetectionView):
    """A trained run's detections beside those of the same model altered, on a few images.

    Args:
        run: a trained run.
        num_images: the first so many validation images that have objects.
        device, threshold, ratio_images: as in `augfpn.visuals.interactive.DetectionViewer`.
    """

    def __init__(
        self,
        run: Run,
        num_images: int = 6,
        *,
        device: torch.device | None = None,
        threshold: float = LEAST_SCORE,
        ratio_images: int = RATIO_IMAGES,
    ) -> None:
        self.run = run
        self.device = device or default_device()
        self.model = run.load_model(self.device)
        dataset = open_dataset(run.config.data, "val")
        with_objects = (position for position in range(len(dataset)) if len(dataset[position].labels))
        positions = list(itertools.islice(with_objects, num_images)) or [0]
        chosen = SelectedImages(dataset, positions)
        self._truth = chosen.ground_truth()
        # In one batch, so that both models see the same padding.
        [self._batch] = evaluation_batches(chosen, run.config.data, batch_size=len(positions))
        trained = self._side(_AS_TRAINED, self.model)
        super().__init__(
            [trained, self._side("altered", self.model)],
            [ShownImage(dataset[position].image) for position in positions],
            [image["file_name"] for image in self._truth["images"]],
            [category.name for category in run.categories],
            threshold,
            min(ratio_images, len(dataset)),
        )

    def alter(self, alteration: Alteration) -> None:
        """Detects again; a UserError for an alteration of what the model does not have."""
        self.sides = [self.sides[0], self._side("altered", altered(self.model, alteration))]
        self._ratios.pop(1, None)

    def _side(self, name: str, model: Detector) -> Computed:
        images = _detected(model, self._batch, self._truth, self.run, self.device)
        return Computed(self.run, name, self.device, model, images)


@torch.no_grad()
def _detected(
    model: Detector, batch: Batch, truth: dict[str, Any], run: Run, device: torch.device
) -> Sequence[ImageOutcomes]:
    found = model.detect(batch.images.to(device)).per_image(batch.images.sizes, batch.original_sizes)
    results = [
        result
        for image_id, of_image in zip(batch.image_ids, found, strict=True)
        for result in coco_results(image_id, of_image, run.categories)
    ]
    return list(outcomes_of(truth, results))


class LiveControls:
    """`AlteredDetections` with sliders and switches, for a notebook with a kernel.

    What the model does not have has no control. Consistent Supervision has none ever: it is part of training alone.

    Attributes:
        view: what is shown.
        widget: all of it, as one of ipywidgets'.
    """

    def __init__(self, run: Run, num_images: int = 6, **options: Any) -> None:
        self.view = AlteredDetections(run, num_images, **options)
        can = applicable(self.view.model)
        if not can:
            raise UserError(f"There is nothing to turn in {run.path}: its model has none of AugFPN's components.")
        self._shown = self.view.widget()
        self._levels = [
            ipywidgets.FloatSlider(1.0, min=0, max=2, step=0.05, description=level, continuous_update=False)
            for level in LEVELS
        ]
        self._are = ipywidgets.Dropdown(
            options=[("times the learnt weights", "factors"), ("in the place of the learnt weights", "fixed")],
            description="weights",
        )
        # As wide as their text.
        wide: dict[str, Any] = {"indent": False, "layout": {"width": "max-content"}}
        self._selection = ipywidgets.Checkbox(True, description="Soft RoI Selection", **wide)
        self._augmentation = ipywidgets.Checkbox(True, description="Residual Feature Augmentation", **wide)
        controls: dict[str, list[ipywidgets.Widget]] = {
            "soft_roi_selection": [self._selection],
            "weights_are": [self._are],
            "level_weights": self._levels,
            "residual_feature_augmentation": [self._augmentation],
        }
        self._controls = [control for name, some in controls.items() if name in can for control in some]
        self._as_trained = {control: control.value for control in self._controls}
        for control in self._controls:
            control.observe(self._change, "value")
        reset = ipywidgets.Button(description=_AS_TRAINED)
        reset.on_click(self._reset)
        self.widget = ipywidgets.VBox([*self._controls, reset, self._shown])

    @property
    def alteration(self) -> Alteration:
        """What the controls say."""
        turned = self._selection.value and (
            self._are.value == "fixed" or any(level.value != 1 for level in self._levels)
        )
        p2, p3, p4, p5 = (level.value for level in self._levels)
        return Alteration(
            level_weights=(p2, p3, p4, p5) if turned else None,
            weights_are=self._are.value,
            soft_roi_selection=self._selection.value,
            residual_feature_augmentation=self._augmentation.value,
        )

    def _change(self, _: Any) -> None:
        for control in (*self._levels, self._are):
            # FPN's choice of a level has no weights.
            control.disabled = not self._selection.value
        self.view.alter(self.alteration)
        self._shown.changed()

    def _reset(self, _: Any) -> None:
        for control, value in self._as_trained.items():
            # Detected again once, and not for each of them.
            control.unobserve(self._change, "value")
            control.value = value
            control.observe(self._change, "value")
        self._change(None)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The controls where there is a kernel; elsewhere the view as it is now."""
        return {**self.widget._repr_mimebundle_(), **self.view.kept_forms()}
