"""A trained detector with Soft RoI Selection's weights turned by hand, or with a component taken out at inference.

    RoI features = sum over l = 2…5 of weights'_l · features_l                                   (Section 3.3)
    weights'_l   = k_l · weights_l  ("factors")   or   k_l at every cell of every RoI  ("fixed")

The detector was not trained like that. What it then does shows what this trained detector relies on, and not what one
would do that was trained without the component: that is Table 2. Even a component that gains nothing can cost much when
it is taken out, because all that comes after it was trained on what it gave.

The weights are not normalised, after an alteration as before it. To turn one down makes the RoI's features smaller,
too, and the box head was trained on features of some size: half of all four changes the detections as well, although
no level's share does.

Consistent Supervision (Section 3.1) exists in training only. It is in the weights of a trained detector and nowhere in
its computation, so that there is nothing to take out: compare with a run that was trained without it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from augfpn.components.adaptive_fusion import AdaptiveChannelFusion, AdaptiveSpatialFusion, SumFusion
from augfpn.components.soft_roi_selection import SoftRoISelection
from augfpn.detectors.detector import AnyDetector, Detector
from augfpn.detectors.faster_rcnn import FasterRCNN
from augfpn.errors import UserError
from augfpn.heads.roi_pooling import SingleLevelPooling
from augfpn.ops.level_assignment import NUM_ROI_LEVELS
from augfpn.structures import Fusion

WeightsAre = Literal["factors", "fixed"]


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """What is altered in a detector; by default nothing.

    In Mask R-CNN, the mask branch has a Soft RoI Selection of its own. It is altered like that of the boxes, so that
    "off" means off; its weights have 14 × 14 cells.

    A UserError for values that are impossible, and for weights of a Soft RoI Selection that is taken out.

    Attributes:
        level_weights: for P2…P5, finite and not negative; None leaves Soft RoI Selection's weights as they are.
        weights_are: "factors" multiply the weights that the RoI's features give, "fixed" ones stand in their place.
            Factors of 1 are no alteration.
        soft_roi_selection: False takes every RoI from the single level that FPN's heuristic assigns it to.
        residual_feature_augmentation: False adds nothing to M5, nor to P6 of one-stage detectors.
    """

    level_weights: tuple[float, float, float, float] | None = None
    weights_are: WeightsAre = "factors"
    soft_roi_selection: bool = True
    residual_feature_augmentation: bool = True

    def __post_init__(self) -> None:
        weights = self.level_weights
        if self.weights_are not in get_args(WeightsAre):
            raise UserError(f"weights_are must be {' or '.join(get_args(WeightsAre))}; found {self.weights_are!r}.")
        if weights is not None and (
            len(weights) != NUM_ROI_LEVELS or not all(math.isfinite(weight) and weight >= 0 for weight in weights)
        ):
            raise UserError(
                f"level_weights must be four finite numbers that are not negative, for P2…P5; found {weights}."
            )
        if self.turns_weights and not self.soft_roi_selection:
            raise UserError(
                f"Without Soft RoI Selection there are no weights that level_weights={weights} could turn: "
                "leave it in, or its weights as they are (level_weights=None)."
            )

    @property
    def turns_weights(self) -> bool:
        """Whether the weights of Soft RoI Selection become others; factors of 1 leave them as they are."""
        if self.level_weights is None:
            return False
        return self.weights_are == "fixed" or any(weight != 1 for weight in self.level_weights)

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing, in whatever detector."""
        return not self._fields

    @property
    def _fields(self) -> frozenset[str]:
        """The names of the fields that ask for something."""
        asked = {
            "level_weights": self.turns_weights,
            "soft_roi_selection": not self.soft_roi_selection,
            "residual_feature_augmentation": not self.residual_feature_augmentation,
        }
        return frozenset(name for name, is_asked in asked.items() if is_asked)


