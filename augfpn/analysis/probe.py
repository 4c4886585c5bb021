"""What every lateral holds of an object, and which class a classifier sees in it.

The laterals M2…M5 (M3…M5 of one-stage detectors) are the features before any fusion. Objects are pooled from each of
them as for Consistent Supervision (RoIAlign, 7 × 7) and averaged over their cells. Two classifiers can then be asked of
each level alike:

- the **probe**, linear in these means and trained here, on the objects of training images in all levels. Any model can
  be measured with it, trained with Consistent Supervision or not.
- the **auxiliary head** of a model that was trained with Consistent Supervision. It sees the cells and not their mean.

Shapes: B images, N objects, R RoIs of an image, L levels, C channels, S cells of a pooled RoI's side, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.data.dataset import SelectedImages
from augfpn.data.loading import Batch, evaluation_batches, open_dataset
from augfpn.detectors.detector import Detector
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.heads.box import ROI_SIZE
from augfpn.ops.roi_align import roi_align_every_level
from augfpn.structures import Images

Classifier = Literal["probe", "auxiliary head"]
# Of the probe's weights; small against the loss of thousands of objects.
_PENALTY = 1e-4
_BATCH_SIZE = 8


@dataclass(frozen=True)
class Laterals:
    """The laterals of a batch, finest first: ``features``, each ``(B, C, H_l, W_l)``, of ``strides`` pixels a cell."""

    features: tuple[Tensor, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(model: Detector, images: Images) -> Laterals:
        pyramid = model.features(images)
        return Laterals(pyramid.laterals, pyramid.strides[: len(pyramid.laterals)])

    @property
    def levels(self) -> tuple[str, ...]:
        """Their names, M2 for a stride of 4."""
        return tuple(f"M{stride.bit_length() - 1}" for stride in self.strides)

    def pool(self, boxes: Tensor) -> Tensor:
        """``(B · R, L, C, S, S)`` of ``boxes (B, R, 4)``."""
        return roi_align_every_level(self.features, self.strides, boxes, ROI_SIZE)


@dataclass(frozen=True)
class ObjectFeatures:
    """What the laterals hold of every object.

    ``features (N, L, C)``; ``labels (N)`` 1…K; ``predictions (N, L)``: the class that the auxiliary head sees in each
    level, 0 for background, or None where there is none. ``levels``: their names.
    """

    features: Tensor
    labels: Tensor
    predictions: Tensor | None
    levels: tuple[str, ...]


def objects_of_run(
    run: Run, model: Detector, device: torch.device, split: Literal["train", "val"], *, num_images: int | None = None
) -> ObjectFeatures:
    """The objects of the first images of a split of the run's data: as many images as it has for validation.

    ``num_images``: of no more than so many images.
    """
    config = replace(run.config.data, masks=False)
    val = open_dataset(config, "val")
    dataset = val if split == "val" else open_dataset(config, split)
    num = min(len(dataset), len(val), len(val) if num_images is None else num_images)
    batches = evaluation_batches(
        SelectedImages(dataset, range(num)),
        config,
        batch_size=_BATCH_SIZE,
        num_workers=run.config.training.num_workers,
    )
    return object_features(model, batches, device)


@torch.no_grad()
def object_features(model: Detector, batches: Iterable[Batch], device: torch.device) -> ObjectFeatures:
    """Pools the objects of the batches from every lateral of ``model``; a UserError for fewer than two objects."""
    model.eval()
    features, labels, predictions = [], [], []
    levels: tuple[str, ...] = ()
    for batch in batches:
        targets = batch.targets.to(device)
        laterals = Laterals.of(model, batch.images.to(device))
        levels = laterals.levels
        objects = targets.valid.flatten()
        pooled = laterals.pool(targets.boxes)[objects]
        features.append(pooled.mean(dim=(3, 4)).cpu())
        labels.append(targets.labels.flatten()[objects].cpu())
        logits = auxiliary_logits(model, pooled)
        if logits is not None:
            predictions.append(logits.argmax(dim=2).cpu())
    if (num := sum(map(len, labels))) < 2:
        raise UserError(f"The semantic gap is measured on objects, and these images have {num or 'none'}.")
    return ObjectFeatures(
        torch.cat(features), torch.cat(labels), torch.cat(predictions) if predictions else None, levels
    )


def auxiliary_logits(model: Detector, pooled: Tensor) -> Tensor | None:
    """What the auxiliary head makes of ``pooled (N, L, C, S, S)``: ``(N, L, K + 1)``, background first.

    None for a model without Consistent Supervision.
    """
    if model.consistent_supervision is None:
        return None
    logits: Tensor = model.consistent_supervision.head(pooled.flatten(0, 1)).logits
    return logits.view(*pooled.shape[:2], logits.shape[1])


class Probe(nn.Module):
    """A linear classifier of objects, one for all levels; the features are standardised over objects and levels."""

    def __init__(self, features: Tensor, num_classes: int) -> None:
        super().__init__()
        every = features.flatten(0, 1).to(torch.float64)
        self.mean, self.std = every.mean(dim=0), every.std(dim=0).clamp(min=1e-12)
        self.linear = nn.Linear(every.shape[1], num_classes, dtype=torch.float64)
        # A convex problem: where it starts does not matter, but should be the same every time.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(…, K)`` of features ``(…, C)``."""
        logits: Tensor = self.linear((features.to(torch.float64) - self.mean) / self.std)
        return logits

    @torch.no_grad()
    def classes(self, features: Tensor) -> Tensor:
        """The class 1…K ``(…)`` of features ``(…, C)``."""
        classes: Tensor = self(features).argmax(dim=-1) + 1
        return classes

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Of the classes 1…K ``(…, K)``, of features ``(…, C)``; the probe knows no background."""
        probabilities: Tensor = self(features).softmax(dim=-1)
        return probabilities


def train_probe(objects: ObjectFeatures, num_classes: int) -> Probe:
    """The classifier, of all that are linear, that does best on all objects in all levels (logistic regression)."""
    probe = Probe(objects.features, num_classes)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    wanted = (objects.labels - 1)[:, None].expand(objects.features.shape[:2]).flatten()

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(probe(objects.features).flatten(0, 1), wanted)
        value = value + _PENALTY * probe.linear.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return probe


def probe_of(run: Run, model: Detector, device: torch.device, *, num_images: int | None = None) -> Probe:
    """The probe of a run's ``model``, trained on the objects of as many training images as there are for validation.

    The validation images of a run of few images (``overfit``) are its training images, and the probe has seen them.

    Args:
        run: names the data.
        model: of the run, at its end or along its training; on ``device``. The probe itself stays on the host.
        num_images: train on no more than so many images.
    """
    objects = objects_of_run(run, model, device, "train", num_images=num_images)
    return train_probe(objects, len(run.categories))
