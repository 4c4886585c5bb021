"""Detections on pictures that belong to no data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augfpn.data.coco_format import DataError
from augfpn.data.images import ImageError, read_image
from augfpn.engine.evaluate import coco_results
from augfpn.engine.runs import Run


class Prediction(NamedTuple):
    """``image (3, H, W)`` uint8, and its ``boxes``, ``scores`` and ``labels`` in its own pixels, best first."""

    path: Path
    image: Tensor
    detections: dict[str, Tensor]


def predict(run: Run, paths: Sequence[Path], device: torch.device) -> list[Prediction]:
    """The detections of a trained run on image files. All files are read before the model is."""
    images = []
    for path in paths:
        try:
            images.append(read_image(path))
        except ImageError as problem:
            raise DataError(f"{path}: {problem}") from problem
    model = run.load_model(device)
    return [Prediction(path, image, model([image.to(device)])[0]) for path, image in zip(paths, images, strict=True)]


def as_coco(predictions: Sequence[Prediction], run: Run) -> dict[str, Any]:
    """The predictions in COCO's annotation format, with scores; images are numbered from 1."""
    images, results = [], []
    for image_id, (path, image, detections) in enumerate(predictions, start=1):
        images.append({"id": image_id, "file_name": str(path), "width": image.shape[2], "height": image.shape[1]})
        results += coco_results(image_id, detections, run.categories)
    annotations = [
        {"id": id, **result, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for id, result in enumerate(results, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": [vars(category) for category in run.categories]}
