"""Whether a difference in AP is larger than the noise: paired bootstrap over images, and over seeds.

Two models are evaluated on the same images. Images are drawn from these with replacement, again and again, and every
time the AP of both is computed on the images drawn; the interval holds the middle of these differences. Both models
meet the same hard and easy images in every draw, so the interval of the difference is much narrower than those of the
two APs, and nearly unbiased, which those are not: an image that is drawn twice has all its detections twice, which
favours AP itself.

Where there are several seeds, pairs of runs with the same seed are drawn, too. So few of them say little about how much
seeds differ; the interval is then rather too narrow than too wide.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.analysis.comparison import check_comparable, find_baseline
from augfpn.data.loading import open_dataset
from augfpn.engine.runs import Run
from augfpn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of AP, in points: ``mean`` as it is on all images and over all seeds, and the interval ``low`` to ``high``.

    ``level``: how many of the draws are in the interval, of 1.
    """

    mean: float
    low: float
    high: float
    level: float
    num_images: int
    num_seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def paired_difference(
    runs: Sequence[Run],
    baselines: Sequence[Run],
    *,
    kind: Literal["bbox", "segm"] = "bbox",
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """AP of ``runs`` less that of ``baselines``: evaluated runs, a pair for each seed.

    Args:
        kind: AP of boxes, or of masks.
        draws: how often images are drawn. A draw of 250 images takes some hundredths of a second, of COCO's 5,000
            images some seconds.
        level: of the interval.
        seed: of the draws.
    """
    by_seed, of_baseline = (_by_seed(some) for some in (runs, baselines))
    if not by_seed or by_seed.keys() != of_baseline.keys():
        raise UserError(
            f"Differences are of runs with the same seeds: there are {sorted(by_seed)} and, of the baseline, "
            f"{sorted(of_baseline)}."
        )
    check_comparable([*baselines, *runs])
    truth = open_dataset(runs[0].config.data, "val").ground_truth()
    pairs = [
        (MatchedImages(truth, by_seed[one].detections, kind), MatchedImages(truth, of_baseline[one].detections, kind))
        for one in sorted(by_seed)
    ]
    num_images = len(truth["images"])
    every = np.arange(num_images)
    random = np.random.default_rng(seed)
    differences = []
    for _ in range(draws):
        drawn = random.integers(num_images, size=num_images)
        chosen = random.integers(len(pairs), size=len(pairs))
        # A pair that is drawn twice is evaluated once.
        of_pair = {index: _difference(pairs[index], drawn) for index in set(chosen.tolist())}
        differences.append(float(np.mean([of_pair[index] for index in chosen.tolist()])))
    tail = 100 * (1 - level) / 2
    # A draw without any object has no AP.
    low, high = np.nanpercentile(differences, (tail, 100 - tail))
    return Difference(
        mean=float(np.mean([_difference(pair, every) for pair in pairs])),
        low=float(low),
        high=float(high),
        level=level,
        num_images=num_images,
        num_seeds=len(pairs),
    )


def differences_to_baselines(runs: Sequence[Run], draws: int = 1000) -> dict[str, Difference]:
    """For every experiment among evaluated runs, its difference to its baseline, over the seeds that both have.

    By the ids that they are run under, in the order of the runs; without baselines, and without those that have none.
    """
    check_comparable(runs)
    of_id: dict[str, dict[int, Run]] = {}
    for run in runs:
        of_id.setdefault(run.config.experiment, {})[run.config.seed] = run
    differences = {}
    for id, by_seed in of_id.items():
        baseline_id = find_baseline(next(iter(by_seed.values())))
        baselines = of_id.get(baseline_id, {})
        seeds = sorted(by_seed.keys() & baselines.keys())
        if id != baseline_id and seeds:
            ours, theirs = ([some[seed] for seed in seeds] for some in (by_seed, baselines))
            differences[id] = paired_difference(ours, theirs, draws=draws)
    return differences


class MatchedImages:
    """Detections matched with the truth, image by image, by pycocotools; AP can be had of any images of these."""

    def __init__(self, truth: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            ours = _indexed(truth, [dict(entry) for entry in truth["annotations"]])
            if results:
                other = {"bbox": "segmentation", "segm": "bbox"}[kind]
                found = ours.loadRes([{k: v for k, v in result.items() if k != other} for result in results])
            else:
                found = _indexed(truth, [])
            self.evaluation = COCOeval(ours, found, kind)
            # AP alone: objects of all sizes, and up to 100 detections an image.
            self.evaluation.params.areaRng, self.evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            self.evaluation.params.maxDets = [100]
            self.evaluation.evaluate()
        # By category, then by image in the order of their ids.
        num_images = len(self.evaluation.params.imgIds)
        self.of_category = np.array(self.evaluation.evalImgs, dtype=object).reshape(-1, num_images)

    def average_precision(self, images: np.ndarray) -> float:
        """AP in percent of the images at these positions; NaN without objects.

        As many as there are, as pycocotools counts on it; some may be there twice.
        """
        self.evaluation.evalImgs = self.of_category[:, images].ravel().tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluation.accumulate()
        precision = self.evaluation.eval["precision"]
        there = precision > -1
        return 100 * float(precision[there].mean()) if there.any() else float("nan")


def _indexed(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    content: Any = {**truth, "annotations": annotations}
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _difference(pair: tuple[MatchedImages, MatchedImages], images: np.ndarray) -> float:
    one, other = pair
    return one.average_precision(images) - other.average_precision(images)


def _by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    by_seed = {run.config.seed: run for run in runs}
    if len(by_seed) < len(runs) or len({replace(run.config, seed=0) for run in runs}) > 1:
        raise UserError("Runs of the same experiment with a seed each can be averaged, and no others.")
    return by_seed
