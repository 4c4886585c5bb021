from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision

from augfpn.components import ConsistentSupervision
from augfpn.heads.box import BoxHead
from augfpn.heads.mask import MaskHead, MaskSamples
from augfpn.ops.boxes import BoxCoder
from augfpn.structures import Pyramid, RoISamples
from tests.components.test_soft_roi_selection import STRIDES, random_pyramid

CODER = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))


@pytest.fixture
def samples():
    torch.manual_seed(0)
    corners = torch.rand(2, 6, 2) * 60
    boxes = torch.cat([corners, corners + 20 + torch.rand(2, 6, 2) * 40], dim=2)
    labels = torch.tensor([[1, 3, 0, 0, 2, 0], [0, 0, 2, 0, 0, 0]])
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return RoISamples(boxes, labels, boxes + 3, torch.zeros_like(labels), valid)


def slow_losses(supervision, pyramid, samples, weight, levels):
    """Equation 1's first sum with torchvision's RoIAlign, an RoI and a level at a time."""
    num_sampled = samples.valid.sum()
    classifier = box_reg = 0.0
    for level in levels:
        for image in range(2):
            for roi in range(6):
                if not samples.valid[image, roi]:
                    continue
                box, label = samples.boxes[image, roi], samples.labels[image, roi]
                features = torchvision.ops.roi_align(
                    pyramid.laterals[level][image : image + 1], [box[None]], 7, 1 / STRIDES[level], 2
                )
                logits, deltas = supervision.head(features)
                classifier = classifier + F.cross_entropy(logits[0], label) / num_sampled
                if label > 0:
                    goal = CODER.encode(samples.matched_boxes[image, roi], box)
                    box_reg = box_reg + F.smooth_l1_loss(deltas[0, label], goal, reduction="sum") / num_sampled
    return weight * classifier, weight * box_reg


def test_all_levels_equal_a_slow_loop_over_equation_1(samples):
    pyramid = random_pyramid()
    supervision = ConsistentSupervision(BoxHead(4, num_classes=3, width=16), CODER, weight=0.25)
    losses = supervision(pyramid, samples)
    classifier, box_reg = slow_losses(supervision, pyramid, samples, 0.25, levels=range(4))
    torch.testing.assert_close(losses["loss_aux_classifier"], classifier)
    torch.testing.assert_close(losses["loss_aux_box_reg"], box_reg)


def test_it_supervises_the_laterals_and_nothing_else(samples):
    pyramid = random_pyramid()
    laterals = tuple(torch.randn_like(level, requires_grad=True) for level in pyramid.laterals)
    levels = tuple(level.clone().requires_grad_() for level in pyramid.levels)
    supervision = ConsistentSupervision(BoxHead(4, num_classes=3, width=16), CODER)
    sum(supervision(Pyramid(levels, laterals, STRIDES), samples).values()).backward()
    assert all(lateral.grad is not None and lateral.grad.abs().sum() > 0 for lateral in laterals)
    assert all(level.grad is None for level in levels)


def test_the_single_level_form_supervises_the_assigned_level_only():
    laterals = tuple(level.requires_grad_() for level in random_pyramid().laterals)
    # All RoIs are of 40 pixels: P2's, by FPN's rule.
    boxes = torch.tensor([10.0, 10.0, 50.0, 50.0]).expand(2, 3, 4)
    samples = RoISamples(boxes, torch.ones(2, 3).long(), boxes + 1, torch.zeros(2, 3).long(), torch.ones(2, 3).bool())
    supervision = ConsistentSupervision(BoxHead(4, num_classes=3, width=16), CODER, levels="assigned")
    sum(supervision(Pyramid(laterals, laterals, STRIDES), samples).values()).backward()
    assert laterals[0].grad.abs().sum() > 0
    assert all(lateral.grad.abs().sum() == 0 for lateral in laterals[1:])


