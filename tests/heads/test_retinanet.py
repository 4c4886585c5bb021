"""RetinaNet's head under the release's conventions, with numbers worked by hand and against slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from augfpn.heads.dense import DensePredictions
from augfpn.heads.retinanet import RetinaNetHead, RetinaNetRules
from augfpn.ops.anchors import AnchorGenerator
from augfpn.structures import Pyramid, Targets

K = 3
ANCHORS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # IoU 1 with the first object
        [0.0, 0.0, 10.0, 22.0],  # IoU 100 / 220 = 0.4545: ignored
        [0.0, 0.0, 10.0, 40.0],  # IoU 100 / 400 = 0.25: background
        [100.0, 100.0, 110.0, 150.0],  # IoU 100 / 500 = 0.2 with the second object, and the best of it
        [60.0, 0.0, 70.0, 10.0],  # nothing
    ]
)
OBJECTS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 110.0]])


def head(**rules):
    return RetinaNetHead(8, K, AnchorGenerator(scales=(4.0,)), RetinaNetRules(**rules))


def predictions(num_images, anchors=ANCHORS):
    torch.manual_seed(0)
    shape = (num_images, len(anchors))
    return DensePredictions(torch.randn(*shape, K), torch.randn(*shape, 4), None, anchors, (len(anchors),))


def focal(logit, is_true):
    """Lin et al., Equation 5: −α_t (1 − p_t)^γ log p_t, with α = 0.25 and γ = 2."""
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if is_true else -0.75 * p**2 * math.log(1 - p)


def smooth_l1(distance, beta=0.11):
    return distance**2 / (2 * beta) if distance < beta else distance - beta / 2


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow_losses(predictions, boxes, labels):
    """The release's losses, an anchor and a class at a time; ``boxes`` and ``labels``: lists, one for each image."""
    classifier = box_reg = 0.0
    normaliser = 0
    for image, (objects, classes) in enumerate(zip(boxes, labels, strict=True)):
        table = [[iou(anchor, box) for anchor in predictions.anchors.tolist()] for box in objects]
        num_foreground = 0
        for i, anchor in enumerate(predictions.anchors.tolist()):
            overlaps = [row[i] for row in table]
            best = max(overlaps, default=0.0)
            assigned = overlaps.index(best) if best >= 0.5 else None
            for which, row in enumerate(table):
                if row[i] > 0 and row[i] == max(row):
                    assigned = which
            if assigned is None and best >= 0.4:
                continue
            for k in range(K):
                is_true = assigned is not None and classes[assigned] == k + 1
                classifier += focal(predictions.logits[image, i, k].item(), is_true)
            if assigned is not None:
                num_foreground += 1
                (x1, y1, x2, y2), (left, upper, right, lower) = anchor, objects[assigned]
                goal = [
                    ((left + right) - (x1 + x2)) / 2 / (x2 - x1),
                    ((upper + lower) - (y1 + y2)) / 2 / (y2 - y1),
                    math.log((right - left) / (x2 - x1)),
                    math.log((lower - upper) / (y2 - y1)),
                ]
                deltas = predictions.deltas[image, i].tolist()
                box_reg += sum(smooth_l1(abs(d - g)) for d, g in zip(deltas, goal, strict=True))
        normaliser += max(1, num_foreground)
    return {"loss_classifier": classifier / normaliser, "loss_box_reg": box_reg / normaliser}


def compare(made, boxes, labels):
    targets = Targets.pad(
        [torch.tensor(b).reshape(-1, 4) for b in boxes], [torch.tensor(x, dtype=torch.int64) for x in labels]
    )
    losses = head().losses(made, targets)
    expected = slow_losses(made, boxes, labels)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_losses_equal_a_slow_loop_on_a_case_worked_by_hand():
    # Two foreground anchors in the first image, none in the second, which counts as one: the normaliser is 3.
    compare(predictions(2), [OBJECTS.tolist(), []], [[2, 3], []])


