"""Detectors by a plain call, on backbones of several families."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import augfpn
from augfpn.errors import UserError
from augfpn.experiments.config import ConsistentSupervisionConfig, RetinaNetConfig


@pytest.mark.parametrize(
    ("detector", "backbone", "neck"),
    [
        ("faster_rcnn", "convnext_atto", "augfpn"),
        ("mask_rcnn", "mobilenetv2_100", "fpn"),
        ("retinanet", "pvt_v2_b0", "augfpn"),
        ("fcos", "swin_tiny_patch4_window7_224", "augfpn"),
    ],
)
def test_a_detector_trains_and_detects_on_any_backbone(detector, backbone, neck):
    torch.manual_seed(0)
    build = getattr(augfpn, detector)
    model = build(num_classes=3, neck=neck, backbone=backbone, weights=None, short_side=64, long_side=128)
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 60.0, 50.0]]),
        "labels": torch.tensor([3]),
        "masks": torch.ones(1, 64, 96, dtype=torch.bool),
    }
    losses = model([torch.rand(3, 64, 96)], [target])
    assert ("loss_aux_classifier" in losses) == (neck == "augfpn")
    sum(losses.values()).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    with torch.no_grad():
        [found] = model.eval()([torch.rand(3, 64, 96)])
    assert ("masks" in found) == (detector == "mask_rcnn")


def test_what_starts_at_random_is_not_frozen_and_what_is_pretrained_is(tmp_path):
    model = augfpn.fcos(num_classes=3, backbone="resnet18", weights=None)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())
    torch.save({name.removeprefix("body."): v for name, v in model.backbone.state_dict().items()}, tmp_path / "r18.pth")
    model = augfpn.fcos(num_classes=3, backbone="resnet18", weights=str(tmp_path / "r18.pth"))
    assert not model.backbone.body.layer1[0].conv1.weight.requires_grad
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


def test_one_stage_detectors_assign_no_rois_to_levels():

    config = replace(RetinaNetConfig(), consistent_supervision=ConsistentSupervisionConfig(levels="assigned"))
    config = replace(config, backbone=replace(config.backbone, name="resnet18", weights=None))
    with pytest.raises(UserError, match="levels='all'"):
        augfpn.build_from_config(config, num_classes=3)
