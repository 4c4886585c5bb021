"""RetinaNet and FCOS as detectors: which proposals Consistent Supervision takes, and what inference leaves out."""

from dataclasses import replace

import pytest
import torch
import torchvision

from augfpn.detectors import build_detector, one_stage
from augfpn.heads.dense import Selection
from augfpn.structures import Images, Targets

AUGFPN = ["table1/retinanet_r50_augfpn_1x", "table1/fcos_r50_augfpn_1x"]
ALL = [*AUGFPN, "table1/mask_rcnn_r50_augfpn_1x"]
OBJECTS = torch.tensor([[5.0, 5.0, 40.0, 40.0], [20.0, 30.0, 60.0, 60.0]])


def batch():
    torch.manual_seed(1)
    images = Images.pad([torch.rand(3, 64, 64), torch.rand(3, 50, 64)])
    masks = [torch.ones(2, 64, 64).byte(), torch.ones(0, 50, 64).byte()]
    labels = [torch.tensor([1, 4]), torch.zeros(0).long()]
    return images, Targets.pad([OBJECTS, torch.zeros(0, 4)], labels, masks, (64, 64))


def observed(model, monkeypatch):
    """What `sample_rois` is given and returns in a training step, and the losses."""
    seen = {}

    def sample_rois(proposals, targets, matcher, sampler):
        samples = original(proposals, targets, matcher, sampler)
        seen.update(proposals=proposals, matcher=matcher, sampler=sampler, samples=samples)
        return samples

    original = one_stage.sample_rois
    monkeypatch.setattr(one_stage, "sample_rois", sample_rois)
    seen["losses"] = model.losses(*batch())
    return seen


RELEASE = Selection(score_threshold=0.01, num_before_nms=2000, nms_iou=0.7, num=1000)


@pytest.mark.parametrize("experiment", AUGFPN)
def test_the_releases_proposals_are_the_papers_scales(experiment):
    with torch.device("meta"):
        assert build_detector(experiment, num_classes=80, pretrained=False).proposal_selection == RELEASE


@pytest.mark.parametrize("experiment", AUGFPN)
def test_proposals_are_the_heads_own_detections_by_the_releases_rule(small_model, monkeypatch, experiment):
    model = small_model(experiment)
    model.proposal_selection = RELEASE
    proposals = observed(model, monkeypatch)["proposals"]
    images, _ = batch()
    predictions = model.head(model.features(images))
    classes, boxes = predictions.logits.sigmoid(), model.head.boxes(predictions)
    ranks = classes if predictions.centerness is None else classes * predictions.centerness.sigmoid()[..., None]
    for image, (height, width) in enumerate(images.sizes.tolist()):
        candidates, start = [], 0
        for num in predictions.num_anchors:
            level = slice(start, start + num)
            place, k = (classes[image, level] > 0.01).nonzero().unbind(1)
            score = ranks[image, level][place, k]
            best = score.argsort(descending=True)[:2000]
            candidates.append(torch.stack([place[best] + start, k[best]], dim=1))
            start += num
        place, k = torch.cat(candidates).unbind(1)
        limits = torch.tensor([width, height, width, height])
        inside = torch.minimum(boxes[image, place].clamp(min=0), limits)
        kept = torchvision.ops.batched_nms(inside, ranks[image, place, k], k, 0.7)[:1000]
        valid = proposals.valid[image]
        assert valid.sum() == len(kept) > 10
        torch.testing.assert_close(proposals.scores[image, valid], ranks[image, place, k][kept])
        assert proposals.boxes.shape[1] == 1000


