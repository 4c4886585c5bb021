"""COCO's evaluation of a run."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import torch

from augfpn.data.dataset import Category
from augfpn.data.loading import evaluation_batches, open_dataset
from augfpn.engine.runs import Run

try:
    # The same figures as pycocotools (a test compares them), about eight times faster.
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster as COCOeval
except ImportError:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(run: Run, device: torch.device) -> dict[str, Any]:
    """Evaluates a trained run on the validation images of its data; writes ``metrics.json`` and ``detections.json``."""
    config = run.config
    model = run.load_model(device)
    dataset = open_dataset(config.data, "val")
    started = time.perf_counter()
    results = []
    for batch in evaluation_batches(dataset, config.data, batch_size=8, num_workers=config.training.num_workers):
        detections = model.detect(batch.images.to(device))
        found = detections.per_image(batch.images.sizes, batch.original_sizes)
        for image_id, of_image in zip(batch.image_ids, found, strict=True):
            results += coco_results(image_id, of_image, run.categories)
    seconds = time.perf_counter() - started
    metrics = coco_metrics(dataset.ground_truth(), results)
    run.write_results({**metrics, "num_images": len(dataset), "seconds": seconds}, results)
    return metrics


def coco_results(
    image_id: int, detections: dict[str, torch.Tensor], categories: tuple[Category, ...]
) -> list[dict[str, Any]]:
    """The detections of an image in COCO's result format, in the data set's own category ids."""
    boxes = detections["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(boxes.tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": categories[label - 1].id,
            "bbox": [round(side, 3) for side in box],
            "score": round(score, 5),
        }
        for box, label, score in columns
    ]


def coco_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float | None]:
    """COCO's twelve figures for boxes, 0-1; None where there is nothing to measure."""
    # Both libraries print their progress.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _indexed(ground_truth)
        evaluation = COCOeval(truth, _results(truth, results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = [float(figure) for figure in evaluation.stats[: len(FIGURES)]]
    return {name: None if figure < 0 else figure for name, figure in zip(FIGURES, figures, strict=True)}


def _indexed(content: dict[str, Any]) -> Any:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _results(truth: Any, results: list[dict[str, Any]]) -> Any:
    if results:
        return truth.loadRes(results)
    # loadRes() fails on an empty list; a model that finds nothing is no error.
    return _indexed({"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []})
