"""What detectors cost, against hand counts, the paper and what torchvision publishes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import torchvision.models.detection as theirs_of

from augfpn.analysis.cost import cost, cost_of_experiment, torchvision_parameters
from augfpn.cli import cost as cost_command
from augfpn.components import SoftRoISelection
from augfpn.detectors import build_from_config
from augfpn.errors import UserError
from augfpn.experiments import PAPER, find_experiment
from augfpn.heads.box import BoxHead
from augfpn.heads.roi_pooling import AdaptiveFeaturePooling
from augfpn.interop import TORCHVISION_DETECTORS
from augfpn.ops import roi_align

README = Path(__file__).parents[2] / "README.md"


def full_size(experiment, num_classes=80):
    """The paper's detector without memory for its weights."""
    model = find_experiment(experiment).model
    config = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, weights=None))
    with torch.device("meta"):
        return build_from_config(config, num_classes)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_hand_count_of_the_two_stage_heads_and_the_pyramid():
    parts = cost_of_experiment("table2/baseline").parts
    # P2…P6 of an image of 800 × 1344.
    cells = [200 * 336, 100 * 168, 50 * 84, 25 * 42, 13 * 21]
    conv, anchors = 256 * 256 * 9, 3
    assert parts["region_proposals"].macs == sum(cells) * (conv + 256 * anchors * (1 + 4))
    lateral = sum(num * width * 256 for num, width in zip(cells[:4], (256, 512, 1024, 2048), strict=True))
    assert parts["pyramid"].macs == lateral + sum(cells[:4]) * conv
    assert parts["box_head"].macs == 2000 * (256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * 81 * (1 + 4))
    assert parts["box_head"].parameters == parts["box_head"].macs // 2000 + 1024 + 1024 + 81 * (1 + 4)
    assert parts["roi_pooling"].macs == parts["roi_pooling"].parameters == 0


def test_a_hand_count_of_the_mask_head():
    head = 4 * 14 * 14 * 256 * 256 * 9 + 14 * 14 * 256 * 256 * 4 + 28 * 28 * 256 * 81
    assert cost_of_experiment("table1/mask_rcnn_r50_fpn_1x").parts["mask_branch"].macs == 100 * head


# On maps of up to 1024 cells RoIAlign is made of matrix products, which a counter sees.
@pytest.mark.parametrize("small_map", [0, 10**9])
def test_soft_roi_selection_costs_its_two_convolutions_whichever_way_rois_are_aligned(monkeypatch, small_map):
    monkeypatch.setattr(roi_align, "SMALL_MAP", small_map)
    mask_rcnn = cost(full_size("table1/mask_rcnn_r50_augfpn_1x"), 256, 256).parts
    a_cell = 4 * 256 * 256 + 256 * 4 * 9
    num_proposals = 2000
    assert mask_rcnn["roi_pooling"].macs == num_proposals * 7 * 7 * a_cell
    without = cost(full_size("table1/mask_rcnn_r50_fpn_1x"), 256, 256).parts
    assert mask_rcnn["mask_branch"].macs - without["mask_branch"].macs == 100 * 14 * 14 * a_cell


def test_consistent_supervision_costs_nothing_at_inference():
    supervised, baseline = full_size("table2/cs"), full_size("table2/baseline")
    shapes = [
        {name: tensor.shape for name, tensor in model.for_inference().state_dict().items()}
        for model in (supervised, baseline)
    ]
    assert shapes[0] == shapes[1]
    ours, theirs = cost(supervised, 800, 1333), cost(baseline, 800, 1333)
    assert ours.parts == theirs.parts
    assert ours.trainable == theirs.trainable
    # In training it is a box head of its own.
    assert (ours.training_only, theirs.training_only) == (theirs.parts["box_head"].parameters, 0)


def test_soft_roi_selection_has_the_papers_extra_parameters():
    """Section 4.4: 0.27 M for Soft RoI Selection, 38.53 M for PANet's adaptive feature pooling."""
    srs, baseline = cost_of_experiment("table2/srs"), cost_of_experiment("table2/baseline")
    assert srs.parameters - baseline.parameters == 271_620
    assert round(271_620 / 1e6, 2) == 0.27


def test_adaptive_feature_pooling_has_the_papers_extra_weights():
    with torch.device("meta"):
        theirs, plain = BoxHead(256, 80, num_levels=4), BoxHead(256, 80)
        assert num_parameters(AdaptiveFeaturePooling()) == 0
        assert num_parameters(SoftRoISelection(256)) == 271_620
    extra = num_parameters(theirs) - num_parameters(plain)
    # The paper does not count the biases of the three more layers.
    assert extra - 3 * 1024 == 38_535_168
    assert int(38_535_168 / 1e4) / 100 == 38.53


