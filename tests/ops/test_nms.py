import torch
import torchvision

from augfpn.ops.nms import batched_nms
from tests.ops.test_boxes import random_boxes


def test_each_image_is_suppressed_like_torchvisions_nms_within_its_groups():
    torch.manual_seed(0)
    boxes, scores, groups = random_boxes(3, 200), torch.rand(3, 200), torch.randint(0, 4, (3, 200))
    valid = torch.rand(3, 200) > 0.3
    kept = batched_nms(boxes, scores, groups, valid, 0.5, 60)
    assert kept.indices.shape == (3, 60)
    for image in range(3):
        candidates = valid[image].nonzero()[:, 0]
        expected = candidates[
            torchvision.ops.batched_nms(
                boxes[image][candidates], scores[image][candidates], groups[image][candidates], 0.5
            )
        ][:60]
        assert kept.indices[image][kept.valid[image]].tolist() == expected.tolist()


def test_nothing_valid_keeps_nothing():
    kept = batched_nms(random_boxes(1, 5), torch.rand(1, 5), torch.zeros(1, 5).long(), torch.zeros(1, 5).bool(), 0.5, 3)
    assert not kept.valid.any()


def test_the_operator_is_registered_properly():
    arguments = (random_boxes(2, 9), torch.rand(2, 9), torch.zeros(2, 9).long(), torch.ones(2, 9).bool(), 0.5, 4)
    torch.library.opcheck(torch.ops.augfpn.batched_nms.default, arguments)
