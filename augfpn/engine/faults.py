"""What goes wrong while a training runs, told so that somebody can act on it.

After each of these, the run directory is as its last checkpoint left it, and the same command with ``--resume`` goes on
from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from augfpn.data.dataset import DetectionDataset
from augfpn.data.loading import Batch
from augfpn.engine.interruption import Interruption
from augfpn.engine.meter import NotFiniteError
from augfpn.engine.ranks import Ranks
from augfpn.engine.runs import Run
from augfpn.errors import UserError, first_line
from augfpn.files import written_whole


class TrainingError(UserError):
    """Why a training stopped; the message says what to do."""


@contextmanager
def enough_memory(step: int, parts: Sequence[Batch]) -> Iterator[None]:
    """A TrainingError if the memory does not suffice for a step, from 0, with these parts of its batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU it is a RuntimeError among others.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(_out_of_memory(step, parts)) from error


@contextmanager
def together(ranks: Ranks, interruption: Interruption) -> Iterator[None]:
    """A TrainingError if the other ranks do not answer; unless all were asked to stop and this one comes last."""
    try:
        yield
    except RuntimeError as error:
        # Gloo's are RuntimeErrors among others.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        interruption.check(", as the other ranks")
        raise TrainingError(
            f"Rank {ranks.rank} of {ranks.num} gets no answer from the others. One of them has ended, and says why in "
            "its own output, or hangs longer than --timeout. Start all of them again with --resume. "
            f"({first_line(error)})"
        ) from error


def not_finite(
    run: Run, error: NotFiniteError, batch: Batch, dataset: DetectionDataset, saved: int, ranks: Ranks
) -> TrainingError:
    """Writes the batch to ``faults/`` of the run, for study, and tells which it is.

    Args:
        batch: of the rank that has the terms, at the step that has them.
        saved: the step of the last checkpoint.
    """
    path = run.path / "faults" / f"step_{error.step + 1:08d}.pt"
    if ranks.is_main:
        targets = {name: value for name, value in vars(batch.targets).items() if value is not None}
        content = {
            "step": error.step + 1,
            "terms": error.terms,
            "image_ids": list(batch.image_ids),
            "pixels": batch.images.pixels,
            "sizes": batch.images.sizes,
            **targets,
        }
        with written_whole(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    names = {image["id"]: image["file_name"] for image in dataset.ground_truth()["images"]}
    images = ", ".join(f"{names[id]} (id {id})" for id in batch.image_ids)
    of_rank = f" of rank {error.rank}" if ranks.num > 1 else ""
    last = f"The last checkpoint, of step {saved}, is from before it" if saved else "There is no checkpoint before it"
    return TrainingError(
        f"Training left the finite numbers at {error}. The batch{of_rank}: {images}; it is in {path}. {last}. If its "
        "objects are as they should be, start a new run with a smaller --learning-rate."
    )


def _out_of_memory(step: int, parts: Sequence[Batch]) -> str:
    sizes = "; ".join(
        f"{len(batch.image_ids)} images of {batch.images.pixels.shape[2]} × {batch.images.pixels.shape[3]} pixels with "
        f"their padding and up to {batch.targets.labels.shape[1]} objects (ids {', '.join(map(str, batch.image_ids))})"
        for batch in parts
    )
    return (
        f"Out of memory at step {step + 1}, with {sizes}. What helps: --accumulate 2 makes a step in two halves, "
        "--activation-checkpointing does not keep the backbone's activations, --precision bf16, a smaller --batch-size."
        " With the first two this run can go on (--resume); the others make another one."
    )
