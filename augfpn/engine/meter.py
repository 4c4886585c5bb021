"""What a training tells of itself while it runs: losses by component, gradient norm, speed, memory."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from augfpn.engine.ranks import Ranks
from augfpn.errors import UserError


class NotFiniteError(UserError):
    """Losses or gradients that are not finite. ``terms``: those of ``rank`` at the step ``step``, from 0.

    ``rank`` is None where only the gradient is at fault, which all ranks have the same of.
    """

    def __init__(self, step: int, rank: int | None, terms: dict[str, float]) -> None:
        self.step, self.rank, self.terms = step, rank, terms
        super().__init__(f"step {step + 1}: {', '.join(f'{name} is {value}' for name, value in terms.items())}")


class Stopwatch:
    """Seconds of training, with those of earlier starts."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        now = time.perf_counter()
        yield
        self._started += time.perf_counter() - now


class Meter:
    """The values of the steps that no line was written of yet.

    They are read from the device when somebody asks, so that no step waits for it. Each is the mean over the ranks,
    which is that of the whole batch.

    Args:
        clock: runs while steps are made.
        first_step: of the values to come.
        values: of steps before it, from a checkpoint.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        clock: Stopwatch,
        first_step: int,
        values: Sequence[dict[str, float]],
    ) -> None:
        self.ranks = ranks
        self.device = device
        self.clock = clock
        self._read = list(values)
        self._unread: list[dict[str, Tensor]] = []
        self._next_step = first_step
        self._timed_steps, self._waited, self._since = 0, 0.0, clock.seconds

    def add(self, values: dict[str, Tensor]) -> None:
        self._unread.append(values)
        self._timed_steps += 1

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def values(self) -> list[dict[str, float]]:
        """Of each step since the last `line`; a NotFiniteError names the first that left the finite numbers."""
        if self._unread:
            names = list(self._unread[0])
            own = torch.stack([torch.stack([step[name].float() for name in names]) for step in self._unread]).tolist()
            of_ranks = self.ranks.gather(own)
            for number, of_step in enumerate(zip(*of_ranks, strict=True)):
                _check_finite(names, of_step, self._next_step + number)
                means = [sum(of_name) / self.ranks.num for of_name in zip(*of_step, strict=True)]
                self._read.append(dict(zip(names, means, strict=True)))
            self._next_step += len(self._unread)
            self._unread.clear()
        return self._read

    def line(self, batch_size: int) -> dict[str, float]:
        """The means of `values`, which are forgotten then; and of this process: ``images_per_second``, of all ranks,
        ``waiting_seconds`` a step for data, and the most memory so far in MB, on the device or, of a CPU, resident."""
        values = self.values()
        line = {name: sum(step[name] for step in values) / len(values) for name in values[0]}
        self._read = []
        now, steps = self.clock.seconds, max(self._timed_steps, 1)
        line["images_per_second"] = steps * batch_size / (now - self._since)
        line["waiting_seconds"] = self._waited / steps
        line["memory_mb"] = _peak_memory(self.device) / 2**20
        self._timed_steps, self._waited, self._since = 0, 0.0, now
        return line


def _check_finite(names: Sequence[str], of_step: Sequence[Sequence[float]], step: int) -> None:
    found = [
        (rank, {name: value for name, value in zip(names, values, strict=True) if not math.isfinite(value)})
        for rank, values in enumerate(of_step)
    ]
    # A rank whose own losses are at fault, before those that only have its gradient.
    rank, terms = max(found, key=lambda entry: len(entry[1]))
    if terms:
        raise NotFiniteError(step, None if terms.keys() == {"gradient_norm"} else rank, terms)


def _peak_memory(device: torch.device) -> int:
    """In bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class TensorBoard:
    """The lines of ``metrics.jsonl`` in ``tensorboard/`` of a run, where tensorboard is installed; else nothing."""

    def __init__(self, run: Path, first_step: int, *, enabled: bool) -> None:
        self._writer: Any = None
        if not enabled:
            return
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            # Steps that are made again are taken back.
            self._writer = SummaryWriter(run / "tensorboard", purge_step=first_step + 1)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, line: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in line.items():
                group = "loss" if name.startswith("loss") else "training"
                self._writer.add_scalar(f"{group}/{name}", value, line["step"])
