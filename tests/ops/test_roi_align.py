import pytest
import torch
import torchvision

from augfpn.ops import roi_align
from augfpn.ops.level_assignment import assigned_levels
from tests.ops.test_boxes import random_boxes

STRIDES = (4, 8, 16)


@pytest.fixture
def levels():
    torch.manual_seed(0)
    return [torch.randn(2, 5, 96 // stride, 128 // stride, requires_grad=True) for stride in STRIDES]


def with_image_index(boxes):
    index = torch.arange(boxes.shape[0]).repeat_interleave(boxes.shape[1])
    return torch.cat([index[:, None].float(), boxes.flatten(0, 1)], dim=1)


@pytest.mark.parametrize("small_map", [0, roi_align.SMALL_MAP], ids=["bags", "matrices"])
def test_every_level_equals_torchvisions_roi_align_in_value_and_gradient(levels, small_map, monkeypatch):
    monkeypatch.setattr(roi_align, "SMALL_MAP", small_map)
    # Some boxes are thinner than a cell, some leave the image.
    boxes = torch.cat([random_boxes(2, 20), random_boxes(2, 4) - 30, random_boxes(2, 4) + 60], dim=1)
    boxes[:, 0, 2:] = boxes[:, 0, :2] + 0.5
    ours = roi_align.roi_align_every_level(levels, STRIDES, boxes)
    theirs = [
        torchvision.ops.roi_align(level, with_image_index(boxes), 7, 1 / stride, 2)
        for level, stride in zip(levels, STRIDES, strict=True)
    ]
    theirs = torch.stack(theirs, dim=1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours)
    expected = torch.autograd.grad((theirs * weights).sum(), levels)
    for gradient, other in zip(torch.autograd.grad((ours * weights).sum(), levels), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-4)


def test_every_roi_is_pooled_from_the_level_that_it_names(levels):
    boxes = random_boxes(2, 9)
    named = torch.randint(0, 3, (2, 9))
    one = roi_align.roi_align_assigned_level(levels, STRIDES, boxes, named, output_size=3)
    every = roi_align.roi_align_every_level(levels, STRIDES, boxes, output_size=3)
    torch.testing.assert_close(one, every[torch.arange(18), named.flatten()])


def test_levels_and_channels_lie_together_in_memory(levels):
    pooled = roi_align.roi_align_every_level(levels, STRIDES, random_boxes(2, 3))
    assert pooled.flatten(1, 2).data_ptr() == pooled.data_ptr()
    assert pooled.flatten(1, 2).is_contiguous(memory_format=torch.channels_last)


def test_a_cell_of_a_linear_ramp_has_the_value_at_its_middle():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    # The RoI spans cells 2 to 4 across; its single output cell has its middle at 3.
    pooled = roi_align.roi_align_every_level([ramp], [1], torch.tensor([[[2.0, 2.0, 4.0, 4.0]]]), output_size=1)
    assert pooled.item() == pytest.approx(3.0)


@pytest.mark.parametrize(("side", "level"), [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (2000, 3)])
def test_rois_are_assigned_to_levels_by_their_size(side, level):
    assert assigned_levels(torch.tensor([0.0, 0.0, side, side])).item() == level


def test_level_assignment_equals_torchvisions():
    from torchvision.ops.poolers import LevelMapper

    torch.manual_seed(0)
    boxes = random_boxes(500) * 5
    expected = LevelMapper(2, 5, canonical_scale=224, canonical_level=4)([boxes])
    assert assigned_levels(boxes).tolist() == expected.tolist()
