import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionGenerator
from torchvision.models.detection.image_list import ImageList

from augfpn.ops.anchors import AnchorGenerator


def test_anchors_of_a_grid_worked_by_hand():
    [anchors] = AnchorGenerator(scales=(2.0,), ratios=(1.0, 4.0))([torch.zeros(1, 1, 1, 2)], [4])
    # Cells of 4 px have their middles at (2, 2) and (6, 2). A scale of 2 makes 8 × 8; a ratio of 4 makes 4 × 16.
    assert anchors.tolist() == [[-2, -2, 6, 6], [0, -6, 4, 10], [2, -2, 10, 6], [4, -6, 8, 10]]


def test_anchors_equal_torchvisions_but_for_the_place_in_the_cell():
    features = [torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)]
    theirs = TorchvisionGenerator(sizes=((32,), (64,)), aspect_ratios=((0.5, 1.0, 2.0),) * 2)
    expected = theirs(ImageList(torch.zeros(1, 3, 16, 24), [(16, 24)]), features)[0]
    ours = torch.cat(AnchorGenerator(centre=0.0)(features, (4, 8)))
    # torchvision rounds the sides to whole pixels.
    torch.testing.assert_close(ours, expected, atol=0.5, rtol=0)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_every_ratio_has_the_same_area(ratio):
    [anchors] = AnchorGenerator(ratios=(ratio,))([torch.zeros(1, 1, 1, 1)], [4])
    width, height = (anchors[0, 2:] - anchors[0, :2]).tolist()
    assert width * height == pytest.approx(32**2)
    assert height / width == pytest.approx(ratio)
