"""From data sets to batches.

The order of the images and their augmentation are functions of (seed, epoch, image), computed anew in whichever worker
process the image is loaded. So a training can go on from any step without any state of the loader.
"""

from __future__ import annotations

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
from augfpn.errors import UserError
from augfpn.experiments.config import DataConfig
from augfpn.ops.resize import resize
from augfpn.structures import Images, Targets

# Validation images of the synthetic set start here, far behind the training images.
FIRST_SYNTHETIC_VAL = 1_000_000


@dataclass(frozen=True)
class Batch:
    """``original_sizes (B, 2)``: height and width of each image as its data set has it, before resizing."""

    images: Images
    targets: Targets
    image_ids: tuple[int, ...]
    original_sizes: Tensor

    def to(self, device: torch.device) -> Batch:
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


def open_dataset(config: DataConfig, split: str, *, check_images: bool = True) -> DetectionDataset:
    """The data set of a run: ``split`` is train or val. With ``overfit`` both are the same few training images.

    Without ``check_images`` it opens at once, however many image files there are; a faulty one is an error when it is
    read.
    """
    if config.overfit is not None:
        return SelectedImages(_open(config, "train", check_images), range(config.overfit))
    return _open(config, split, check_images)


def open_datasets(config: DataConfig) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and the validation data of a run, both checked, with the same classes."""
    train, val = open_dataset(config, "train"), open_dataset(config, "val")
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
) -> Iterator[Batch]:
    """The batches of the steps ``first_step`` to ``num_steps`` of a training, shuffled and augmented."""
    order = _Order(len(dataset), seed, batch_size, first_step, num_steps)
    yield from _loader(_Prepared(dataset, config, seed), order, num_workers)


def evaluation_batches(
    dataset: DetectionDataset, config: DataConfig, *, batch_size: int, num_workers: int = 0
) -> Iterator[Batch]:
    """All images once, in order, resized and otherwise as they are."""
    positions = [(0, index) for index in range(len(dataset))]
    picks = [positions[start : start + batch_size] for start in range(0, len(dataset), batch_size)]
    yield from _loader(_Prepared(dataset, replace(config, flip_probability=0.0), seed=0), picks, num_workers)


def seed_of(*parts: int) -> int:
    """A seed that is a function of the parts, such as (seed, epoch, image); no two lists of parts share theirs."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class _Order:
    """For each step the (epoch, index) of its images. Each epoch goes once through all images in its own order."""

    def __init__(self, num_images: int, seed: int, batch_size: int, first_step: int, num_steps: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.steps = range(first_step, num_steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            picks = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
                picks.append((epoch, int(order[position % self.num_images])))
            yield picks


class _Prepared(Dataset[tuple[Sample, tuple[int, int]]]):
    """Samples resized and, at random, flipped; with the height and width that they had before."""

    def __init__(self, dataset: DetectionDataset, config: DataConfig, seed: int) -> None:
        self.dataset = dataset
        self.sides = config.resized_sides
        self.seed = seed
        self.flip = v2.RandomHorizontalFlip(config.flip_probability)

    def __getitem__(self, pick: tuple[int, int]) -> tuple[Sample, tuple[int, int]]:
        epoch, index = pick
        sample = self.dataset[index]
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
    return iter(
        DataLoader(
            prepared,
            batch_sampler=picks,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # Forked workers would inherit the locks of the parent's threads.
            multiprocessing_context="forkserver" if num_workers > 0 else None,
        )
    )


def _collate(items: Sequence[tuple[Sample, tuple[int, int]]]) -> Batch:
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
