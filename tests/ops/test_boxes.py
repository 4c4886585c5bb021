import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from augfpn.ops.boxes import BoxCoder, clip, pairwise_iou, rescale


def random_boxes(*shape):
    corners = torch.rand(*shape, 2) * 80
    return torch.cat([corners, corners + 1 + torch.rand(*shape, 2) * 40], dim=-1)


def test_iou_of_a_case_worked_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor(
        [[5.0, 0.0, 15.0, 10.0], [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0], [3.0, 3.0, 3.0, 3.0]]
    )
    # 50 shared of 150; the same; nothing shared; a box without area.
    assert pairwise_iou(boxes, others).tolist() == [pytest.approx([1 / 3, 1.0, 0.0, 0.0])]


def test_iou_equals_torchvisions_for_every_image_of_a_batch():
    torch.manual_seed(0)
    boxes, others = random_boxes(3, 7), random_boxes(3, 5)
    expected = torch.stack([torchvision.ops.box_iou(a, b) for a, b in zip(boxes, others, strict=True)])
    torch.testing.assert_close(pairwise_iou(boxes, others), expected)


def test_two_empty_boxes_do_not_overlap():
    empty = torch.zeros(1, 4)
    assert pairwise_iou(empty, empty).item() == 0


def test_clip_cuts_to_each_images_own_size():
    boxes = torch.tensor([[[-5.0, -5.0, 50.0, 50.0]], [[-5.0, 2.0, 50.0, 50.0]]])
    sizes = torch.tensor([[20, 30], [40, 45]])
    assert clip(boxes, sizes).tolist() == [[[0, 0, 30, 20]], [[0, 2, 45, 40]]]


def test_coder_equals_torchvisions():
    torch.manual_seed(0)
    boxes, references = random_boxes(50), random_boxes(50)
    ours = BoxCoder(stds=(0.1, 0.1, 0.2, 0.2))
    theirs = TorchvisionCoder(weights=(10.0, 10.0, 5.0, 5.0))
    deltas = ours.encode(boxes, references)
    torch.testing.assert_close(deltas, theirs.encode([boxes], [references])[0])
    noisy = deltas + torch.randn_like(deltas)
    torch.testing.assert_close(ours.decode(noisy, references), theirs.decode(noisy, [references])[:, 0])


def test_decoding_what_was_encoded_gives_the_box_back():
    torch.manual_seed(0)
    boxes, references = random_boxes(2, 9), random_boxes(2, 9)
    coder = BoxCoder()
    torch.testing.assert_close(coder.decode(coder.encode(boxes, references), references), boxes, atol=1e-4, rtol=1e-5)


def test_rescale_treats_height_and_width_apart():
    box = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert rescale(box, torch.tensor([100, 50]), torch.tensor([50, 100])).tolist() == [[20.0, 10.0, 60.0, 20.0]]
