"""How long models take to train and to detect (Section 4.5), measured side by side.

The paper gives hours of training an epoch and images a second at inference, "including the time of data loading,
network forwarding, and post-processing". The same is measured here for runs of one scale and data set. Other work on a
machine comes and goes, so the models take turns, a block of steps each, in every round; figures are medians of the
rounds, and ratios are of blocks of the same round.

- **Training**: steps of the run's own training, from its trained weights: loading, losses, gradients, optimizer. An
  epoch is computed from them.
- **Inference**: validation images one by one (the release tests so), from the data set to results in COCO's format.

Blocks begin with steps or images that are not timed, for what happens only once. Where images are loaded by worker
processes, each block starts its own, and up to two batches a worker are ready when its clock starts: blocks should be
several times as long, and are by default.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from augfpn.analysis.comparison import check_comparable, find_baseline
from augfpn.data.dataset import DetectionDataset, SelectedImages
from augfpn.data.loading import evaluation_batches, open_dataset, training_batches
from augfpn.detectors.detector import Detector
from augfpn.engine.evaluate import coco_results
from augfpn.engine.runs import Run
from augfpn.engine.step import TrainingStep
from augfpn.errors import UserError
from augfpn.experiments.paper import SECTION_4_5

_WARMUP_STEPS = 2
_WARMUP_IMAGES = 3
# Timed steps and images of a block, at least; with workers so many a worker.
_STEPS, _IMAGES, _A_WORKER = 10, 25, 8


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Of one run. ``training`` and ``inference``: seconds an image in each round.

    ``num_images``: in the training set, and so in an epoch.
    """

    training: tuple[float, ...]
    inference: tuple[float, ...]
    num_images: int

    @property
    def epoch_seconds(self) -> float:
        return statistics.median(self.training) * self.num_images

    @property
    def images_per_second(self) -> float:
        return 1 / statistics.median(self.inference)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A model's time over its baseline's: the median, the least and the largest of the rounds."""

    median: float
    least: float
    largest: float

    @staticmethod
    def of(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
        ratios = [one / other for one, other in zip(times, baseline, strict=True)]
        return Ratio(median=statistics.median(ratios), least=min(ratios), largest=max(ratios))


def measure_runtimes(
    runs: Sequence[Run],
    device: torch.device,
    *,
    rounds: int = 5,
    steps: int | None = None,
    images: int | None = None,
) -> list[Runtime]:
    """The runtimes of trained runs of one scale and data, measured in turns. The runs stay as they are.

    Args:
        rounds: how often every run has its turn.
        steps: timed training steps of a turn; by default 10, or 8 a worker process.
        images: timed validation images of a turn, or all if there are fewer; by default 25, or 8 a worker process.
    """
    check_comparable(runs)
    if len({run.config.experiment for run in runs}) < len(runs):
        raise UserError("Two of these runs are of the same experiment; name each experiment once.")
    workers = max(run.config.training.num_workers for run in runs)
    steps = max(_STEPS, _A_WORKER * workers) if steps is None else steps
    images = max(_IMAGES, _A_WORKER * workers) if images is None else images
    if min(rounds, steps, images) < 1:
        raise UserError(f"There must be a round, a step and an image at least, not {rounds}, {steps} and {images}.")
    measured = [_Measured(run, device) for run in runs]
    for number in range(rounds):
        for one in measured:
            one.time_training(steps, first_step=number * (steps + _WARMUP_STEPS))
        for one in measured:
            one.time_inference(images)
    return [
        Runtime(training=tuple(one.training), inference=tuple(one.inference), num_images=len(one.train))
        for one in measured
    ]


def to_dict(runs: Sequence[Run], runtimes: Sequence[Runtime]) -> dict[str, Any]:
    """All of it, with ratios to each run's baseline and the paper's figures, as JSON can have it.

    ``training`` and ``inference`` are seconds an image. The paper's hours are for 115,000 images of COCO on eight GPUs.
    """
    of_run = {run.config.experiment: runtime for run, runtime in zip(runs, runtimes, strict=True)}
    content: dict[str, Any] = {}
    for run, runtime in zip(runs, runtimes, strict=True):
        entry: dict[str, Any] = {
            "run": str(run.path),
            "epoch_seconds": runtime.epoch_seconds,
            "images_per_second": runtime.images_per_second,
            **asdict(runtime),
        }
        baseline_id = find_baseline(run)
        baseline = of_run.get(baseline_id)
        if baseline is not None and baseline is not runtime:
            entry["training_time_ratio"] = asdict(Ratio.of(runtime.training, baseline.training))
            entry["inference_time_ratio"] = asdict(Ratio.of(runtime.inference, baseline.inference))
        if (paper := SECTION_4_5.get(run.config.experiment)) is not None:
            entry["paper"] = asdict(paper)
            if (less := SECTION_4_5.get(baseline_id)) not in (None, paper):
                entry["paper"]["training_time_ratio"] = round(paper.hours_per_epoch / less.hours_per_epoch, 2)
                entry["paper"]["inference_time_ratio"] = round(less.images_per_second / paper.images_per_second, 2)
        content[run.config.experiment] = entry
    return {"scale": runs[0].config.scale, "runs": content}


def as_text(measured: dict[str, Any]) -> str:
    """What `to_dict` gives, a line a run."""
    lines = [
        "× the baseline's time: median of the rounds (least–largest). [The paper's, ResNet-50 on Tesla V100]",
        f"{'':36}{'s an epoch':>12}{'images/s':>10}   {'training time':40}inference time",
    ]
    for id, entry in measured["runs"].items():
        line = f"{id:36}{entry['epoch_seconds']:12.1f}{entry['images_per_second']:10.2f}   "
        paper = entry.get("paper", {})
        for name, published in (("training", "{hours_per_epoch} h"), ("inference", "{images_per_second}/s")):
            ratio, of_paper = entry.get(f"{name}_time_ratio"), paper.get(f"{name}_time_ratio")
            texts = [] if ratio is None else [f"× {ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['largest']:.2f})"]
            texts += [f"[{published.format(**paper)}{f', × {of_paper}' if of_paper else ''}]"] if paper else []
            line += f"{' '.join(texts):40}"
        lines.append(line.rstrip())
    return "\n".join(lines)


class _Measured:
    """A run's model and data, and the seconds an image of each of its turns."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        self.config = run.config
        self.model: Detector = run.load_model(device)
        self.step = TrainingStep(self.model, self.config.training)
        self.train: DetectionDataset = open_dataset(self.config.data, "train")
        self.val = open_dataset(replace(self.config.data, masks=False), "val")
        self.training: list[float] = []
        self.inference: list[float] = []

    def time_training(self, steps: int, first_step: int) -> None:
        training = self.config.training
        batches = training_batches(
            self.train,
            self.config.data,
            seed=self.config.seed,
            batch_size=training.batch_size,
            first_step=first_step,
            num_steps=first_step + _WARMUP_STEPS + steps,
            num_workers=training.num_workers,
        )
        # A rate at which nothing is learnt any more, as at the end of the training that the weights come from.
        rate = training.scaled_learning_rate * 1e-3
        self.model.train()

        def step() -> None:
            self.step([next(batches).to(self.device)], rate)

        seconds = self._time(step, _WARMUP_STEPS, steps)
        self.training.append(seconds / (steps * training.batch_size))

    def time_inference(self, images: int) -> None:
        num = min(images, len(self.val))
        # More than there are, if there are few: the first ones twice.
        chosen = list(itertools.islice(itertools.cycle(range(len(self.val))), num + _WARMUP_IMAGES))
        batches = evaluation_batches(
            SelectedImages(self.val, chosen),
            self.config.data,
            batch_size=1,
            num_workers=self.config.training.num_workers,
        )
        categories = self.run.categories
        self.model.eval()

        def detect() -> None:
            batch = next(batches)
            detections = self.model.detect(batch.images.to(self.device))
            for of_image in detections.per_image(batch.images.sizes, batch.original_sizes):
                coco_results(batch.image_ids[0], of_image, categories)

        self.inference.append(self._time(detect, _WARMUP_IMAGES, num) / num)

    def _time(self, do: Callable[[], None], warmup: int, times: int) -> float:
        for _ in range(warmup):
            do()
        self._wait()
        started = time.perf_counter()
        for _ in range(times):
            do()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
