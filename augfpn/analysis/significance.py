"""Whether a difference in AP is larger than the noise: of images, by a paired bootstrap, and of seeds.

Two models are evaluated on the same images. Images are drawn from these with replacement, again and again, and every
time the AP of both is computed on the images drawn; the interval holds the middle of these differences. Both models
meet the same hard and easy images in every draw, so the interval of the difference is much narrower than those of the
two APs, and nearly unbiased, which those are not: an image that is drawn twice has all its detections twice, which
favours AP itself.

Where there are several seeds, the differences of the pairs are averaged, and the error of their mean is added to the
interval: by Student's distribution, because there are few. Drawing so few pairs with replacement would not do; of three
pairs, a fourth of all intervals would leave 0 out where models do not differ. One seed says nothing of how much seeds
differ, and its interval is of images alone.

pycocotools matches detections with objects, once for each run. AP of a draw then needs no more than how often each
image was drawn: its detections and objects count so many times. Detections with equal scores are in the order of their
images, and copies of a detection side by side; that is the one thing in which pycocotools could have it otherwise.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.analysis.comparison import check_comparable, find_baseline, is_ablation, runs_in, runs_of
from augfpn.data.loading import open_dataset
from augfpn.engine.evaluate import of_kind
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.experiments.paper import EXPERIMENTS

# Weighted detections that are in memory at a time, of all draws of a block.
_BLOCK = 100_000

Kind = Literal["bbox", "segm"]


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

    @property
    def verdict(self) -> str:
        """Whether the difference is larger than the noise, in words; of one seed, it is so of that seed alone."""
        if not self.is_clear:
            return "no"
        return "yes" if self.num_seeds > 1 else "with this seed"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def paired_difference(
    runs: Sequence[Run],
    baselines: Sequence[Run],
    *,
    kind: Kind = "bbox",
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """AP of ``runs`` less that of ``baselines``: evaluated runs, a pair for each seed.

    Args:
        kind: AP of boxes, or of masks.
        draws: how often images are drawn. Of 250 images, 1000 draws take half a second a run.
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
    pairs = [(by_seed[one], of_baseline[one]) for one in sorted(by_seed)]
    return _Bootstrap(runs[0], kind, draws, seed).difference(pairs, level)


def differences_to_baselines(runs: Sequence[Run], draws: int = 1000) -> dict[str, Difference]:
    """For every experiment among evaluated runs, its difference to its baseline, over the seeds that both have.

    By the ids that they are run under, in the order of the runs; without baselines, and without those that have none.
    A UserError for two runs of the same experiment and seed.
    """
    if not runs:
        return {}
    check_comparable(runs)
    of_id: dict[str, list[Run]] = {}
    for run in runs:
        of_id.setdefault(run.config.experiment, []).append(run)
    by_seed = {id: _by_seed(of_experiment) for id, of_experiment in of_id.items()}
    bootstrap = _Bootstrap(runs[0], "bbox", draws, seed=0)
    differences = {}
    for id, ours in by_seed.items():
        baseline_id = find_baseline(of_id[id][0])
        theirs = by_seed.get(baseline_id, {})
        pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
        if id != baseline_id and pairs:
            differences[id] = bootstrap.difference(pairs, level=0.95)
    return differences


def intervals(runs: Sequence[Run], table: str, draws: int = 1000) -> pd.DataFrame:
    """The gains in AP of a table's rows over their baselines with their 95 % intervals, by method.

    Columns: ``gain`` with ``low`` and ``high``, of so many ``seeds``; whether it is ``larger than the noise``
    (`Difference.verdict`); the ``paper gain``. Only rows that were run with a seed with which their baseline
    was run, too; runs that have no row in the table are left alone.
    """
    own = runs_in(table, runs)
    differences = differences_to_baselines(own, draws)
    rows = []
    for row in (row for row in EXPERIMENTS.values() if row.table == table and is_ablation(row.id)):
        run_ids = {run.config.experiment for run in runs_of(row.id, own)}
        for difference in (differences[id] for id in run_ids & differences.keys()):
            paper = round(row.published.AP - EXPERIMENTS[row.baseline].published.AP, 1)
            interval = (difference.mean, difference.low, difference.high)
            rows.append((row.title, *interval, difference.num_seeds, difference.verdict, paper))
    columns = ["method", "gain", "low", "high", "seeds", "larger than the noise", "paper gain"]
    return pd.DataFrame(rows, columns=columns).set_index("method")


class _Bootstrap:
    """The same draws of images for several runs on the same data, so that AP of each run is computed once.

    ``weights (1 + draws, I)``: how often each image is drawn; in the first row, every image is there once.
    """

    def __init__(self, run: Run, kind: Kind, draws: int, seed: int) -> None:
        self.truth = open_dataset(run.config.data, "val").ground_truth()
        self.kind, self.seed = kind, seed
        num = len(self.truth["images"])
        drawn = np.random.default_rng(seed).integers(num, size=(draws, num))
        self.weights = np.stack([np.ones(num, dtype=int), *(np.bincount(images, minlength=num) for images in drawn)])
        self._of_run: dict[Path, np.ndarray] = {}

    def difference(self, pairs: Sequence[tuple[Run, Run]], level: float) -> Difference:
        """Of runs to their baselines, a pair for each seed."""
        of_pairs = np.stack([self._average_precisions(one) - self._average_precisions(other) for one, other in pairs])
        on_all, differences = of_pairs[:, 0], of_pairs[:, 1:].mean(axis=0)
        if len(pairs) > 1:
            error = on_all.std(ddof=1) / np.sqrt(len(pairs))
            random = np.random.default_rng((self.seed, 1))
            differences = differences + error * random.standard_t(len(pairs) - 1, size=len(differences))
        tail = 100 * (1 - level) / 2
        # A draw without any object has no AP.
        low, high = np.nanpercentile(differences, (tail, 100 - tail))
        return Difference(
            mean=float(on_all.mean()),
            low=float(low),
            high=float(high),
            level=level,
            num_images=self.weights.shape[1],
            num_seeds=len(pairs),
        )

    def _average_precisions(self, run: Run) -> np.ndarray:
        if run.path not in self._of_run:
            matched = MatchedImages(self.truth, run.detections, self.kind)
            self._of_run[run.path] = matched.average_precisions(self.weights)
        return self._of_run[run.path]


