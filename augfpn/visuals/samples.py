"""Detections and fusion weights of a run on a few images of its validation set, for looking at."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from augfpn.components.residual_feature_augmentation import pooled_size
from augfpn.data.dataset import SelectedImages
from augfpn.data.loading import Batch, evaluation_batches, open_dataset
from augfpn.detectors.detector import Detector
from augfpn.detectors.faster_rcnn import FasterRCNN
from augfpn.engine.runs import Run
from augfpn.experiments.config import RunConfig
from augfpn.ops.level_assignment import NUM_ROI_LEVELS
from augfpn.structures import Images


@dataclass(frozen=True)
class ImageSamples:
    """Some images ``(3, H, W)`` uint8 at the size that the model sees, with their objects: boxes, and masks if any."""

    images: list[Tensor]
    ground_truth: list[dict[str, Tensor]]
    batch: Batch


@dataclass(frozen=True)
class FusedRoIs:
    """Detections, one an image, with the RoI each was made from: the crop of the RoI and its fusion weights.

    ``weights (N, 4, S, S)`` of P2…P5; ``titles``: class and score.
    """

    crops: list[Tensor]
    weights: Tensor
    titles: list[str]


@dataclass(frozen=True)
class ContextWeights:
    """Images ``(3, H, W)`` with their padding, and the ``weights (B, L, h, w)`` of each context over C5.

    ``names``: the ratios of the contexts, with their cells.
    """

    images: list[Tensor]
    weights: Tensor
    names: list[str]


def sample_images(run: Run, num: int) -> ImageSamples:
    """The first ``num`` validation images that have objects; any images if none has."""
    dataset = open_dataset(run.config.data, "val")
    with_objects = (index for index in range(len(dataset)) if len(dataset[index].labels) > 0)
    chosen = list(itertools.islice(with_objects, num)) or list(range(min(num, len(dataset))))
    batch = next(evaluation_batches(SelectedImages(dataset, chosen), run.config.data, batch_size=num))
    images = [
        pixels[:, :h, :w] for pixels, (h, w) in zip(batch.images.pixels, batch.images.sizes.tolist(), strict=True)
    ]
    targets = batch.targets
    truth = [
        {"boxes": boxes[labels > 0], "labels": labels[labels > 0]}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    if targets.masks is not None:
        for image, objects, masks in zip(images, truth, targets.masks, strict=True):
            height, width = image.shape[1:]
            objects["masks"] = masks[: len(objects["labels"]), :height, :width]
    return ImageSamples(images, truth, batch)


def sample_detections(
    run: Run, samples: ImageSamples, device: torch.device, model: Detector | None = None
) -> list[dict[str, Tensor]]:
    """What the run's model finds on the samples, in their pixels. ``model``: if it was loaded already."""
    images = samples.batch.images.to(device)
    model = model or run.load_model(device)
    return list(model.detect(images).per_image(images.sizes, images.sizes))


@torch.no_grad()
def sample_fusion(run: Run, samples: ImageSamples, device: torch.device, model: Detector | None = None) -> FusedRoIs:
    """The fusion weights of the surest detection of each sample; of none for detectors without RoIs.

    ``model``: if it was loaded already.
    """
    model = model or run.load_model(device)
    if not isinstance(model, FasterRCNN):
        return FusedRoIs([], torch.zeros(0, NUM_ROI_LEVELS, 1, 1), [])
    images = samples.batch.images.to(device)
    detections = model.detect(images)
    rois = detections.rois[:, :1]
    weights = model.roi_pooling(model.features(images), rois).weights.cpu()
    found = [index for index, valid in enumerate(detections.valid[:, 0].tolist()) if valid]
    names = [category.name for category in run.categories]
    crops = [_crop(samples.images[index], rois[index, 0].tolist()) for index in found]
    titles = [f"{names[int(detections.labels[i, 0]) - 1]} {detections.scores[i, 0]:.2f}" for i in found]
    return FusedRoIs(crops, weights[found], titles)


def sample_contexts(run: Run, samples: ImageSamples, device: torch.device) -> ContextWeights:
    """The weights of Residual Feature Augmentation on the samples; of no image if the model weighs no contexts."""
    found = weighted_contexts(run.load_model(device), run.config, samples.batch.images.to(device))
    return ContextWeights([], torch.zeros(0, 0, 1, 1), []) if found is None else found


@torch.no_grad()
def weighted_contexts(model: Detector, config: RunConfig, images: Images) -> ContextWeights | None:
    """The weights of Residual Feature Augmentation on a batch; None if the model of ``config`` weighs no contexts."""
    augmentation, described = model.pyramid.residual_feature_augmentation, config.model.residual_feature_augmentation
    if augmentation is None or described is None:
        return None
    c5 = model.backbone(model.preprocessing.normalise(images))[-1]
    weights = augmentation(c5).weights
    if weights is None:
        return None
    height, width = c5.shape[-2:]
    sizes = [pooled_size(height, width, ratio) for ratio in described.ratios]
    names = [f"α {ratio}: {h} × {w}" for ratio, (h, w) in zip(described.ratios, sizes, strict=True)]
    names = names or [f"context {number}" for number in range(1, weights.shape[1] + 1)]
    return ContextWeights(list(images.pixels.cpu()), weights.cpu(), names)


def spreads(weights: Tensor, names: Sequence[str]) -> pd.DataFrame:
    """How much the weights ``(N, L, h, w)`` of N RoIs or images differ, standard deviations by level or context.

    ``over places``: within a map, mean over the N. ``without the rim``: likewise, of the cells that are not at its
    border. ``between maps``: of the means of the N maps.
    """
    columns = {"over places": weights, "without the rim": weights[..., 1:-1, 1:-1]}
    within = {name: maps.flatten(2).std(dim=2, correction=0).mean(dim=0) for name, maps in columns.items()}
    between = weights.mean(dim=(2, 3)).std(dim=0, correction=0)
    return pd.DataFrame({**within, "between maps": between}, index=pd.Index(list(names)))


def _crop(image: Tensor, box: Sequence[float]) -> Tensor:
    x1, y1, x2, y2 = (round(side) for side in box)
    # At least a pixel, also of an RoI that is a sliver at the right or lower edge.
    x1, y1 = min(x1, image.shape[2] - 1), min(y1, image.shape[1] - 1)
    return image[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
