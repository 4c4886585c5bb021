"""The training loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from augfpn.data.coco_format import SHOWN
from augfpn.data.dataset import DataProblem, DetectionDataset
from augfpn.data.loading import Batch, LoadingError, open_datasets, seed_of, training_batches
from augfpn.detectors.detector import Detector
from augfpn.engine.checkpoint import Checkpoint, load_checkpoint, load_last_checkpoint, save_checkpoint
from augfpn.engine.evaluate import evaluate_along
from augfpn.engine.faults import REMEDIES, enough_memory, not_finite
from augfpn.engine.interruption import Interruption
from augfpn.engine.meter import Meter, NotFiniteError, Stopwatch, TensorBoard
from augfpn.engine.ranks import ALONE, Ranks
from augfpn.engine.runs import Run, RunError, alone, build_model, check_new
from augfpn.engine.schedule import learning_rate
from augfpn.engine.step import TrainingStep
from augfpn.errors import Interrupted, UserError
from augfpn.experiments.config import RunConfig, TrainingConfig, differences
from augfpn.files import remove_leftovers


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is executed. What it learns does not depend on it, but for rounding and what is said below.

    ``accumulate``: a step's batch comes in so many parts, one after the other, whose gradients are accumulated. What a
    loss is divided by is counted a part, and so is what images are padded to. ``activation_checkpointing``: see
    `augfpn.detectors.backbone.Backbone.checkpoint_activations`.
    ``workers``: that load images, a rank; None for the experiment's own. ``keep_checkpoints``: all of them rather than
    the last two and the best. ``evaluate_every``: so many steps, besides at the end; the best is known by that.
    """

    accumulate: int = 1
    activation_checkpointing: bool = False
    workers: int | None = None
    keep_checkpoints: bool = False
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("accumulate", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"There cannot be {self.workers} workers.")

    def check_fits(self, batch_size: int, ranks: Ranks) -> None:
        """A UserError if a batch cannot be shared out evenly."""
        if batch_size % (self.accumulate * ranks.num):
            shares = [f"{ranks.num} devices"] if ranks.num > 1 else []
            shares += [f"{self.accumulate} parts"] if self.accumulate > 1 else []
            raise UserError(
                f"A batch of {batch_size} images cannot be shared evenly between {' of '.join(shares)}; choose a "
                f"--batch-size that is a multiple of {self.accumulate * ranks.num}."
            )


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    execution: Execution = Execution(),
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Trains the model of ``config`` and writes the run directory ``out``.

    With ``resume`` it goes on from the last checkpoint in ``out`` and ends with the same weights as a training that was
    never interrupted (to the bit on a CPU with the same number of threads and ranks). A finished run is left as it is.
    While another process trains it, this one waits. All ``ranks`` call it, with a run directory that all of them see.

    Raises:
        Interrupted: stopped by a signal, after a checkpoint (`augfpn.engine.interruption`).
        UserError: what went wrong, and what to do (`augfpn.engine.faults`).
    """
    device = device or default_device()
    execution.check_fits(config.training.batch_size, ranks)
    if config.training.precision == "bf16" and device.type == "cpu":
        # Seen with torch 2.11 and 2.15: of a convolution over one cell, now and then no finite gradient.
        raise UserError("The precision bf16 is for GPUs; on a CPU, train in fp32.")
    # The validation data too, so that a fault in it is found now and not after days of training.
    dataset, val = open_datasets(config.data, check_images=ranks.is_main)
    if ranks.is_main:
        _warn(list(dict.fromkeys([*dataset.problems, *val.problems])), config.data.root)
    if not resume:
        check_new(out)
    # None writes anything before all have seen that they may.
    ranks.wait()
    held = alone(out, waiting=ranks.num == 1) if ranks.is_main else nullcontext()
    with held, Interruption() as interruption:
        # Now the main one has the directory to itself.
        ranks.wait()
        # As the main one sees it, which will soon write there.
        exists = ranks.gather((out / "run.json").is_file())[0]
        run = _existing(out, config, dataset) if exists and resume else None
        if run is not None and run.is_trained:
            if ranks.is_main:
                print(f"{out} is trained to its end already.")
            return run
        last = None if run is None else _last_checkpoint(run, ranks)
        interruption.check()
        model = _start(config, dataset, device, pretrained=last is None)
        run = run or _created(out, config, dataset, ranks)
        training = _Training(run, model, dataset, val, execution, device, ranks, interruption)
        training.start(last)
        # The model has it now; a second one need not be kept for days.
        del last
        training.make_steps()
        if ranks.is_main:
            run.save_weights(model)
        if ranks.any(interruption.requested):
            raise Interrupted(f"{interruption.name}: stopped after the last step. --resume evaluates.")
    return run


def _warn(problems: list[DataProblem], root: str | None) -> None:
    for problem in problems[:SHOWN]:
        print(f"warning: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        more = len(problems) - SHOWN
        print(f"warning: … and {more} more; `augfpn data check {root}` shows all of them.", file=sys.stderr)


def _start(config: RunConfig, dataset: DetectionDataset, device: torch.device, *, pretrained: bool) -> Detector:
    torch.manual_seed(seed_of(config.seed))
    return build_model(config, len(dataset.categories), pretrained=pretrained).to(device).train()


def _created(out: Path, config: RunConfig, dataset: DetectionDataset, ranks: Ranks) -> Run:
    run = Run.create(out, config, dataset.categories) if ranks.is_main else Run(out)
    ranks.wait()
    return run


def _existing(out: Path, config: RunConfig, dataset: DetectionDataset) -> Run:
    """The run in ``out`` to go on with; a RunError if it is another one."""
    run = Run.open(out)
    different = differences(run.config, config)
    if different:
        raise RunError(
            f"{out} holds another run and cannot be resumed as this one (there → here): {'; '.join(different)}. "
            "Choose another folder (--out)."
        )
    if run.categories != dataset.categories:
        raise RunError(f"{out} was trained on other classes than the data has now.")
    return run


def _last_checkpoint(run: Run, ranks: Ranks) -> Checkpoint | None:
    """The same on all ranks: the main one says which, and what is damaged.

    On the host: the weights and the optimizer's memory go to the device one by one when they are restored.
    """
    host = torch.device("cpu")
    folder = run.path / "checkpoints"
    if ranks.is_main:
        remove_leftovers(run.path)
        last = load_last_checkpoint(folder, host)
    step = ranks.gather(last.step if ranks.is_main and last else None)[0]
    if ranks.is_main:
        return last
    return None if step is None else load_checkpoint(folder, step, host)


class _Training:
    """A training under way, from its last checkpoint or from its start to its end."""

    def __init__(
        self,
        run: Run,
        model: Detector,
        dataset: DetectionDataset,
        val: DetectionDataset,
        execution: Execution,
        device: torch.device,
        ranks: Ranks,
        interruption: Interruption,
    ) -> None:
        self.run = run
        self.config = run.config
        self.model = model
        self.dataset = dataset
        self.val = val
        self.execution = execution
        self.device = device
        self.ranks = ranks
        self.interruption = interruption
        self.num_steps = self.config.training.num_steps(len(dataset))
        self.keeps_all = execution.keep_checkpoints or run.keeps_checkpoints

    def start(self, last: Checkpoint | None) -> None:
        """Restores a checkpoint, and says and keeps what follows from experiment, data and devices."""
        training = self.config.training
        self.step = TrainingStep(
            self.model, training, self.ranks, activation_checkpointing=self.execution.activation_checkpointing
        )
        self.done = 0 if last is None else last.step
        if last is not None:
            last.restore(self.model, self.step.optimizer)
        self.saved = self.done
        self.clock = Stopwatch(last.seconds if last else 0.0)
        self.meter = Meter(self.ranks, self.device, self.clock, self.done, last.unreported if last else [])
        if self.ranks.is_main:
            self.run.forget_history_after(self.done)
            derived = self._derived()
            self.run.write_provenance(self.device, derived)
            print(
                f"{self.config.experiment} at {self.config.scale}: {', '.join(f'{n} {v}' for n, v in derived.items())}"
            )
            print(_batch_and_rate(self.config.training, self.execution, self.ranks), flush=True)

    def make_steps(self) -> None:
        training, batches = self.config.training, self._batches()
        if self.ranks.gather(self.done not in self.run.evaluated_steps)[0]:
            # It was stopped between a checkpoint and its evaluation.
            self._evaluate_where_due()
        with TensorBoard(self.run.path, self.done, enabled=self.ranks.is_main) as board, self._progress() as progress:
            while self.done < self.num_steps:
                parts = self._load(batches)
                # All ranks stop before the same step.
                if self.ranks.any(self.interruption.requested):
                    self._stop()
                rate = learning_rate(training, self.done, self.num_steps)
                # Random numbers are a function of seed and step, so that there is no state of them to resume from.
                torch.manual_seed(seed_of(self.config.seed, self.done))
                with enough_memory(f"at step {self.done + 1}", parts, REMEDIES):
                    self.meter.add(self.step(parts, rate))
                self.done += 1
                if self.done % training.log_every == 0 or self.done == self.num_steps:
                    self._report(rate, progress, board)
                if self.done % training.checkpoint_every == 0 and self.done < self.num_steps:
                    self._save()
                self._evaluate_where_due()
                progress.update()

    def _batches(self) -> Iterator[Batch]:
        workers = self.config.training.num_workers if self.execution.workers is None else self.execution.workers
        return self._batches_of(range(self.done, self.num_steps), self.ranks.rank, workers)

    def _batches_of(self, steps: range, rank: int, workers: int = 0) -> Iterator[Batch]:
        return training_batches(
            self.dataset,
            self.config.data,
            seed=self.config.seed,
            batch_size=self.config.training.batch_size,
            first_step=steps.start,
            num_steps=steps.stop,
            num_workers=workers,
            parts=self.execution.accumulate,
            rank=rank,
            num_ranks=self.ranks.num,
        )

    def _load(self, batches: Iterator[Batch]) -> list[Batch]:
        """The parts of the next step's batch; nothing if loading was stopped together with the training."""
        try:
            with self.meter.waiting_for_data():
                return [next(batches) for _ in range(self.execution.accumulate)]
        except LoadingError:
            # A scheduler's signal goes to the worker processes, too.
            if self.interruption.requested:
                return []
            raise

    def _report(self, rate: float, progress: tqdm, board: TensorBoard) -> None:  # type: ignore[type-arg]
        with self._finite():
            means = self.meter.line(self.config.training.batch_size)
        if self.ranks.is_main:
            epoch = self.done * self.config.training.batch_size / len(self.dataset)
            line = {"step": self.done, "epoch": epoch, "seconds": self.clock.seconds, "learning_rate": rate, **means}
            self.run.record(line)
            board.add(line)
            losses = {name.removeprefix("loss_"): f"{mean:.2f}" for name, mean in means.items() if "loss" in name}
            progress.set_postfix({**losses, "lr": f"{rate:.1e}", "images/s": f"{means['images_per_second']:.1f}"})

    def _save(self) -> None:
        """A checkpoint of the steps that were made, unless there is one."""
        if self.saved == self.done:
            return
        with self._finite():
            values = self.meter.values()
        if self.ranks.is_main:
            model, optimizer = self.model.state_dict(), self.step.optimizer.state_dict()
            checkpoint = Checkpoint(self.done, self.clock.seconds, model, optimizer, values)
            best = self.run.best_step
            save_checkpoint(
                self.run.path / "checkpoints", checkpoint, None if self.keeps_all else lambda step: step == best
            )
        self.saved = self.done

    def _stop(self) -> NoReturn:
        self._save()
        # None ends before the checkpoint is written: torchrun would end the others.
        self.ranks.wait()
        where = (
            f"after step {self.done} of {self.num_steps}, with a checkpoint of it" if self.done else "at its beginning"
        )
        raise Interrupted(f"{self.interruption.name}: stopped {where}. --resume goes on there.")

    def _evaluate_where_due(self) -> None:
        every = self.execution.evaluate_every
        if every is None or self.done % every or not 0 < self.done < self.num_steps:
            return
        self._save()
        if self.ranks.any(self.interruption.requested):
            # Whoever goes on begins with the evaluation.
            return
        with self.clock.paused():
            metrics = evaluate_along(
                self.run,
                self.model,
                self.done,
                self.val,
                self.device,
                self.ranks,
                self.execution.workers,
                self.interruption,
            )
            self.model.train()
        if self.ranks.is_main:
            best = " (the best so far)" if self.run.best_step == self.done else ""
            tqdm.write(f"Step {self.done}: AP {metrics['AP'] or 0.0:.3f}{best}", file=sys.stderr)

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """What is not finite is explained, with the batch that it came of."""
        try:
            yield
        except NotFiniteError as error:
            ranks = range(self.ranks.num) if error.rank is None else [error.rank]
            step = range(error.step, error.step + 1)
            batches = [batch for rank in ranks for batch in self._batches_of(step, rank)]
            raise not_finite(self.run, error, batches, self.dataset, self.saved, self.ranks) from error

    def _derived(self) -> dict[str, Any]:
        training = self.config.training
        return {
            "num_images": len(self.dataset),
            "num_classes": len(self.dataset.categories),
            "num_steps": self.num_steps,
            "batch_size": training.batch_size,
            "learning_rate": training.scaled_learning_rate,
            "keep_checkpoints": self.keeps_all,
            "devices": self.ranks.num,
            "accumulate": self.execution.accumulate,
            "activation_checkpointing": self.execution.activation_checkpointing,
        }

    def _progress(self) -> tqdm:  # type: ignore[type-arg]
        """A line with losses, rate and remaining time; rewritten on a terminal, now and then a new one in a file."""
        return tqdm(
            total=self.num_steps,
            initial=self.done,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 20,
            disable=not self.ranks.is_main,
        )


def _batch_and_rate(training: TrainingConfig, execution: Execution, ranks: Ranks) -> str:
    """How the batch is shared out, and which learning rate follows from its size.

    >>> _batch_and_rate(TrainingConfig(batch_size=8), Execution(accumulate=2), ALONE)
    'A step: 8 images = 1 device × 2 parts × 4. Learning rate 0.01 = 0.02 × 8 / 16.'
    """
    images = training.batch_size // (ranks.num * execution.accumulate)
    devices = f"{ranks.num} device{'s' if ranks.num > 1 else ''}"
    parts = f" × {execution.accumulate} parts" if execution.accumulate > 1 else ""
    return (
        f"A step: {training.batch_size} images = {devices}{parts} × {images}. Learning rate "
        f"{training.scaled_learning_rate:g} = {training.learning_rate:g} × {training.batch_size} / "
        f"{training.reference_batch_size}."
    )
