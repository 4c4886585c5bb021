"""The training loop."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from augfpn.data.dataset import DetectionDataset
from augfpn.data.loading import Batch, open_datasets, seed_of, training_batches
from augfpn.detectors.detector import Detector
from augfpn.engine.checkpoint import KEPT, Checkpoint, load_last_checkpoint, save_checkpoint
from augfpn.engine.runs import Run, RunError, alone, build_model, check_new
from augfpn.engine.schedule import learning_rate
from augfpn.experiments.config import RunConfig, TrainingConfig, differences

NORMS = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    keep_checkpoints: bool = False,
    device: torch.device | None = None,
) -> Run:
    """Trains the model of ``config`` and writes the run directory ``out``.

    With ``resume`` it goes on from the last checkpoint in ``out`` and ends with the same weights as a training that was
    never interrupted (to the bit on a CPU with the same number of threads). A finished run is left as it is.
    While another process trains it, this one waits. ``keep_checkpoints``: all of them, rather than the last two, for
    studies of how training went; a run that began so goes on so.
    """
    device = device or default_device()
    # The validation data too, so that a fault in it is found now and not after days of training.
    dataset, val = open_datasets(config.data)
    for problem in dict.fromkeys([*dataset.problems, *val.problems]):
        print(f"warning: {problem}", file=sys.stderr)
    if not resume:
        check_new(out)
    with alone(out):
        run = _existing(out, config, dataset) if resume else None
        if run is not None and run.is_trained:
            print(f"{out} is trained to its end already.")
            return run
        last = None if run is None else load_last_checkpoint(run.path / "checkpoints", device)
        model = _start(config, dataset, device, pretrained=last is None)
        run = run or Run.create(out, config, dataset.categories)
        _finish(run, config, model, dataset, last, keep_checkpoints or run.keeps_checkpoints, device)
    return run


def _start(config: RunConfig, dataset: DetectionDataset, device: torch.device, *, pretrained: bool) -> Detector:
    torch.manual_seed(seed_of(config.seed))
    return build_model(config, len(dataset.categories), pretrained=pretrained).to(device).train()


def _finish(
    run: Run,
    config: RunConfig,
    model: Detector,
    dataset: DetectionDataset,
    last: Checkpoint | None,
    keep_checkpoints: bool,
    device: torch.device,
) -> None:
    """Trains from a checkpoint, or from the start, to the end, and keeps the weights."""
    num_steps = config.training.num_steps(len(dataset))
    derived = {
        "num_images": len(dataset),
        "num_classes": len(dataset.categories),
        "num_steps": num_steps,
        "batch_size": config.training.batch_size,
        "learning_rate": config.training.scaled_learning_rate,
        "keep_checkpoints": keep_checkpoints,
    }
    run.write_provenance(device, derived)
    print(f"{config.experiment} at {config.scale}: " + ", ".join(f"{name} {value}" for name, value in derived.items()))
    _make_steps(run, config, model, dataset, last, num_steps, None if keep_checkpoints else KEPT, device)
    run.save_weights(model)


def _make_steps(
    run: Run,
    config: RunConfig,
    model: Detector,
    dataset: DetectionDataset,
    last: Checkpoint | None,
    num_steps: int,
    kept: int | None,
    device: torch.device,
) -> None:
    """Trains ``model`` from the run's last checkpoint, or from its start, to the end."""
    training = config.training
    optimizer = build_optimizer(model, training)
    first_step, seconds_before = (last.step, last.seconds) if last else (0, 0.0)
    if last:
        last.restore(model, optimizer)
    run.forget_history_after(first_step)

    batches = training_batches(
        dataset,
        config.data,
        seed=config.seed,
        batch_size=training.batch_size,
        first_step=first_step,
        num_steps=num_steps,
        num_workers=training.num_workers,
    )
    started = time.perf_counter()
    meter = _Meter()
    with _progress(first_step, num_steps) as progress:
        for step, batch in enumerate(batches, start=first_step):
            rate = learning_rate(training, step, num_steps)
            # Random numbers are a function of seed and step, so that there is no state of them to resume from.
            torch.manual_seed(seed_of(config.seed, step))
            meter.add(training_step(model, optimizer, batch.to(device), rate, training.clip_norm))
            done = step + 1
            seconds = seconds_before + time.perf_counter() - started
            if done % training.log_every == 0 or done == num_steps:
                means = meter.means()
                epoch = done * training.batch_size / len(dataset)
                run.record({"step": done, "epoch": epoch, "seconds": seconds, "learning_rate": rate, **means})
                losses = {name.removeprefix("loss_"): f"{mean:.2f}" for name, mean in means.items() if "loss" in name}
                progress.set_postfix({**losses, "lr": f"{rate:.1e}"})
            if done % training.checkpoint_every == 0 and done < num_steps:
                save_checkpoint(run.path / "checkpoints", done, seconds, model, optimizer, kept)
            progress.update()


def training_step(
    model: Detector, optimizer: torch.optim.Optimizer, batch: Batch, rate: float, clip_norm: float | None
) -> dict[str, Tensor]:
    """One step of the optimizer; returns what `backpropagate` does."""
    optimizer.zero_grad(set_to_none=True)
    values = backpropagate(model, batch, clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    optimizer.step()
    return values


def backpropagate(model: Detector, batch: Batch, clip_norm: float | None) -> dict[str, Tensor]:
    """Leaves the clipped gradient of a batch's loss in the parameters.

    Returns the losses by component, their sum as ``loss``, and the gradient's norm before clipping, on the device.
    """
    losses = model.losses(batch.images, batch.targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if clip_norm is None else clip_norm)
    return {"loss": total.detach(), **{name: loss.detach() for name, loss in losses.items()}, "gradient_norm": norm}


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The paper's SGD, or AdamW for scales that train from scratch in minutes.

    As in the release, what holds for biases holds for those of convolutions and fully connected layers: the shifts of
    normalisations are trained like weights.
    """
    norms = (module for module in model.modules() if isinstance(module, NORMS))
    of_norms = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = name.endswith("bias") and id(parameter) not in of_norms
            (biases if is_bias else others).append(parameter)
    bias_decay = config.weight_decay if config.bias_decay else 0.0
    parameters: list[dict[str, Any]] = [
        {"params": others, "rate_factor": 1.0},
        {"params": biases, "rate_factor": config.bias_rate, "weight_decay": bias_decay},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


class _Meter:
    """Means of what the steps since the last reading gave. Waits for the device at a reading only."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._values[name].append(value)

    def means(self) -> dict[str, float]:
        means = {name: torch.stack(values).mean().item() for name, values in self._values.items()}
        self._values.clear()
        not_finite = [name for name, mean in means.items() if not -float("inf") < mean < float("inf")]
        if not_finite:
            raise FloatingPointError(
                f"Training left the finite numbers: {', '.join(not_finite)}. Start it again with a smaller "
                "--learning-rate."
            )
        return means


def _existing(out: Path, config: RunConfig, dataset: DetectionDataset) -> Run | None:
    """The run in ``out`` to go on with, or None where there is none yet; a RunError if it is another one."""
    if not (out / "run.json").is_file():
        return None
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


def _progress(first_step: int, num_steps: int) -> tqdm:  # type: ignore[type-arg]
    """A line with losses, rate and remaining time; rewritten on a terminal, now and then a new one in a file."""
    return tqdm(
        total=num_steps,
        initial=first_step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )
