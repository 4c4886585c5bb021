"""What a detection view shows side by side: what one model found on its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch

from augfpn.analysis.image_losses import kept_image_losses
from augfpn.analysis.level_ratios import LevelRatios, level_ratios_of_run
from augfpn.detectors.detector import Detector
from augfpn.engine.outcomes import ImageOutcomes, Overview
from augfpn.engine.outcomes_file import Outcomes
from augfpn.engine.runs import Run


class Side(ABC):
    """A model of a run, and what it found.

    Attributes:
        run: whose model it is.
        name: as it stands above its pictures.
        device: where the model is.
    """

    def __init__(self, run: Run, name: str, device: torch.device) -> None:
        self.run = run
        self.name = name
        self.device = device

    @property
    @abstractmethod
    def model(self) -> Detector:
        """Asked for when a detection is clicked."""

    @property
    @abstractmethod
    def has_masks(self) -> bool:
        """Whether objects and detections have masks."""

    @abstractmethod
    def image(self, position: int) -> ImageOutcomes:
        """What it found on the image at this position."""

    @abstractmethod
    def overview(self) -> Overview:
        """What it found on all images."""

    @abstractmethod
    def losses(self) -> list[float] | None:
        """Of each image, where they are known."""

    def ratios(self, num_images: int) -> LevelRatios:
        """Figure 4 of its model, over so many validation images."""
        return level_ratios_of_run(self.run, self.device, num_images=num_images, model=self.model)


class EvaluatedRun(Side):
    """A run with what its evaluation found."""

    def __init__(self, run: Run, name: str, device: torch.device) -> None:
        super().__init__(run, name, device)
        self.outcomes = Outcomes(run)

    @cached_property
    def model(self) -> Detector:
        return self.run.load_model(self.device)

    @property
    def has_masks(self) -> bool:
        return self.outcomes.has_masks

    def image(self, position: int) -> ImageOutcomes:
        return self.outcomes.image(position)

    def overview(self) -> Overview:
        return self.outcomes.overview()

    def losses(self) -> list[float] | None:
        return kept_image_losses(self.run, len(self.outcomes))


class Computed(Side):
    """A model of which all was computed just now."""

    def __init__(
        self, run: Run, name: str, device: torch.device, model: Detector, images: Sequence[ImageOutcomes]
    ) -> None:
        super().__init__(run, name, device)
        self._model = model
        self.images = images

    @property
    def model(self) -> Detector:
        return self._model

    @property
    def has_masks(self) -> bool:
        return any(image.found.masks is not None for image in self.images)

    def image(self, position: int) -> ImageOutcomes:
        return self.images[position]

    def overview(self) -> Overview:
        return Overview.of(self.images)

    def losses(self) -> None:
        return None
