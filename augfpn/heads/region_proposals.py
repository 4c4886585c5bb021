"""The region proposal network: where there may be an object, of whatever class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augfpn.initialisation import gaussian
from augfpn.ops.anchors import AnchorGenerator
from augfpn.ops.best import best_of_each_level
from augfpn.ops.boxes import BoxCoder, clip, take_boxes
from augfpn.ops.matching import FOREGROUND, Matcher, Sampler
from augfpn.ops.nms import batched_nms
from augfpn.ops.ranks import normaliser
from augfpn.structures import Proposals, Pyramid, Targets

# Proposals with a side of fewer pixels, as of an anchor outside the image, are none.
SMALLEST_SIDE = 1e-3


class ProposalPredictions(NamedTuple):
    """Of all anchors, level after level: ``logits (B, A)``, ``deltas (B, A, 4)``, ``anchors (A, 4)``."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    num_anchors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ProposalCounts:
    """The best ``before_nms`` anchors of each level go through suppression, the best ``num`` of an image come out."""

    before_nms: int = 2000
    num: int = 2000


@dataclass(frozen=True, kw_only=True)
class ProposalRules:
    """How anchors are trained and proposals chosen. The values are the paper's settings (Section 4.2)."""

    matcher: Matcher = Matcher(foreground_iou=0.7, background_iou=0.3, lowest_best_iou=0.3)
    sampler: Sampler = Sampler(num=256, foreground_fraction=0.5)
    coder: BoxCoder = BoxCoder()
    smooth_l1_beta: float = 1 / 9
    train_inside_only: bool = True
    nms_iou: float = 0.7
    training: ProposalCounts = ProposalCounts()
    inference: ProposalCounts = ProposalCounts()


class RegionProposals(nn.Module):
    """Scores and refines anchors on every level of the pyramid.

    Args:
        channels: of the pyramid.
        anchors: the anchor shapes.
        rules: training and selection.
    """

    def __init__(self, channels: int, anchors: AnchorGenerator, rules: ProposalRules) -> None:
        super().__init__()
        self.anchors = anchors
        self.rules = rules
        self.conv = gaussian(nn.Conv2d(channels, channels, kernel_size=3, padding=1), std=0.01)
        self.objectness = gaussian(nn.Conv2d(channels, anchors.num_per_cell, kernel_size=1), std=0.01)
        self.deltas = gaussian(nn.Conv2d(channels, anchors.num_per_cell * 4, kernel_size=1), std=0.01)

    def forward(self, pyramid: Pyramid) -> ProposalPredictions:
        logits, deltas = [], []
        for level in pyramid.levels:
            hidden = self.conv(level).relu()
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(level), -1, 4))
        anchors = self.anchors(pyramid.levels, pyramid.strides)
        return ProposalPredictions(
            # In fp32, and so their losses, also in mixed precision.
            torch.cat(logits, dim=1).float(),
            torch.cat(deltas, dim=1).float(),
            torch.cat(anchors),
            tuple(len(of_level) for of_level in anchors),
        )

    @torch.no_grad()
    def propose(self, predictions: ProposalPredictions, sizes: Tensor) -> Proposals:
        """The best proposals of each image of ``sizes (B, 2)``, after suppression within each level."""
        counts = self.rules.training if self.training else self.rules.inference
        indices = best_of_each_level(predictions.logits, predictions.num_anchors, counts.before_nms)
        levels = _repeat_each(predictions.num_anchors, counts.before_nms, indices.device).expand_as(indices)
        scores = predictions.logits.gather(1, indices).float().sigmoid()
        anchors = predictions.anchors[indices]
        boxes = clip(self.rules.coder.decode(take_boxes(predictions.deltas, indices), anchors), sizes)
        has_area = (boxes[..., 2:] - boxes[..., :2] >= SMALLEST_SIDE).all(dim=-1)
        num = min(counts.num, indices.shape[1])
        kept, valid = batched_nms(boxes, scores, levels, has_area, self.rules.nms_iou, num)
        return Proposals(take_boxes(boxes, kept), scores.gather(1, kept) * valid, valid)

    def losses(self, predictions: ProposalPredictions, targets: Targets, sizes: Tensor) -> dict[str, Tensor]:
        """Objectness and box losses of a random sample of anchors, averaged over the sampled anchors of the batch."""
        anchors = predictions.anchors
        usable = _inside(anchors, sizes) if self.rules.train_inside_only else None
        kinds, objects = self.rules.matcher(anchors, targets, usable)
        indices, sampled = self.rules.sampler(kinds)
        num_sampled = normaliser(sampled.sum())
        foreground = (kinds.gather(1, indices) == FOREGROUND) & sampled
        objectness = F.binary_cross_entropy_with_logits(
            predictions.logits.gather(1, indices), foreground.to(predictions.logits.dtype), reduction="none"
        )
        loss_objectness = (objectness * sampled).sum() / num_sampled

        deltas, references = take_boxes(predictions.deltas, indices), anchors[indices]
        matched = take_boxes(targets.boxes, objects.gather(1, indices))
        towards = torch.where(foreground[..., None], matched, references)
        goal = self.rules.coder.encode(towards, references)
        distance = F.smooth_l1_loss(deltas, goal, reduction="none", beta=self.rules.smooth_l1_beta).sum(dim=-1)
        return {
            "loss_objectness": loss_objectness,
            "loss_rpn_box_reg": (distance * foreground).sum() / num_sampled,
        }


def _repeat_each(num_anchors: Sequence[int], num: int, device: torch.device) -> Tensor:
    """``(N)``: the level of each position that `best_of_each_level` gives."""
    return torch.cat(
        [torch.full((min(num, n),), level, dtype=torch.int64, device=device) for level, n in enumerate(num_anchors)]
    )


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """``(B, A)``: which of ``anchors (A, 4)`` do not leave their image of ``sizes (B, 2)``."""
    height, width = sizes[:, :1], sizes[:, 1:]
    x1, y1, x2, y2 = anchors.unbind(-1)
    return (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
