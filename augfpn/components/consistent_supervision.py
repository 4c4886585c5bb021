"""Consistent Supervision (Section 3.1): the same supervision on every level before the levels are fused.

The RoIs that the box head is trained on are pooled from every lateral M2…M5, too. One auxiliary head, shared by the
levels, classifies and refines them, so the levels have to agree on what they mean (Equation 1):

    auxiliary loss = λ · sum over M = 2…5 of (L_cls(p_M, t) + [t > 0] · L_loc(d_M, b))

It exists in training only; a detector for inference simply has none (`Detector.for_inference`). For Mask R-CNN an
auxiliary mask head is supervised in the same way on the foreground RoIs, which the paper does not mention; the release
does it and finds its gain marginal.

Departures: following the release, λ (0.25) weighs both auxiliary terms, and Equation 1's α between classification and
localisation, whose value the paper does not give, is 1. The equation also sums the original loss over P2…P5;
since an RoI has one prediction there, that is the ordinary loss of the box head.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from augfpn.heads.box import ROI_SIZE, BoxHead, box_losses
from augfpn.heads.mask import MASK_ROI_SIZE, MaskHead, MaskSamples, mask_loss
from augfpn.ops.boxes import BoxCoder
from augfpn.ops.level_assignment import FINEST_SIDE, assigned_levels
from augfpn.ops.roi_align import roi_align_assigned_level, roi_align_every_level
from augfpn.structures import Pyramid, RoISamples


class ConsistentSupervision(nn.Module):
    """The auxiliary heads and their losses.

    Args:
        head: a box head of its own, not shared with the detector's.
        coder: how box deltas are scaled, as in the detector's box head.
        weight: λ of Equation 1.
        levels: supervise "all" levels, or only the one "assigned" to each RoI by its size (Table 3's single level).
        finest_side: for the assigned level, see `augfpn.ops.level_assignment`.
        mask_head: for Mask R-CNN, a mask head of its own.
    """

    def __init__(
        self,
        head: BoxHead,
        coder: BoxCoder,
        weight: float = 0.25,
        levels: Literal["all", "assigned"] = "all",
        finest_side: float = FINEST_SIDE,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.coder = coder
        self.weight = weight
        self.levels = levels
        self.finest_side = finest_side
        self.mask_head = mask_head

    def forward(self, pyramid: Pyramid, samples: RoISamples, masks: MaskSamples | None = None) -> dict[str, Tensor]:
        """The weighted auxiliary losses of the laterals.

        Args:
            pyramid: its laterals are supervised.
            samples: the RoIs sampled for the box head.
            masks: the RoIs sampled for the mask head, where there is one.
        """
        pooled = self._pool(pyramid, samples.boxes, ROI_SIZE)
        num_levels = pooled.shape[1]
        # Smooth L1 with β = 1, as in the release, whatever the conventions of the detector's own box head.
        # A mean over RoIs and levels is 1 / num_levels of the equation's sum over levels of means over RoIs.
        weight = self.weight * num_levels
        box = box_losses(self.head(pooled.flatten(0, 1)), samples.repeated(num_levels), self.coder)
        losses = {"loss_aux_classifier": weight * box.classifier, "loss_aux_box_reg": weight * box.box_reg}
        if self.mask_head is not None and masks is not None:
            pooled = self._pool(pyramid, masks.rois.boxes, MASK_ROI_SIZE)
            logits = self.mask_head(pooled.flatten(0, 1))
            losses["loss_aux_mask"] = weight * mask_loss(logits, masks.repeated(num_levels))
        return losses

    def _pool(self, pyramid: Pyramid, boxes: Tensor, output_size: int) -> Tensor:
        """``(B · R, L, C, S, S)``: ``boxes (B, R, 4)`` from every lateral, or from the assigned one with L = 1."""
        laterals = pyramid.laterals
        strides = pyramid.strides[: len(laterals)]
        if self.levels == "all":
            return roi_align_every_level(laterals, strides, boxes, output_size)
        assigned = assigned_levels(boxes, self.finest_side, len(laterals))
        return roi_align_assigned_level(laterals, strides, boxes, assigned, output_size)[:, None]
