"""Detections on pictures that belong to no data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as rle
from torch import Tensor

from augfpn.data.coco_format import DataError
from augfpn.data.images import ImageError, read_image
from augfpn.data.segmentations import Rle, decode, encode
from augfpn.engine.evaluate import coco_results
from augfpn.engine.runs import Run


@dataclass(frozen=True)
class Prediction:
    """``image (3, H, W)`` uint8, and its ``boxes``, ``scores`` and ``labels`` in its own pixels, best first.

    ``masks``: those of the detections, encoded because those of many pictures would fill the memory; None if the run
    detects boxes only.
    """

    path: Path
    image: Tensor
    boxes: dict[str, Tensor]
    masks: list[Rle] | None

    @property
    def detections(self) -> dict[str, Tensor]:
        """The boxes with their ``masks (D, H, W)`` uint8, where there are any."""
        if self.masks is None:
            return self.boxes
        height, width = self.image.shape[1:]
        return {**self.boxes, "masks": decode(self.masks, height, width)}


def predict(run: Run, paths: Sequence[Path], device: torch.device) -> list[Prediction]:
    """The detections of a trained run on image files. All files are read before the model is."""
    images = []
    for path in paths:
        try:
            images.append(read_image(path))
        except ImageError as problem:
            raise DataError(f"{path}: {problem}") from problem
    model = run.load_model(device)
    predictions = []
    for path, image in zip(paths, images, strict=True):
        found = {name: value.cpu() for name, value in model([image.to(device)])[0].items()}
        masks = encode(found.pop("masks")) if "masks" in found else None
        predictions.append(Prediction(path, image, found, masks))
    return predictions


def as_coco(predictions: Sequence[Prediction], run: Run) -> dict[str, Any]:
    """The predictions in COCO's annotation format, with scores; images are numbered from 1.

    An annotation's area is its mask's, or its box's where there are no masks.
    """
    images, results = [], []
    for image_id, prediction in enumerate(predictions, start=1):
        height, width = prediction.image.shape[1:]
        images.append({"id": image_id, "file_name": str(prediction.path), "width": width, "height": height})
        results += coco_results(image_id, prediction.detections, run.categories)
    annotations = [
        {"id": id, **result, "area": _area(result), "iscrowd": 0} for id, result in enumerate(results, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": [vars(category) for category in run.categories]}


def _area(result: dict[str, Any]) -> float:
    if "segmentation" in result:
        return float(rle.area(result["segmentation"]))
    width, height = result["bbox"][2:]
    return float(width * height)
