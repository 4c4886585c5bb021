"""Checkpoints: all that a training needs to go on exactly where it was.

Random numbers and the order of the images are functions of (seed, step), so there is no state of them to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from augfpn.errors import UserError
from augfpn.files import written_whole

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """``step``: how many steps were made. ``seconds``: how long training took until then."""

    step: int
    seconds: float
    model: dict[str, Any]
    optimizer: dict[str, Any]

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        model.load_state_dict(self.model)
        optimizer.load_state_dict(self.optimizer)


def save_checkpoint(
    folder: Path, step: int, seconds: float, model: nn.Module, optimizer: Optimizer, kept: int | None = KEPT
) -> None:
    """Writes a checkpoint and removes all but the last ``kept``; None keeps all."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with written_whole(_path(folder, step)) as temporary:
        torch.save(state, temporary)
    if kept is not None:
        for old in _checkpoints(folder)[:-kept]:
            old.unlink()


def load_last_checkpoint(folder: Path, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint, or None where there is none yet. Removes what a killed process left half-written."""
    for leftover in folder.glob(".step_*.tmp"):
        leftover.unlink()
    found = _checkpoints(folder)
    return _load(found[-1], device) if found else None


def checkpoint_steps(folder: Path) -> tuple[int, ...]:
    """The steps of which there is a checkpoint, in order."""
    return tuple(int(path.stem.removeprefix("step_")) for path in _checkpoints(folder))


def load_checkpoint(folder: Path, step: int, device: torch.device) -> Checkpoint:
    """The checkpoint after so many steps; a UserError lists those that there are."""
    path = _path(folder, step)
    if not path.is_file():
        kept = ", ".join(map(str, checkpoint_steps(folder))) or "none"
        raise UserError(
            f"{folder} has no checkpoint of step {step}; kept are those of: {kept}. "
            "`augfpn train … --keep-checkpoints` keeps all."
        )
    return _load(path, device)


def _load(path: Path, device: torch.device) -> Checkpoint:
    return Checkpoint(**torch.load(path, map_location=device, weights_only=True))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"))
