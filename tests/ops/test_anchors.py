import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionGenerator
from torchvision.models.detection.image_list import ImageList

from augfpn import build_detector
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


def test_octave_scales_equal_a_slow_loop():
    # mmdetection's definition with today's widths: ratios outside, scales inside; cells row by row.
    scales, ratios = [4 * 2 ** (octave / 3) for octave in range(3)], [0.5, 1.0, 2.0]
    features, strides = [torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)], (8, 16)
    for anchors, feature, stride in zip(
        AnchorGenerator(scales=tuple(scales), ratios=tuple(ratios))(features, strides), features, strides, strict=True
    ):
        expected = []
        for row in range(feature.shape[2]):
            for column in range(feature.shape[3]):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for ratio in ratios:
                    for scale in scales:
                        width, height = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                        expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        torch.testing.assert_close(anchors, torch.tensor(expected))


def test_retinanets_anchors_are_of_octave_scales():
    head = build_detector("table1/retinanet_r50_fpn_1x", num_classes=3, pretrained=False).head
    assert head.anchors.num_per_cell == 9
    [anchors] = head.anchors([torch.zeros(1, 1, 1, 1)], [8])
    areas = ((anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])).sqrt()
    assert areas.tolist() == pytest.approx([32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)] * 3)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(middles, torch.full((9, 2), 4.0))


@pytest.mark.parametrize("size", [(800, 608), (832, 1344), (32, 96), (256, 416)])
def test_anchors_in_whole_pixels_equal_torchvisions_where_levels_are_rounded_up(size):
    # P6 and P7 by convolutions of stride 2 that round up: 25 × 19 cells are followed by 13 × 10 and 7 × 5.
    height, width = (side // 8 for side in size)
    shapes = [(height, width), (height // 2, width // 2), (height // 4, width // 4)]
    for _ in range(2):
        shapes.append(tuple(-(-side // 2) for side in shapes[-1]))
    features = [torch.zeros(1, 1, *shape) for shape in shapes]
    sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
    theirs = TorchvisionGenerator(sizes=sizes, aspect_ratios=((0.5, 1.0, 2.0),) * 5)
    [expected] = theirs(ImageList(torch.zeros(1, 3, *size), [size]), features)
    scales = tuple(4 * 2 ** (octave / 3) for octave in range(3))
    ours = AnchorGenerator(scales=scales, centre=0.0, whole_pixels=True)(features, (8, 16, 32, 64, 128))
    torch.testing.assert_close(torch.cat(ours), expected, atol=0, rtol=0)
