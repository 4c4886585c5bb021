"""What a detector accepts at its door, and what it says of the rest."""

import pytest
import torch

from augfpn.errors import UserError

MASK_RCNN = "table1/mask_rcnn_r50_augfpn_1x"
ALL = ["table2/cs+rfa+srs", MASK_RCNN, "table1/retinanet_r50_augfpn_1x", "table1/fcos_r50_augfpn_1x"]
SIZE = (50, 80)


def target(**changes):
    """Two objects in an image of 50 × 80."""
    boxes = torch.tensor([[5.0, 5.0, 40.0, 40.0], [30.0, 10.0, 70.0, 45.0]])
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    masks[0, 5:40, 5:40], masks[1, 10:45, 30:70] = 1, 1
    given = {"boxes": boxes, "labels": torch.tensor([1, 6]), "masks": masks} | changes
    return {name: value for name, value in given.items() if value is not None}


def losses_of(model, *targets):
    torch.manual_seed(0)
    images = [torch.rand(3, *SIZE) for _ in targets]
    torch.manual_seed(0)
    return model(images, list(targets))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"masks": None}, r"targets\[0\] has no 'masks'; found boxes, labels\."),
        ({"boxes": None}, r"targets\[0\] has no 'boxes'; found labels, masks\."),
        ({"labels": None}, r"targets\[0\] has no 'labels'; found boxes, masks\."),
        ({"masks": torch.zeros(2, 80, 50).byte()}, r"shape \(2, 50, 80\), a mask of the image's size .*\(2, 80, 50\)"),
        ({"masks": torch.zeros(1, 50, 80).byte()}, r"shape \(2, 50, 80\), .*\(1, 50, 80\)"),
        ({"masks": torch.zeros(2, 1, 50, 80).byte()}, r"shape \(2, 50, 80\), .*\(2, 1, 50, 80\)"),
        ({"masks": torch.full((2, 50, 80), 255).byte()}, r"\['masks'\] must be 0 and 1 .*; found 255 to 255"),
        ({"masks": torch.full((2, 50, 80), 0.5)}, r"\['masks'\] must be 0 and 1 .*; found 0.5 to 0.5"),
        ({"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0], [30.0, 10.0, 30.0, 45.0]])}, r"found \[30.0, 10.0, 30.0"),
        ({"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0], [30.0, 45.0, 70.0, 10.0]])}, r"x1 < x2 and y1 < y2"),
        # As doubles they have a width, as floats they have none.
        ({"boxes": torch.tensor([[32.0, 5.0, 32.0 + 1e-9, 40.0]] * 2, dtype=torch.float64)}, r"x1 < x2 and y1 < y2"),
        ({"boxes": torch.tensor([5.0, 5.0, 40.0, 40.0])}, r"must be finite floats of shape \(2, 4\)"),
        ({"boxes": torch.full((2, 4), float("inf"))}, "must be finite floats"),
        ({"labels": torch.tensor([[1], [2]])}, r"\['labels'\] must be integers of shape \(G\).*\(2, 1\)"),
        ({"labels": torch.tensor(1)}, r"\['labels'\] must be integers of shape \(G\).* shape \(\)"),
        ({"labels": torch.tensor([1.0, 2.5])}, r"\['labels'\] must be integers .*float32"),
        ({"labels": torch.tensor([1, -1])}, r"must be in 1…6 \(0 is background\); found -1 to 1"),
    ],
)
def test_targets_that_make_no_sense_are_refused_with_what_is_wrong(small_model, changes, expected):
    with pytest.raises(UserError, match=expected):
        losses_of(small_model(MASK_RCNN), target(**changes))


@pytest.mark.parametrize("experiment", ALL)
def test_the_position_of_the_wrong_target_is_named(small_model, experiment):
    with pytest.raises(UserError, match=r"targets\[1\]"):
        losses_of(small_model(experiment), target(), target(labels=torch.tensor([1, 7])))


@pytest.mark.parametrize("num", [0, 1, 3])
def test_there_must_be_targets_for_each_image(small_model, num):
    images = [torch.rand(3, *SIZE)] * 2
    with pytest.raises(UserError, match=f"targets for each image; found {num} for 2 images"):
        small_model("table1/fcos_r50_fpn_1x")(images, [target()] * num)


@pytest.mark.parametrize("experiment", ALL)
@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": target()["boxes"].double()},
        {"labels": target()["labels"].int()},
        {"labels": target()["labels"].to(torch.uint8)},
        {"masks": target()["masks"].bool()},
        {"masks": target()["masks"].float()},
    ],
    ids=["float64 boxes", "int32 labels", "uint8 labels", "bool masks", "float masks"],
)
def test_other_types_of_the_same_targets_give_the_same_losses(small_model, experiment, changes):
    expected = losses_of(small_model(experiment), target())
    assert losses_of(small_model(experiment), target(**changes)) == expected


@pytest.mark.parametrize("experiment", [experiment for experiment in ALL if experiment != MASK_RCNN])
def test_masks_are_looked_at_only_where_they_are_needed(small_model, experiment):
    expected = losses_of(small_model(experiment), target(masks=None))
    assert losses_of(small_model(experiment), target(masks=torch.zeros(7), image_id=torch.tensor(3))) == expected


@pytest.mark.parametrize("experiment", ALL)
@pytest.mark.parametrize("num_empty", [1, 2])
def test_images_without_objects_are_trained(small_model, experiment, num_empty):
    model = small_model(experiment)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, *SIZE).byte()}
    losses = losses_of(model, *[nothing] * num_empty, *[target()] * (2 - num_empty))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    if num_empty == 2:
        of_objects = [name for name in losses if "box_reg" in name or "mask" in name or "centerness" in name]
        assert all(losses[name].item() == 0 for name in of_objects)


