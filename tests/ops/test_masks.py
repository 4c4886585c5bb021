import math

import pytest
import torch

from augfpn.ops.masks import crop_masks

NONE_WANTED = torch.zeros(1, 2, dtype=torch.bool)


def bilinear(mask, y, x):
    """RoIAlign's sample of ``mask (H, W)``, whose pixel (i, j) lies at exactly (i, j)."""
    height, width = mask.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = mask[top, left] * (left + 1 - x) + mask[top, right] * (x - left)
    lower = mask[bottom, left] * (left + 1 - x) + mask[bottom, right] * (x - left)
    return (upper * (top + 1 - y) + lower * (y - top)).item()


def slow_crop(mask, box, size):
    """As many samples a cell as it has pixels, rounded up, averaged."""
    x1, y1, x2, y2 = box.tolist()
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    across, down = math.ceil(width / size), math.ceil(height / size)
    cropped = torch.zeros(size, size)
    for row in range(size):
        for column in range(size):
            for i in range(down):
                for j in range(across):
                    y = y1 + (row + (i + 0.5) / down) * height / size
                    x = x1 + (column + (j + 0.5) / across) * width / size
                    cropped[row, column] += bilinear(mask, y, x) / (across * down)
    return cropped


def test_crops_equal_a_slow_loop():
    torch.manual_seed(0)
    masks = (torch.rand(2, 3, 20, 24) > 0.5).byte()
    corners = torch.rand(2, 4, 2) * 12 - 2
    boxes = torch.cat([corners, corners + 0.5 + torch.rand(2, 4, 2) * 14], dim=2)
    objects = torch.randint(0, 3, (2, 4))
    cropped = crop_masks(masks, boxes, objects, torch.ones(2, 4, dtype=torch.bool), 5)
    for image in range(2):
        for roi in range(4):
            expected = slow_crop(masks[image, objects[image, roi]].float(), boxes[image, roi], 5)
            torch.testing.assert_close(cropped[image, roi], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("box", "expected"), [
    # The object is columns 8 to 15 of 16. Cells of 4 pixels; samples lie half-way between pixels, so the one at 7.5
    # is half on the object: an eighth of its cell.
    ([0.0, 0.0, 16.0, 16.0], [0, 1 / 8, 1, 1]),
    # The object's half, and the other one, whose last sample is at 7.5, in a cell of 2.
    ([8.0, 0.0, 16.0, 16.0], [1, 1, 1, 1]),
    ([0.0, 0.0, 8.0, 16.0], [0, 0, 0, 1 / 4]),
    # Twice as wide as the image: what lies outside is not on the object.
    ([0.0, 0.0, 32.0, 16.0], [1 / 16, 1, 0, 0]),
])  # fmt: skip
def test_crops_worked_by_hand(box, expected):
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    mask[..., 8:] = 1
    cropped = crop_masks(mask, torch.tensor([[box]]), torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), 4)
    torch.testing.assert_close(cropped[0, 0], torch.tensor(expected).expand(4, 4).float())


def test_rois_that_are_not_wanted_are_zeros_and_the_others_take_their_own_object():
    masks = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    masks[0, 2] = 1
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0]] * 4])
    wanted = torch.tensor([[True, False, True, True]])
    cropped = crop_masks(masks, boxes, torch.tensor([[2, 2, 0, 2]]), wanted, 2)
    assert cropped.mean(dim=(2, 3)).tolist() == [[1, 0, 0, 1]]


def test_nothing_wanted_and_nothing_there_gives_zeros():
    boxes, objects = torch.ones(1, 2, 4), torch.zeros(1, 2).long()
    cropped = crop_masks(torch.ones(1, 1, 8, 8).byte(), boxes, objects, NONE_WANTED, 3)
    assert cropped.shape == (1, 2, 3, 3)
    assert not cropped.any()
    none = crop_masks(torch.ones(1, 1, 8, 8).byte(), boxes[:, :0], objects[:, :0], NONE_WANTED[:, :0], 3)
    assert none.shape == (1, 0, 3, 3)


def test_the_operator_is_registered_properly():
    wanted = torch.tensor([[True, False], [True, True]])
    boxes = torch.tensor([[[1.0, 1.0, 5.0, 6.0]] * 2] * 2)
    arguments = (torch.ones(2, 3, 8, 8).byte(), boxes, torch.tensor([[0, 2], [1, 1]]), wanted, 4)
    torch.library.opcheck(torch.ops.augfpn.crop_masks.default, arguments)
