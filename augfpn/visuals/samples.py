"""Detections and fusion weights of a run on a few images of its validation set, for looking at."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augfpn.data.dataset import SelectedImages
from augfpn.data.loading import Batch, evaluation_batches, open_dataset
from augfpn.detectors.faster_rcnn import FasterRCNN
from augfpn.engine.runs import Run


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


def sample_detections(run: Run, samples: ImageSamples, device: torch.device) -> list[dict[str, Tensor]]:
    """What the run's model finds on the samples, in their pixels."""
    images = samples.batch.images.to(device)
    return list(run.load_model(device).detect(images).per_image(images.sizes, images.sizes))


@torch.no_grad()
def sample_fusion(run: Run, samples: ImageSamples, device: torch.device) -> FusedRoIs:
    """The fusion weights of the surest detection of each sample."""
    model = run.load_model(device)
    assert isinstance(model, FasterRCNN), "one-stage detectors fuse no RoIs"
    images = samples.batch.images.to(device)
    detections = model.detect(images)
    rois = detections.rois[:, :1]
    weights = model.roi_pooling(model.features(images), rois).weights.cpu()
    found = [index for index, valid in enumerate(detections.valid[:, 0].tolist()) if valid]
    names = [category.name for category in run.categories]
    crops = [_crop(samples.images[index], rois[index, 0].tolist()) for index in found]
    titles = [f"{names[int(detections.labels[i, 0]) - 1]} {detections.scores[i, 0]:.2f}" for i in found]
    return FusedRoIs(crops, weights[found], titles)


def _crop(image: Tensor, box: Sequence[float]) -> Tensor:
    x1, y1, x2, y2 = (round(side) for side in box)
    # At least a pixel, also of an RoI that is a sliver at the right or lower edge.
    x1, y1 = min(x1, image.shape[2] - 1), min(y1, image.shape[1] - 1)
    return image[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
