"""The choice of detections among predictions at many places, against a slow loop and cases worked by hand."""

import pytest
import torch

from augfpn.heads.dense import Selection, select

SIZES = torch.tensor([[100, 200]])


def row_of_boxes(num):
    """Boxes of 10 × 10 that do not touch, and the anchors that they come from."""
    left = torch.arange(num) * 12.0
    boxes = torch.stack([left, torch.zeros(num), left + 10, torch.full((num,), 10.0)], dim=1)[None]
    return boxes, boxes[0] + 1


def chosen(detections, image=0):
    valid = detections.valid[image]
    return [
        (round(score, 4), label, tuple(box))
        for score, label, box in zip(
            detections.scores[image, valid].tolist(),
            detections.labels[image, valid].tolist(),
            detections.boxes[image, valid].tolist(),
            strict=True,
        )
    ]


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both, 1e-9)


def slow_selection(scores, boxes, num_anchors, size, selection):
    """One image's detections by the docstring of `Selection`, sentence by sentence."""
    candidates, start = [], 0
    for num in num_anchors:
        of_level = [
            (scores[place, k].item(), place, k)
            for place in range(start, start + num)
            for k in range(scores.shape[1])
            if scores[place, k] >= 0
        ]
        candidates += sorted(of_level, reverse=True)[: selection.num_before_nms]
        start += num
    kept = []
    height, width = size
    for score, place, k in sorted(candidates, reverse=True):
        x1, y1, x2, y2 = boxes[place].tolist()
        box = (
            min(max(x1, 0.0), width),
            min(max(y1, 0.0), height),
            min(max(x2, 0.0), width),
            min(max(y2, 0.0), height),
        )
        if all(label != k + 1 or iou(box, other) <= selection.nms_iou for _, label, other in kept):
            kept.append((round(score, 4), k + 1, box))
    return kept[: selection.num]


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("num_before_nms", [1, 15, 1000])
def test_detections_equal_a_slow_loop(num_classes, num_before_nms):
    torch.manual_seed(num_classes)
    num_anchors = (40, 10, 1)
    corners = torch.rand(2, 51, 2) * 80 - 10
    boxes = torch.cat([corners, corners + 10 + torch.rand(2, 51, 2) * 40], dim=2)
    scores = torch.rand(2, 51, num_classes)
    scores = torch.where(scores > 0.3, scores, -1.0)
    sizes = torch.tensor([[60, 70], [80, 50]])
    selection = Selection(num_before_nms=num_before_nms, num=20)
    detections = select(scores, boxes, boxes[0] + 1, num_anchors, sizes, selection)
    assert detections.boxes.shape == (2, 20, 4)
    for image in range(2):
        expected = slow_selection(scores[image], boxes[image], num_anchors, sizes[image].tolist(), selection)
        actual = chosen(detections, image)
        assert [detection[:2] for detection in actual] == [detection[:2] for detection in expected]
        for one, other in zip(actual, expected, strict=True):
            assert one[2] == pytest.approx(other[2])


def test_each_level_gives_its_own_best():
    boxes, anchors = row_of_boxes(5)
    scores = torch.tensor([[[0.9], [0.8], [0.7], [0.2], [0.1]]])
    found = select(scores, boxes, anchors, (3, 2), SIZES, Selection(num_before_nms=1, num=4))
    # The best of the second level comes with 0.2, though two of the first have more.
    assert [score for score, *_ in chosen(found)] == [0.9, 0.2]
    assert found.rois[0, :2].tolist() == [anchors[0].tolist(), anchors[3].tolist()]


def test_classes_do_not_suppress_each_other_and_a_place_can_have_several():
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 11.0]]])
    scores = torch.tensor([[[0.9, 0.3], [0.8, 0.6]]])
    found = select(scores, boxes, boxes[0], (2,), SIZES, Selection())
    assert [(score, label) for score, label, _ in chosen(found)] == [(0.9, 1), (0.6, 2)]


def test_an_overlap_of_just_the_threshold_is_kept():
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0]]])
    found = select(torch.tensor([[[0.9], [0.8]]]), boxes, boxes[0], (2,), SIZES, Selection(nms_iou=0.5))
    assert len(chosen(found)) == 2


def test_boxes_are_cut_to_the_image_before_they_suppress():
    # Outside the image they differ; inside they are the same.
    boxes = torch.tensor([[[0.0, 0.0, 210.0, 10.0], [0.0, 0.0, 500.0, 10.0]]])
    found = select(torch.tensor([[[0.9], [0.8]]]), boxes, boxes[0], (2,), SIZES, Selection())
    assert chosen(found) == [(0.9, 1, (0.0, 0.0, 200.0, 10.0))]


def test_the_best_of_an_image_come_out_and_the_rest_is_padding():
    boxes, anchors = row_of_boxes(4)
    scores = torch.tensor([[[0.2], [-1.0], [0.4], [0.3]]])
    found = select(scores, boxes, anchors, (4,), SIZES, Selection(num=2))
    assert [score for score, *_ in chosen(found)] == [0.4, 0.3]
    found = select(scores, boxes, anchors, (4,), SIZES, Selection(num=6))
    assert found.valid[0].tolist() == [True] * 3 + [False] * 3
    assert found.scores[0, 3:].tolist() == found.labels[0, 3:].tolist() == [0, 0, 0]


def test_of_equal_scores_all_that_do_not_overlap_are_kept_and_one_of_those_that_do():
    boxes, anchors = row_of_boxes(3)
    boxes, anchors = boxes[:, [0, 1, 1, 2]], anchors[[0, 1, 1, 2]]
    found = select(torch.full((1, 4, 1), 0.5), boxes, anchors, (4,), SIZES, Selection())
    assert sorted(box[0] for *_, box in chosen(found)) == [0.0, 12.0, 24.0]


def test_no_candidate_at_all_gives_padding_only():
    boxes, anchors = row_of_boxes(3)
    found = select(torch.full((1, 3, 2), -1.0), boxes, anchors, (2, 1), SIZES, Selection(num=5))
    assert found.boxes.shape == (1, 5, 4)
    assert not found.valid.any()


def test_the_images_of_a_batch_know_nothing_of_each_other():
    boxes, anchors = row_of_boxes(2)
    scores = torch.tensor([[[0.9], [0.8]], [[-1.0], [0.7]]])
    found = select(scores, boxes.expand(2, -1, -1), anchors, (2,), SIZES.expand(2, -1), Selection())
    assert found.valid.sum(dim=1).tolist() == [2, 1]
    assert chosen(found, 1) == [(0.7, 1, (12.0, 0.0, 22.0, 10.0))]


def test_scores_that_are_no_numbers_are_no_detections():
    boxes, anchors = row_of_boxes(2)
    scores = torch.tensor([[[float("nan")], [0.7]]])
    found = select(scores, boxes, anchors, (2,), SIZES, Selection(num_before_nms=2))
    assert len(chosen(found)) == 1
