"""RetinaNet's head: every anchor is classified and refined at once (Lin et al., Focal Loss for Dense Detection)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from augfpn.heads.dense import PRIOR_LOGIT, DensePredictions, Selection, Tower, flatten_places, is_class
from augfpn.initialisation import gaussian
from augfpn.ops.anchors import AnchorGenerator
from augfpn.ops.boxes import BoxCoder, take_boxes
from augfpn.ops.matching import FOREGROUND, IGNORED, Matcher
from augfpn.ops.ranks import normaliser
from augfpn.structures import Pyramid, Targets


@dataclass(frozen=True, kw_only=True)
class RetinaNetRules:
    """How anchors are trained and detections chosen. ``mean``: see `augfpn.experiments.conventions`."""

    matcher: Matcher = Matcher(foreground_iou=0.5, background_iou=0.4, lowest_best_iou=0.0)
    coder: BoxCoder = BoxCoder()
    smooth_l1_beta: float = 0.11
    mean: Literal["batch", "image"] = "batch"
    tower_convs: int = 4
    selection: Selection = Selection()


class RetinaNetHead(nn.Module):
    """Two towers, shared by the levels: one classifies, one refines.

    Args:
        channels: of the pyramid.
        num_classes: K, without background.
        anchors: the anchor shapes.
        rules: training and selection.
    """

    def __init__(self, channels: int, num_classes: int, anchors: AnchorGenerator, rules: RetinaNetRules) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.anchors = anchors
        self.rules = rules
        self.classification_tower = Tower(channels, rules.tower_convs)
        self.regression_tower = Tower(channels, rules.tower_convs)
        per_cell = anchors.num_per_cell
        self.classifier = gaussian(
            nn.Conv2d(channels, per_cell * num_classes, kernel_size=3, padding=1), std=0.01, bias=PRIOR_LOGIT
        )
        self.regressor = gaussian(nn.Conv2d(channels, per_cell * 4, kernel_size=3, padding=1), std=0.01)

    def forward(self, pyramid: Pyramid) -> DensePredictions:
        logits, deltas = [], []
        for level in pyramid.levels:
            logits.append(flatten_places(self.classifier(self.classification_tower(level)), self.num_classes))
            deltas.append(flatten_places(self.regressor(self.regression_tower(level)), 4))
        anchors = self.anchors(pyramid.levels, pyramid.strides)
        return DensePredictions(
            # In fp32, and so their losses, also in mixed precision.
            torch.cat(logits, dim=1).float(),
            torch.cat(deltas, dim=1).float(),
            None,
            torch.cat(anchors),
            tuple(len(of_level) for of_level in anchors),
        )

    def losses(self, predictions: DensePredictions, targets: Targets) -> dict[str, Tensor]:
        """Focal loss of all anchors that are not ignored, smooth L1 of the foreground's deltas."""
        kinds, objects = self.rules.matcher(predictions.anchors, targets)
        foreground = kinds == FOREGROUND
        labels = torch.where(foreground, targets.labels.gather(1, objects), 0)
        is_true = is_class(labels, self.num_classes).to(predictions.logits.dtype)
        focal = sigmoid_focal_loss(predictions.logits, is_true).sum(dim=2) * (kinds != IGNORED)

        anchors = predictions.anchors.expand(len(labels), -1, 4)
        towards = torch.where(foreground[..., None], take_boxes(targets.boxes, objects), anchors)
        goal = self.rules.coder.encode(towards, anchors)
        distance = F.smooth_l1_loss(predictions.deltas, goal, reduction="none", beta=self.rules.smooth_l1_beta)
        box_reg = distance.sum(dim=2) * foreground
        return {
            "loss_classifier": self._mean(focal, foreground),
            "loss_box_reg": self._mean(box_reg, foreground),
        }

    def _mean(self, values: Tensor, foreground: Tensor) -> Tensor:
        """The sum of ``values (B, A)`` over the number of ``foreground (B, A)`` anchors, at least one an image."""
        sums, counts = values.sum(dim=1), foreground.sum(dim=1).clamp(min=1)
        return sums.sum() / normaliser(counts.sum()) if self.rules.mean == "batch" else (sums / counts).mean()

    def scores(self, predictions: DensePredictions, threshold: float) -> Tensor:
        """``(B, A, K)``; −1 where it is not above the threshold."""
        scores = predictions.logits.float().sigmoid()
        return torch.where(scores > threshold, scores, -1.0)

    def boxes(self, predictions: DensePredictions) -> Tensor:
        """``(B, A, 4)``."""
        return self.rules.coder.decode(predictions.deltas, predictions.anchors)
