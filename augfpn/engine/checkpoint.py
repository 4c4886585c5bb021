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


def save_checkpoint(folder: Path, step: int, seconds: float, model: nn.Module, optimizer: Optimizer) -> None:
    """Writes a checkpoint and removes all but the last two."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with written_whole(folder / f"step_{step:08d}.pt") as temporary:
        torch.save(state, temporary)
    for old in _checkpoints(folder)[:-KEPT]:
        old.unlink()


def load_last_checkpoint(folder: Path, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint, or None where there is none yet. Removes what a killed process left half-written."""
    for leftover in folder.glob(".step_*.tmp"):
        leftover.unlink()
    found = _checkpoints(folder)
    return Checkpoint(**torch.load(found[-1], map_location=device, weights_only=True)) if found else None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"))
