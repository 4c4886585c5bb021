import numpy as np
import pytest
import torch

from augfpn.visuals.drawing import draw_detections

NAMES = ["disk", "ring", "square"]


def grey(height=400, width=500):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def disk_in(height, width, middle, radius):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2).to(torch.uint8)


def detections(scores=(0.9,), **more):
    boxes = torch.tensor([[150.0, 100.0, 350.0, 300.0]] * len(scores))
    return {
        "boxes": boxes,
        "labels": torch.ones(len(scores), dtype=torch.int64),
        "scores": torch.tensor(scores),
        **more,
    }


def test_a_mask_is_filled_translucently_within_a_contour_of_the_full_colour():
    mask = disk_in(400, 500, (200, 250), 90)
    picture = np.asarray(draw_detections(grey(), detections(masks=mask[None, None].float()), NAMES)).astype(int)
    without = np.asarray(draw_detections(grey(), detections(), NAMES)).astype(int)
    changed = (picture != without).any(axis=2)
    assert np.array_equal(changed, mask.bool().numpy())
    colour = without[200, 150]  # of the box's outline
    inside, contour = picture[200, 250], picture[200, 250 - 88]
    assert np.array_equal(contour, colour)
    assert (np.abs(inside - colour) < np.abs(128 - colour)).all()
    assert (np.abs(inside - 128) < np.abs(128 - colour)).all()


def test_probabilities_and_masks_of_the_ground_truth_are_drawn_alike():
    mask = disk_in(400, 500, (200, 250), 90)[None]
    probabilities = 0.2 + 0.6 * mask[:, None].float()
    drawn = [np.asarray(draw_detections(grey(), detections(masks=m), NAMES)) for m in (mask, probabilities)]
    assert np.array_equal(*drawn)


def test_boxes_and_labels_lie_above_all_masks():
    everywhere = torch.ones(2, 400, 500, dtype=torch.uint8)
    picture = np.asarray(draw_detections(grey(), detections((0.9, 0.8), masks=everywhere), NAMES))
    plain = np.asarray(draw_detections(grey(), detections((0.9, 0.8)), NAMES))
    drawn = (plain != 128).any(axis=2)
    assert np.array_equal(picture[drawn], plain[drawn])


def test_masks_of_unsure_detections_are_not_drawn():
    masks = torch.ones(1, 1, 400, 500)
    assert (np.asarray(draw_detections(grey(), detections((0.2,), masks=masks), NAMES)) == 128).all()


def test_masks_are_enlarged_with_small_pictures():
    mask = disk_in(40, 50, (20, 25), 9)
    found = {"boxes": torch.tensor([[16.0, 11.0, 34.0, 29.0]]), "labels": torch.tensor([2]), "masks": mask[None]}
    picture = np.asarray(draw_detections(grey(40, 50), found, NAMES))
    factor = picture.shape[0] // 40
    box_only = np.asarray(draw_detections(grey(40, 50), {**found, "masks": mask[None] * 0}, NAMES))
    changed = (picture != box_only).any(axis=2)
    assert changed.sum() == pytest.approx(mask.sum().item() * factor**2, rel=0.06)


def test_no_detections_leave_the_picture_as_it_is():
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    masks = torch.zeros(0, 1, 400, 500)
    assert (np.asarray(draw_detections(grey(), {**none, "masks": masks}, NAMES)) == 128).all()