# torchvision counts its trained detectors on a square image of noise, which they resize to 800 × 800 (get_ops in its
# test/common_extended_utils.py). It publishes the same number with and without masks: in noise nothing is found.
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fasterrcnn_resnet50_fpn", theirs_of.FasterRCNN_ResNet50_FPN_Weights),
        ("maskrcnn_resnet50_fpn", theirs_of.MaskRCNN_ResNet50_FPN_Weights),
        ("retinanet_resnet50_fpn", theirs_of.RetinaNet_ResNet50_FPN_Weights),
        ("fcos_resnet50_fpn", theirs_of.FCOS_ResNet50_FPN_Weights),
    ],
)
def test_parameters_and_multiply_adds_are_those_that_torchvision_publishes(name, weights):
    with torch.device("meta"):
        detector = build_from_config(TORCHVISION_DETECTORS[name], num_classes=90)
    ours = cost(detector, 800, 800)
    parameters, macs = ours.parameters, ours.macs
    if "mask_branch" in ours.parts:
        macs -= ours.parts["mask_branch"].macs
    if "head" in ours.parts:
        # One-stage detectors of torchvision's have an output for label 0, which no class has.
        per_cell = {"retinanet_resnet50_fpn": 9, "fcos_resnet50_fpn": 1}[name]
        cells = 100 * 100 + 50 * 50 + 25 * 25 + 13 * 13 + 7 * 7
        parameters += per_cell * (256 * 9 + 1)
        macs += cells * per_cell * 256 * 9
    published = weights.COCO_V1.meta
    assert parameters == published["num_params"]
    assert round(macs / 1e9, 3) == published["_ops"]


def test_the_count_of_a_real_detector_is_that_of_its_shapes_and_leaves_it_as_it_was(small_model):
    model = small_model("table2/cs+rfa+srs").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = cost(model, 64, 64)
    assert model.box_head.training
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
    assert ours.parameters + ours.training_only == num_parameters(model)
    # Padded to the same size.
    assert cost(model, 33, 60) == ours


def test_frozen_parameters_are_not_trainable():
    model = full_size("table2/baseline")
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert frozen > 0
    ours = cost_of_experiment("table2/baseline")
    assert ours.parameters - ours.trainable == frozen


@pytest.mark.parametrize("experiment", [id for id in PAPER if id.startswith("table1/") and "augfpn" in id])
def test_augfpn_adds_the_same_to_every_detector_of_table_1(experiment):
    ours, fpn = cost_of_experiment(experiment), cost_of_experiment(PAPER[experiment].baseline)
    c5 = 320 if "mnv2" in experiment else 2048
    convs, fusion = 3 * (c5 + 1) * 256, (3 * 256 + 1) * 256 + 3 * (256 * 9 + 1)
    assert ours.parts["pyramid"].parameters - fpn.parts["pyramid"].parameters == convs + fusion
    num_selections = {"faster": 1, "mask": 2}.get(experiment.split("/")[1].split("_")[0], 0)
    assert ours.parameters - fpn.parameters == convs + fusion + num_selections * 271_620
    # The three contexts are 2 × 4, 5 × 8 and 7 × 12 of the 25 × 42 cells of C5.
    macs = (2 * 4 + 5 * 8 + 7 * 12) * c5 * 256 + 25 * 42 * (3 * 256 * 256 + 256 * 3 * 9)
    assert ours.parts["pyramid"].macs - fpn.parts["pyramid"].macs == macs


def test_the_command_prints_a_row_for_each_experiment_and_writes_the_parts(tmp_path, capsys):
    file = tmp_path / "cost.json"
    cost_command(["table2/baseline", "table2/srs"], out=file)
    _, baseline, srs, conditions, written = capsys.readouterr().out.splitlines()
    assert baseline.split() == ["table2/baseline", "41.70", "230.24"]
    assert srs.split() == ["table2/srs", "41.98", "+0.27", "256.84", "+26.59"]
    assert conditions == "An image of 800 × 1344 pixels with its padding, 80 classes, up to 2000 proposals."
    assert written == str(file)
    content = json.loads(file.read_text())
    assert content["table2/srs"]["parts"]["roi_pooling"]["parameters"] == 271_620
    assert content["table2/srs"]["macs"] == sum(part["macs"] for part in content["table2/srs"]["parts"].values())


def test_the_table_in_the_readme_is_what_the_command_gives():
    for name in ("retinanet", "fcos", "faster_rcnn", "mask_rcnn"):
        fpn, augfpn = (cost_of_experiment(f"table1/{name}_r50_{neck}_1x") for neck in ("fpn", "augfpn"))
        title = PAPER[f"table1/{name}_r50_fpn_1x"].title.split(" ResNet")[0]
        figures = [(one.parameters / 1e6, one.macs / 1e9) for one in (fpn, augfpn)]
        row = " | ".join(f"{before:.2f} | {after:.2f}" for before, after in zip(*figures, strict=True))
        assert f"| {title} | {row} |" in README.read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"experiment": "table1/nothing"}, "There is no experiment 'table1/nothing'"),
        ({"scale": "tiny"}, "There is no scale 'tiny'"),
        ({"num_classes": 0}, "at least one class, not 0"),
        ({"height": 0}, "at least one pixel a side, not 0 × 1333"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        cost_of_experiment(**{"experiment": "table2/baseline"} | arguments)


def test_torchvisions_detectors_have_the_published_parameters_but_for_label_0():
    counts = {name: (ours, published) for name, ours, published in torchvision_parameters()}
    assert counts["fasterrcnn_resnet50_fpn"] == (41_755_286, 41_755_286)
    assert counts["maskrcnn_resnet50_fpn"][0] == counts["maskrcnn_resnet50_fpn"][1]
    # A 3 × 3 convolution of 256 channels with a bias, for each of nine anchors, or once.
    assert counts["retinanet_resnet50_fpn"][1] - counts["retinanet_resnet50_fpn"][0] == 9 * (9 * 256 + 1)
    assert counts["fcos_resnet50_fpn"][1] - counts["fcos_resnet50_fpn"][0] == 9 * 256 + 1
