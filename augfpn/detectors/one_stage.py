"""RetinaNet and FCOS on a feature pyramid; with AugFPN's components where they are given.

C3…C5 = backbone(image)
M3…M5, P3…P7 = pyramid(C3…C5)                     with Residual Feature Augmentation inside, or not
detections = head(P3…P7)                           RetinaNetHead, or FCOSHead
in training: + ConsistentSupervision(M3…M5, RoIs), or not

For small images all of it begins a level finer, with C2 (``finest_level`` in `augfpn.experiments.config`).

There are no RoIs in these detectors, so no Soft RoI Selection. For Consistent Supervision, "the outputs of detectors
instead of RPN are used" (Section 4.3): what the head detects is sampled like the proposals of a two-stage detector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from augfpn.components.consistent_supervision import ConsistentSupervision
from augfpn.components.pyramid import FeaturePyramid
from augfpn.detectors.backbone import Backbone
from augfpn.detectors.detector import Detector
from augfpn.detectors.preprocessing import Preprocessing
from augfpn.heads.box import ROI_MATCHER, sample_rois
from augfpn.heads.dense import DensePredictions, Selection, select
from augfpn.heads.fcos import FCOSHead
from augfpn.heads.retinanet import RetinaNetHead
from augfpn.ops.matching import Sampler
from augfpn.structures import Detections, Images, Proposals, Targets


class OneStageDetector(Detector):
    """RetinaNet or FCOS, by its head.

    Args:
        head: predicts at every place of every level.
        proposal_selection: what of it can be an RoI of Consistent Supervision.
        roi_sampler: draws these RoIs.
    """

    def __init__(
        self,
        num_classes: int,
        preprocessing: Preprocessing,
        backbone: Backbone,
        pyramid: FeaturePyramid,
        head: RetinaNetHead | FCOSHead,
        proposal_selection: Selection,
        roi_sampler: Sampler,
        consistent_supervision: ConsistentSupervision | None = None,
    ) -> None:
        super().__init__(num_classes, preprocessing, backbone, pyramid, consistent_supervision)
        self.head = head
        self.proposal_selection = proposal_selection
        self.roi_sampler = roi_sampler

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        pyramid = self.features(images)
        predictions = self.head(pyramid)
        losses: dict[str, Tensor] = self.head.losses(predictions, targets)
        if self.consistent_supervision is not None:
            with torch.no_grad():
                found = self._select(predictions, images.sizes, self.proposal_selection)
                proposals = Proposals(found.boxes, found.scores, found.valid)
                samples = sample_rois(proposals, targets, ROI_MATCHER, self.roi_sampler)
            losses |= self.consistent_supervision(pyramid, samples)
        return losses

    @torch.no_grad()
    def detect(self, images: Images) -> Detections:
        return self._select(self.head(self.features(images)), images.sizes, self.head.rules.selection)

    def _select(self, predictions: DensePredictions, sizes: Tensor, selection: Selection) -> Detections:
        return select(
            self.head.scores(predictions, selection.score_threshold),
            self.head.boxes(predictions),
            predictions.anchors,
            predictions.num_anchors,
            sizes,
            selection,
        )
