import math

import pytest
import torch

from augfpn.heads.box import BoxPredictions, box_losses, detections_from, sample_rois
from augfpn.ops.boxes import BoxCoder
from augfpn.ops.matching import Matcher, Sampler
from augfpn.structures import Proposals, RoISamples, Targets

MATCHER = Matcher(foreground_iou=0.5, background_iou=0.5)


def proposals(boxes, valid=None):
    boxes = torch.tensor([boxes], dtype=torch.float32)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.tensor([valid])
    return Proposals(boxes, valid.float(), valid)


def test_rois_and_their_targets_worked_by_hand():
    found = proposals(
        [[0, 0, 10, 10], [0, 0, 10, 21], [50, 50, 60, 60], [0, 0, 10, 12]], valid=[True, True, True, False]
    )
    targets = Targets(torch.tensor([[[0.0, 0.0, 10.0, 10.0]] + [[0.0] * 4] * 3]), torch.tensor([[7, 0, 0, 0]]))
    samples = sample_rois(found, targets, MATCHER, Sampler(num=8, foreground_fraction=0.5))
    drawn = {
        tuple(box): label
        for box, label, valid in zip(
            samples.boxes[0].tolist(), samples.labels[0].tolist(), samples.valid[0].tolist(), strict=True
        )
        if valid
    }
    # The first proposal and the ground truth itself are one box here; IoU 100 / 210 is background; padding is left out.
    assert drawn == {(0, 0, 10, 10): 7, (0, 0, 10, 21): 0, (50, 50, 60, 60): 0}
    assert samples.valid.sum() == 4
    assert (samples.matched_boxes[samples.labels > 0] == torch.tensor([0.0, 0.0, 10.0, 10.0])).all()


def test_an_image_without_objects_gives_background_only():
    nothing = Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)])
    samples = sample_rois(proposals([[0, 0, 10, 10]]), nothing, MATCHER, Sampler(num=4, foreground_fraction=0.5))
    assert samples.valid.sum() == 1
    assert (samples.labels == 0).all()


def test_losses_worked_by_hand():
    # Two RoIs drawn, one of them an object of class 1 that is 2 px to the right of a 20 px RoI; one place is padding.
    samples = RoISamples(
        boxes=torch.tensor([[[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]]]),
        labels=torch.tensor([[1, 0, 0]]),
        matched_boxes=torch.tensor([[[2.0, 0.0, 22.0, 20.0], [0.0] * 4, [0.0] * 4]]),
        objects=torch.tensor([[0, 0, 0]]),
        valid=torch.tensor([[True, True, False]]),
    )
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [100.0, -100.0]])
    predictions = BoxPredictions(logits, torch.zeros(3, 2, 4))
    losses = box_losses(predictions, samples, BoxCoder(stds=(0.1, 0.1, 0.2, 0.2)))
    # −log ½ and −log ¾ over two. The shift is 2 / 20 / 0.1 = 1, where smooth L1 is ½; over two RoIs.
    assert losses.classifier.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert losses.box_reg.item() == pytest.approx(0.25)


def test_losses_are_finite_where_there_is_no_foreground_and_where_nothing_is_drawn():
    none, padding = torch.zeros(1, 3).long(), torch.zeros(1, 3).bool()
    samples = RoISamples(torch.zeros(1, 3, 4), none, torch.zeros(1, 3, 4), none, padding)
    predictions = BoxPredictions(torch.randn(3, 4), torch.randn(3, 4, 4))
    assert box_losses(predictions, samples, BoxCoder()) == (0, 0)


def test_detections_worked_by_hand():
    found = proposals(
        [[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 90, 90], [0, 0, 10, 10]], valid=[True, True, True, False]
    )
    probabilities = torch.tensor([[0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.5, 0.04, 0.46], [0.0, 1.0, 0.0]])
    predictions = BoxPredictions(probabilities.log(), torch.zeros(4, 3, 4))
    detections = detections_from(
        predictions, found, torch.tensor([[50, 60]]), BoxCoder(), score_threshold=0.09, nms_iou=0.5, num=5
    )
    valid = detections.valid[0]
    # The second overlaps the first too much in class 1, and in class 2 has the same score as the first, which comes
    # first. The third is cut to the image. Padding is not detected.
    assert detections.labels[0, valid].tolist() == [1, 2, 2]
    assert detections.scores[0, valid].tolist() == pytest.approx([0.8, 0.46, 0.1])
    assert detections.boxes[0, valid].tolist() == [[0, 0, 10, 10], [40, 40, 60, 50], [0, 0, 10, 10]]
    assert detections.rois[0, valid].tolist() == [[0, 0, 10, 10], [40, 40, 90, 90], [0, 0, 10, 10]]
