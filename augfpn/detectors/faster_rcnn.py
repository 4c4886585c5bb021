"""Faster R-CNN on a feature pyramid; with AugFPN's three components where they are given (Figure 2).

C2…C5 = backbone(image)
M2…M5, P2…P6 = pyramid(C2…C5)                     with Residual Feature Augmentation inside, or not
proposals = region proposals(P2…P6)
RoI features = roi pooling(P2…P5, RoIs)            SingleLevelPooling, or SoftRoISelection
detections = box head(RoI features)
in training: + ConsistentSupervision(M2…M5, RoIs), or not
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.components.soft_roi_selection import SoftRoISelection
from augfpn.detectors.backbone import Backbone
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.errors import UserError
from augfpn.heads.box import BoxHead, box_losses, detections_from, sample_rois
from augfpn.heads.region_proposals import RegionProposals
from augfpn.heads.roi_pooling import SingleLevelPooling
from augfpn.ops.boxes import BoxCoder, rescale
from augfpn.ops.level_assignment import FINEST_SIDE
from augfpn.ops.matching import Matcher, Sampler
from augfpn.structures import Detections, Images, Pyramid, Targets


def _check_target(position: int, target: dict[str, Tensor], num_classes: int) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if not boxes.is_floating_point() or boxes.shape != (len(labels), 4) or not boxes.isfinite().all():
        raise UserError(
            f"targets[{position}]['boxes'] must be finite floats of shape ({len(labels)}, 4), a row for each label; "
            f"found {boxes.dtype} of shape {tuple(boxes.shape)}."
        )
    if len(labels) > 0 and not 1 <= labels.min() <= labels.max() <= num_classes:
        raise UserError(
            f"targets[{position}]['labels'] must be in 1…{num_classes} (0 is background); "
            f"found {labels.min()} to {labels.max()}."
        )


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """How RoIs are trained and detections chosen. The values are the paper's settings (Section 4.2)."""

    matcher: Matcher = Matcher(foreground_iou=0.5, background_iou=0.5, lowest_best_iou=0.5)
    sampler: Sampler = Sampler(num=512, foreground_fraction=0.25)
    coder: BoxCoder = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    num_detections: int = 100


class FasterRCNN(nn.Module):
    """A detector with torchvision's public surface.

    `forward` takes a list of images and, in training, a list of targets, and gives a dict of losses in training and a
    list of dicts of detections in evaluation. `losses` and `detect` are the batched forms below it, which trace as one
    graph and wait for nothing.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        backbone: Backbone,
        pyramid: FeaturePyramid,
        region_proposals: RegionProposals,
        roi_pooling: SingleLevelPooling | SoftRoISelection,
        box_head: BoxHead,
        box_rules: BoxRules,
        consistent_supervision: ConsistentSupervision | None = None,
        finest_side: float = FINEST_SIDE,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.backbone = backbone
        self.pyramid = pyramid
        self.region_proposals = region_proposals
        self.roi_pooling = roi_pooling
        self.box_head = box_head
        self.box_rules = box_rules
        self.consistent_supervision = consistent_supervision
        # By which RoIs count as P2's to P5's, also where Soft RoI Selection does not need it (Figure 4).
        self.finest_side = finest_side

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: each ``(3, H, W)``, floats in 0-1 or ``uint8``, of any size.
            targets: in training, for each image ``boxes (G, 4)`` in its pixels and ``labels (G)`` in 1…K.

        Returns:
            In training a dict of scalar losses. In evaluation a dict for each image: ``boxes (D, 4)`` in its pixels,
            ``labels (D)``, ``scores (D)``, best first.
        """
        resized = [self.preprocessing.resize(image) for image in images]
        if not self.training:
            batch = Images.pad(resized)
            originals = torch.tensor([image.shape[1:] for image in images])
            return list(self.detect(batch).per_image(batch.sizes, originals))
        if targets is None:
            raise UserError("A detector in training mode needs targets; call .eval() on it to get detections.")
        for position, target in enumerate(targets):
            _check_target(position, target, self.num_classes)
        batch = Images.pad(resized)
        before = torch.tensor([image.shape[1:] for image in images], device=batch.sizes.device)
        boxes = [
            rescale(target["boxes"], old, new) for target, old, new in zip(targets, before, batch.sizes, strict=True)
        ]
        return self.losses(batch, Targets.pad(boxes, [target["labels"] for target in targets]))

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return self.box_head.classifier.out_features - 1

    def features(self, images: Images) -> Pyramid:
        """The pyramid of a batch."""
        pyramid: Pyramid = self.pyramid(self.backbone(self.preprocessing.normalise(images)))
        return pyramid

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """The training losses of a batch, whose sum is minimised."""
        pyramid = self.features(images)
        predictions = self.region_proposals(pyramid)
        losses: dict[str, Tensor] = self.region_proposals.losses(predictions, targets, images.sizes)
        with torch.no_grad():
            proposals = self.region_proposals.propose(predictions, images.sizes)
            samples = sample_rois(proposals, targets, self.box_rules.matcher, self.box_rules.sampler)
        box_predictions = self.box_head(self.roi_pooling(pyramid, samples.boxes).fused)
        box = box_losses(box_predictions, samples, self.box_rules.coder)
        losses |= {"loss_classifier": box.classifier, "loss_box_reg": box.box_reg}
        if self.consistent_supervision is not None:
            losses |= self.consistent_supervision(pyramid, samples)
        return losses

    @torch.no_grad()
    def detect(self, images: Images) -> Detections:
        """The detections of a batch, in the batch's pixels."""
        rules = self.box_rules
        pyramid = self.features(images)
        proposals = self.region_proposals.propose(self.region_proposals(pyramid), images.sizes)
        return detections_from(
            self.box_head(self.roi_pooling(pyramid, proposals.boxes).fused),
            proposals,
            images.sizes,
            rules.coder,
            score_threshold=rules.score_threshold,
            nms_iou=rules.nms_iou,
            num=rules.num_detections,
        )
