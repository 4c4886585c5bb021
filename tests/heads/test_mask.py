import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from augfpn.heads.box import sample_rois
from augfpn.heads.mask import MaskBranch, MaskHead, MaskSamples, mask_loss, mask_samples
from augfpn.heads.roi_pooling import SingleLevelPooling
from augfpn.ops.matching import BACKGROUND, FOREGROUND, IGNORED, Matcher, Sampler
from augfpn.structures import Detections, Proposals, RoISamples, Targets
from tests.components.test_soft_roi_selection import random_pyramid

K = 3
MATCHER = Matcher(foreground_iou=0.5, background_iou=0.5)


def mask_samples_of(labels):
    """Samples of ``labels (B, R)`` with random masks."""
    labels = torch.tensor(labels)
    boxes = torch.tensor([5.0, 5.0, 40.0, 50.0]).expand(*labels.shape, 4)
    rois = RoISamples(boxes, labels, boxes, torch.zeros_like(labels), torch.ones_like(labels, dtype=torch.bool))
    return MaskSamples(rois, torch.rand(*labels.shape, 28, 28))


def test_the_loss_equals_a_loop_over_the_foreground():
    torch.manual_seed(0)
    samples = mask_samples_of([[2, 0, 3], [1, 0, 0]])
    logits = torch.randn(6, K + 1, 28, 28)
    losses = []
    for roi, (label, mask) in enumerate(
        zip(samples.rois.labels.flatten().tolist(), samples.masks.flatten(0, 1), strict=True)
    ):
        if label > 0:
            p = logits[roi, label].sigmoid()
            losses.append(-(mask * p.log() + (1 - mask) * (1 - p).log()).mean())
    assert len(losses) == 3
    torch.testing.assert_close(mask_loss(logits, samples), torch.stack(losses).mean())


def test_only_the_true_class_of_the_foreground_is_learnt():
    samples = mask_samples_of([[2, 0]])
    logits = torch.zeros(2, K + 1, 28, 28, requires_grad=True)
    mask_loss(logits, samples).backward()
    learnt = logits.grad.abs().amax(dim=(2, 3)) > 0
    assert learnt.tolist() == [[False, False, True, False], [False] * 4]


def test_without_foreground_the_loss_is_zero_and_its_gradient_too():
    logits = torch.randn(2, K + 1, 28, 28, requires_grad=True)
    loss = mask_loss(logits, mask_samples_of([[0, 0]]))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_loss_worked_by_hand():
    samples = mask_samples_of([[1]])._replace(masks=torch.zeros(1, 1, 28, 28))
    samples.masks[..., :14] = 1
    # Probability ¾ everywhere: right on half of the cells.
    logits = torch.full((1, K + 1, 28, 28), math.log(3.0))
    assert mask_loss(logits, samples).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_samples_are_cropped_from_the_object_that_each_roi_was_matched_with():
    boxes = torch.tensor([[[0.0, 0.0, 28.0, 28.0], [28.0, 0.0, 56.0, 28.0], [0.0, 28.0, 28.0, 56.0]]])
    masks = torch.zeros(1, 2, 56, 56, dtype=torch.uint8)
    masks[0, 0, :, :29] = 1
    masks[0, 1, :, 27:] = 1
    rois = RoISamples(boxes, torch.tensor([[2, 1, 0]]), boxes, torch.tensor([[0, 1, 0]]), torch.ones(1, 3).bool())
    made = mask_samples(rois, Targets(boxes[:, :2], torch.tensor([[2, 1]]), masks), 3)
    assert made.masks.mean(dim=(2, 3)).tolist() == [[1, 1, 0]]
    assert len(mask_samples(rois, Targets(boxes[:, :2], torch.tensor([[2, 1]]), masks), 2).masks[0]) == 2


@given(
    kinds=st.lists(
        st.lists(st.sampled_from([FOREGROUND, BACKGROUND, IGNORED]), min_size=9, max_size=9), min_size=1, max_size=3
    ),
    num=st.integers(1, 12),
    fraction=st.sampled_from([0.25, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_sampled_foreground_comes_first_and_is_no_more_than_its_share(kinds, num, fraction, seed):
    torch.manual_seed(seed)
    kinds, sampler = torch.tensor(kinds), Sampler(num=num, foreground_fraction=fraction)
    indices, valid = sampler(kinds)
    is_foreground = (kinds.gather(1, indices) == FOREGROUND) & valid
    assert not is_foreground[:, sampler.most_foreground :].any()
    share = torch.clamp((kinds == FOREGROUND).sum(dim=1), max=sampler.most_foreground)
    assert is_foreground.sum(dim=1).tolist() == share.tolist()


@given(num_objects=st.integers(0, 6), num=st.integers(1, 16), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_first_samples_hold_all_the_foreground_that_was_sampled(num_objects, num, seed):
    torch.manual_seed(seed)
    corners = torch.rand(1, 12, 2) * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(1, 12, 2) * 20], dim=2)
    proposals = Proposals(boxes + torch.randn_like(boxes), torch.ones(1, 12), torch.rand(1, 12) > 0.2)
    targets = Targets.pad([boxes[0, :num_objects]], [torch.arange(1, num_objects + 1)])
    sampler = Sampler(num=num, foreground_fraction=0.25)
    samples = sample_rois(proposals, targets, MATCHER, sampler)
    assert not (samples.labels[:, sampler.most_foreground :] > 0).any()
    foreground = samples.labels > 0
    assert (samples.labels == targets.labels.gather(1, samples.objects))[foreground].all()
    assert torch.equal(
        samples.matched_boxes[foreground],
        targets.boxes[0, samples.objects[foreground]],
    )


def test_segments_are_the_probabilities_of_each_detections_class():
    torch.manual_seed(0)
    pyramid = random_pyramid()
    branch = MaskBranch(SingleLevelPooling(14), MaskHead(4, K, width=8))
    boxes = torch.rand(2, 3, 4) * 20
    boxes[..., 2:] += 40
    labels = torch.tensor([[3, 1, 2], [2, 0, 0]])
    found = Detections(boxes, torch.ones(2, 3), labels, labels > 0, boxes)
    segments = branch.segment(pyramid, found)
    logits = branch(pyramid, boxes).unflatten(0, (2, 3))
    assert segments.shape == (2, 3, 28, 28)
    for image in range(2):
        for position in range(3):
            expected = logits[image, position, labels[image, position]].sigmoid()
            torch.testing.assert_close(segments[image, position], expected)


def test_the_head_is_four_convolutions_a_doubling_and_a_classifier():
    torch.manual_seed(0)
    head = MaskHead(5, K, width=6)
    features = expected = torch.randn(2, 5, 14, 14)
    for conv in head.convs:
        expected = F.relu(F.conv2d(expected, conv.weight, conv.bias, padding=1))
    expected = F.relu(F.conv_transpose2d(expected, head.upsample.weight, head.upsample.bias, stride=2))
    expected = F.conv2d(expected, head.classifier.weight, head.classifier.bias)
    assert len(head.convs) == 4
    assert expected.shape == (2, K + 1, 28, 28)
    torch.testing.assert_close(head(features), expected)
