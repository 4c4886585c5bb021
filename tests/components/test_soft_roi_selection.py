import torch

from augfpn.components import SoftRoISelection
from augfpn.interop import from_release
from augfpn.ops.roi_align import roi_align_every_level
from augfpn.structures import Pyramid

STRIDES = (4, 8, 16, 32, 64)


def random_pyramid(channels=4):
    levels = tuple(torch.randn(2, channels, 128 // stride, 128 // stride) for stride in STRIDES)
    return Pyramid(levels, levels[:4], STRIDES)


def test_selection_equals_the_authors_release(golden):
    tensors = golden("soft_roi_selection")
    weights = {name.removeprefix("weight."): value for name, value in tensors.items() if name.startswith("weight.")}
    inputs = [tensors[f"in.p{level}"] for level in (2, 3, 4, 5)]
    selection = SoftRoISelection(inputs[0].shape[1])
    selection.load_state_dict(from_release(weights))
    rois = tensors["in.rois"]
    images = rois[:, 0].long()
    pyramid = Pyramid((*inputs, inputs[-1]), tuple(inputs), STRIDES)
    with torch.no_grad():
        # Every RoI in every image of the batch; each is compared in its own.
        boxes = rois[:, 1:].expand(len(inputs[0]), -1, -1)
        fused, maps = selection(pyramid, boxes)
    own = images * len(rois) + torch.arange(len(rois))
    torch.testing.assert_close(maps[own], tensors["out.weights"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused[own], tensors["out.fused"], atol=1e-5, rtol=1e-5)
    # What Consistent Supervision sees: every level of an RoI, then every level of the next.
    every_level = roi_align_every_level(inputs, STRIDES[:4], boxes)[own].flatten(0, 1)
    torch.testing.assert_close(every_level, tensors["out.all_levels"], atol=1e-5, rtol=1e-5)


def test_a_permuted_list_of_rois_permutes_the_features():
    torch.manual_seed(0)
    selection, pyramid = SoftRoISelection(4), random_pyramid()
    boxes = torch.tensor([[5.0, 5.0, 30.0, 40.0], [60.0, 20.0, 120.0, 90.0], [0.0, 0.0, 128.0, 128.0]]).expand(
        2, -1, -1
    )
    order = torch.tensor([2, 0, 1])
    features = selection(pyramid, boxes).fused.unflatten(0, (2, 3))
    permuted = selection(pyramid, boxes[:, order]).fused.unflatten(0, (2, 3))
    torch.testing.assert_close(permuted, features[:, order])


def test_every_level_can_change_the_features_of_every_roi():
    torch.manual_seed(0)
    selection, pyramid = SoftRoISelection(4), random_pyramid()
    boxes = torch.tensor([[5.0, 5.0, 20.0, 20.0], [0.0, 0.0, 128.0, 128.0]]).expand(2, -1, -1)
    before = selection(pyramid, boxes).fused
    for level in range(4):
        changed = list(pyramid.levels)
        changed[level] = changed[level] + 1
        after = selection(Pyramid(tuple(changed), pyramid.laterals, STRIDES), boxes).fused
        assert ((after - before).abs().amax(dim=(1, 2, 3)) > 1e-3).all()
