"""From data sets to batches.

The order of the images and their augmentation are functions of (seed, epoch, image), computed anew in whichever worker
process the image is loaded. So a training can go on from any step without any state of the loader, and several
processes (ranks) share the batches of a step without a word between them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from augfpn.data.coco import CocoDataset
from augfpn.data.coco_format import DataError, different_categories
from augfpn.data.dataset import DetectionDataset, Sample, SelectedImages
from augfpn.data.synthetic import SyntheticDataset
from augfpn.errors import UserError, first_line
from augfpn.experiments.config import DataConfig
from augfpn.ops.resize import resize
from augfpn.structures import Images, Targets

# Validation images of the synthetic set start here, far behind the training images.
FIRST_SYNTHETIC_VAL = 1_000_000
# Seconds after which a batch that does not come is an error: a file system that hangs would be waited for without end.
LOADING_TIMEOUT = 600
# Seconds after which is looked whether the processes that load still live.
_LOOK_EVERY = 5


@dataclass(frozen=True)
class Batch:
    """``original_sizes (B, 2)``: height and width of each image as its data set has it, before resizing."""

    images: Images
    targets: Targets
    image_ids: tuple[int, ...]
    original_sizes: Tensor

    def to(self, device: torch.device) -> Batch:
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))

    def pin_memory(self) -> Batch:
        """For the loader: what is in pinned memory is copied to a GPU without a wait."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


def open_dataset(config: DataConfig, split: str, *, check_images: bool = True) -> DetectionDataset:
    """The data set of a run: ``split`` is train or val. With ``overfit`` both are the same few training images.

    Without ``check_images`` it opens at once, however many image files there are; a faulty one is an error when it is
    read.
    """
    if config.overfit is not None:
        return SelectedImages(_open(config, "train", check_images), range(config.overfit))
    return _open(config, split, check_images)


def open_datasets(config: DataConfig, *, check_images: bool = True) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and the validation data of a run, both checked, with the same classes."""
    train, val = (open_dataset(config, split, check_images=check_images) for split in ("train", "val"))
    different = different_categories(train.categories, val.categories)
    if different:
        raise DataError(f"{config.root}: train and val have different categories; these differ: {different}.")
    return train, val


def _open(config: DataConfig, split: str, check_images: bool) -> DetectionDataset:
    if config.root is not None:
        return CocoDataset.open(Path(config.root), split, config.strict, config.masks, check_images)
    synthetic = config.synthetic
    if synthetic is None:
        raise UserError("This run names no data: neither a folder nor the synthetic set.")
    if split == "train":
        return SyntheticDataset(synthetic.size, synthetic.num_train, synthetic.seed, masks=config.masks)
    return SyntheticDataset(synthetic.size, synthetic.num_val, synthetic.seed, FIRST_SYNTHETIC_VAL, masks=config.masks)


def training_batches(
    dataset: DetectionDataset,
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
    num_workers: int = 0,
    parts: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[Batch]:
    """The batches of the steps ``first_step`` to ``num_steps`` of a training, shuffled and augmented.

    With several ``parts``, each step has so many batches, which together have its ``batch_size`` images; and of each
    part, a rank has its equal share. Which images a step has does not depend on either.
    """
    order = _Order(len(dataset), seed, batch_size, range(first_step, num_steps), parts, rank, num_ranks)
    yield from _loader(_Prepared(dataset, config, seed), order, num_workers)


def evaluation_batches(
    dataset: DetectionDataset,
    config: DataConfig,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[Batch]:
    """All images once, in order, resized and otherwise as they are.

    Of the same batches each rank has every ``num_ranks``-th, so that each image is in one of them, padded alike.
    """
    positions = [(0, index) for index in range(len(dataset))]
    picks = [positions[start : start + batch_size] for start in range(0, len(dataset), batch_size)]
    prepared = _Prepared(dataset, replace(config, flip_probability=0.0), seed=0)
    yield from _loader(prepared, picks[rank::num_ranks], num_workers)


def seed_of(*parts: int) -> int:
    """A seed that is a function of the parts, such as (seed, epoch, image); no two lists of parts share theirs."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class _Order:
    """For each part of each step the (epoch, index) of a rank's images.

    Each epoch goes once through all images in its own order.
    """

    def __init__(
        self, num_images: int, seed: int, batch_size: int, steps: range, parts: int, rank: int, num_ranks: int
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.steps = steps
        self.parts = parts
        self.rank = rank
        self.num_ranks = num_ranks

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            picks = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
                picks.append((epoch, int(order[position % self.num_images])))
            num = self.batch_size // (self.parts * self.num_ranks)
            for part in range(self.parts):
                yield picks[(part * self.num_ranks + self.rank) * num :][:num]


class LoadingError(UserError):
    """Why no batch comes; the message says what to do."""


# A sample, and the height and width that it had before it was resized; or why it cannot be had. What a worker process
# raises would arrive with the worker's traceback as its message.
_Item = tuple[Sample, tuple[int, int]] | UserError


class _Prepared(Dataset[_Item]):
    """Samples resized and, at random, flipped."""

    def __init__(self, dataset: DetectionDataset, config: DataConfig, seed: int) -> None:
        self.dataset = dataset
        self.sides = config.resized_sides
        self.seed = seed
        self.flip = v2.RandomHorizontalFlip(config.flip_probability)

    def __getitem__(self, pick: tuple[int, int]) -> _Item:
        epoch, index = pick
        try:
            sample = self.dataset[index]
        except UserError as error:
            return error
        height, width = sample.image.shape[1:]
        parts = [Image(sample.image), BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(height, width))]
        if sample.masks is not None:
            parts.append(Mask(sample.masks))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch, index))
            parts = self.flip([resize(part, *self.sides) for part in parts])
        image, boxes, *masks = (part.as_subclass(Tensor) for part in parts)
        return replace(sample, image=image, boxes=boxes, masks=masks[0] if masks else None), (height, width)


