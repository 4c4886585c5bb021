"""What a detector costs at inference: parameters, and multiply-adds of one image.

Nothing is computed for it: the detector stands on PyTorch's meta device, where tensors have shapes and no values, so
that all rows of Table 1 take seconds.

What is counted:

- **Parameters** are those of the detector for inference, without Consistent Supervision. As with torchvision's
  detectors, a frozen batch norm has none: its values are buffers.
- **Multiply-adds** (one multiplication with its addition is 1) of convolutions and matrix products, as torchvision and
  most papers count "FLOPs"; PyTorch's own counter says twice as much. Element-wise operations, pooling, resizing and
  non-maximum suppression count as nothing, and so does RoIAlign, whichever of its two ways (`augfpn.ops.roi_align`)
  the size of a level asks for.
- Every RoI is counted that the detector has room for, whatever the image: ``num_proposals`` in the box head,
  ``num_detections`` in the mask branch.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from augfpn.detectors.build import build_from_config
from augfpn.detectors.detector import Detector
from augfpn.detectors.faster_rcnn import FasterRCNN
from augfpn.errors import UserError
from augfpn.experiments.config import AnyDetectorConfig
from augfpn.experiments.paper import find_experiment, unknown
from augfpn.experiments.scales import SCALES
from augfpn.interop import TORCHVISION_DETECTORS
from augfpn.structures import Detections, Images

# Table 1 is about COCO.
COCO_CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Of one part of a detector: its ``parameters``, and its ``macs``, multiply-adds an image."""

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a detector at inference.

    ``parts``: by the names of the detector's parts, such as ``backbone``. ``trainable``: how many parameters are not
    frozen. ``training_only``: the parameters of Consistent Supervision, which are in none of the other numbers.
    ``height`` and ``width``: of the image in pixels, padded. ``num_proposals``: RoIs of the box head, fewer
    where a small image has fewer anchors; 0 in one-stage detectors.
    """

    parts: dict[str, PartCost]
    trainable: int
    training_only: int
    height: int
    width: int
    num_proposals: int

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def macs(self) -> int:
        return sum(part.macs for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the totals, as JSON can have it."""
        return {"parameters": self.parameters, "macs": self.macs, **asdict(self)}


def cost(detector: Detector, height: int, width: int) -> Cost:
    """What ``detector``, on any device, costs for an image that is resized to ``height`` × ``width`` pixels.

    The image is padded as in `augfpn.structures.Images`. The detector itself stays as it is.
    """
    if height < 1 or width < 1:
        raise UserError(f"An image has at least one pixel a side, not {height} × {width}.")
    shapes = copy.deepcopy(detector).to("meta")
    inference = shapes.for_inference()
    images = Images.pad([torch.empty(3, height, width, device="meta")])
    with FlopCounterMode(display=False) as counter:
        _Detection(inference)(images)
    return Cost(
        parts={
            name: PartCost(parameters=_count(part), macs=_macs(counter, name))
            for name, part in inference.named_children()
        },
        trainable=_count(inference, trainable=True),
        training_only=_count(shapes) - _count(inference),
        height=images.pixels.shape[2],
        width=images.pixels.shape[3],
        num_proposals=inference.region_proposals.rules.inference.num if isinstance(inference, FasterRCNN) else 0,
    )


def cost_of_experiment(
    experiment: str,
    scale: str = "paper",
    *,
    num_classes: int = COCO_CLASSES,
    height: int | None = None,
    width: int | None = None,
) -> Cost:
    """What the detector of an experiment costs at a scale.

    Args:
        experiment: an id such as ``table1/faster_rcnn_r50_augfpn_1x``.
        scale: smoke, micro, mini or paper.
        num_classes: K, without background.
        height: of the resized image in pixels; None for the scale's, at the paper's its short side, 800.
        width: likewise; at the paper's scale its long side, 1333.
    """
    if scale not in SCALES:
        raise UserError(unknown("scale", scale, SCALES))
    if num_classes < 1:
        raise UserError(f"There must be at least one class, not {num_classes}.")
    chosen = SCALES[scale]
    short, long = chosen.data.resized_sides
    # Synthetic images are square.
    long = long if chosen.data.synthetic is None else short
    model = chosen.model(find_experiment(experiment).model)
    return _cost_of_config(model, num_classes, short if height is None else height, long if width is None else width)


@cache
def _cost_of_config(config: AnyDetectorConfig, num_classes: int, height: int, width: int) -> Cost:
    """Remembered, because rows of Table 1 differ in how long they are trained, or are compared with the same one."""
    config = replace(config, backbone=replace(config.backbone, weights=None))
    with torch.device("meta"):
        return cost(build_from_config(config, num_classes), height, width)


def torchvision_parameters() -> list[tuple[str, int, int]]:
    """The name of each of torchvision's detectors, our parameters, and those that torchvision publishes for it.

    Its one-stage detectors have an output more a place, for label 0 (`augfpn.interop.torchvision`).
    """
    counts = []
    for name, config in TORCHVISION_DETECTORS.items():
        published = get_model_weights(name)["COCO_V1"].meta
        num_classes = len(published["categories"]) - 1
        with torch.device("meta"):
            counts.append((name, _count(build_from_config(config, num_classes)), published["num_params"]))
    return counts


class _Detection(nn.Module):
    """Detects when it is called: the counter follows calls of modules, and so knows the parts by their names."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Images) -> Detections:
        return self.detector.detect(images)


def _macs(counter: FlopCounterMode, part: str) -> int:
    """Multiply-adds of one of the detector's parts."""
    path = f"_Detection.detector.{part}"
    counts = counter.get_flop_counts()
    flops = sum(counts.get(path, {}).values())
    for module, of_module in counts.items():
        # The only batched matrix products in RoI pooling are RoIAlign's; what fuses levels there are convolutions.
        if f"{module}.".startswith(f"{path}.") and module.endswith(".roi_pooling"):
            flops -= of_module.get(torch.ops.aten.bmm, 0)
    return flops // 2


def _count(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trainable)
