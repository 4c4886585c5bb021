"""What every data set gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from augfpn.errors import UserError


@dataclass(frozen=True)
class Category:
    """A class as its data set knows it. Its label inside the package is its position in the data set's list plus 1."""

    id: int
    name: str


@dataclass(frozen=True)
class DataProblem:
    """Something wrong in one place of a data set."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Sample:
    """An image and the objects to learn from; crowds are not among them.

    ``image``: ``(3, H, W)`` uint8, RGB. ``boxes``: ``(G, 4)`` in the image's pixels. ``labels``: ``(G)`` int64, 1…K.
    ``masks``: ``(G, H, W)`` uint8, 1 on the object; None where they are not asked for.
    """

    image_id: int
    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


class DetectionDataset(Protocol):
    """A list of samples, with categories of the data set's own ids, and the whole truth for the evaluation.

    ``problems``: what was wrong with the data and put right when it was opened. ``file_names``: of the images, in their
    order; of images without a file, what they would be called.
    """

    categories: tuple[Category, ...]

    @property
    def problems(self) -> Sequence[DataProblem]: ...

    @property
    def file_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def ground_truth(self) -> dict[str, Any]:
        """All objects, crowds too, as COCO's annotation format has them, in the data set's own category ids."""
        ...


class SelectedImages:
    """The images of a data set at some positions."""

    def __init__(self, dataset: DetectionDataset, positions: Sequence[int]) -> None:
        if not positions or not 0 <= min(positions) <= max(positions) < len(dataset):
            raise UserError(f"Cannot select the images {positions} of a data set of {len(dataset)}.")
        self.dataset = dataset
        self.positions = positions
        self.categories = dataset.categories

    @property
    def problems(self) -> Sequence[DataProblem]:
        return self.dataset.problems

    @property
    def file_names(self) -> list[str]:
        names = self.dataset.file_names
        return [names[position] for position in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.positions[index]]

    def ground_truth(self) -> dict[str, Any]:
        truth = self.dataset.ground_truth()
        images = [truth["images"][position] for position in self.positions]
        ids = {image["id"] for image in images}
        annotations = [annotation for annotation in truth["annotations"] if annotation["image_id"] in ids]
        return {**truth, "images": images, "annotations": annotations}