class WeighedByHand(nn.Module):
    """A fusion whose weights are multiplied with others, or replaced by them.

    Args:
        fusion: a weighted sum: Adaptive Spatial or Channel Fusion, the sum, or a `WeighedByHand`.
        level_weights: k of each input, finest level first.
        weights_are: see `Alteration`.
    """

    def __init__(
        self, fusion: nn.Module, level_weights: tuple[float, ...], weights_are: WeightsAre = "factors"
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.level_weights = level_weights
        self.weights_are = weights_are

    def forward(self, features: Tensor) -> Fusion:
        """Fuses ``features (N, L, C, H, W)``; the weights are those that it was done with."""
        weights = self.weights_of(features)
        maps = weights.mean(dim=2).expand(-1, -1, *features.shape[3:])
        return Fusion((weights * features).sum(dim=1), maps)

    def weights_of(self, features: Tensor) -> Tensor:
        """What ``features (N, L, C, H, W)`` are multiplied with, as ``(N, L, 1, H, W)``.

        Of Adaptive Channel Fusion ``(N, L, C, 1, 1)``; fixed ones are the same everywhere, ``(N, L, 1, 1, 1)``.
        """
        by_hand = features.new_tensor(self.level_weights)[None, :, None, None, None]
        if self.weights_are == "fixed":
            return by_hand.expand(len(features), -1, -1, -1, -1)
        if isinstance(self.fusion, WeighedByHand):
            return by_hand * self.fusion.weights_of(features)
        if isinstance(self.fusion, AdaptiveChannelFusion):
            return by_hand * self.fusion.channel_weights(features)[..., None, None]
        learnt: Tensor = self.fusion(features).weights
        return by_hand * learnt[:, :, None]


def applicable(model: Detector) -> frozenset[str]:
    """The fields of `Alteration` that mean something for a detector.

    ``level_weights`` needs a Soft RoI Selection that sums the levels by weights: the maximum of Table 5 has none.
    ``weights_are`` needs weights that are learnt: to the sum's, which are 1, factors and fixed weights are the same.
    """
    fields = set()
    if model.pyramid.residual_feature_augmentation is not None:
        fields.add("residual_feature_augmentation")
    if isinstance(model, FasterRCNN) and isinstance(model.roi_pooling, SoftRoISelection):
        fields.add("soft_roi_selection")
        fusion = model.roi_pooling.fusion
        if isinstance(fusion, AdaptiveSpatialFusion | AdaptiveChannelFusion | WeighedByHand):
            fields |= {"level_weights", "weights_are"}
        elif isinstance(fusion, SumFusion):
            fields.add("level_weights")
    return frozenset(fields)


def altered(model: AnyDetector, alteration: Alteration) -> AnyDetector:
    """Another detector, in the same mode, that is altered and shares all parameters and buffers with ``model``.

    The modules are its own, so that ``model`` stays as it is, and each can be put into evaluation mode by itself. The
    weights are the same tensors: it costs no memory, and to train one is to change both.

    A UserError for an alteration of what the detector does not have (`applicable`).
    """
    can = applicable(model)
    if cannot := alteration._fields - can:
        rest = ", ".join(sorted(can)) or "nothing"
        raise UserError(
            f"{', '.join(sorted(cannot))} cannot be altered in this detector: it has {_parts(model)}. "
            f"What can be altered in it: {rest}."
        )
    # What is in the memo counts as copied.
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    if not alteration.residual_feature_augmentation:
        other.pyramid.residual_feature_augmentation = None
    if isinstance(other, FasterRCNN):
        other.roi_pooling = _altered_pooling(other.roi_pooling, alteration, other.finest_side)
        if other.mask_branch is not None:
            of_masks = other.mask_branch.roi_pooling
            other.mask_branch.roi_pooling = _altered_pooling(of_masks, alteration, other.finest_side)
    return other


def _altered_pooling(pooling: nn.Module, alteration: Alteration, finest_side: float) -> nn.Module:
    """``pooling``, which is altered in place, or what stands in its place."""
    if not isinstance(pooling, SoftRoISelection):
        return pooling
    if not alteration.soft_roi_selection:
        return SingleLevelPooling(pooling.output_size, finest_side).train(pooling.training)
    if alteration.turns_weights:
        assert alteration.level_weights is not None
        by_hand = WeighedByHand(pooling.fusion, alteration.level_weights, alteration.weights_are)
        pooling.fusion = by_hand.train(pooling.training)
    return pooling


def _parts(model: Detector) -> str:
    """What a detector has where AugFPN's components would be."""
    augmentation = "no" if model.pyramid.residual_feature_augmentation is None else "a"
    if not isinstance(model, FasterRCNN):
        rois = "no RoIs, as a one-stage detector"
    elif isinstance(model.roi_pooling, SoftRoISelection):
        rois = f"Soft RoI Selection by {type(model.roi_pooling.fusion).__name__}"
    else:
        rois = f"{type(model.roi_pooling).__name__} for its RoIs"
    return f"{rois}, and {augmentation} Residual Feature Augmentation"
