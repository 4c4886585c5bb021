"""Detections on pictures that belong to no data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from augfpn.data.coco import DataError
from augfpn.data.images import ImageProblem, read_image
from augfpn.engine.evaluate import coco_results
from augfpn.engine.runs import Run
from augfpn.files import write_json, written_whole
from augfpn.visuals.drawing import draw_detections


def predict(
    path: Path, images: Sequence[Path], out: Path, *, device: torch.device, score_threshold: float = 0.5
) -> Path:
    """Writes annotated copies of ``images`` and ``predictions.json`` in COCO's format to ``out``.

    The pictures show detections of at least ``score_threshold``; the file has all, and the images with their ids.
    """
    run = Run.open(path)
    pixels = []
    for image in images:
        try:
            pixels.append(read_image(image))
        except ImageProblem as problem:
            raise DataError(f"{image}: {problem}") from problem
    model = run.load_model(device)
    entries, results = [], []
    for image_id, (image, picture) in enumerate(zip(images, pixels, strict=True), start=1):
        [found] = model([picture.to(device)])
        entries.append({"id": image_id, "file_name": str(image), "width": picture.shape[2], "height": picture.shape[1]})
        results += coco_results(image_id, found, run.categories)
        annotated = draw_detections(picture, found, [category.name for category in run.categories], score_threshold)
        with written_whole(out / f"{image_id:04d}_{image.stem}.png") as temporary:
            annotated.save(temporary, format="PNG")
    content = {"images": entries, "annotations": results, "categories": [vars(category) for category in run.categories]}
    return write_json(out / "predictions.json", content, indent=1)