def _loader(prepared: _Prepared, picks: Any, num_workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        prepared,
        batch_sampler=picks,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        # Forked workers would inherit the locks of the parent's threads.
        multiprocessing_context="forkserver" if num_workers > 0 else None,
        worker_init_fn=_serve_the_parent,
        timeout=_LOOK_EVERY if num_workers > 0 else 0,
    )
    batches = iter(loader)
    while (batch := _next(batches)) is not None:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _next(batches: Iterator[Batch | UserError]) -> Batch | UserError | None:
    """The next batch, if there is one."""
    end = time.monotonic() + LOADING_TIMEOUT
    while True:
        try:
            return next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:
            # Only after its time-out does the loader look after its workers: one may have died with a lock held.
            if "DataLoader timed out" in str(error) and time.monotonic() < end:
                continue
            # A worker may also have died before its batch was fetched from it, which is an error of the connection.
            if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
                raise
            raise LoadingError(
                f"The images could not be loaded: {first_line(error).rstrip('.')}. Either a worker process was killed, "
                "often for want of memory or of shared memory (/dev/shm), or the file system does not answer. "
                "Use fewer workers (--workers; 0 loads in this process)."
            ) from error


def _serve_the_parent(worker: int) -> None:
    """A worker neither ends before the process that it loads for, nor lives on without it."""
    # A terminal sends Ctrl-C to the workers, too; the training still wants the batches that they are making.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Their own parent is the server that forks them, which lives as long as they do.
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)


def _collate(items: Sequence[_Item]) -> Batch | UserError:
    found: list[tuple[Sample, tuple[int, int]]] = []
    for item in items:
        if isinstance(item, UserError):
            return item
        found.append(item)
    return _batch_of(found)


def _batch_of(items: Sequence[tuple[Sample, tuple[int, int]]]) -> Batch:
    samples = [sample for sample, _ in items]
    images = Images.pad([sample.image for sample in samples])
    height, width = images.pixels.shape[-2:]
    masks = [sample.masks for sample in samples if sample.masks is not None]
    return Batch(
        images,
        Targets.pad(
            [sample.boxes for sample in samples],
            [sample.labels for sample in samples],
            masks or None,
            size=(height, width),
        ),
        tuple(sample.image_id for sample in samples),
        torch.tensor([size for _, size in items]),
    )
