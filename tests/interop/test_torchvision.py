"""torchvision's detectors and ours with the same weights, on the same real images."""

import dataclasses

import pytest
import torch
import torchvision.models.detection as theirs_of
from torch import nn

from augfpn.components import FeaturePyramid
from augfpn.data.coco import CocoDataset
from augfpn.data.synthetic import SyntheticDataset
from augfpn.detectors import build_from_config
from augfpn.errors import UserError
from augfpn.heads.region_proposals import ProposalCounts
from augfpn.interop import TORCHVISION_DETECTORS, from_torchvision, torchvision_detector
from augfpn.ops.matching import Sampler
from augfpn.structures import Images

NUM_CLASSES = 91
SIDES = {"min_size": 256, "max_size": 416}
TWO_STAGE = ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"]
ONE_STAGE = ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
# Low enough that images are full of detections of an untrained model.
NUM_PROPOSALS = 200
THRESHOLDS = {"retinanet_resnet50_fpn": 0.012, "fcos_resnet50_fpn": 0.3}


# On photographs the same again, which takes two minutes: in the slow tests.
@pytest.fixture(scope="module", params=["synthetic", pytest.param("real", marks=pytest.mark.slow)])
def samples(request):
    """Images of several shapes with their objects, one of them with none."""
    if request.param == "real":
        root = request.getfixturevalue("real_images") / "coco_tiny"
        dataset = CocoDataset.open(root, "val", masks=True)
    else:
        # Others have a detection that overlaps another by 0.5000019, or a like number that rounding decides about.
        dataset = SyntheticDataset(256, 4, seed=2, masks=True)
    chosen = [dataset[index] for index in range(4)]
    nothing = dataclasses.replace(chosen[-1], boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    nothing = dataclasses.replace(nothing, masks=chosen[-1].masks[:0])
    return [*chosen[:-1], nothing]


def images_of(samples):
    return [sample.image.float() / 255 for sample in samples]


def targets_of(samples):
    return [{"boxes": s.boxes, "labels": s.labels, "masks": s.masks} for s in samples]


def torchvisions(name, samples, **options):
    """A model with a fixed seed, whose features have the spread of a trained one's."""
    torch.manual_seed(0)
    model = getattr(theirs_of, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **SIDES, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model.backbone(model.transform(images_of(samples))[0].tensors)
    # In our memory format, so that rounding differs as little as possible.
    model.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        # Scores and boxes that differ from place to place by more than rounding.
        if name in TWO_STAGE:
            model.rpn.head.cls_logits.weight *= 20
        else:
            head = model.head
            head.classification_head.cls_logits.weight *= 6
            # Label 0, which is no class, and which a trained model never detects.
            head.classification_head.cls_logits.weight[::NUM_CLASSES] = 0
            head.classification_head.cls_logits.bias[::NUM_CLASSES] = -1000
    return model


def ours_of(name, model):
    detector = torchvision_detector(name, model.state_dict(), batch_norm_eps=1e-5)
    detector.preprocessing.short_side, detector.preprocessing.long_side = SIDES["min_size"], SIDES["max_size"]
    return detector


def same_detection(one, other, tolerances):
    """``(N, M)``: whether two detections are the same up to rounding."""
    same = one["labels"][:, None] == other["labels"]
    for name, tolerance in tolerances.items():
        apart = (one[name][:, None] - other[name]).abs()
        same &= (apart.amax(dim=2) if apart.ndim == 3 else apart) < tolerance
    return same


@pytest.mark.parametrize("name", TORCHVISION_DETECTORS)
def test_detections_are_the_same(name, samples):
    threshold = THRESHOLDS.get(name, 0.0115)
    option = "score_thresh" if name in ONE_STAGE else "box_score_thresh"
    options = {option: threshold}
    if name in TWO_STAGE:
        # Of a thousand proposals, rounding would now and then let one overlap another by just more or less than 0.7.
        options |= {"rpn_pre_nms_top_n_test": NUM_PROPOSALS, "rpn_post_nms_top_n_test": NUM_PROPOSALS}
    theirs = torchvisions(name, samples, **options)
    ours = ours_of(name, theirs).eval()
    if name in ONE_STAGE:
        selection = dataclasses.replace(ours.head.rules.selection, score_threshold=threshold)
        ours.head.rules = dataclasses.replace(ours.head.rules, selection=selection)
    else:
        ours.box_rules = dataclasses.replace(ours.box_rules, score_threshold=threshold)
        counts = ProposalCounts(before_nms=NUM_PROPOSALS, num=NUM_PROPOSALS)
        ours.region_proposals.rules = dataclasses.replace(ours.region_proposals.rules, inference=counts)
    with torch.no_grad():
        expected, actual = theirs(images_of(samples)), ours(images_of(samples))
    for one, other in zip(expected, actual, strict=True):
        assert len(one["labels"]) == len(other["labels"]) >= 50
        assert one["scores"].diff().abs().max() > 1e-4
        same = same_detection(one, other, {"boxes": 0.01, "scores": 1e-4})
        # Detections of the same score are in any order; each has its own partner all the same.
        assert same.any(dim=1).all()
        assert same.any(dim=0).all()
        if name == "maskrcnn_resnet50_fpn":
            partner = same.to(torch.uint8).argmax(dim=1)
            different = (one["masks"] > 0.5) != (other["masks"][partner] > 0.5)
            # Where rounding puts a side of a box on another side of a whole pixel, a row of the pasted mask differs.
            assert different.float().mean() < 1e-4
            assert different.float().sum() < one["masks"].gt(0.5).sum()
    if name == "maskrcnn_resnet50_fpn":
        assert_same_masks_before_they_are_pasted(theirs, ours, images_of(samples))


def assert_same_masks_before_they_are_pasted(theirs, ours, images):
    seen = []
    with torch.no_grad():
        hook = theirs.roi_heads.register_forward_hook(lambda _, inputs, output: seen.extend(map(dict, output[0])))
        theirs(images)
        hook.remove()
        found = ours.detect(Images.pad([ours.preprocessing.resize(image) for image in images]))
    for position, one in enumerate(seen):
        valid = found.valid[position]
        other = {name: getattr(found, name)[position, valid] for name in ("boxes", "scores", "labels", "masks")}
        partner = same_detection(one, other, {"boxes": 0.01, "scores": 1e-4}).to(torch.uint8).argmax(dim=1)
        assert one["masks"].amax() - one["masks"].amin() > 0.1
        torch.testing.assert_close(other["masks"][partner][:, None], one["masks"], atol=1e-3, rtol=0)


LOSS_NAMES = {
    "loss_classifier": "loss_classifier",
    "loss_box_reg": "loss_box_reg",
    "loss_objectness": "loss_objectness",
    "loss_rpn_box_reg": "loss_rpn_box_reg",
    "loss_mask": "loss_mask",
    "classification": "loss_classifier",
    "bbox_regression": "loss_box_reg",
    "bbox_ctrness": "loss_centerness",
}


@pytest.mark.parametrize("name", TORCHVISION_DETECTORS)
def test_losses_and_gradients_are_the_same_where_sampling_takes_everything(name, samples):
    options = {}
    if name in TWO_STAGE:
        options = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 100}
        options |= {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 4096}
    theirs = torchvisions(name, samples, **options)
    ours = ours_of(name, theirs).train()
    if name in TWO_STAGE:
        rules = ours.region_proposals.rules
        counts = ProposalCounts(before_nms=200, num=100)
        everything = Sampler(num=10**6, foreground_fraction=0.5)
        ours.region_proposals.rules = dataclasses.replace(rules, training=counts, sampler=everything)
        sampler = Sampler(num=4096, foreground_fraction=0.25)
        ours.box_rules = dataclasses.replace(ours.box_rules, sampler=sampler)
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()

    expected = theirs(images_of(samples), targets_of(samples))
    actual = ours(images_of(samples), targets_of(samples))
    assert {LOSS_NAMES[key] for key in expected} == actual.keys()
    for key, loss in expected.items():
        torch.testing.assert_close(actual[LOSS_NAMES[key]], loss, rtol=1e-4, atol=1e-6)

    sum(expected.values()).backward()
    sum(actual.values()).backward()
    gradients = from_torchvision({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    compared = 0
    for parameter_name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            # Rounding flips a ReLU here and there, whose gradient is 0 or 1, and the more the deeper.
            similarity = torch.cosine_similarity(parameter.grad.flatten(), gradients[parameter_name].flatten(), dim=0)
            assert similarity > 0.999, parameter_name
            compared += 1
    assert compared > 50


def test_names_of_older_torchvisions_are_understood():
    names = {
        "backbone.fpn.inner_blocks.0.weight": "pyramid.lateral_convs.0.weight",
        "rpn.head.conv.weight": "region_proposals.conv.weight",
        "roi_heads.mask_head.mask_fcn2.bias": "mask_branch.head.convs.1.bias",
        "head.regression_head.conv.6.weight": "head.regression_tower.convs.3.weight",
    }
    assert list(from_torchvision({name: torch.zeros(1, 1, 1, 1) for name in names})) == list(names.values())


@pytest.mark.parametrize("name", ONE_STAGE)
def test_a_head_alone_is_translated_with_or_without_its_prefix(name):
    theirs = getattr(theirs_of, name)(weights=None, weights_backbone=None, num_classes=NUM_CLASSES).head
    alone = from_torchvision(theirs.state_dict())
    inside = from_torchvision({f"head.{key}": value for key, value in theirs.state_dict().items()})
    assert [f"head.{key}" for key in alone] == list(inside)
    with torch.device("meta"):
        ours = build_from_config(TORCHVISION_DETECTORS[name], NUM_CLASSES - 1)
    assert alone.keys() == ours.head.state_dict().keys()
    assert all(alone[key].shape == value.shape for key, value in ours.head.state_dict().items())


def test_two_stage_parts_are_translated_alone():
    theirs = theirs_of.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert "conv.weight" in from_torchvision(theirs.rpn.state_dict())
    assert {"box_head.fc1.weight", "mask_branch.head.classifier.bias"} <= from_torchvision(
        theirs.roi_heads.state_dict()
    ).keys()


@pytest.mark.parametrize("prefix", ["", "neck.", "backbone.fpn.", "fpn."])
def test_a_pyramid_alone_is_translated_with_or_without_its_prefix(prefix):
    theirs = theirs_of.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone.fpn
    ours = from_torchvision({f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()})
    pyramid = nn.ModuleDict({"pyramid": FeaturePyramid([256, 512, 1024, 2048])})
    (pyramid if prefix else pyramid["pyramid"]).load_state_dict(ours)


def test_what_is_unknown_is_named():
    with pytest.raises(UserError, match=r"torchvision's detectors: rpn.head.nonsense.weight"):
        from_torchvision({"rpn.head.nonsense.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"did you mean 'retinanet_resnet50_fpn'\?"):
        torchvision_detector("retinanet_resnet50", {}, batch_norm_eps=1e-5)
