import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import roi_align

from augfpn.analysis.gap_in_image import MOST_CELLS, gap_in_image, grid_shape, on_grid, predictions_of_objects
from augfpn.analysis.probe import Probe, object_features, train_probe
from augfpn.data.loading import Batch
from augfpn.detectors import build_from_config
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.structures import Images, Pyramid, Targets

CPU = torch.device("cpu")
STRIDES = (4, 8, 16, 32)


class MadeUp:
    """In the place of a detector: its laterals are a function of the pixels and the stride."""

    consistent_supervision = None

    def __init__(self, lateral, strides=STRIDES):
        self.lateral = lateral
        self.strides = strides

    def eval(self):
        return self

    def features(self, images):
        laterals = tuple(self.lateral(images.pixels, stride) for stride in self.strides)
        return Pyramid(laterals, laterals, self.strides)


def probe_with(weights):
    """The probe whose logits are ``weights (K, C)`` times the features."""
    num_classes, channels = weights.shape
    probe = Probe(torch.zeros(1, 2, channels), num_classes)
    probe.std = torch.ones(channels, dtype=torch.float64)
    with torch.no_grad():
        probe.linear.weight.copy_(weights)
    return probe


def image_of(height, width, seed=0):
    return Images.pad([torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))])


def test_a_gap_worked_by_hand():
    # M2 holds (1, 0) everywhere, M5 in the left half of the image only, and (0, 1) in the right half.
    def lateral(pixels, stride):
        columns = torch.arange(pixels.shape[3] // stride)
        first = torch.ones_like(columns) if stride == 4 else (columns * stride < 64).long()
        height = pixels.shape[2] // stride
        return torch.stack([first, 1 - first])[None, :, None].float().expand(1, 2, height, -1)

    gap = gap_in_image(MadeUp(lateral, (4, 32)), image_of(64, 128), probe_with(3 * torch.eye(2)))
    assert gap.levels == ("M2", "M5")
    assert gap.size == (64, 128)
    assert gap.similarity.shape == gap.overlap.shape == (2, 2, 16, 32)
    # Cells of M5 are at the pixels 0, 32, 64 and 96, those of the grid at 2, 6, …: between 32 and 64 it changes.
    share = ((torch.arange(32) * 4 + 2 - 32) / 32).clamp(0, 1)
    between_0_and_1 = (1 - share) / ((1 - share) ** 2 + share**2).sqrt()
    torch.testing.assert_close(gap.similarity[0, 1], between_0_and_1.expand(16, -1))
    assert gap.similarity[0, 1, 0, :8].tolist() == [1] * 8
    assert gap.similarity[0, 1, 0, 8].item() == pytest.approx(15 / 226**0.5)  # pixel 34: 15 parts of 16, and one
    assert gap.similarity[0, 1, 0, 16:].tolist() == [0] * 16
    # Logits (3, 0) in M2, (3 (1 - share), 3 share) in M5.
    p, q = torch.sigmoid(torch.tensor(3.0)), torch.sigmoid(3 - 6 * share)
    torch.testing.assert_close(gap.overlap[0, 1], (torch.minimum(p, q) + torch.minimum(1 - p, 1 - q)).expand(16, -1))
    assert gap.overlap[0, 1, 0, -1].item() == pytest.approx(2 / (1 + math.exp(3)))
    assert torch.equal(gap.classes[0], torch.ones(16, 32, dtype=torch.int64))
    assert torch.equal(gap.classes[1], (share > 0.5).long().expand(16, -1) + 1)
    for of_pairs in (gap.similarity, gap.overlap):
        torch.testing.assert_close(of_pairs, of_pairs.transpose(0, 1))
        torch.testing.assert_close(of_pairs.diagonal(), torch.ones(16, 32, 2))


def test_levels_that_hold_the_same_have_no_gap():
    gap = gap_in_image(
        MadeUp(lambda pixels, stride: pixels[:, :, :1, :1].expand(-1, -1, 128 // stride, 96 // stride)),
        image_of(100, 90),
        probe_with(torch.randn(5, 3)),
    )
    torch.testing.assert_close(gap.similarity, torch.ones_like(gap.similarity))
    torch.testing.assert_close(gap.overlap, torch.ones_like(gap.overlap))
    assert (gap.classes == gap.classes[0]).all()


@pytest.mark.parametrize("size", [(128, 160), (100, 170), (500, 333), (37, 64)])
def test_a_place_of_the_grid_is_the_same_place_of_the_image_in_every_level(size):
    height, width = grid_shape(size, 4)
    assert max(height, width) <= MOST_CELLS
    centres = [(torch.arange(num) + 0.5) * side / num for num, side in zip((height, width), size, strict=True)]
    for stride in STRIDES:
        # Each cell holds the pixel that it is at, y and x, also behind the image.
        rows, columns = (torch.arange(side // stride + 3.0) * stride for side in size)
        lateral = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        found = on_grid(lateral, stride, size, (height, width))
        for along, centre, side in zip((found[0, :, 0], found[1, 0]), centres, size, strict=True):
            # Behind the last cell that is in the image, its value stays.
            last = (math.ceil(side / stride) - 1) * stride
            half = side / len(along) / 2
            before, behind = centre + half <= last, centre - half >= last
            assert before.sum() + behind.sum() >= len(along) - 1
            torch.testing.assert_close(along[before], centre[before])
            torch.testing.assert_close(along[behind], torch.full_like(along[behind], last))


@pytest.mark.parametrize("place", [(0, 0), (20, 30), (30, 63)])
def test_one_place_equals_a_slow_loop(place):
    generator = torch.Generator().manual_seed(1)
    laterals = {stride: torch.randn(1, 3, 320 // stride, 640 // stride, generator=generator) for stride in STRIDES}
    probe = probe_with(torch.randn(4, 3, generator=generator))
    gap = gap_in_image(MadeUp(lambda pixels, stride: laterals[stride]), image_of(310, 630), probe)
    assert gap.similarity.shape[2:] == (31, 64)
    features = []
    for stride, lateral in laterals.items():
        axes = []
        for position, num, side in zip(place, (31, 64), (310, 630), strict=True):
            last = math.ceil(side / stride) - 1
            samples = math.ceil(side / num / stride)
            assert samples == {4: 3, 8: 2, 16: 1, 32: 1}[stride]
            pixels = [(position + (sample + 0.5) / samples) * side / num for sample in range(samples)]
            axes.append([min(pixel / stride, last) for pixel in pixels])
        total, count = torch.zeros(3), 0
        for y in axes[0]:
            for x in axes[1]:
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        weight = (1 - abs(y - row)) * (1 - abs(x - column))
                        if weight > 0:
                            total += weight * lateral[0, :, row, column]
                count += 1
        features.append(total / count)
    for one, feature in enumerate(features):
        p = probe(feature).softmax(dim=0)
        assert gap.classes[one][place] == p.argmax() + 1
        for other, another in enumerate(features):
            q = probe(another).softmax(dim=0)
            similarity = feature @ another / (feature.norm() * another.norm())
            torch.testing.assert_close(gap.similarity[one, other][place], similarity)
            overlap = sum(min(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            assert gap.overlap[one, other][place].item() == pytest.approx(overlap, abs=1e-5)


def test_padding_is_not_read(small_model):
    image = image_of(70, 90)
    pixels = torch.rand(1, 3, 160, 256)
    pixels[:, :, :70, :90] = image.pixels[:, :, :70, :90]
    more = Images(pixels, image.sizes)
    # Where a cell of a lateral sees its own pixels only, neither what padding there is nor how much matters.
    model = MadeUp(lambda pixels, stride: pixels[:, :, ::stride, ::stride])
    one, other = (gap_in_image(model, images, probe_with(torch.eye(3))) for images in (image, more))
    assert one.size == other.size == (70, 90)
    assert torch.equal(one.similarity, other.similarity)
    assert torch.equal(one.overlap, other.overlap)
    # A network sees that there is padding, but not what is in it.
    network = small_model("table2/baseline")
    probe = probe_with(torch.randn(6, 16))
    noise = Images(torch.rand_like(image.pixels), image.sizes)
    noise.pixels[:, :, :70, :90] = image.pixels[:, :, :70, :90]
    one, other = (gap_in_image(network, images, probe) for images in (image, noise))
    assert torch.equal(one.similarity, other.similarity)


def test_objects_are_predicted_from_the_features_that_the_semantic_gap_compares(small_model):
    model = small_model("table2/cs")
    head = model.consistent_supervision.head
    # It starts with nearly the same probability for each class.
    torch.nn.init.normal_(head.classifier.weight)
    image = image_of(60, 100)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [50.0, 0.0, 98.0, 60.0], [10.0, 10.0, 13.0, 12.0]])
    batch = Batch(image, Targets.pad([boxes], [torch.tensor([3, 1, 6])]), (1,), image.sizes)
    objects = object_features(model, [batch], CPU)
    probe = train_probe(objects, 6)
    predictions = predictions_of_objects(model.train(), image, boxes, probe)
    assert not model.training
    assert predictions.levels == objects.levels == ("M2", "M3", "M4", "M5")
    assert list(predictions.probabilities) == ["probe", "auxiliary head"]
    for probabilities in predictions.probabilities.values():
        assert probabilities.shape == (3, 4, 7)
        assert probabilities.dtype == torch.float32
        assert not probabilities.requires_grad
        torch.testing.assert_close(probabilities.sum(dim=2), torch.ones(3, 4))
    of_probe, of_head = predictions.probabilities.values()
    assert torch.equal(of_probe[:, :, 0], torch.zeros(3, 4))
    assert torch.equal(of_probe.argmax(dim=2), probe.classes(objects.features))
    assert torch.equal(of_head.argmax(dim=2), objects.predictions)
    with torch.no_grad():
        for level, (lateral, stride) in enumerate(zip(model.features(image).laterals, STRIDES, strict=True)):
            pooled = roi_align(lateral, [boxes], 7, 1 / stride, sampling_ratio=2)
            seen_by_probe = probe(pooled.mean(dim=(2, 3))).softmax(dim=1).float()
            torch.testing.assert_close(of_probe[:, level, 1:], seen_by_probe, atol=1e-4, rtol=1e-3)
            seen_by_head = head(pooled).logits.softmax(dim=1)
            torch.testing.assert_close(of_head[:, level], seen_by_head, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("experiment", "finest_level", "levels"),
    [
        ("table2/baseline", None, ("M2", "M3", "M4", "M5")),
        ("table2/cs+rfa+srs", None, ("M2", "M3", "M4", "M5")),
        # Small one-stage detectors begin with M2, the paper's with M3.
        ("table1/retinanet_r50_augfpn_1x", 2, ("M2", "M3", "M4", "M5")),
        ("table1/fcos_r50_augfpn_1x", 3, ("M3", "M4", "M5")),
        ("table1/fcos_r50_fpn_1x", 3, ("M3", "M4", "M5")),
    ],
)
def test_every_kind_of_detector_can_be_looked_into(experiment, finest_level, levels):
    config = plan(experiment, "smoke").model
    if finest_level is not None:
        config = replace(config, finest_level=finest_level)
    model = build_from_config(config, 6, short_side=64, long_side=128)
    probe = probe_with(torch.randn(6, 16))
    image = image_of(64, 96)
    gap = gap_in_image(model.train(), image, probe)
    assert not model.training
    grid = (16, 24) if levels[0] == "M2" else (8, 12)
    num = len(levels)
    assert gap.levels == levels
    assert gap.similarity.shape == gap.overlap.shape == (num, num, *grid)
    assert gap.classes.shape == (num, *grid)
    assert gap.classes.dtype == torch.int64
    assert 1 <= gap.classes.min() <= gap.classes.max() <= 6
    assert gap.similarity.abs().max() <= 1 + 1e-5
    assert 0 <= gap.overlap.min() <= gap.overlap.max() <= 1 + 1e-6
    classifiers = ["probe"] if model.consistent_supervision is None else ["probe", "auxiliary head"]
    for num_boxes in (0, 1):
        predictions = predictions_of_objects(model, image, torch.tensor([[4.0, 6.0, 40.0, 50.0]])[:num_boxes], probe)
        assert predictions.levels == levels
        assert list(predictions.probabilities) == classifiers
        for probabilities in predictions.probabilities.values():
            assert probabilities.shape == (num_boxes, num, 7)


def test_more_than_one_image_is_refused(small_model):
    model, probe = small_model("table2/baseline"), probe_with(torch.randn(6, 16))
    two = Images.pad(list(torch.rand(2, 3, 64, 64)))
    with pytest.raises(UserError, match="one image at a time; found a batch of 2"):
        gap_in_image(model, two, probe)
    with pytest.raises(UserError, match="one image at a time; found a batch of 2"):
        predictions_of_objects(model, two, torch.zeros(1, 4), probe)
