"""FCOS's head: every place predicts the distances to the four sides of its object (Tian et al., FCOS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from augfpn.heads.dense import PRIOR_LOGIT, DensePredictions, Selection, Tower, flatten_places, is_class
from augfpn.initialisation import gaussian
from augfpn.ops.anchors import AnchorGenerator
from augfpn.ops.boxes import area, take_boxes
from augfpn.ops.ranks import normaliser
from augfpn.structures import Pyramid, Targets

# A distance of e^20 pixels is far beyond any image, and the box loss has no slope there. The exponential of much more
# is infinite, and the gradient no number, even in places without an object.
LARGEST_LOG_DISTANCE = 20.0


@dataclass(frozen=True, kw_only=True)
class FCOSRules:
    """How places are trained and detections chosen.

    ``regression_ranges``: the largest distance in pixels that a place of each level but the last has to predict.
    The others: see `augfpn.experiments.conventions`.
    """

    regression_ranges: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    centre_radius: float | None = None
    range_ends: Literal["both", "neither"] = "both"
    centerness_on: Literal["classification", "regression"] = "classification"
    distances: Literal["exp", "relu"] = "exp"
    tower_bias: bool = False
    box_loss: Literal["iou", "giou"] = "iou"
    score: Literal["product", "root"] = "product"
    tower_convs: int = 4
    selection: Selection = Selection()


class FCOSHead(nn.Module):
    """Two towers with group norm, shared by the levels: one classifies, one measures distances.

    Args:
        channels: of the pyramid.
        num_classes: K, without background.
        cells: a place is looked at as an anchor of the size of its cell.
        rules: training and selection.
    """

    def __init__(self, channels: int, num_classes: int, cells: AnchorGenerator, rules: FCOSRules) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.rules = rules
        self.cells = cells
        self.classification_tower = Tower(channels, rules.tower_convs, group_norm=True, bias=rules.tower_bias)
        self.regression_tower = Tower(channels, rules.tower_convs, group_norm=True, bias=rules.tower_bias)
        self.classifier = gaussian(
            nn.Conv2d(channels, num_classes, kernel_size=3, padding=1), std=0.01, bias=PRIOR_LOGIT
        )
        self.regressor = gaussian(nn.Conv2d(channels, 4, kernel_size=3, padding=1), std=0.01)
        self.centerness = gaussian(nn.Conv2d(channels, 1, kernel_size=3, padding=1), std=0.01)
        self.scales = nn.ParameterList(
            nn.Parameter(torch.ones(())) for _ in range(len(rules.regression_ranges) + 1) if rules.distances == "exp"
        )

    def forward(self, pyramid: Pyramid) -> DensePredictions:
        """``deltas`` are the distances to the left, upper, right and lower side, in pixels."""
        logits, distances, centerness = [], [], []
        for i, (level, stride) in enumerate(zip(pyramid.levels, pyramid.strides, strict=True)):
            classification, regression = self.classification_tower(level), self.regression_tower(level)
            logits.append(flatten_places(self.classifier(classification), self.num_classes))
            output = flatten_places(self.regressor(regression), 4)
            distances.append(self._exp(output, i) if self.scales else output.relu() * stride)
            seen = classification if self.rules.centerness_on == "classification" else regression
            centerness.append(flatten_places(self.centerness(seen), 1).squeeze(2))
        cells = self.cells(pyramid.levels, pyramid.strides)
        return DensePredictions(
            # In fp32, and so their losses, also in mixed precision.
            torch.cat(logits, dim=1).float(),
            torch.cat(distances, dim=1).float(),
            torch.cat(centerness, dim=1).float(),
            torch.cat(cells),
            tuple(len(of_level) for of_level in cells),
        )

    def _exp(self, output: Tensor, level: int) -> Tensor:
        # Halves overflow in exp() at 11.
        distances: Tensor = (self.scales[level] * output).float().clamp(max=LARGEST_LOG_DISTANCE).exp()
        return distances

    def losses(self, predictions: DensePredictions, targets: Targets) -> dict[str, Tensor]:
        """Focal loss of all places; box loss (`BOX_LOSSES`) and centerness of the foreground."""
        assert predictions.centerness is not None
        foreground, objects = self._match(predictions, targets)
        labels = torch.where(foreground, targets.labels.gather(1, objects), 0)
        is_true = is_class(labels, self.num_classes).to(predictions.logits.dtype)
        num_foreground = normaliser(foreground.sum())

        cells = predictions.anchors.expand(len(labels), -1, 4)
        # Background is measured from its cell to itself, so that no gradient of it is infinite.
        boxes = torch.where(foreground[..., None], self.boxes(predictions), cells)
        goal = torch.where(foreground[..., None], take_boxes(targets.boxes, objects), cells)
        centerness = _centerness(_distances(_centres(cells), goal)) * foreground
        measured = F.binary_cross_entropy_with_logits(predictions.centerness, centerness, reduction="none")
        focal = sigmoid_focal_loss(predictions.logits, is_true).sum()
        loss_classifier, loss_box_reg = BOX_LOSSES[self.rules.box_loss](focal, boxes, goal, centerness, foreground)
        return {
            "loss_classifier": loss_classifier,
            "loss_box_reg": loss_box_reg,
            "loss_centerness": (measured * foreground).sum() / num_foreground,
        }

    def scores(self, predictions: DensePredictions, threshold: float) -> Tensor:
        """``(B, A, K)``; −1 where it is not above the threshold."""
        assert predictions.centerness is not None
        classes = predictions.logits.float().sigmoid()
        return SCORES[self.rules.score](classes, predictions.centerness.float().sigmoid()[..., None], threshold)

    def boxes(self, predictions: DensePredictions) -> Tensor:
        """``(B, A, 4)``."""
        centres, distances = _centres(predictions.anchors), predictions.deltas
        return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)

    def _match(self, predictions: DensePredictions, targets: Targets) -> tuple[Tensor, Tensor]:
        """``(B, A)`` bool, whether a place is in an object that its level is for; ``(B, A)``, the smallest such one."""
        anchors, num_anchors = predictions.anchors, predictions.num_anchors
        centres = _centres(anchors)
        distances = _distances(centres[None, :, None], targets.boxes[:, None])
        furthest = distances.amax(dim=-1)
        limits = (0.0, *self.rules.regression_ranges, float("inf"))
        least, most = (_of_level(of_levels, num_anchors, anchors) for of_levels in (limits[:-1], limits[1:]))
        fits = (distances.amin(dim=-1) > 0) & (furthest >= least[:, None]) & (furthest <= most[:, None])
        if self.rules.range_ends == "neither":
            fits &= (furthest != least[:, None]) & (furthest != most[:, None])
        if self.rules.centre_radius is not None:
            away = (centres[None, :, None] - _centres(targets.boxes)[:, None]).abs().amax(dim=-1)
            strides = anchors[:, 2] - anchors[:, 0]
            fits &= away < self.rules.centre_radius * strides[:, None]
        fits &= targets.valid[:, None]
        areas = torch.where(fits, area(targets.boxes)[:, None], float("inf"))
        smallest, objects = areas.min(dim=2)
        return smallest < float("inf"), objects


def _weighted_iou_loss(
    focal: Tensor, boxes: Tensor, goal: Tensor, centerness: Tensor, foreground: Tensor
) -> tuple[Tensor, Tensor]:
    """The release's: −log IoU, averaged by centerness; the focal loss over foreground places and images."""
    weights = normaliser(centerness.sum(), least=1e-12)
    of_places = -_iou(boxes, goal).clamp(min=1e-6).log() * centerness
    return focal / normaliser(foreground.sum() + len(foreground)), of_places.sum() / weights


