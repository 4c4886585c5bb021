"""The box head of Faster R-CNN: what is in an RoI, and where exactly.

Two fully connected layers, then a classifier over the classes and background and a box regressor for each class. It is
built twice when there is Consistent Supervision: once as the detector's head, once as the auxiliary one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.initialisation import gaussian, xavier
from augfpn.ops.boxes import BoxCoder, clip, take_boxes
from augfpn.ops.matching import FOREGROUND, Matcher, Sampler
from augfpn.ops.nms import batched_nms
from augfpn.ops.ranks import normaliser
from augfpn.structures import Detections, Proposals, RoISamples, Targets

# Cells a side of the pooled RoI.
ROI_SIZE = 7
# Detections with a side of fewer pixels, as of an RoI that left the image, are none.
SMALLEST_SIDE = 0.01


# Which RoIs are foreground, in the release and in torchvision.
ROI_MATCHER = Matcher(foreground_iou=0.5, background_iou=0.5, lowest_best_iou=0.5)


class BoxPredictions(NamedTuple):
    """``logits (N, K + 1)``, background first; ``deltas (N, K + 1, 4)``, those of background unused."""

    logits: Tensor
    deltas: Tensor


class BoxLosses(NamedTuple):
    classifier: Tensor
    box_reg: Tensor


class BoxHead(nn.Module):
    """Predicts from RoI features ``(N, in_channels, S, S)``.

    Args:
        in_channels: channels of the RoI's features.
        num_classes: K, without background.
        width: of the two fully connected layers.
        roi_size: S.
        num_levels: more than 1 for PANet's adaptive feature pooling, whose features are ``(N, L, in_channels, S, S)``.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 1024, roi_size: int = ROI_SIZE, num_levels: int = 1
    ) -> None:
        super().__init__()
        inputs = in_channels * roi_size**2
        self.fc1 = xavier(nn.Linear(inputs, width)) if num_levels == 1 else MaxOverLevels(inputs, width, num_levels)
        self.fc2 = xavier(nn.Linear(width, width))
        self.classifier = gaussian(nn.Linear(width, num_classes + 1), std=0.01)
        self.regressor = gaussian(nn.Linear(width, (num_classes + 1) * 4), std=0.001)

    def forward(self, features: Tensor) -> BoxPredictions:
        hidden = self.fc2(self.fc1(features.flatten(-3)).relu()).relu()
        # In fp32, and so their losses, also in mixed precision.
        return BoxPredictions(self.classifier(hidden).float(), self.regressor(hidden).unflatten(1, (-1, 4)).float())


class MaxOverLevels(nn.Module):
    """The first layer of a head with PANet's adaptive feature pooling: a layer for each level, then the largest output.

    Three more layers of 12544 × 1024 are what the paper counts as 38.53 M extra parameters (Section 4.4).
    """

    def __init__(self, inputs: int, outputs: int, num_levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(xavier(nn.Linear(inputs, outputs)) for _ in range(num_levels))

    def forward(self, features: Tensor) -> Tensor:
        """``(N, outputs)`` from ``features (N, L, inputs)``."""
        outputs = [layer(of_level) for layer, of_level in zip(self.layers, features.unbind(1), strict=True)]
        return torch.stack(outputs).amax(dim=0)


def sample_rois(proposals: Proposals, targets: Targets, matcher: Matcher, sampler: Sampler) -> RoISamples:
    """Draws the RoIs to train on from the proposals and the ground truth itself, and finds their targets."""
    boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
    valid = torch.cat([proposals.valid, targets.valid], dim=1)
    kinds, objects = matcher(boxes, targets, valid)
    indices, sampled = sampler(kinds)
    boxes, kinds, objects = take_boxes(boxes, indices), kinds.gather(1, indices), objects.gather(1, indices)
    labels = torch.where((kinds == FOREGROUND) & sampled, targets.labels.gather(1, objects), 0)
    return RoISamples(boxes, labels, take_boxes(targets.boxes, objects), objects, sampled)


def box_losses(
    predictions: BoxPredictions, samples: RoISamples, coder: BoxCoder, smooth_l1_beta: float = 1.0
) -> BoxLosses:
    """The two terms of Equation 1 for one set of predictions.

    Cross-entropy, averaged over the sampled RoIs of the batch; smooth L1 of the deltas of the true class, summed over
    the foreground's coordinates and divided by the number of sampled RoIs.
    """
    labels, valid = samples.labels.flatten(), samples.valid.flatten()
    num_sampled = normaliser(valid.sum())
    classifier = (F.cross_entropy(predictions.logits, labels, reduction="none") * valid).sum() / num_sampled
    deltas = predictions.deltas.gather(1, labels[:, None, None].expand(-1, 1, 4)).squeeze(1)
    foreground = labels > 0
    # Background and padding are regressed from a unit box to itself, so that no delta is infinite.
    unit = torch.cat([torch.zeros_like(deltas[:, :2]), torch.ones_like(deltas[:, 2:])], dim=1)
    rois = torch.where(foreground[:, None], samples.boxes.flatten(0, 1), unit)
    towards = torch.where(foreground[:, None], samples.matched_boxes.flatten(0, 1), unit)
    goal = coder.encode(towards, rois)
    distance = F.smooth_l1_loss(deltas, goal, reduction="none", beta=smooth_l1_beta).sum(dim=1)
    return BoxLosses(classifier, (distance * foreground).sum() / num_sampled)


def detections_from(
    predictions: BoxPredictions,
    proposals: Proposals,
    sizes: Tensor,
    coder: BoxCoder,
    *,
    score_threshold: float,
    nms_iou: float,
    num: int,
) -> Detections:
    """The best ``num`` detections of each image of ``sizes (B, 2)``, after suppression within each class."""
    num_images, num_rois = proposals.valid.shape
    scores = predictions.logits.float().softmax(dim=1)[:, 1:].reshape(num_images, num_rois, -1)
    num_classes = scores.shape[-1]
    deltas = predictions.deltas[:, 1:].reshape(num_images, num_rois, num_classes, 4)
    boxes = coder.decode(deltas, proposals.boxes[:, :, None, :]).flatten(1, 2)
    boxes = clip(boxes, sizes)
    labels = torch.arange(1, num_classes + 1, device=scores.device).expand(num_images, num_rois, -1).flatten(1)
    has_area = (boxes[..., 2:] - boxes[..., :2] >= SMALLEST_SIDE).all(dim=-1)
    candidates = ((scores > score_threshold) & proposals.valid[..., None]).flatten(1) & has_area
    scores = scores.flatten(1)
    indices, valid = batched_nms(boxes, scores, labels, candidates, nms_iou, num)
    return Detections(
        boxes=take_boxes(boxes, indices),
        scores=scores.gather(1, indices) * valid,
        labels=labels.gather(1, indices) * valid,
        valid=valid,
        rois=take_boxes(proposals.boxes, indices // num_classes),
    )
