"""The frozen descriptions of which an experiment consists. The defaults are the paper's settings (Section 4.2).

Everything that a run depends on is in its `RunConfig`, which is stored with the run and can be read back. A component
of the paper that is not part of a model is None here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from math import inf
from typing import Any, Literal, get_args

from augfpn.errors import UserError
from augfpn.experiments.checks import (
    read_description,
    require,
    require_choices,
    require_fraction,
    require_positive,
    require_seed,
)
from augfpn.experiments.conventions import RELEASE, Conventions

# The most that fits: channels of a layer, convolutions behind one another, and pixels of a side.
_WIDEST, _DEEPEST, _LONGEST = 16_384, 64, 65_535


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A timm backbone.

    ``weights``: a timm tag such as ``tv_in1k``, a file, an http(s) URL, or None for a random start.
    ``style``: of a ResNet and of its pixels; ``caffe`` is what the original weights were trained with.
    """

    name: str = "resnet50"
    weights: str | None = "tv_in1k"
    frozen_stages: int = 1
    frozen_batch_norm: bool = True
    style: Literal["pytorch", "caffe"] = "pytorch"

    def __post_init__(self) -> None:
        require_choices(self)
        require(0 <= self.frozen_stages <= 4, f"frozen_stages must be 0 to 4 (C2 to C5), not {self.frozen_stages}.")


@dataclass(frozen=True, kw_only=True)
class ConsistentSupervisionConfig:
    """Section 3.1. ``weight``: λ of Equation 1. ``levels``: all of M2…M5, or the one assigned to an RoI by its size."""

    weight: float = 0.25
    levels: Literal["all", "assigned"] = "all"

    def __post_init__(self) -> None:
        require_choices(self)
        require(
            0 < self.weight < inf,
            f"the weight of Consistent Supervision must be positive, not {self.weight}; None trains without it",
        )


@dataclass(frozen=True, kw_only=True)
class ResidualFeatureAugmentationConfig:
    """Section 3.2, and what Table 4 puts in its places.

    ``pooling``: ratio-invariant adaptive average pooling ("ra-ap"), global average or maximum pooling ("gap", "gmp"),
    or PSPNet's ("psp"). ``ratios``: the α of "ra-ap"; the others have none. ``fusion``: by Adaptive Spatial Fusion
    ("asf"), by a sum, or by PSPNet's convolution ("psp").
    """

    pooling: Literal["ra-ap", "gap", "gmp", "psp"] = "ra-ap"
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3)
    fusion: Literal["asf", "sum", "psp"] = "asf"

    def __post_init__(self) -> None:
        require_choices(self)
        require(
            all(0 < ratio <= 1 for ratio in self.ratios) and (len(self.ratios) > 0) == (self.pooling == "ra-ap"),
            "pooling ratios must lie in (0, 1]; 'ra-ap' needs at least one, other poolings have none: "
            f"not {self.ratios} for {self.pooling!r}",
        )