def foreground_masks(samples):
    """The masks that the first four RoIs of each image should have."""
    torch.manual_seed(3)
    return MaskSamples(samples.first(4), torch.rand(2, 4, 28, 28))


def slow_mask_loss(supervision, pyramid, masks, weight, strides):
    """The mask loss of every level: a foreground RoI and a level at a time."""
    total = 0.0
    num_foreground = (masks.rois.labels > 0).sum()
    for lateral, stride in zip(pyramid.laterals, strides, strict=False):
        for image in range(2):
            for roi in range(4):
                label = masks.rois.labels[image, roi]
                if label == 0:
                    continue
                box = masks.rois.boxes[image, roi]
                features = torchvision.ops.roi_align(lateral[image : image + 1], [box[None]], 14, 1 / stride, 2)
                logits = supervision.mask_head(features)[0, label]
                of_roi = F.binary_cross_entropy_with_logits(logits, masks.masks[image, roi])
                total = total + of_roi / num_foreground
    return weight * total


def with_mask_head(**options):
    torch.manual_seed(2)
    mask_head = MaskHead(4, num_classes=3, width=8)
    return ConsistentSupervision(BoxHead(4, num_classes=3, width=16), CODER, mask_head=mask_head, **options)


def test_the_mask_head_is_supervised_on_all_levels_like_the_box_head(samples):
    pyramid, masks, supervision = random_pyramid(), foreground_masks(samples), with_mask_head()
    losses = supervision(pyramid, samples, masks)
    classifier, box_reg = slow_losses(supervision, pyramid, samples, 0.25, levels=range(4))
    torch.testing.assert_close(losses["loss_aux_classifier"], classifier)
    torch.testing.assert_close(losses["loss_aux_box_reg"], box_reg)
    expected = slow_mask_loss(supervision, pyramid, masks, 0.25, STRIDES)
    torch.testing.assert_close(losses["loss_aux_mask"], expected)


def test_the_single_level_form_supervises_masks_with_the_plain_weight():
    pyramid, supervision = random_pyramid(), with_mask_head(levels="assigned", weight=0.5)
    # All RoIs are of 40 pixels: P2's.
    boxes = torch.tensor([10.0, 10.0, 50.0, 50.0]).expand(2, 4, 4)
    labels = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]])
    samples = RoISamples(boxes, labels, boxes, torch.zeros(2, 4).long(), torch.ones(2, 4).bool())
    masks = foreground_masks(samples)
    finest = Pyramid(pyramid.levels, pyramid.laterals[:1], STRIDES)
    expected = slow_mask_loss(supervision, finest, masks, 0.5, STRIDES)
    torch.testing.assert_close(supervision(pyramid, samples, masks)["loss_aux_mask"], expected)


def test_without_foreground_there_is_no_mask_loss(samples):
    none = replace(samples, labels=torch.zeros_like(samples.labels))
    losses = with_mask_head()(random_pyramid(), none, foreground_masks(none))
    assert losses["loss_aux_mask"].item() == losses["loss_aux_box_reg"].item() == 0


def test_one_stage_laterals_are_m3_to_m5_of_strides_8_16_and_32(samples):
    torch.manual_seed(4)
    laterals = tuple(torch.randn(2, 4, 128 // stride, 128 // stride) for stride in STRIDES[1:4])
    pyramid = Pyramid((*laterals, laterals[-1], laterals[-1]), laterals, (8, 16, 32, 64, 128))
    supervision = ConsistentSupervision(BoxHead(4, num_classes=3, width=16), CODER)
    losses = supervision(pyramid, samples)
    # `slow_losses` counts levels from M2, and takes three of four here.
    from_m2 = Pyramid(pyramid.levels, (torch.zeros(0), *laterals), STRIDES)
    classifier, box_reg = slow_losses(supervision, from_m2, samples, 0.25, levels=range(1, 4))
    torch.testing.assert_close(losses["loss_aux_classifier"], classifier)
    torch.testing.assert_close(losses["loss_aux_box_reg"], box_reg)
