"""At which size an experiment is run. The experiment stays the same difference to its baseline at every scale.

- ``smoke``: a few steps on the CPU, to see that everything works. Its figures mean nothing.
- ``micro``: minutes on two CPU cores, from scratch, on synthetic data. Its AP means something, but not the paper's.
- ``mini``: the paper's own architecture from scratch on one GPU; a row in minutes.
- ``paper``: the paper's settings on COCO 2017 (README, Departures, lists what differs all the same).

What a scale replaces is all in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from augfpn.errors import UserError
from augfpn.experiments.config import (
    AnyDetectorConfig,
    BackboneConfig,
    BoxConfig,
    DataConfig,
    FasterRCNNConfig,
    FCOSConfig,
    MaskConfig,
    Precision,
    ProposalConfig,
    RetinaNetConfig,
    RunConfig,
    SyntheticConfig,
    TrainingConfig,
)
from augfpn.experiments.paper import EXPERIMENTS, find_experiment, unknown
from augfpn.experiments.rows import Experiment
from augfpn.experiments.variants import from_scratch


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks a cluster for: GPUs, CPU cores, memory in MB, and the minutes after which it is taken to hang."""

    gpus: int
    cpus: int
    memory: int
    minutes: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """``model`` turns an experiment's model into the one that is run; ``data`` is without a root.

    ``training``: of experiments with the 1x schedule; None for the experiment's own. ``one_stage_training``: where
    one-stage detectors need another. ``resources``: of a run with the 1x schedule on one device.
    """

    name: str
    model: Callable[[AnyDetectorConfig], AnyDetectorConfig]
    data: DataConfig
    training: TrainingConfig | None
    resources: Resources
    one_stage_training: TrainingConfig | None = None

    def training_of(self, experiment: Experiment) -> TrainingConfig:
        is_one_stage = not isinstance(experiment.model, FasterRCNNConfig)
        own = self.one_stage_training or self.training if is_one_stage else self.training
        if own is None:
            return experiment.training
        assert own.steps is not None
        assert experiment.training.epochs is not None
        # 1x and 2x of Table 1 stay a factor of two.
        return replace(own, steps=own.steps * experiment.training.epochs // _EPOCHS_1X)

    def resources_of(self, experiment: Experiment, devices: int = 1) -> Resources:
        """Of a training on so many devices: each has the memory of one, and the time is as long as that of one."""
        assert experiment.training.epochs is not None
        one = self.resources
        minutes = one.minutes * experiment.training.epochs // _EPOCHS_1X
        return Resources(gpus=one.gpus * devices, cpus=one.cpus * devices, memory=one.memory * devices, minutes=minutes)


_EPOCHS_1X = 12

# What stands for the paper's backbones where images are small: as much deeper or lighter than one another as can be had
# in minutes. There is one ResNeXt for both.
_SMALL_BACKBONES = {
    "resnet50": "resnet10t",
    "resnet101": "resnet14t",
    "resnext101_32x4d": "resnext26ts",
    "resnext101_64x4d": "resnext26ts",
    "mobilenetv2_100": "mobilenetv2_050",
}


def _small(
    channels: int, width: int, num_proposals: int, num_sampled: int
) -> Callable[[AnyDetectorConfig], AnyDetectorConfig]:
    """A model for images of about 128 pixels: anchors, ranges, strides and level assignment shrink with them."""

    def shrink(model: AnyDetectorConfig) -> AnyDetectorConfig:
        small = replace(
            model,
            backbone=BackboneConfig(
                name=_SMALL_BACKBONES[model.backbone.name], weights=None, frozen_stages=0, frozen_batch_norm=False
            ),
            channels=channels,
            box=BoxConfig(width=width, num_sampled=num_sampled),
            # So small an image has few anchors that do not leave it.
            conventions=replace(model.conventions, train_inside_only=False),
        )
        if isinstance(small, RetinaNetConfig | FCOSConfig):
            small = replace(
                small,
                finest_level=2,
                tower_convs=2,
                proposals_before_nms=num_proposals,
                num_proposals=num_proposals,
            )
        if isinstance(small, RetinaNetConfig):
            return replace(small, anchor_scale=3.0)
        if isinstance(small, FCOSConfig):
            return replace(small, finest_range=12.0)
        return replace(
            small,
            finest_side=14.0,
            proposals=ProposalConfig(
                anchor_scale=3.0,
                num_sampled=64,
                num_before_nms=num_proposals,
                num=num_proposals,
            ),
            mask=None if small.mask is None else MaskConfig(width=channels // 2),
        )

    return shrink


# The paper's SGD and its steps are made for pretrained backbones and twelve epochs. From scratch and in minutes, AdamW
# with a cosine schedule gets further.
_FROM_SCRATCH = TrainingConfig(
    optimizer="adamw", weight_decay=0.05, epochs=None, steps=1, warmup_start=0.1, schedule="cosine"
)

_MICRO = replace(
    _FROM_SCRATCH,
    learning_rate=1e-3,
    reference_batch_size=4,
    # Small batches: what counts in minutes is the number of steps.
    batch_size=4,
    steps=600,
    warmup_steps=50,
    checkpoint_every=100,
    num_workers=0,
)

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="smoke",
            model=_small(channels=16, width=32, num_proposals=32, num_sampled=16),
            data=DataConfig(synthetic=SyntheticConfig(size=64, num_train=8, num_val=4), short_side=64, long_side=128),
            training=replace(
                _FROM_SCRATCH,
                learning_rate=1e-3,
                reference_batch_size=2,
                batch_size=2,
                steps=4,
                warmup_steps=2,
                log_every=1,
                checkpoint_every=2,
                num_workers=0,
            ),
            resources=Resources(gpus=0, cpus=1, memory=4000, minutes=20),
        ),
        Scale(
            name="micro",
            model=_small(channels=64, width=256, num_proposals=128, num_sampled=64),
            data=DataConfig(
                synthetic=SyntheticConfig(size=128, num_train=1500, num_val=250), short_side=160, long_side=256
            ),
            training=_MICRO,
            # Focal loss finds objects soon, but takes longer to tell classes apart.
            one_stage_training=replace(_MICRO, learning_rate=2e-3, steps=1000),
            resources=Resources(gpus=0, cpus=1, memory=6000, minutes=120),
        ),
        Scale(
            name="mini",
            model=from_scratch,
            data=DataConfig(
                synthetic=SyntheticConfig(size=512, num_train=4000, num_val=500), short_side=512, long_side=853
            ),
            training=replace(
                _FROM_SCRATCH, learning_rate=4e-4, steps=1500, warmup_steps=100, checkpoint_every=500, num_workers=8
            ),
            resources=Resources(gpus=1, cpus=8, memory=32_000, minutes=240),
        ),
        Scale(
            name="paper",
            model=lambda model: model,
            data=DataConfig(),
            training=None,
            resources=Resources(gpus=1, cpus=8, memory=64_000, minutes=3 * 24 * 60),
        ),
    )
}


