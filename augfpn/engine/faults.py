"""What goes wrong while a training runs, told so that somebody can act on it.

After each of these, the run directory is as its last checkpoint left it, and the same command with ``--resume`` goes on
from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from augfpn.data.dataset import DetectionDataset
from augfpn.data.loading import Batch
from augfpn.engine.meter import NotFiniteError
from augfpn.engine.ranks import Ranks
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.files import written_whole


class TrainingError(UserError):
    """Why a training stopped; the message says what to do."""


@contextmanager
def enough_memory(when: str, batches: Sequence[Batch], remedies: str) -> Iterator[None]:
    """A TrainingError if the memory does not suffice for these batches."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Elsewhere than in CUDA's allocator it is a RuntimeError among others.
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_memory and "DefaultCPUAllocator" not in str(error) and "ALLOC_FAILED" not in str(error):
            raise
        sizes = "; ".join(map(_size, batches))
        raise TrainingError(f"Out of memory {when}, with {sizes}. What helps: {remedies}") from error


# What can be done in training.
REMEDIES = (
    "--accumulate 2 makes a step in two halves, --activation-checkpointing does not keep the backbone's activations, "
    "--precision bf16, a smaller --batch-size. With the first two this run can go on (--resume); the others make "
    "another one."
)


def not_finite(
    run: Run, error: NotFiniteError, batches: Sequence[Batch], dataset: DetectionDataset, saved: int, ranks: Ranks
) -> TrainingError:
    """Writes the batch to ``faults/`` of the run, for study, and tells which it is.

    Args:
        batches: its parts, of the rank that has the terms or of all, at the step that has them.
        saved: the step of the last checkpoint.
    """
    path = run.path / "faults" / f"step_{error.step + 1:08d}.pt"
    if ranks.is_main:
        content = {"step": error.step + 1, "terms": error.terms, "parts": [_tensors(batch) for batch in batches]}
        with written_whole(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    names = {image["id"]: image["file_name"] for image in dataset.ground_truth()["images"]}
    images = ", ".join(f"{names[id]} (id {id})" for batch in batches for id in batch.image_ids)
    of_rank = f" of rank {error.rank}" if ranks.num > 1 and error.rank is not None else ""
    last = f"The last checkpoint, of step {saved}, is from before it" if saved else "There is no checkpoint before it"
    return TrainingError(
        f"Training left the finite numbers at {error}. The batch{of_rank}: {images}; it is in {path}. {last}. If its "
        "objects are as they should be, start a new run with a smaller --learning-rate."
    )


def _tensors(batch: Batch) -> dict[str, Any]:
    targets = {name: value for name, value in vars(batch.targets).items() if value is not None}
    images = {"pixels": batch.images.pixels, "sizes": batch.images.sizes}
    return {"image_ids": list(batch.image_ids), **images, **targets}


def _size(batch: Batch) -> str:
    height, width = batch.images.pixels.shape[2:]
    return (
        f"{len(batch.image_ids)} images of {height} × {width} pixels with their padding and up to "
        f"{batch.targets.labels.shape[1]} objects (ids {', '.join(map(str, batch.image_ids))})"
    )
