"""COCO's evaluation of a run."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import torch

from augfpn.data.dataset import Category, DetectionDataset
from augfpn.data.loading import evaluation_batches, open_dataset
from augfpn.data.segmentations import encode
from augfpn.detectors.detector import Detector
from augfpn.engine.faults import enough_memory
from augfpn.engine.interruption import Interruption
from augfpn.engine.outcomes_file import write_outcomes
from augfpn.engine.ranks import ALONE, Ranks
from augfpn.engine.runs import Run

try:
    # The same figures as pycocotools (a test compares them), about eight times faster.
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster as COCOeval
except ImportError:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# The names of the same figures of masks.
MASK_FIGURES = tuple(f"mask_{name}" for name in FIGURES)


def evaluate(
    run: Run, device: torch.device, batch_size: int = 8, ranks: Ranks = ALONE, workers: int | None = None
) -> dict[str, Any]:
    """Evaluates a trained run on the validation images of its data; all ``ranks`` call it and share the images.

    ``workers``: processes that load images; None for as many as the run was described with.

    Writes ``detections.json``, what became of each detection (`augfpn.engine.outcomes`), and ``metrics.json``.

    COCO's twelve figures are of boxes; where the run's data has masks, `MASK_FIGURES` are those of masks. Images of a
    batch are padded to the same size, on which the detections depend a little; ``batch_size`` 1 pads each to the next
    multiple of 32, as the release does.
    """
    dataset = open_dataset(run.config.data, "val", check_images=ranks.is_main)
    measured = _measure(run, run.load_model(device), dataset, device, batch_size, ranks, workers)
    if ranks.is_main:
        run.write_detections(measured.results)
        write_outcomes(run, measured.truth, measured.results)
        # Last: a run that has it is evaluated.
        times = {"seconds": measured.seconds, "training_seconds": run.training_seconds}
        run.write_metrics({**measured.metrics, "num_images": len(measured.truth["images"]), **times})
    return measured.metrics


def evaluate_along(
    run: Run,
    model: Detector,
    step: int,
    dataset: DetectionDataset,
    device: torch.device,
    ranks: Ranks,
    workers: int | None,
    interruption: Interruption,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Evaluates the model as it is after a step of its training, and keeps the figures (`Run.evaluations`).

    ``dataset``: the validation images, which the training has opened already.
    """
    measured = _measure(run, model.eval(), dataset, device, batch_size, ranks, workers, interruption)
    if ranks.is_main:
        run.record_evaluation(step, measured.metrics)
    return measured.metrics


@dataclass(frozen=True)
class _Measured:
    """``seconds``: of the detection alone. Ranks other than the main one have nothing of it."""

    metrics: dict[str, Any]
    results: list[dict[str, Any]]
    truth: dict[str, Any]
    seconds: float


def _measure(
    run: Run,
    model: Detector,
    dataset: DetectionDataset,
    device: torch.device,
    batch_size: int,
    ranks: Ranks,
    workers: int | None,
    interruption: Interruption | None = None,
) -> _Measured:
    data = run.config.data
    # Only the ground truth needs the masks; those of a batch are large.
    images = open_dataset(replace(data, masks=False), "val", check_images=False) if data.masks else dataset
    started = time.perf_counter()
    results = detect_all(run, model, images, device, batch_size, ranks, workers, interruption)
    seconds = time.perf_counter() - started
    if not ranks.is_main:
        return _Measured({}, [], {}, seconds)
    truth = dataset.ground_truth()
    metrics: dict[str, Any] = coco_metrics(truth, results)
    if data.masks:
        metrics |= dict(zip(MASK_FIGURES, coco_metrics(truth, results, "segm").values(), strict=True))
    return _Measured(metrics, results, truth, seconds)


def detect_all(
    run: Run,
    model: Detector,
    dataset: DetectionDataset,
    device: torch.device,
    batch_size: int,
    ranks: Ranks = ALONE,
    workers: int | None = None,
    interruption: Interruption | None = None,
) -> list[dict[str, Any]]:
    """What a run's model finds on every image of a data set, as results in COCO's format.

    Of several ``ranks``, which share the images, the main one has it all in the end. ``workers``: see `evaluate`.
    ``interruption``: by which it is stopped; by default one of its own.
    """
    of_batches = []
    batches = evaluation_batches(
        dataset,
        run.config.data,
        batch_size=batch_size,
        num_workers=run.config.training.num_workers if workers is None else workers,
        rank=ranks.rank,
        num_ranks=ranks.num,
    )
    with Interruption() if interruption is None else contextlib.nullcontext(interruption) as stopped:
        for batch in batches:
            with enough_memory("in the evaluation", [batch], "a smaller batch (`augfpn evaluate --batch-size 1`)."):
                detections = model.detect(batch.images.to(device))
                found = detections.per_image(batch.images.sizes, batch.original_sizes)
            pairs = zip(batch.image_ids, found, strict=True)
            of_batches.append([result for id, one in pairs for result in coco_results(id, one, run.categories)])
            stopped.check(" while it was evaluated")
        of_ranks = ranks.gather_to_main(of_batches)
        stopped.check(" while it was evaluated")
    # Batch after batch, as one rank would have had them.
    in_turns = zip_longest(*of_ranks, fillvalue=[])
    return [result for turn in in_turns for of_batch in turn for result in of_batch]


def coco_results(
    image_id: int, detections: dict[str, torch.Tensor], categories: tuple[Category, ...]
) -> list[dict[str, Any]]:
    """The detections of an image in COCO's result format, in the data set's own category ids.

    Where they have ``rois``, each result has, beside COCO's fields, its ``roi``, a box like ``bbox``. Where they have
    ``masks``, ``(D, 1, H, W)`` probabilities in the image, each has its ``segmentation``.
    """
    columns = zip(
        _as_coco(detections["boxes"]), detections["labels"].tolist(), detections["scores"].tolist(), strict=True
    )
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": categories[label - 1].id, "bbox": box, "score": round(score, 5)}
        for box, label, score in columns
    ]
    if "rois" in detections:
        for result, roi in zip(results, _as_coco(detections["rois"]), strict=True):
            result["roi"] = roi
    if "masks" in detections:
        for result, segmentation in zip(results, encode(detections["masks"]), strict=True):
            result["segmentation"] = segmentation
    return results


def _as_coco(boxes: torch.Tensor) -> list[list[float]]:
    """``boxes (D, 4)`` as x, y, width and height, to a thousandth of a pixel."""
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    return [[round(side, 3) for side in box] for box in sides.tolist()]


def coco_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"] = "bbox"
) -> dict[str, float | None]:
    """COCO's twelve figures for boxes or masks, 0-1; None where there is nothing to measure."""
    # Results that have both are measured as if they had only what is asked for: COCO's own code would otherwise take
    # the box's area for the mask's, and so other objects for small, medium and large.
    results = of_kind(results, kind)
    # Both libraries print their progress, and add fields of their own to what they are given.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _indexed({**ground_truth, "annotations": [dict(entry) for entry in ground_truth["annotations"]]})
        evaluation = COCOeval(truth, _results(truth, results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = [float(figure) for figure in evaluation.stats[: len(FIGURES)]]
    return {name: None if figure < 0 else figure for name, figure in zip(FIGURES, figures, strict=True)}


def of_kind(results: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"]) -> list[dict[str, Any]]:
    """The results with COCO's fields for boxes or masks, and no others."""
    fields = ("image_id", "category_id", "score", {"bbox": "bbox", "segm": "segmentation"}[kind])
    return [{name: result[name] for name in fields} for result in results]


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