def run_as(experiment: str, scale: str) -> str:
    """The id under which an experiment is run at a scale: that of the first row with the same model and training.

    Tables 2 to 5 share their baseline and more; at small scales rows of Table 1 may come to the same, too. Table 1 is
    the last to give its id, so that ablations are named after ablations.

    >>> run_as("table3/all_level_0.25", "micro"), run_as("table1/faster_rcnn_r50_augfpn_1x", "paper")
    ('table2/cs', 'table2/cs+rfa+srs')
    """
    if scale not in SCALES:
        raise UserError(unknown("scale", scale, SCALES))
    wanted = at_scale(find_experiment(experiment).id, scale)
    rows = sorted(EXPERIMENTS.values(), key=lambda row: row.table == "table1")
    return next(row.id for row in rows if at_scale(row.id, scale) == wanted)


@cache
def at_scale(experiment: str, scale: str) -> tuple[AnyDetectorConfig, TrainingConfig]:
    """What is run for an experiment at a scale: the model and the training."""
    described = EXPERIMENTS[experiment]
    return SCALES[scale].model(described.model), SCALES[scale].training_of(described)


def default_run_path(experiment: str, scale: str, seed: int) -> Path:
    """Where a run is kept unless another place is named."""
    return Path("runs") / scale / run_as(experiment, scale) / f"seed{seed}"


def plan(
    experiment: str,
    scale: str,
    *,
    seed: int = 0,
    data: str | None = None,
    overfit: int | None = None,
    strict: bool = False,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    backbone_weights: str | None = None,
    backbone_style: Literal["pytorch", "caffe"] | None = None,
    precision: Precision | None = None,
) -> RunConfig:
    """The whole description of a run of an experiment at a scale.

    Args:
        experiment: an id such as ``table2/cs+rfa+srs``. The run is named after the first row that is the same
            (`run_as`).
        scale: smoke, micro, mini or paper.
        seed: of the weights, the order of the images, their augmentation, and the sampling of RoIs.
        data: a folder in COCO's layout in the place of the synthetic data; the ``paper`` scale needs one.
        overfit: train and evaluate on the first so many training images.
        strict: refuse a data set with faulty boxes rather than drop them.
        steps: train for so many steps in the place of the scale's.
        batch_size: images a step in the place of the scale's; the learning rate follows.
        learning_rate: the rate itself, for the batch size that is used.
        backbone_weights: a file, an http(s) URL or a tag of timm's, in the place of the weights that the backbone
            starts from.
        backbone_style: what those weights are for, see `augfpn.detectors.backbone`.
        precision: fp32 or bf16, in the place of the scale's.
    """
    if scale not in SCALES:
        raise UserError(unknown("scale", scale, SCALES))
    chosen = SCALES[scale]
    data_config = replace(chosen.data, overfit=overfit, strict=strict)
    if data is not None:
        # Absolute, so that the run can be evaluated from anywhere.
        data_config = replace(data_config, root=str(Path(data).resolve()), synthetic=None)
    elif chosen.data.synthetic is None:
        raise UserError(
            f"The scale {scale!r} trains on real images: say where they are with --data DIR (COCO's layout)."
        )
    if overfit is not None:
        data_config = replace(data_config, flip_probability=0.0)
    name = run_as(experiment, scale)
    model, training = at_scale(name, scale)
    data_config = replace(data_config, masks=model.needs_masks)
    if steps is not None:
        training = replace(training, steps=steps, epochs=None)
    if batch_size is not None:
        training = replace(training, batch_size=batch_size)
    if learning_rate is not None:
        training = replace(training, learning_rate=learning_rate, reference_batch_size=training.batch_size)
    if precision is not None:
        training = replace(training, precision=precision)
    if backbone_weights is not None:
        file = Path(backbone_weights).expanduser()
        weights = str(file.resolve()) if file.is_file() else backbone_weights
        model = replace(model, backbone=replace(model.backbone, weights=weights))
    if backbone_style is not None:
        model = replace(model, backbone=replace(model.backbone, style=backbone_style))
    return RunConfig(
        experiment=name,
        scale=scale,
        seed=seed,
        model=model,
        data=data_config,
        training=training,
    )
