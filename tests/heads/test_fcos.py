"""FCOS's head under the release's conventions, with numbers worked by hand and against slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from augfpn.heads.dense import DensePredictions
from augfpn.heads.fcos import FCOSHead, FCOSRules
from augfpn.ops.anchors import AnchorGenerator
from augfpn.structures import Pyramid, Targets

K = 3
STRIDES = (8, 16, 32)
CELLS = AnchorGenerator(scales=(1.0,), ratios=(1.0,))
RULES = FCOSRules(regression_ranges=(24.0, 48.0))
SIDE = 96


def head(channels=16):
    torch.manual_seed(0)
    return FCOSHead(channels, K, CELLS, RULES)


def levels(num_images=1, channels=16):
    return tuple(torch.randn(num_images, channels, SIDE // stride, SIDE // stride) for stride in STRIDES)


def pyramid(num_images=1):
    torch.manual_seed(1)
    return Pyramid(levels(num_images), (), STRIDES)


def targets(*images):
    """Of each image a list of ``((x1, y1, x2, y2), label)``."""
    boxes = [torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4) for objects in images]
    return Targets.pad(boxes, [torch.tensor([label for _, label in objects]).long() for objects in images])


def predictions(num_images=1):
    torch.manual_seed(2)
    cells = CELLS(levels(), STRIDES)
    num = sum(map(len, cells))
    return DensePredictions(
        torch.randn(num_images, num, K),
        torch.rand(num_images, num, 4) * 40 + 1,
        torch.randn(num_images, num),
        torch.cat(cells),
        tuple(map(len, cells)),
    )


def places():
    """x, y and the range of distances of every place, level after level, row by row."""
    for stride, (least, most) in zip(STRIDES, ((0, 24), (24, 48), (48, math.inf)), strict=True):
        for row in range(SIDE // stride):
            for column in range(SIDE // stride):
                yield (column + 0.5) * stride, (row + 0.5) * stride, least, most


def slow_assignment(objects):
    """Tian et al., Section 3.1: the smallest object around each place whose distances the level is for, or None."""
    assigned = []
    for x, y, least, most in places():
        best, smallest = None, math.inf
        for (x1, y1, x2, y2), label in objects:
            distances = (x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if min(distances) > 0 and least <= max(distances) <= most and area < smallest:
                best, smallest = (distances, label), area
        assigned.append(best)
    return assigned


def focal(logit, is_true):
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if is_true else -0.75 * p**2 * math.log(1 - p)


def centerness_of(left, upper, right, lower):
    """Equation 3."""
    return math.sqrt(min(left, right) / max(left, right) * min(upper, lower) / max(upper, lower))


def slow_losses(made, images):
    num_foreground = 0
    classifier = box_reg = centerness = weights = 0.0
    for image, objects in enumerate(images):
        for place, assigned in enumerate(slow_assignment(objects)):
            for k in range(K):
                is_true = assigned is not None and assigned[1] == k + 1
                classifier += focal(made.logits[image, place, k].item(), is_true)
            if assigned is None:
                continue
            num_foreground += 1
            goal, predicted = assigned[0], made.deltas[image, place].tolist()
            width = min(goal[0], predicted[0]) + min(goal[2], predicted[2])
            height = min(goal[1], predicted[1]) + min(goal[3], predicted[3])
            areas = [(d[0] + d[2]) * (d[1] + d[3]) for d in (goal, predicted)]
            iou = width * height / (sum(areas) - width * height)
            weight = centerness_of(*goal)
            weights += weight
            box_reg -= weight * math.log(iou)
            p = 1 / (1 + math.exp(-made.centerness[image, place].item()))
            centerness -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
    return {
        "loss_classifier": classifier / (num_foreground + len(images)),
        "loss_box_reg": box_reg / weights if num_foreground else 0.0,
        "loss_centerness": centerness / max(num_foreground, 1),
    }


def random_objects(num, seed):
    torch.manual_seed(seed)
    corners = torch.randint(-10, 60, (num, 2))
    boxes = torch.cat([corners, corners + torch.randint(3, 70, (num, 2))], dim=1)
    labels = torch.randint(1, K + 1, (num,))
    return [(tuple(box), label) for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)]


def assert_assigned(images):
    network, given = head(), targets(*images)
    foreground, objects = network._match(predictions(len(images)), given)
    for image, of_image in enumerate(images):
        expected = slow_assignment(of_image)
        assert foreground[image].tolist() == [assigned is not None for assigned in expected]
        labels = given.labels[image, objects[image][foreground[image]]].tolist()
        assert labels == [assigned[1] for assigned in expected if assigned is not None]


@pytest.mark.parametrize("seed", range(6))
def test_the_assignment_equals_a_slow_loop(seed):
    assert_assigned([random_objects(6, seed), random_objects(1, seed + 100), []])


def test_the_assignment_of_a_small_object_worked_by_hand():
    # Places of stride 8 are at 4, 12, 20 …; three by two of them are inside, all within 24 px of each side.
    foreground, _ = head()._match(predictions(), targets([((3, 3, 21, 13), 1)]))
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[:2, :3] = True
    assert torch.equal(foreground[0, :144].view(12, 12), inside)
    assert not foreground[0, 144:].any()


def test_a_place_on_the_side_of_a_box_is_outside():
    # The left side runs through the places at 12, the right one through those at 28.
    foreground, _ = head()._match(predictions(), targets([((12, 3, 28, 13), 1)]))
    assert foreground[0, :24].view(2, 12).nonzero()[:, 1].tolist() == [2, 2]


def test_a_distance_at_the_limit_of_two_levels_belongs_to_both():
    # From (20, 20), at stride 8, and from (24, 24), at stride 16, the furthest side is 24 px away.
    assert_assigned([[((10, 10, 44, 30), 1)], [((12, 12, 48, 36), 2)]])
    foreground, _ = head()._match(predictions(2), targets([((10, 10, 44, 30), 1)], [((12, 12, 48, 36), 2)]))
    assert foreground[0, 2 * 12 + 2]
    assert foreground[1, 144 + 1 * 6 + 1]


def test_the_smallest_object_wins_whatever_the_order():
    large, small = ((0, 0, 40, 40), 1), ((8, 8, 30, 30), 2)
    for objects in ([large, small], [small, large]):
        given = targets(objects)
        _, chosen = head()._match(predictions(), given)
        # The place (20, 20) is in both.
        assert given.labels[0, chosen[0, 2 * 12 + 2]] == 2


def test_all_places_in_a_box_are_foreground_not_only_central_ones():
    foreground, _ = head()._match(predictions(), targets([((0, 0, 96, 96), 1)]))
    # The whole image: of stride 8 no place is within 24 px of all sides; of stride 32 all nine are at least 48 away
    # from some side.
    assert foreground[0].view(-1)[:144].sum() == 0
    assert foreground[0, -9:].all()


def test_losses_worked_by_hand():
    # The only place is (4, 4), 3 px from the left and upper side of a 8 × 6 box: distances 3, 3, 5, 3.
    made = predictions()
    made.deltas[0, 0] = torch.tensor([3.0, 3.0, 1.0, 3.0])
    made.centerness[0, 0] = 0.0
    losses = head().losses(made, targets([((1, 1, 9, 7), 2)]))
    # Half of the box is predicted; the mean over one place does not depend on its weight.
    assert losses["loss_box_reg"].item() == pytest.approx(math.log(2))
    assert losses["loss_centerness"].item() == pytest.approx(math.log(2))
    classes = [focal(logit, False) for logit in made.logits[0, 1:].flatten().tolist()]
    classes += [focal(logit, k == 1) for k, logit in enumerate(made.logits[0, 0].tolist())]
    # One place and one image.
    assert losses["loss_classifier"].item() == pytest.approx(sum(classes) / 2, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_a_slow_loop(seed):
    images = [random_objects(5, seed), [], random_objects(2, seed + 50)]
    made = predictions(3)
    losses = {name: loss.item() for name, loss in head().losses(made, targets(*images)).items()}
    assert losses == pytest.approx(slow_losses(made, images), rel=1e-4)


def test_images_without_objects_give_finite_losses_and_gradients():
    network, given = head(), targets([], [])
    made = network(pyramid(2))
    losses = network.losses(made, given)
    assert losses["loss_box_reg"].item() == losses["loss_centerness"].item() == 0
    expected = sum(focal(logit, False) for logit in made.logits.flatten().tolist()) / 2
    assert losses["loss_classifier"].item() == pytest.approx(expected, rel=1e-4)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("size", [-1000.0, -90.0, 50.0, 90.0, 1000.0])
def test_extreme_predictions_have_finite_losses_and_gradients(size):
    # exp(89) is more than a float can hold; most of the places have no object.
    network = head()
    with torch.no_grad():
        network.regressor.bias.fill_(size)
        network.classifier.bias.fill_(size)
        network.centerness.bias.fill_(size)
    losses = network.losses(network(pyramid(2)), targets([((3, 3, 21, 13), 1), ((0, 0, 90, 90), 3)], []))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_distances_are_the_exponential_of_a_learnt_multiple_of_each_level():
    network, given = head(), pyramid()
    with torch.no_grad():
        network.scales[1].fill_(2.5)
        network.regressor.weight.mul_(30)
    made = network(given)
    start = 0
    for level, scale in zip(given.levels, (1.0, 2.5, 1.0), strict=True):
        raw = network.regressor(network.regression_tower(level))
        expected = (scale * raw).exp().permute(0, 2, 3, 1).flatten(1, 2)
        torch.testing.assert_close(made.deltas[:, start : start + expected.shape[1]], expected)
        start += expected.shape[1]
    made.deltas.sum().backward()
    assert all(scale.grad is not None for scale in network.scales)


def test_centerness_is_read_from_the_classification_tower():
    network, given = head(), pyramid()
    made = network(given)
    expected = [network.centerness(network.classification_tower(level)).flatten(1) for level in given.levels]
    torch.testing.assert_close(made.centerness, torch.cat(expected, dim=1))


def test_a_tower_is_four_convolutions_without_bias_each_with_group_norm_and_relu():
    tower = head(64).regression_tower
    features = expected = torch.randn(2, 64, 5, 4)
    for i in range(4):
        assert tower.convs[i].bias is None
        expected = F.conv2d(expected, tower.convs[i].weight, padding=1)
        expected = F.relu(F.group_norm(expected, 32, tower.norms[i].weight, tower.norms[i].bias))
    torch.testing.assert_close(tower(features), expected)


def test_the_papers_width_has_32_groups():
    network = FCOSHead(256, K, CELLS, FCOSRules())
    assert {norm.num_groups for norm in network.classification_tower.norms} == {32}


@pytest.mark.parametrize("channels", [2, 5, 6, 16, 32, 48, 64])
def test_a_level_of_one_cell_can_be_normalised_at_any_width(channels):
    made = head(channels)(Pyramid(tuple(torch.randn(1, channels, 1, 1) for _ in STRIDES), (), STRIDES))
    assert made.logits.isfinite().all()


def test_every_class_starts_with_a_probability_of_a_hundredth():
    network = head()
    made = network(Pyramid(tuple(torch.zeros(1, 16, 4, 4) for _ in STRIDES), (), STRIDES))
    torch.testing.assert_close(made.logits.sigmoid(), torch.full((1, 48, K), 0.01))
    assert (made.deltas == 1).all()


def test_boxes_lie_around_the_middle_of_their_cell():
    made = predictions()
    made.deltas[0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # The second cell of the first row has its middle at (12, 4).
    assert head().boxes(made)[0, 1].tolist() == [11.0, 2.0, 15.0, 8.0]


def test_scores_are_class_times_centerness_with_the_threshold_on_the_class():
    made = predictions()
    made.logits[0, 0] = torch.tensor([0.0, math.log(3.0), -math.log(3.0)])
    made.centerness[0, 0] = -math.log(9.0)
    # A centerness of a tenth takes the product of ½ far below the threshold of 0.3, which is not for the product.
    assert head().scores(made, 0.3)[0, 0].tolist() == pytest.approx([0.05, 0.075, -1.0])
