"""Faster R-CNN and Mask R-CNN on a feature pyramid; with AugFPN's components where they are given (Figure 2).

C2…C5 = backbone(image)
M2…M5, P2…P6 = pyramid(C2…C5)                     with Residual Feature Augmentation inside, or not
proposals = region proposals(P2…P6)
RoI features = roi pooling(P2…P5, RoIs)            SingleLevelPooling, or SoftRoISelection
detections = box head(RoI features)
masks = mask branch(P2…P5, detections)             in Mask R-CNN, with RoI pooling of its own
in training: + ConsistentSupervision(M2…M5, RoIs), or not
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.detectors.backbone import Backbone
from augfpn.detectors.detector import Detector
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.heads.box import ROI_MATCHER, BoxHead, box_losses, detections_from, sample_rois
from augfpn.heads.mask import MaskBranch, mask_loss, mask_samples
from augfpn.heads.region_proposals import RegionProposals
from augfpn.ops.boxes import BoxCoder
from augfpn.ops.level_assignment import FINEST_SIDE
from augfpn.ops.matching import Matcher, Sampler
from augfpn.structures import Detections, Images, Targets


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """How RoIs are trained and detections chosen. The values are the paper's settings (Section 4.2)."""

    matcher: Matcher = ROI_MATCHER
    sampler: Sampler = Sampler(num=512, foreground_fraction=0.25)
    coder: BoxCoder = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))
    smooth_l1_beta: float = 1.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    num_detections: int = 100


class FasterRCNN(Detector):
    """A two-stage detector; Mask R-CNN where it has a mask branch.

    Args:
        roi_pooling: SingleLevelPooling, AdaptiveFeaturePooling or SoftRoISelection.
        finest_side: by which RoIs count as P2's to P5's, also where Soft RoI Selection does not need it (Figure 4).
    """

    def __init__(
        self,
        num_classes: int,
        preprocessing: Preprocessing,
        backbone: Backbone,
        pyramid: FeaturePyramid,
        region_proposals: RegionProposals,
        roi_pooling: nn.Module,
        box_head: BoxHead,
        box_rules: BoxRules,
        mask_branch: MaskBranch | None = None,
        consistent_supervision: ConsistentSupervision | None = None,
        finest_side: float = FINEST_SIDE,
    ) -> None:
        super().__init__(num_classes, preprocessing, backbone, pyramid, consistent_supervision)
        self.region_proposals = region_proposals
        self.roi_pooling = roi_pooling
        self.box_head = box_head
        self.box_rules = box_rules
        self.mask_branch = mask_branch
        self.needs_masks = mask_branch is not None
        self.finest_side = finest_side

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        rules = self.box_rules
        pyramid = self.features(images)
        predictions = self.region_proposals(pyramid)
        losses: dict[str, Tensor] = self.region_proposals.losses(predictions, targets, images.sizes)
        with torch.no_grad():
            proposals = self.region_proposals.propose(predictions, images.sizes)
            samples = sample_rois(proposals, targets, rules.matcher, rules.sampler)
        box_predictions = self.box_head(self.roi_pooling(pyramid, samples.boxes).fused)
        box = box_losses(box_predictions, samples, rules.coder, rules.smooth_l1_beta)
        losses |= {"loss_classifier": box.classifier, "loss_box_reg": box.box_reg}
        masks = None
        if self.mask_branch is not None:
            masks = mask_samples(samples, targets, rules.sampler.most_foreground)
            losses["loss_mask"] = mask_loss(self.mask_branch(pyramid, masks.rois.boxes), masks)
        if self.consistent_supervision is not None:
            losses |= self.consistent_supervision(pyramid, samples, masks)
        return losses

    @torch.no_grad()
    def detect(self, images: Images) -> Detections:
        rules = self.box_rules
        pyramid = self.features(images)
        proposals = self.region_proposals.propose(self.region_proposals(pyramid), images.sizes)
        detections = detections_from(
            self.box_head(self.roi_pooling(pyramid, proposals.boxes).fused),
            proposals,
            images.sizes,
            rules.coder,
            score_threshold=rules.score_threshold,
            nms_iou=rules.nms_iou,
            num=rules.num_detections,
        )
        if self.mask_branch is None:
            return detections
        return replace(detections, masks=self.mask_branch.segment(pyramid, detections))
