"""The release's names of weights; that they are used rightly, the golden tensors show in tests/components."""

import itertools
from dataclasses import replace

import pytest
import torch

from augfpn import build_from_config
from augfpn.errors import UserError
from augfpn.experiments import find_experiment
from augfpn.interop import from_release

WEIGHT_BIAS = ("weight", "bias")


def both(*names):
    return [f"{name}.{kind}" for name, kind in itertools.product(names, WEIGHT_BIAS)]


def neck(num_laterals, num_outputs):
    convs = [f"lateral_convs.{i}.conv" for i in range(num_laterals)]
    convs += [f"fpn_convs.{i}.conv" for i in range(num_outputs)]
    context = [f"high_lateral_conv.{i}" for i in range(3)]
    context += [f"high_lateral_conv_attention.{i}" for i in (0, 2)]
    return both(*(f"neck.{name}" for name in convs + context))


def box_head(prefix):
    return both(*(f"{prefix}.{name}" for name in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")))


def mask_head(prefix):
    return both(*(f"{prefix}.{name}" for name in (*(f"convs.{i}.conv" for i in range(4)), "upsample", "conv_logits")))


def soft_roi_selection(prefix):
    return both(*(f"{prefix}.spatial_attention_conv.{i}" for i in (0, 2)))


RPN = both("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
FASTER_RCNN = [
    *neck(4, 4),
    *RPN,
    *soft_roi_selection("bbox_roi_extractor"),
    *box_head("bbox_head"),
    *box_head("auxiliary_bbox_head"),
]
MASK_RCNN = [
    *FASTER_RCNN,
    *soft_roi_selection("mask_roi_extractor"),
    *mask_head("mask_head"),
    *mask_head("auxiliary_mask_head"),
]
RETINANET = [
    *neck(3, 5),
    *both(*(f"bbox_head.{tower}_convs.{i}" for tower in ("cls", "reg") for i in range(4))),
    *both("bbox_head.retina_cls", "bbox_head.retina_reg"),
    *box_head("auxiliary_bbox_head"),
]
FCOS = [
    *neck(3, 5),
    *(f"bbox_head.{tower}_convs.{i}.conv.weight" for tower in ("cls", "reg") for i in range(4)),
    *both(*(f"bbox_head.{tower}_convs.{i}.gn" for tower in ("cls", "reg") for i in range(4))),
    *both("bbox_head.fcos_cls", "bbox_head.fcos_reg", "bbox_head.fcos_centerness"),
    *(f"bbox_head.scales.{i}.scale" for i in range(5)),
    *box_head("auxiliary_bbox_head"),
]


@pytest.mark.parametrize(
    ("experiment", "names"),
    [
        ("table1/faster_rcnn_r50_augfpn_1x", FASTER_RCNN),
        ("table1/mask_rcnn_r50_augfpn_1x", MASK_RCNN),
        ("table1/retinanet_r50_augfpn_1x", RETINANET),
        ("table1/fcos_r50_augfpn_1x", FCOS),
    ],
)
def test_every_weight_of_a_detector_has_its_place(experiment, names):
    config = find_experiment(experiment).model
    with torch.device("meta"):
        model = build_from_config(replace(config, backbone=replace(config.backbone, weights=None)), num_classes=80)
    # The backbone is a ResNet by the names of torchvision, there as here.
    backbone = [name.replace("backbone.body.", "backbone.") for name in model.state_dict() if "backbone" in name]
    numbered = {name: torch.tensor(number) for number, name in enumerate([*backbone, *names])}
    ours = from_release({f"module.{name}": tensor for name, tensor in numbered.items()})
    assert sorted(ours) == sorted(model.state_dict())
    assert sorted(tensor.item() for tensor in ours.values()) == list(range(len(numbered)))


def test_a_part_alone_is_translated_with_or_without_its_prefix():
    names = [name.removeprefix("neck.") for name in neck(3, 5)]
    alone = from_release({name: torch.zeros(1) for name in names})
    inside = from_release({f"neck.{name}": torch.zeros(1) for name in names})
    assert [f"pyramid.{name}" for name in alone] == list(inside)
    assert {"top.p6.weight", "top.p7.bias", "output_convs.2.weight"} <= alone.keys()


def test_what_is_unknown_is_named():
    with pytest.raises(UserError, match=r"authors' release: neck.bifpn.0.weight"):
        from_release({"neck.bifpn.0.weight": torch.zeros(1)})
