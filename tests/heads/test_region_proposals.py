import math

import pytest
import torch
import torch.nn.functional as F

from augfpn.heads.region_proposals import ProposalCounts, ProposalPredictions, ProposalRules, RegionProposals
from augfpn.ops.anchors import AnchorGenerator
from augfpn.ops.matching import Sampler
from augfpn.structures import Pyramid, Targets

SIZES = torch.tensor([[100, 100]])
OBJECT = Targets(torch.tensor([[[10.0, 10.0, 30.0, 30.0]] + [[0.0] * 4] * 7]), torch.tensor([[2] + [0] * 7]))
ANCHORS = torch.tensor(
    [
        [12.0, 10.0, 32.0, 30.0],  # 2 px beside the object: IoU 360 / 440 = 0.82
        [60.0, 60.0, 80.0, 80.0],  # background
        [-5.0, 60.0, 20.0, 80.0],  # leaves the image
    ]
)


def rpn(**rules):
    return RegionProposals(4, AnchorGenerator(), ProposalRules(**rules))


def predictions(logits, deltas=None):
    return ProposalPredictions(
        torch.tensor([logits]), torch.zeros(1, 3, 4) if deltas is None else deltas, ANCHORS, (2, 1)
    )


def test_losses_worked_by_hand():
    losses = rpn().losses(predictions([0.0, math.log(3.0), 50.0]), OBJECT, SIZES)
    # Foreground with probability ½, background with ¾ for an object; the anchor that leaves the image does not count.
    assert losses["loss_objectness"].item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    # The shift is −2 / 20 = −0.1: below β = 1/9 smooth L1 is x² / 2β. Over two sampled anchors.
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(0.1**2 / (2 / 9) / 2)


def test_anchors_that_leave_the_image_can_be_trained_too():
    losses = rpn(train_inside_only=False).losses(predictions([0.0, math.log(3.0), 0.0]), OBJECT, SIZES)
    assert losses["loss_objectness"].item() == pytest.approx((math.log(2) + math.log(4) + math.log(2)) / 3)


def test_an_object_whose_best_anchor_leaves_the_image_is_learnt_from_the_next_best():
    at_the_border = Targets(torch.tensor([[[0.0, 60.0, 20.0, 80.0]] + [[0.0] * 4] * 7]), OBJECT.labels)
    anchors = torch.tensor([[-2.0, 60.0, 18.0, 80.0], [0.0, 60.0, 20.0, 92.0], [60.0, 60.0, 80.0, 80.0]])
    made = ProposalPredictions(torch.tensor([[0.0, 0.0, 0.0]]), torch.zeros(1, 3, 4), anchors, (3,))
    # The second overlaps by 400 / 640: below 0.7, so it is foreground only as the best one inside.
    losses = rpn().losses(made, at_the_border, SIZES)
    growth, shift = math.log(20 / 32), 6 / 32
    assert losses["loss_rpn_box_reg"].item() == pytest.approx((-growth - 1 / 18 + shift - 1 / 18) / 2)


def test_losses_are_finite_without_objects():
    nothing = Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)])
    losses = rpn().losses(predictions([0.0, 0.0, 0.0]), nothing, SIZES)
    assert losses["loss_objectness"].item() == pytest.approx(math.log(2))
    assert losses["loss_rpn_box_reg"].item() == 0


def test_proposals_are_the_best_boxes_cut_to_the_image_and_padded():
    made = rpn(training=ProposalCounts(num=5)).propose(predictions([-1.0, 2.0, 1.0]), SIZES)
    assert made.boxes[0, made.valid[0]].tolist() == [[60, 60, 80, 80], [0, 60, 20, 80], [12, 10, 32, 30]]
    assert made.scores[0, made.valid[0]].tolist() == torch.tensor([2.0, 1.0, -1.0]).sigmoid().tolist()


def test_each_level_gives_its_best_anchors_before_suppression():
    made = rpn(training=ProposalCounts(before_nms=1, num=5)).propose(predictions([-1.0, 2.0, -3.0]), SIZES)
    assert made.boxes[0, made.valid[0]].tolist() == [[60, 60, 80, 80], [0, 60, 20, 80]]


def test_predictions_of_a_cell_belong_to_the_anchors_of_that_cell():
    torch.manual_seed(0)
    head = rpn()
    level = torch.randn(1, 4, 3, 5)
    made = head(Pyramid((level,), (), (4,)))
    hidden = F.relu(head.conv(level))
    row, column, shape = 2, 1, 1
    position = (row * 5 + column) * 3 + shape
    assert made.logits[0, position].item() == pytest.approx(head.objectness(hidden)[0, shape, row, column].item())
    expected = head.deltas(hidden)[0, 4 * shape : 4 * shape + 4, row, column]
    torch.testing.assert_close(made.deltas[0, position], expected)
    centre = (made.anchors[position, :2] + made.anchors[position, 2:]) / 2
    assert centre.tolist() == [(column + 0.5) * 4, (row + 0.5) * 4]


def test_a_sample_averages_over_what_was_drawn():
    losses = rpn(sampler=Sampler(num=1, foreground_fraction=1.0)).losses(predictions([0.0, 9.0, 9.0]), OBJECT, SIZES)
    assert losses["loss_objectness"].item() == pytest.approx(math.log(2))


def test_fewer_proposals_can_be_made_at_inference():
    network = rpn(inference=ProposalCounts(before_nms=1, num=1))
    made = predictions([3.0, 2.0, 1.0])
    assert network.propose(made, SIZES).valid.sum() == 3
    assert network.eval().propose(made, SIZES).valid.sum() == 1
