"""What all detectors share: torchvision's public surface, and the way from images to a pyramid."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.detectors.backbone import Backbone
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.errors import UserError
from augfpn.ops.boxes import rescale
from augfpn.structures import Detections, Images, Pyramid, Targets

AnyDetector = TypeVar("AnyDetector", bound="Detector")


class Detector(nn.Module, ABC):
    """A detector with torchvision's public surface.

    `forward` takes a list of images and, in training, a list of targets, and gives a dict of losses in training and a
    list of dicts of detections in evaluation. `losses` and `detect` are the batched forms below it, which trace as one
    graph and wait for nothing outside the operators for suppression and for masks.

    Attributes:
        num_classes: K, without background.
        consistent_supervision: AugFPN's supervision of the laterals in training, or None.
        needs_masks: whether targets have to have masks.
    """

    needs_masks = False

    def __init__(
        self,
        num_classes: int,
        preprocessing: Preprocessing,
        backbone: Backbone,
        pyramid: FeaturePyramid,
        consistent_supervision: ConsistentSupervision | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.preprocessing = preprocessing
        self.backbone = backbone
        self.pyramid = pyramid
        self.consistent_supervision = consistent_supervision

    @abstractmethod
    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """The training losses of a batch, whose sum is minimised."""

    @abstractmethod
    def detect(self, images: Images) -> Detections:
        """The detections of a batch, in the batch's pixels."""

    def features(self, images: Images) -> Pyramid:
        """The pyramid of a batch."""
        pyramid: Pyramid = self.pyramid(self.backbone(self.preprocessing.normalise(images)))
        return pyramid

    def for_inference(self: AnyDetector) -> AnyDetector:
        """A copy of this detector in evaluation mode, without what only training needs."""
        detector = copy.deepcopy(self)
        detector.consistent_supervision = None
        return detector.eval()

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: each ``(3, H, W)``, floats in 0-1 or ``uint8``, of any size.
            targets: in training, for each image ``boxes (G, 4)`` in its pixels, ``labels (G)`` in 1…K and, for Mask
                R-CNN, ``masks (G, H, W)`` of 0 and 1. Other entries, as torchvision's data sets have them, are ignored.

        Returns:
            In training a dict of scalar losses. In evaluation a dict for each image: ``boxes (D, 4)`` in its pixels,
            ``labels (D)``, ``scores (D)``, best first, ``rois (D, 4)`` (`augfpn.structures.Detections`), and with Mask
            R-CNN ``masks (D, 1, H, W)``, probabilities; on the device of the images.
        """
        for position, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
                raise UserError(f"images[{position}] must have the shape (3, H, W); found {tuple(image.shape)}.")
        if len(images) == 0:
            raise UserError("There must be at least one image.")
        batch = Images.pad([self.preprocessing.resize(image) for image in images])
        originals = torch.tensor([image.shape[1:] for image in images])
        if not self.training:
            device = batch.pixels.device
            found = self.detect(batch).per_image(batch.sizes, originals)
            return [{name: value.to(device) for name, value in of_image.items()} for of_image in found]
        if targets is None:
            raise UserError("A detector in training mode needs targets; call .eval() on it to get detections.")
        if len(targets) != len(images):
            raise UserError(f"There must be targets for each image; found {len(targets)} for {len(images)} images.")
        for position, (image, target) in enumerate(zip(images, targets, strict=True)):
            self._check_target(position, image, target)
        return self.losses(batch, self._batched(targets, originals.to(batch.sizes.device), batch))

    def _batched(self, targets: Sequence[dict[str, Tensor]], originals: Tensor, batch: Images) -> Targets:
        boxes = [
            rescale(target["boxes"].float(), old, new)
            for target, old, new in zip(targets, originals, batch.sizes, strict=True)
        ]
        labels = [target["labels"].long() for target in targets]
        if not self.needs_masks:
            return Targets.pad(boxes, labels)
        masks = [
            v2.resize_mask(target["masks"].byte(), size)
            for target, size in zip(targets, batch.sizes.tolist(), strict=True)
        ]
        height, width = batch.pixels.shape[2:]
        return Targets.pad(boxes, labels, masks, (height, width))

    def _check_target(self, position: int, image: Tensor, target: dict[str, Tensor]) -> None:
        for name in ("boxes", "labels", "masks") if self.needs_masks else ("boxes", "labels"):
            if name not in target:
                raise UserError(f"targets[{position}] has no {name!r}; found {', '.join(target)}.")
        boxes, labels = target["boxes"], target["labels"]
        if labels.ndim != 1 or (labels.is_floating_point() and len(labels) > 0):
            raise UserError(
                f"targets[{position}]['labels'] must be integers of shape (G), one for each object; "
                f"found {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if not boxes.is_floating_point() or boxes.shape != (len(labels), 4) or not boxes.isfinite().all():
            raise UserError(
                f"targets[{position}]['boxes'] must be finite floats of shape ({len(labels)}, 4), a row for each "
                f"label; found {boxes.dtype} of shape {tuple(boxes.shape)}."
            )
        # As they will be used: sides of doubles can be too short to be floats.
        boxes = boxes.float()
        without_area = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
        if without_area.any():
            raise UserError(
                f"targets[{position}]['boxes'] must be (x1, y1, x2, y2) with x1 < x2 and y1 < y2; "
                f"found {boxes[without_area][0].tolist()}."
            )
        if len(labels) > 0 and not 1 <= labels.min() <= labels.max() <= self.num_classes:
            raise UserError(
                f"targets[{position}]['labels'] must be in 1…{self.num_classes} (0 is background); "
                f"found {labels.min()} to {labels.max()}."
            )
        if self.needs_masks:
            self._check_masks(position, target["masks"], (len(labels), *image.shape[1:]))

    @staticmethod
    def _check_masks(position: int, masks: Tensor, expected: tuple[int, ...]) -> None:
        if masks.shape != expected:
            raise UserError(
                f"targets[{position}]['masks'] must have the shape {expected}, a mask of the image's size for each "
                f"label; found {tuple(masks.shape)}."
            )
        if not ((masks == 0) | (masks == 1)).all():
            raise UserError(
                f"targets[{position}]['masks'] must be 0 and 1 (on the object); found {masks.min()} to {masks.max()}."
            )