@pytest.mark.parametrize("seed", range(5))
def test_losses_equal_a_slow_loop_on_random_objects(seed):
    torch.manual_seed(seed)
    features = [torch.zeros(1, 1, 8, 6), torch.zeros(1, 1, 4, 3)]
    # In whole pixels, so that ties are ties whatever the precision: objects inside several anchors have many.
    anchors = torch.cat(AnchorGenerator(scales=(2.0, 3.0), ratios=(1.0,))(features, (8, 16)))
    boxes = []
    for num in (4, 1):
        corners = torch.randint(0, 40, (num, 2))
        boxes.append(torch.cat([corners, corners + torch.randint(5, 35, (num, 2))], dim=1).float().tolist())
    compare(predictions(2, anchors), boxes, [[1, 2, 3, 1], [2]])


def test_the_normaliser_is_the_sum_over_images_of_at_least_one():
    made = predictions(3)
    made.deltas.zero_()
    one = Targets.pad([OBJECTS[:1]] + [torch.zeros(0, 4)] * 2, [torch.tensor([1])] + [torch.zeros(0).long()] * 2)
    made.deltas[0, 0, 0] = 1.0
    # A distance of 1 in one coordinate, over 1 + 1 + 1.
    assert head().losses(made, one)["loss_box_reg"].item() == pytest.approx((1 - 0.055) / 3)
    assert head(mean="image").losses(made, one)["loss_box_reg"].item() == pytest.approx((1 - 0.055) / 3)
    both = Targets.pad([OBJECTS] + [torch.zeros(0, 4)] * 2, [torch.tensor([1, 1])] + [torch.zeros(0).long()] * 2)
    goal = math.log(5) - 0.055, 2 / 5 - 0.055
    # The second object is 20 px above the middle of its anchor, and a fifth of its height; 2 + 1 + 1 anchors.
    assert head().losses(made, both)["loss_box_reg"].item() == pytest.approx((1 - 0.055 + sum(goal)) / 4)
    assert head(mean="image").losses(made, both)["loss_box_reg"].item() == pytest.approx((0.945 + sum(goal)) / 2 / 3)


def test_an_ignored_anchor_gets_no_gradient_at_all():
    made = predictions(1)
    made.logits.requires_grad_()
    made.deltas.requires_grad_()
    sum(head().losses(made, Targets.pad([OBJECTS], [torch.tensor([2, 3])])).values()).backward()
    assert (made.logits.grad[0].abs().amax(dim=1) > 0).tolist() == [True, False, True, True, True]
    assert (made.deltas.grad[0].abs().amax(dim=1) > 0).tolist() == [True, False, False, True, False]


def test_padding_changes_nothing():
    made = predictions(1)
    # One object among eight places, and the same without padding.
    padded = Targets.pad([OBJECTS[:1]], [torch.tensor([2])])
    bare = Targets(OBJECTS[None, :1], torch.tensor([[2]]))
    torch.testing.assert_close(head().losses(made, padded), head().losses(made, bare))


@pytest.mark.parametrize("best_of", ["object", "overlap"])
def test_an_object_that_overlaps_no_anchor_is_no_reason_to_train_all_of_them_towards_it(best_of):
    rules = RetinaNetRules()
    matcher = type(rules.matcher)(foreground_iou=0.5, background_iou=0.4, lowest_best_iou=0.0, best_of=best_of)
    made = predictions(1)
    far = torch.tensor([[1000.0, 1000.0, 1010.0, 1010.0]])
    nothing = head().losses(made, Targets.pad([torch.zeros(0, 4)], [torch.zeros(0).long()]))
    torch.testing.assert_close(head(matcher=matcher).losses(made, Targets.pad([far], [torch.tensor([1])])), nothing)