@pytest.mark.parametrize("experiment", ALL)
def test_an_object_outside_the_image_is_learnt_from_by_nobody(small_model, experiment):
    far = target(boxes=torch.tensor([[1000.0, 1000.0, 1010.0, 1010.0]] * 2))
    losses = losses_of(small_model(experiment), far)
    assert all(loss.isfinite() for loss in losses.values())
    # The auxiliary head and the box head may see the ground truth itself as an RoI; anchors and places may not.
    own = "loss_rpn_box_reg" if "loss_rpn_box_reg" in losses else "loss_box_reg"
    assert losses[own].item() == 0


def test_masks_are_resized_with_their_image(small_model):
    model = small_model(MASK_RCNN)
    seen = {}
    model.losses = lambda images, targets: seen.update(images=images, targets=targets)
    model([torch.rand(3, *SIZE), torch.rand(3, 100, 100)], [target(), {
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 50.0]]),
        "labels": torch.tensor([2]),
        "masks": (torch.arange(100) < 50)[None, :, None].expand(1, 100, 100),
    }])  # fmt: skip
    images, targets = seen["images"], seen["targets"]
    # The short side of 50 becomes 64, and 80 pixels 102; the batch is padded to 64 × 128.
    assert images.sizes.tolist() == [[64, 102], [64, 64]]
    assert targets.masks.shape == (2, 8, 64, 128)
    assert targets.masks.dtype == torch.uint8
    for image, position in ((0, 0), (0, 1), (1, 0)):
        rows, columns = targets.masks[image, position].nonzero().unbind(1)
        around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (around - targets.boxes[image, position]).abs().max() <= 1
    assert targets.masks[1, 0].sum() == 32 * 64
    assert not targets.masks[:, 2:].any()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], "at least one image"),
        ([torch.rand(3, 64, 64), torch.rand(1, 64, 64)], r"images\[1\] must have the shape \(3, H, W\)"),
        ([torch.rand(64, 64, 3)], r"found \(64, 64, 3\)"),
        ([torch.rand(3, 0, 64)], r"found \(3, 0, 64\)"),
    ],
)
def test_what_is_no_image_is_refused(small_model, images, expected):
    with pytest.raises(UserError, match=expected):
        small_model("table2/baseline").eval()(images)