@pytest.mark.parametrize("experiment", AUGFPN)
def test_ground_truth_is_among_the_rois_and_no_gradient_flows_through_them(small_model, monkeypatch, experiment):
    seen = observed(small_model(experiment), monkeypatch)
    samples = seen["samples"]
    assert (seen["matcher"].foreground_iou, seen["matcher"].background_iou) == (0.5, 0.5)
    assert seen["sampler"].foreground_fraction == 0.25
    assert not seen["proposals"].boxes.requires_grad
    assert not samples.boxes.requires_grad
    # An untrained head proposes hardly anything right: what is foreground is there because the objects themselves are.
    foreground = samples.labels[0] > 0
    assert foreground.any()
    found = torchvision.ops.box_iou(samples.boxes[0, foreground], samples.matched_boxes[0, foreground]).diagonal()
    assert (found >= 0.5).all()
    assert not (samples.labels[1] > 0).any()


@pytest.mark.parametrize("experiment", AUGFPN)
def test_the_auxiliary_losses_reach_the_laterals_but_not_the_detectors_head(small_model, experiment):
    model = small_model(experiment)
    losses = model.losses(*batch())
    sum(loss for name, loss in losses.items() if name.startswith("loss_aux")).backward()
    assert all(parameter.grad is None for parameter in model.head.parameters())
    assert all(conv.weight.grad.abs().sum() > 0 for conv in model.pyramid.lateral_convs)


def test_512_rois_a_quarter_of_them_foreground_in_the_papers_size():
    model = build_detector(AUGFPN[0], num_classes=3, pretrained=False)
    assert (model.roi_sampler.num, model.roi_sampler.foreground_fraction) == (512, 0.25)
    assert model.consistent_supervision.weight == 0.25
    assert model.pyramid.strides == (8, 16, 32, 64, 128)
    assert len(model.pyramid.lateral_convs) == 3


@pytest.mark.parametrize("experiment", ALL)
def test_every_parameter_that_is_trained_receives_a_gradient(small_model, experiment):
    model = small_model(experiment)
    sum(model.losses(*batch()).values()).backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []


@pytest.mark.parametrize("experiment", ALL)
def test_a_detector_for_inference_has_no_supervision_and_leaves_the_original_as_it_is(small_model, experiment):
    model = small_model(experiment).train()
    before = {name: module.training for name, module in model.named_modules()}
    lean = model.for_inference()
    assert lean.consistent_supervision is None
    assert not any(name.startswith("consistent_supervision") for name in lean.state_dict())
    assert not any(module.training for module in lean.modules())
    # Training goes on, in training mode and with supervision.
    assert {name: module.training for name, module in model.named_modules()} == before
    assert any(name.startswith("loss_aux") for name in model.losses(*batch()))
    images, _ = batch()
    torch.testing.assert_close(model.for_inference().detect(images).boxes, model.eval().detect(images).boxes)


@pytest.mark.parametrize("experiment", AUGFPN)
def test_losses_and_inference_trace_as_one_graph_and_are_the_same(small_model, experiment):
    model = small_model(experiment)
    images, targets = batch()
    torch.manual_seed(0)
    traced = torch.compile(model.losses, fullgraph=True, backend="eager")(images, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(traced, model.losses(images, targets))
    model.eval()
    compiled = torch.compile(model.detect, fullgraph=True, backend="eager")(images)
    torch.testing.assert_close(compiled.boxes, model.detect(images).boxes)


@pytest.mark.parametrize("experiment", ALL)
def test_one_small_image_is_detected_in(small_model, experiment):
    # Its coarsest level is a single cell.
    model = small_model(experiment).eval()
    if experiment in AUGFPN:
        lower = replace(model.head.rules.selection, score_threshold=0.0)
        model.head.rules = replace(model.head.rules, selection=lower)
    else:
        model.box_rules = replace(model.box_rules, score_threshold=0.0)
    [found] = model([torch.rand(3, 50, 64)])
    assert 1 <= len(found["labels"]) <= 100
    assert ((found["labels"] >= 1) & (found["labels"] <= 6)).all()
    assert (found["boxes"] <= torch.tensor([64.0, 50.0, 64.0, 50.0]) + 1e-3).all()
    if "masks" in found:
        assert found["masks"].shape == (len(found["labels"]), 1, 50, 64)