class MatchedImages:
    """Detections matched with the truth, image by image, by pycocotools; AP can be had of any images of these."""

    def __init__(self, truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            ours = _indexed(truth, [dict(entry) for entry in truth["annotations"]])
            found = ours.loadRes(of_kind(results, kind)) if results else _indexed(truth, [])
            evaluation = COCOeval(ours, found, kind)
            # AP alone: objects of all sizes, and up to 100 detections an image.
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.params.maxDets = [100]
            evaluation.evaluate()
        self.num_images, self.recalls = len(evaluation.params.imgIds), evaluation.params.recThrs
        # By category, then by image in the order of their ids.
        evaluated: list[Any] = list(evaluation.evalImgs)
        starts = range(0, len(evaluated), self.num_images)
        self.categories = [_Ranking.of(evaluated[start : start + self.num_images]) for start in starts]

    def average_precision(self, images: np.ndarray) -> float:
        """AP in percent of the images at these positions, of which some may be there twice; NaN without objects."""
        return float(self.average_precisions(np.bincount(images, minlength=self.num_images)[None])[0])

    def average_precisions(self, weights: np.ndarray) -> np.ndarray:
        """AP ``(D)`` in percent of D draws, in which images are there ``weights (D, I)`` times; NaN without objects."""
        of_categories = np.stack([ranking.average_precisions(weights, self.recalls) for ranking in self.categories])
        num_there = (~np.isnan(of_categories)).sum(axis=0)
        mean: np.ndarray = np.nansum(of_categories, axis=0) / np.where(num_there > 0, num_there, np.nan)
        return 100 * mean


@dataclass(frozen=True)
class _Ranking:
    """The N detections of a category in I images, best first, as matched at T thresholds of IoU.

    Attributes:
        images: ``(N)``, the positions of their images.
        right, wrong: ``(T, N)``, whether they are of an object, or of none. Neither where they are of a crowd, which
            counts as nothing.
        num_objects: ``(I)``, in each image, without crowds.
    """

    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    num_objects: np.ndarray

    @staticmethod
    def of(evaluated: Sequence[dict[str, Any] | None]) -> _Ranking:
        """From what pycocotools has of each image; None for images without objects and detections."""
        there = [(position, entry) for position, entry in enumerate(evaluated) if entry is not None]
        num_objects = np.zeros(len(evaluated), dtype=int)
        for position, entry in there:
            num_objects[position] = np.count_nonzero(entry["gtIgnore"] == 0)
        if not there:
            none = np.zeros((1, 0), dtype=bool)
            return _Ranking(np.zeros(0, dtype=int), none, none, num_objects)
        images = np.concatenate([np.full(len(entry["dtScores"]), position) for position, entry in there])
        matched, ignored = (
            np.concatenate([entry[name] for _, entry in there], axis=1).astype(bool)
            for name in ("dtMatches", "dtIgnore")
        )
        order = np.argsort(-np.concatenate([entry["dtScores"] for _, entry in there]), kind="mergesort")
        right, wrong = matched & ~ignored, ~matched & ~ignored
        return _Ranking(images[order], right[:, order], wrong[:, order], num_objects)

    def average_precisions(self, weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """AP ``(D)``, 0-1, with images ``weights (D, I)`` times: the mean over T of the precision at the ``recalls``.

        NaN for draws without objects.
        """
        block = max(1, _BLOCK // max(1, len(self.images)))
        blocks = [weights[start : start + block].T for start in range(0, len(weights), block)]
        return np.concatenate([self._of_block(of_block, recalls) for of_block in blocks])

    def _of_block(self, weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """The same for ``weights (I, D)`` of some draws."""
        num_objects = self.num_objects @ weights
        times = weights[self.images]
        precisions = []
        for right, wrong in zip(self.right, self.wrong, strict=True):
            # Precision falls between right detections, and recall stays: what happens there is of no account.
            num_right = times[right].cumsum(axis=0)
            num_wrong = (times * wrong[:, None]).cumsum(axis=0)[right]
            recall = num_right / np.maximum(num_objects, 1)
            precision = num_right / (num_right + num_wrong + np.spacing(1))
            best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
            # How many of the recalls are reached by each right detection, and by none before it.
            reached = np.diff(np.searchsorted(recalls, recall, side="right"), axis=0, prepend=0)
            precisions.append((reached * best_from_here).sum(axis=0) / len(recalls))
        return np.where(num_objects > 0, np.mean(precisions, axis=0), np.nan)


def _indexed(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    content: Any = {**truth, "annotations": annotations}
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    """Runs of one experiment; a UserError for others, and for two with the same seed."""
    by_seed: dict[int, Run] = {}
    for run in runs:
        same = by_seed.setdefault(run.config.seed, run)
        if same is not run:
            raise UserError(
                f"{same.path} and {run.path} are both of {run.config.experiment} with seed {run.config.seed}; which of "
                f"them counts? Keep one of them here, and the other in another folder."
            )
    if len({replace(run.config, seed=0) for run in runs}) > 1:
        raise UserError("Runs of the same experiment with a seed each can be averaged, and no others.")
    return by_seed