def _giou_loss(
    focal: Tensor, boxes: Tensor, goal: Tensor, centerness: Tensor, foreground: Tensor
) -> tuple[Tensor, Tensor]:
    """torchvision's: generalised IoU, averaged; both losses over foreground places."""
    num_foreground = normaliser(foreground.sum())
    of_places = generalized_box_iou_loss(boxes, goal) * foreground
    return focal / num_foreground, of_places.sum() / num_foreground


def _product(classes: Tensor, centerness: Tensor, threshold: float) -> Tensor:
    return torch.where(classes > threshold, classes * centerness, -1.0)


def _root(classes: Tensor, centerness: Tensor, threshold: float) -> Tensor:
    score = (classes * centerness).sqrt()
    return torch.where(score > threshold, score, -1.0)


# What the names in `FCOSRules` stand for.
BOX_LOSSES = {"iou": _weighted_iou_loss, "giou": _giou_loss}
SCORES = {"product": _product, "root": _root}


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _distances(places: Tensor, boxes: Tensor) -> Tensor:
    """From ``places (…, 2)`` to the left, upper, right and lower side of ``boxes (…, 4)``; negative outside."""
    return torch.cat([places - boxes[..., :2], boxes[..., 2:] - places], dim=-1)


def _centerness(distances: Tensor) -> Tensor:
    """FCOS's Equation 3: 1 in the middle of the box, 0 at its sides."""
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    shares = (horizontal.amin(dim=-1) * vertical.amin(dim=-1)) / (horizontal.amax(dim=-1) * vertical.amax(dim=-1))
    return shares.clamp(min=0).sqrt()


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Of each of ``boxes (…, 4)`` with its own of ``others (…, 4)``."""
    upper, lower = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    width, height = (lower - upper).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection / (area(boxes) + area(others) - intersection).clamp(min=1e-6)


def _of_level(values: tuple[float, ...], num_anchors: tuple[int, ...], like: Tensor) -> Tensor:
    """``(A)``: each level's value for each of its anchors."""
    return torch.cat([like.new_full((num,), value) for value, num in zip(values, num_anchors, strict=True)])
