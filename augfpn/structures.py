"""What flows through the house: images, targets, pyramids, proposals, samples and detections.

Everything in here is batched and of a fixed shape: an image with fewer objects than another is padded, and a mask says
what is real. So nothing in the hot path loops over images or depends on the data for its shapes.

Conventions, stated here once and used everywhere:

- Boxes are ``(x1, y1, x2, y2)`` floats in pixels of the resized image; width is ``x2 - x1`` (no "+1").
- Class labels are ``1…K``; 0 is background and padding. Data sets translate to and from their own category ids.
- Levels run from fine to coarse: P2 (stride 4), or P3 in one-stage detectors, first.

Shape legend of the whole package: ``B`` images, ``C`` channels, ``H W`` cells, ``L`` levels, ``G`` ground-truth
objects, ``A`` anchors, ``R`` RoIs, ``S`` cells of a pooled RoI's side, ``K`` classes, ``D`` detections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from augfpn.ops.boxes import rescale

# Sides are padded to a multiple of this, so that every level up to stride 32 is exactly half of the one below it.
DIVISOR = 32

Structure = TypeVar("Structure", bound="_Movable")


class _Movable:
    """Moves every tensor of a dataclass to a device."""

    def to(self: Structure, device: Any) -> Structure:
        # To the host one has to wait: what is read before the copy is done is not what was computed.
        non_blocking = torch.device(device).type != "cpu"
        return self._with_each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self: Structure) -> Structure:
        return self._with_each(Tensor.pin_memory)

    def _with_each(self: Structure, change: Callable[[Tensor], Tensor]) -> Structure:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changed = {name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        return type(self)(**changed)


@dataclass(frozen=True)
class Images(_Movable):
    """A batch of images, padded at the right and the bottom to one size.

    ``pixels``: ``(B, 3, H, W)``, RGB, ``uint8`` in 0-255 or floats in 0-1, not yet normalised.
    ``sizes``: ``(B, 2)`` int64, the height and width of each image before padding.
    """

    pixels: Tensor
    sizes: Tensor

    @staticmethod
    def pad(images: Sequence[Tensor]) -> Images:
        """A batch of images ``(3, H_i, W_i)``, padded to the same multiple of `DIVISOR`."""
        height, width = (-(-max(image.shape[side] for image in images) // DIVISOR) * DIVISOR for side in (1, 2))
        padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
        return Images(torch.stack(padded), torch.tensor([image.shape[1:] for image in images], device=images[0].device))


@dataclass(frozen=True)
class Targets(_Movable):
    """The objects of a batch of images, padded to the same count, at least one.

    ``boxes``: ``(B, G, 4)``; ``labels``: ``(B, G)`` int64, 0 where there is no object.
    ``masks``: ``(B, G, H, W)`` uint8, 1 on the object, of the batch's padded size; None where nobody asks for masks.
    Their G may be less, but all objects have one.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None

    @staticmethod
    def pad(
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Targets:
        """Targets of images, padded to the next power of two from 8 on.

        Powers of two, so that a compiled model meets only a few shapes.

        Args:
            boxes: ``(G_i, 4)`` of each image. labels: ``(G_i)`` of each image.
            masks: ``(G_i, H_i, W_i)`` of each image, or None.
            size: the height and width of the padded batch; needed with ``masks``.
        """
        most = max((len(image_labels) for image_labels in labels), default=0)
        room = max(8, 1 << max(most - 1, 0).bit_length())
        # Masks are large, and only one operator sees them: they are padded by no more than seven.
        mask_room = max(8, -(-most // 8) * 8)
        padded_boxes = boxes[0].new_zeros(len(boxes), room, 4)
        padded_labels = labels[0].new_zeros(len(labels), room)
        for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            padded_boxes[image, : len(image_boxes)] = image_boxes
            padded_labels[image, : len(image_labels)] = image_labels
        if masks is None:
            return Targets(padded_boxes, padded_labels)
        assert size is not None, "masks are padded to the size of their batch"
        padded_masks = torch.zeros(len(masks), mask_room, *size, dtype=torch.uint8, device=masks[0].device)
        for image, image_masks in enumerate(masks):
            num, height, width = image_masks.shape
            padded_masks[image, :num, :height, :width] = image_masks
        return Targets(padded_boxes, padded_labels, padded_masks)

    @property
    def valid(self) -> Tensor:
        """``(B, G)`` bool: where an object is."""
        return self.labels > 0


@dataclass(frozen=True)
class Pyramid:
    """What a feature pyramid returns, whoever looks at it.

    ``levels``: P2…P6, or P3…P7 of one-stage detectors, each ``(B, C, H_l, W_l)``, the features that heads work on.
    ``laterals``: M2…M5, or M3…M5, the features after the lateral connections and before any fusion, which Consistent
    Supervision supervises (Section 3.1).
    ``strides``: pixels a cell for each of ``levels``; the laterals' are the first ones.
    """

    levels: tuple[Tensor, ...]
    laterals: tuple[Tensor, ...]
    strides: tuple[int, ...]


class Fusion(NamedTuple):
    """Several features made one: ``fused (N, C, H, W)``, and the ``weights (N, L, H, W)`` of each that went in.

    Weights that differ between channels are averaged over them; None where features are mixed and not weighted.
    """

    fused: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Proposals:
    """Regions of interest, a fixed count an image, best first.

    ``boxes``: ``(B, R, 4)``; ``scores``: ``(B, R)`` objectness in 0-1; ``valid``: ``(B, R)`` bool.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


@dataclass(frozen=True)
class RoISamples:
    """The RoIs on which the box head and Consistent Supervision are trained.

    ``boxes``: ``(B, R, 4)``; ``labels``: ``(B, R)`` int64, 0 for background; ``matched_boxes``: ``(B, R, 4)``, the
    ground truth of each foreground RoI (anything for the others); ``objects``: ``(B, R)`` int64, its position among the
    image's objects; ``valid``: ``(B, R)`` bool, false for padding.
    """

    boxes: Tensor
    labels: Tensor
    matched_boxes: Tensor
    objects: Tensor
    valid: Tensor

    def first(self, num: int) -> RoISamples:
        """The first ``num`` of each image. Foreground is sampled first, so these can be all of it."""
        return RoISamples(*(getattr(self, field.name)[:, :num] for field in fields(self)))

    def repeated(self, times: int) -> RoISamples:
        """Every RoI ``times`` times in a row, as when it is pooled from so many levels."""
        return RoISamples(*(getattr(self, field.name).repeat_interleave(times, dim=1) for field in fields(self)))


@dataclass(frozen=True)
class Detections(_Movable):
    """Detected objects, a fixed count an image, best first.

    ``boxes``: ``(B, D, 4)``; ``scores``: ``(B, D)``; ``labels``: ``(B, D)`` int64, 1…K; ``valid``: ``(B, D)`` bool.
    ``rois``: ``(B, D, 4)``, the RoI, anchor or cell that each detection was refined from, so that one can ask which
    pyramid levels it was made of.
    ``masks``: ``(B, D, S, S)``, the probability of the object in each cell of its box, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    rois: Tensor
    masks: Tensor | None = None

    def per_image(self, sizes: Tensor, original_sizes: Tensor) -> Iterator[dict[str, Tensor]]:
        """For each image a dict of ``boxes``, ``scores``, ``labels`` and ``rois``, on the host, without padding.

        Boxes move from the batch's images of ``sizes (B, 2)`` to the pixels of images of ``original_sizes (B, 2)``.
        ``masks``, where there are any, are probabilities ``(D, 1, H, W)`` pasted into the original image: of one image
        at a time, because those of many would fill the memory.
        """
        found = self.to("cpu")
        for image, (size, original) in enumerate(zip(sizes.cpu(), original_sizes.cpu(), strict=True)):
            valid = found.valid[image]
            result = {
                "boxes": rescale(found.boxes[image, valid], size, original),
                "scores": found.scores[image, valid],
                "labels": found.labels[image, valid],
                "rois": rescale(found.rois[image, valid], size, original),
            }
            if found.masks is not None:
                height, width = original.tolist()
                masks = found.masks[image, valid, None].float()
                result["masks"] = paste_masks_in_image(masks, result["boxes"], (height, width))
            yield result
