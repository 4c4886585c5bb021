"""Consistent Supervision (Section 3.1): the same supervision on every level before the levels are fused.

The RoIs that the box head is trained on are pooled from every lateral M2…M5, too. One auxiliary head, shared by the
levels, classifies and refines them, so the levels have to agree on what they mean (Equation 1):

    auxiliary loss = λ · sum over M = 2…5 of (L_cls(p_M, t) + [t > 0] · L_loc(d_M, b))

It exists in training only; a detector for inference simply has none.

Departures: Equation 1 names λ without showing where it stands. Following the release, λ (0.25) weighs both auxiliary
terms, and the α between classification and localisation is 1. The equation also sums the original loss over P2…P5;
since an RoI has one prediction there, that is the ordinary loss of the box head.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from augfpn.heads.box import BoxHead, box_losses
from augfpn.ops.boxes import BoxCoder
from augfpn.ops.level_assignment import FINEST_SIDE, assigned_levels
from augfpn.ops.roi_align import roi_align_assigned_level, roi_align_every_level
from augfpn.structures import Pyramid, RoISamples


class ConsistentSupervision(nn.Module):
    """The auxiliary head and its loss.

    Args:
        head: a box head of its own, not shared with the detector's.
        coder: how box deltas are scaled, as in the detector's box head.
        weight: λ of Equation 1.
        levels: supervise "all" levels, or only the one "assigned" to each RoI by its size (Table 3's single level).
        finest_side: for the assigned level, see `augfpn.ops.level_assignment`.
    """

    def __init__(
        self,
        head: BoxHead,
        coder: BoxCoder,
        weight: float = 0.25,
        levels: Literal["all", "assigned"] = "all",
        finest_side: float = FINEST_SIDE,
    ) -> None:
        super().__init__()
        self.head = head
        self.coder = coder
        self.weight = weight
        self.levels = levels
        self.finest_side = finest_side

    def forward(self, pyramid: Pyramid, samples: RoISamples) -> dict[str, Tensor]:
        """The weighted auxiliary losses of the laterals, for the RoIs sampled for the box head."""
        laterals = pyramid.laterals
        strides = pyramid.strides[: len(laterals)]
        if self.levels == "all":
            pooled = roi_align_every_level(laterals, strides, samples.boxes)
        else:
            assigned = assigned_levels(samples.boxes, self.finest_side, len(laterals))
            pooled = roi_align_assigned_level(laterals, strides, samples.boxes, assigned)[:, None]
        num_levels = pooled.shape[1]
        predictions = self.head(pooled.flatten(0, 1))
        # A mean over RoIs and levels is 1 / num_levels of the equation's sum over levels of means over RoIs.
        losses = box_losses(predictions, samples.repeated(num_levels), self.coder)
        weight = self.weight * num_levels
        return {"loss_aux_classifier": weight * losses.classifier, "loss_aux_box_reg": weight * losses.box_reg}
