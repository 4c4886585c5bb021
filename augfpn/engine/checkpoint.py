"""Checkpoints: all that a training needs to go on exactly where it was.

Random numbers and the order of the images are functions of (seed, step), so there is no state of them to keep. Each
checkpoint has its checksum beside it, ``step_00001000.pt.sha256``, in the form that ``sha256sum --check`` reads.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from augfpn.errors import UserError, first_line
from augfpn.files import write_text, written_whole

KEPT = 2


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says why."""


class DamagedCheckpointError(CheckpointError):
    """It is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """``step``: how many steps were made. ``seconds``: how long training took until then.

    ``unreported``: what the steps gave since the last line of ``metrics.jsonl``.
    """

    step: int
    seconds: float
    model: dict[str, Any]
    optimizer: dict[str, Any]
    unreported: list[dict[str, float]] = field(default_factory=list)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        try:
            model.load_state_dict(self.model)
            optimizer.load_state_dict(self.optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"The checkpoint of step {self.step} is of another model: {first_line(error)}"
            ) from error


def save_checkpoint(folder: Path, checkpoint: Checkpoint, is_kept: Callable[[int], bool] | None = None) -> None:
    """Writes a checkpoint, then removes all but the last `KEPT` and those whose step ``is_kept``; None keeps all."""
    path = _path(folder, checkpoint.step)
    with written_whole(path) as temporary:
        # Into a file of Python's, whose errors say what is wrong, such as a full disk.
        with temporary.open("wb") as file:
            torch.save(vars(checkpoint), file)
        # Before the checkpoint has its name: whoever sees it sees its checksum, too.
        write_text(_checksum_path(path), f"{_digest(temporary)}  {path.name}\n")
    if is_kept is not None:
        for old in _checkpoints(folder)[:-KEPT]:
            if not is_kept(_step(old)):
                old.unlink()
                _checksum_path(old).unlink(missing_ok=True)


def load_last_checkpoint(folder: Path, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint, or None where there is none yet.

    One that is damaged is put aside, with a warning, and the one before it taken; where all are, it is an error.
    """
    damaged: dict[Path, CheckpointError] = {}
    for path in reversed(_checkpoints(folder)):
        try:
            checkpoint = _load(path, device)
        except DamagedCheckpointError as error:
            damaged[path] = error
            continue
        for bad, why in damaged.items():
            aside = bad.rename(bad.with_name(f"{bad.name}.damaged"))
            print(f"warning: {why} That of step {checkpoint.step} is taken; this is now {aside.name}.", file=sys.stderr)
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"No checkpoint in {folder} can be read. {' '.join(map(str, damaged.values()))} "
            "Restore one of them from a copy, or remove the folder to train from the start."
        )
    return None


def checkpoint_steps(folder: Path) -> tuple[int, ...]:
    """The steps of which there is a checkpoint, in order."""
    return tuple(_step(path) for path in _checkpoints(folder))


def load_checkpoint(folder: Path, step: int, device: torch.device) -> Checkpoint:
    """The checkpoint after so many steps; a CheckpointError lists those that there are."""
    path = _path(folder, step)
    if not path.is_file():
        kept = ", ".join(map(str, checkpoint_steps(folder))) or "none"
        raise CheckpointError(
            f"{folder} has no checkpoint of step {step}; kept are those of: {kept}. "
            "`augfpn train … --keep-checkpoints` keeps all."
        )
    return _load(path, device)


def _load(path: Path, device: torch.device) -> Checkpoint:
    checksum = _checksum_path(path)
    is_verified = checksum.is_file()
    if is_verified and checksum.read_bytes().split()[:1] != [_digest(path).encode()]:
        raise DamagedCheckpointError(f"The checkpoint {path} is damaged: it is not what its checksum says.")
    try:
        return Checkpoint(**torch.load(path, map_location=device, weights_only=True))
    except (OSError, MemoryError, torch.OutOfMemoryError):
        # Nothing that the file could be put aside for.
        raise
    # Of a broken file, torch raises whatever the place where it breaks does.
    except Exception as error:
        if is_verified:
            raise CheckpointError(f"The checkpoint {path} is whole, but cannot be read: {first_line(error)}") from error
        raise DamagedCheckpointError(f"The checkpoint {path} is damaged: {first_line(error)}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.pt") if path.stem.removeprefix("step_").isdigit())