def test_images_without_objects_give_finite_losses_and_no_box_loss():
    nothing = Targets.pad([torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2)
    made = predictions(2)
    losses = head().losses(made, nothing)
    assert losses["loss_box_reg"].item() == 0
    expected = sum(focal(logit, False) for logit in made.logits.flatten().tolist()) / 2
    assert losses["loss_classifier"].item() == pytest.approx(expected, rel=1e-5)


def test_every_class_starts_with_a_probability_of_a_hundredth():
    torch.manual_seed(0)
    made = head()(Pyramid((torch.zeros(1, 8, 2, 3),), (), (8,)))
    torch.testing.assert_close(made.logits.sigmoid(), torch.full((1, 2 * 3 * 3, K), 0.01))
    assert made.deltas.abs().max() == 0


def test_predictions_of_a_cell_belong_to_the_anchors_of_that_cell():
    torch.manual_seed(0)
    anchors = AnchorGenerator(scales=(4.0, 5.0), ratios=(0.5, 1.0, 2.0))
    network = RetinaNetHead(8, K, anchors, RetinaNetRules())
    levels = (torch.randn(1, 8, 4, 5), torch.randn(1, 8, 2, 3))
    made = network(Pyramid(levels, (), (8, 16)))
    assert made.num_anchors == (4 * 5 * 6, 2 * 3 * 6)
    row, column, shape = 1, 2, 4
    position = 4 * 5 * 6 + (row * 3 + column) * 6 + shape
    maps = network.classifier(network.classification_tower(levels[1]))
    torch.testing.assert_close(made.logits[0, position], maps[0, shape * K : (shape + 1) * K, row, column])
    maps = network.regressor(network.regression_tower(levels[1]))
    torch.testing.assert_close(made.deltas[0, position], maps[0, shape * 4 : (shape + 1) * 4, row, column])
    x1, y1, x2, y2 = made.anchors[position].tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((2.5 * 16, 1.5 * 16))
    # Shapes of a cell: both scales of ratio 0.5, then of 1, then of 2; the fifth is the first scale of ratio 2.
    assert ((y2 - y1) / (x2 - x1), (y2 - y1) * (x2 - x1)) == pytest.approx((2, (4 * 16) ** 2))


def test_a_tower_is_four_convolutions_with_a_relu_after_each():
    torch.manual_seed(0)
    tower = head().classification_tower
    features = expected = torch.randn(1, 8, 5, 4)
    for i in range(4):
        expected = F.relu(F.conv2d(expected, tower.convs[i].weight, tower.convs[i].bias, padding=1))
    torch.testing.assert_close(tower(features), expected)


def test_scores_are_probabilities_above_the_threshold_and_boxes_the_refined_anchors():
    made = predictions(1)
    made.logits[0, 0] = torch.tensor([0.0, math.log(3.0), -math.log(3.0)])
    assert head().scores(made, 0.3)[0, 0].tolist() == pytest.approx([0.5, 0.75, -1.0])
    # "More than": a half is not more than a half.
    assert head().scores(made, 0.5)[0, 0].tolist() == pytest.approx([-1.0, 0.75, -1.0])
    made.deltas[0, 0] = torch.tensor([0.2, -0.1, math.log(2.0), math.log(0.5)])
    # The centre moves from (5, 5) to (7, 4); the sides become 20 and 5.
    assert head().boxes(made)[0, 0].tolist() == pytest.approx([-3.0, 1.5, 17.0, 6.5], abs=1e-5)


def test_extreme_predictions_have_finite_losses_and_gradients():
    made = predictions(1)
    logits, deltas = (made.logits * 1e4).requires_grad_(), (made.deltas * 1e4).requires_grad_()
    extreme = DensePredictions(logits, deltas, None, made.anchors, made.num_anchors)
    sum(head().losses(extreme, Targets.pad([OBJECTS], [torch.tensor([2, 3])])).values()).backward()
    assert logits.grad.isfinite().all()
    assert deltas.grad.isfinite().all()
    assert head().boxes(extreme).isfinite().all()
