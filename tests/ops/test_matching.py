import pytest
import torch
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from augfpn.ops.boxes import pairwise_iou
from augfpn.ops.matching import BACKGROUND, FOREGROUND, IGNORED, Matcher, Sampler
from augfpn.structures import Targets
from tests.ops.test_boxes import random_boxes

OBJECTS = Targets(
    boxes=torch.tensor([[[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 120.0], [0.0, 0.0, 0.0, 0.0]]]),
    labels=torch.tensor([[3, 5, 0]]),
)
ANCHORS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # is the first object: IoU 1
        [0.0, 0.0, 10.0, 16.0],  # IoU 100 / 160 = 0.625
        [0.0, 0.0, 40.0, 10.0],  # IoU 100 / 400 = 0.25
        [100.0, 100.0, 110.0, 110.0],  # half of the second object, and its best: IoU 0.5
        [50.0, 50.0, 60.0, 60.0],  # nothing
    ]
)


def test_anchors_matched_by_hand():
    kinds, objects = Matcher(foreground_iou=0.7, background_iou=0.3, lowest_best_iou=0.3)(ANCHORS, OBJECTS)
    assert kinds.tolist() == [[FOREGROUND, IGNORED, BACKGROUND, FOREGROUND, BACKGROUND]]
    assert objects[0, [0, 3]].tolist() == [0, 1]


def test_without_the_rule_of_the_best_no_anchor_below_the_threshold_is_foreground():
    kinds, _ = Matcher(foreground_iou=0.7, background_iou=0.3)(ANCHORS, OBJECTS)
    assert kinds.tolist() == [[FOREGROUND, IGNORED, BACKGROUND, IGNORED, BACKGROUND]]


def test_the_best_anchor_is_background_if_even_it_hardly_overlaps():
    kinds, _ = Matcher(foreground_iou=0.7, background_iou=0.3, lowest_best_iou=0.3)(ANCHORS[2:3], OBJECTS)
    assert kinds.tolist() == [[BACKGROUND]]


def test_a_box_that_may_not_be_used_is_ignored_and_takes_no_object_from_the_others():
    usable = torch.tensor([[False, True, True, False, True]])
    matcher = Matcher(foreground_iou=0.7, background_iou=0.3, lowest_best_iou=0.3)
    kinds, objects = matcher(ANCHORS, OBJECTS, usable)
    # With the first anchor out, the second is the best of the first object.
    assert kinds.tolist() == [[IGNORED, FOREGROUND, BACKGROUND, IGNORED, BACKGROUND]]
    assert objects[0, 1] == 0


def test_an_image_without_objects_has_background_only():
    empty = Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)])
    kinds, _ = Matcher(foreground_iou=0.7, background_iou=0.3, lowest_best_iou=0.3)(ANCHORS, empty)
    assert (kinds == BACKGROUND).all()


def test_matches_equal_torchvisions():
    torch.manual_seed(0)
    boxes, anchors = random_boxes(2, 6), random_boxes(300)
    kinds, objects = Matcher(foreground_iou=0.5, background_iou=0.3)(anchors, Targets(boxes, torch.ones(2, 6).long()))
    for image in range(2):
        expected = TorchvisionMatcher(0.5, 0.3)(pairwise_iou(boxes[image], anchors))
        # There −1 is background and −2 ignored.
        assert (kinds[image] == FOREGROUND).tolist() == (expected >= 0).tolist()
        assert (kinds[image] == IGNORED).tolist() == (expected == -2).tolist()
        assert objects[image][expected >= 0].tolist() == expected[expected >= 0].tolist()


def counts(kinds, sample):
    drawn = kinds.gather(1, sample.indices)[sample.valid]
    return (drawn == FOREGROUND).sum().item(), (drawn == BACKGROUND).sum().item()


def test_the_sample_has_at_most_its_fraction_of_foreground_and_is_filled_with_background():
    kinds = torch.tensor([[FOREGROUND] * 50 + [BACKGROUND] * 500 + [IGNORED] * 50])
    sample = Sampler(num=64, foreground_fraction=0.25)(kinds)
    assert counts(kinds, sample) == (16, 48)
    assert sample.indices.unique().numel() == 64


def test_few_foreground_boxes_leave_room_for_background():
    kinds = torch.tensor([[FOREGROUND] * 3 + [BACKGROUND] * 500])
    assert counts(kinds, Sampler(num=64, foreground_fraction=0.25)(kinds)) == (3, 61)


def test_too_few_boxes_are_padded_with_invalid_ones():
    kinds = torch.tensor([[FOREGROUND] * 2 + [BACKGROUND] * 5 + [IGNORED] * 100])
    sample = Sampler(num=64, foreground_fraction=0.25)(kinds)
    assert sample.indices.shape == (1, 64)
    assert counts(kinds, sample) == (2, 5)


def test_every_foreground_box_is_drawn_equally_often():
    torch.manual_seed(0)
    kinds = torch.tensor([[FOREGROUND] * 8 + [BACKGROUND] * 8]).expand(4000, -1)
    sample = Sampler(num=4, foreground_fraction=0.5)(kinds)
    times = torch.bincount(sample.indices.flatten(), minlength=16) / 4000
    # Two of eight of each kind.
    assert (times - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("best_of", ["object", "overlap"])
def test_an_object_that_overlaps_nothing_makes_nothing_foreground(best_of):
    far = Targets(torch.tensor([[[1000.0, 1000.0, 1010.0, 1010.0]]]), torch.tensor([[1]]))
    matcher = Matcher(foreground_iou=0.5, background_iou=0.4, lowest_best_iou=0.0, best_of=best_of)
    assert (matcher(ANCHORS, far).kinds == BACKGROUND).all()


def test_a_box_that_is_the_best_of_several_objects_goes_to_the_last_of_them():
    two = Targets(torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]]]), torch.tensor([[3, 5]]))
    of_object = Matcher(foreground_iou=0.5, background_iou=0.4, lowest_best_iou=0.0)(ANCHORS[:1], two)
    assert of_object.indices.tolist() == [[1]]
    overlap = Matcher(foreground_iou=0.5, background_iou=0.4, lowest_best_iou=0.0, best_of="overlap")
    assert overlap(ANCHORS[:1], two).indices.tolist() == [[0]]