@dataclass(frozen=True, kw_only=True)
class SoftRoISelectionConfig:
    """Section 3.3. ``fusion``: Adaptive Spatial or Channel Fusion ("asf", "acf"), the sum or the maximum (Table 5)."""

    fusion: Literal["asf", "acf", "sum", "max"] = "asf"

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """The region proposal network. Lengths in pixels or strides; ``num_before_nms`` a level, ``num`` an image.

    ``num_at_inference`` takes the place of both counts there; None leaves them as in training.
    """

    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_sampled: int = 256
    num_before_nms: int = 2000
    num: int = 2000
    num_at_inference: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "anchor_scale", "num_sampled", "num_before_nms", "num", "num_at_inference")
        require(
            len(self.anchor_ratios) > 0 and all(0 < ratio < inf for ratio in self.anchor_ratios),
            f"anchor_ratios must be positive numbers, one or more, not {self.anchor_ratios}.",
        )


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """The box head: ``num_sampled`` RoIs an image in training; how detections are chosen."""

    width: int = 1024
    num_sampled: int = 512
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    num_detections: int = 100

    def __post_init__(self) -> None:
        require_positive(self, "width", most=_WIDEST)
        require_positive(self, "num_sampled", "num_detections")
        require_fraction(self, "score_threshold", "nms_iou")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Mask R-CNN's mask branch: ``width`` channels of its convolutions."""

    width: int = 256

    def __post_init__(self) -> None:
        require_positive(self, "width", most=_WIDEST)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What all detectors have. ``conventions``: the fine print, see `augfpn.experiments.conventions`.

    ``box``: in one-stage detectors its width and RoIs are those of Consistent Supervision.
    """

    backbone: BackboneConfig = BackboneConfig()
    channels: int = 256
    consistent_supervision: ConsistentSupervisionConfig | None = None
    residual_feature_augmentation: ResidualFeatureAugmentationConfig | None = None
    box: BoxConfig = BoxConfig()
    conventions: Conventions = RELEASE

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "channels", most=_WIDEST)

    @property
    def needs_masks(self) -> bool:
        """Whether it is trained on instance masks."""
        return False


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(DetectorConfig):
    """Faster R-CNN, or Mask R-CNN where there is a ``mask``; with FPN, or AugFPN where its three components are given.

    ``finest_side``: the side in pixels of the RoIs that P2 is meant for; doubles from level to level.
    ``adaptive_feature_pooling``: PANet's, in the place of FPN's single level (Table 5).
    """

    architecture: Literal["faster_rcnn"] = "faster_rcnn"
    soft_roi_selection: SoftRoISelectionConfig | None = None
    adaptive_feature_pooling: bool = False
    finest_side: float = 56.0
    proposals: ProposalConfig = ProposalConfig()
    mask: MaskConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "finest_side")
        require(
            self.soft_roi_selection is None or not self.adaptive_feature_pooling,
            "RoI features come from Soft RoI Selection or from adaptive feature pooling, not from both.",
        )

    @property
    def needs_masks(self) -> bool:
        return self.mask is not None


@dataclass(frozen=True, kw_only=True)
class OneStageConfig(DetectorConfig):
    """What RetinaNet and FCOS have. ``finest_level``: 3 for a pyramid from P3 on; small images need P2.

    ``tower_convs``: convolutions of each of the head's towers. ``num_before_nms``: detections a level.
    ``proposals_before_nms`` a level and ``num_proposals`` an image: from which RoIs are drawn for Consistent
    Supervision.
    """

    finest_level: Literal[2, 3] = 3
    tower_convs: int = 4
    num_before_nms: int = 1000
    proposals_before_nms: int = 2000
    num_proposals: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "tower_convs", most=_DEEPEST)
        require_positive(self, "num_before_nms", "proposals_before_nms", "num_proposals")


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(OneStageConfig):
    """RetinaNet. ``anchor_scale``: side of its smallest square anchors in strides; then ``num_octave_scales`` up to it
    doubled."""

    architecture: Literal["retinanet"] = "retinanet"
    anchor_scale: float = 4.0
    num_octave_scales: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "anchor_scale", "num_octave_scales")


@dataclass(frozen=True, kw_only=True)
class FCOSConfig(OneStageConfig):
    """FCOS. ``finest_range``: the largest distance in pixels that the finest level has to predict; doubles from level
    to level."""

    architecture: Literal["fcos"] = "fcos"
    finest_range: float = 64.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "finest_range")


AnyDetectorConfig = FasterRCNNConfig | RetinaNetConfig | FCOSConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The synthetic data set: square images of ``size`` pixels, so many for training and for validation.

    ``seed`` is of the images; runs with different seeds of their own see the same images.
    """

    size: int
    num_train: int
    num_val: int
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "size", most=_LONGEST)
        require_positive(self, "num_train", "num_val")
        require_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images. ``root``: a folder in COCO's layout, or None for the synthetic set.

    Real images are resized to ``short_side``, or less where ``long_side`` would be passed. ``overfit``: train and
    evaluate on the first so many training images, without flips. ``masks``: instance masks are loaded and evaluated.
    """

    root: str | None = None
    synthetic: SyntheticConfig | None = None
    short_side: int = 800
    long_side: int = 1333
    flip_probability: float = 0.5
    overfit: int | None = None
    strict: bool = False
    masks: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "short_side", "long_side", most=_LONGEST)
        require_positive(self, "overfit")
        require_fraction(self, "flip_probability")

    @property
    def resized_sides(self) -> tuple[int, int]:
        """The short side of the images that the model sees, and the most that the long one may have."""
        if self.synthetic is not None:
            return self.synthetic.size, 2 * self.synthetic.size
        return self.short_side, self.long_side


Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: either ``epochs`` or ``steps``, the other None.

    ``learning_rate`` is for ``reference_batch_size`` images a step; what is used is linear in ``batch_size``.
    ``milestones``: fractions of the training after which the step schedule divides the rate by ten.
    ``warmup``: the rate rises linearly from ``warmup_start`` of it, or stays "constant" there until the warm-up ends.
    ``clip_norm``: the largest norm of the gradient, or None.
    ``bias_rate``: biases learn at so many times the rate; ``bias_decay``: weight decay is for them, too.
    ``precision``: of losses and gradients; "bf16" is mixed precision, with weights in fp32. Detection is in fp32.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    reference_batch_size: int = 16
    batch_size: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int | None = 12
    steps: int | None = None
    warmup_steps: int = 500
    warmup: Literal["linear", "constant"] = "linear"
    warmup_start: float = 1 / 3
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    clip_norm: float | None = 35.0
    bias_rate: float = 1.0
    bias_decay: bool = True
    precision: Precision = "fp32"
    log_every: int = 10
    checkpoint_every: int = 1000
    num_workers: int = 2

    def __post_init__(self) -> None:
        require_choices(self)
        require(
            (self.epochs is None) != (self.steps is None),
            f"give either epochs or steps, not {self.epochs} and {self.steps}",
        )
        positive = ("learning_rate", "reference_batch_size", "batch_size", "epochs", "steps", "clip_norm", "bias_rate")
        require_positive(self, *positive, "log_every", "checkpoint_every")
        require_fraction(self, "momentum", "weight_decay", "warmup_start")
        require(
            all(0 <= milestone <= 1 for milestone in self.milestones),
            f"milestones must be between 0 and 1, not {self.milestones}.",
        )
        require(self.warmup_steps >= 0, f"warmup_steps must not be negative, but is {self.warmup_steps}.")
        require(0 <= self.num_workers <= 1024, f"num_workers must be 0 to 1024, not {self.num_workers}.")

    @property
    def scaled_learning_rate(self) -> float:
        return self.learning_rate * self.batch_size / self.reference_batch_size

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps of the whole training on ``num_images`` images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return -(-self.epochs * num_images // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: an experiment of the paper at a scale, on a data set, with a seed."""

    experiment: str
    scale: str
    seed: int = 0
    model: AnyDetectorConfig = field(default_factory=FasterRCNNConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require(
            self.data.masks == self.model.needs_masks,
            f"data.masks must be {self.model.needs_masks} for this model, not {self.data.masks}.",
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    @cache
    def from_json(text: str) -> RunConfig:
        """Reads what `to_json` wrote; unknown or wrong fields are a UserError. What was read is remembered."""
        try:
            content = _tuples(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"this is not the description of a run: {error}") from error
        # A field can be missing, because older runs did not have it; a whole part is missing by mistake.
        parts = [part.name for part in fields(RunConfig)]
        missing = [part for part in parts if not isinstance(content, dict) or part not in content]
        require(not missing, f"this is not the description of a run: there is no {', '.join(missing)}")
        # The detector by itself first: of a union, dacite says no more than that nothing matched.
        architectures = {config.architecture: config for config in get_args(AnyDetectorConfig)}
        model = content["model"]
        require(isinstance(model, dict), f"the model must be an object, not {model!r}")
        name = model.get("architecture")
        require(name in list(architectures), f"the architecture {name!r} is none of {', '.join(architectures)}")
        return read_description(RunConfig, {**content, "model": read_description(architectures[name], model)})


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The fields in which two configurations differ, such as ``model.channels: 256 → 64``.

    >>> differences(FasterRCNNConfig(), FasterRCNNConfig(channels=64))
    ['channels: 256 → 64']
    """
    found = []
    for name in (entry.name for entry in fields(before)):
        old, new = getattr(before, name), getattr(after, name)
        if is_dataclass(old) and is_dataclass(new):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old} → {new}")
    return found


def _tuples(value: Any) -> Any:
    """JSON knows lists only; all sequences of a configuration are tuples."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
