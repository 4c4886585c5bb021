"""Contexts of C5: each pooling and each fusion of Table 4 against what the paper, or PSPNet, says of it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from augfpn.components import ResidualFeatureAugmentation
from augfpn.components.residual_feature_augmentation import ratio_invariant_pooling

# An image of 800 × 1333 is padded to 800 × 1344: C5 has 25 × 42 cells.
PAPERS_C5 = (25, 42)


def augmentation_of(**options):
    """From 10 to 5 channels. Biases start at zero, where they could be forgotten."""
    torch.manual_seed(0)
    augmentation = ResidualFeatureAugmentation(10, 5, **options)
    for name, parameter in augmentation.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return augmentation


def slow_pooling(feature, height, width, reduction=torch.mean):
    """Reduces every cell ``(y, x)`` of ``height × width`` by itself; a cell that is not whole reaches to the next."""
    rows, columns = feature.shape[-2:]
    pooled = torch.zeros(*feature.shape[:-2], height, width)
    for y in range(height):
        for x in range(width):
            above, below = y * rows // height, -(-(y + 1) * rows // height)
            left, right = x * columns // width, -(-(x + 1) * columns // width)
            for image in range(feature.shape[0]):
                for channel in range(feature.shape[1]):
                    pooled[image, channel, y, x] = reduction(feature[image, channel, above:below, left:right])
    return pooled


def slow_contexts(augmentation, c5, sizes, reduction=torch.mean):
    """A context for each of ``sizes``, pooled, with its channels reduced, and brought back to C5's size."""
    contexts = []
    for (height, width), conv in zip(sizes, augmentation.convs, strict=True):
        pooled = slow_pooling(c5, height, width, reduction)
        reduced = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], pooled) + conv.bias[:, None, None]
        contexts.append(F.interpolate(reduced, size=c5.shape[-2:], mode="bilinear", align_corners=True))
    return torch.stack(contexts, dim=1)


def pooled_sizes(augmentation, height, width):
    c5 = torch.zeros(1, 10, height, width)
    return [tuple(pool(c5).shape[-2:]) for pool in augmentation.poolings]


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, (2, 4)), (0.2, (5, 8)), (0.3, (7, 12)), (0.01, (1, 1))])
def test_pooling_keeps_the_aspect_ratio_up_to_rounding(ratio, expected):
    pooled = ratio_invariant_pooling(torch.zeros(1, 1, *PAPERS_C5), ratio)
    assert tuple(pooled.shape[-2:]) == expected


@pytest.mark.parametrize(
    ("options", "sizes", "reduction"),
    [
        ({"ratios": (0.25, 0.5)}, [(2, 1), (4, 3)], torch.mean),
        ({"pooling": "gap", "ratios": ()}, [(1, 1)], torch.mean),
        ({"pooling": "gmp", "ratios": ()}, [(1, 1)], torch.amax),
        ({"pooling": "psp", "ratios": ()}, [(1, 1), (2, 2), (3, 3), (6, 6)], torch.mean),
    ],
)
@pytest.mark.parametrize("fusion", ["asf", "sum", "psp"])
def test_m6_equals_its_contexts_pooled_a_cell_at_a_time_and_fused(options, sizes, reduction, fusion):
    augmentation = augmentation_of(**options, fusion=fusion)
    c5 = torch.randn(2, 10, 8, 6)
    with torch.no_grad():
        m6, weights = augmentation(c5)
        contexts = slow_contexts(augmentation, c5, sizes, reduction)
        if fusion == "asf":
            # What the weights are is held against Figure 3(a) by itself.
            expected = sum(weights[:, i : i + 1] * contexts[:, i] for i in range(len(sizes)))
        elif fusion == "sum":
            expected = sum(contexts[:, i] for i in range(len(sizes)))
        else:
            conv = augmentation.fusion.conv
            expected = F.conv2d(torch.cat(contexts.unbind(1), dim=1), conv.weight, conv.bias, padding=1)
    assert m6.shape == (2, 5, 8, 6)
    torch.testing.assert_close(m6, expected)


@pytest.mark.parametrize(("pooling", "value"), [("gap", 2.0), ("gmp", 9.0)])
def test_global_pooling_gives_every_place_the_same_context_worked_by_hand(pooling, value):
    augmentation = ResidualFeatureAugmentation(1, 1, pooling=pooling, ratios=(), fusion="sum")
    with torch.no_grad():
        augmentation.convs[0].weight.fill_(10.0)
        augmentation.convs[0].bias.fill_(0.5)
    c5 = torch.tensor([[9.0, 0.0, 1.0], [-1.0, 2.0, 1.0]])
    # Its mean is 12 / 6 = 2, its maximum 9.
    m6 = augmentation(c5[None, None]).fused
    assert torch.equal(m6, torch.full((1, 1, 2, 3), 10 * value + 0.5))


@pytest.mark.parametrize("size", [PAPERS_C5, (42, 25), (6, 6), (4, 4), (2, 5), (1, 1)])
def test_pspnets_contexts_have_the_same_cells_whatever_the_size_of_the_image(size):
    augmentation = augmentation_of(pooling="psp", ratios=(), fusion="psp")
    assert pooled_sizes(augmentation, *size) == [(1, 1), (2, 2), (3, 3), (6, 6)]
    assert augmentation(torch.randn(1, 10, *size)).fused.shape == (1, 5, *size)


def test_a_c5_of_fewer_cells_than_pspnets_contexts_is_enlarged_as_worked_by_hand():
    finest = augmentation_of(pooling="psp", ratios=()).poolings[-1]
    pooled = finest(torch.tensor([[0.0, 4.0, 10.0, 20.0]]).expand(1, 1, 4, 4))
    # Cell i of six is from ⌊4i / 6⌋ to ⌈4(i + 1) / 6⌉: 0, 0-1, 1, 2, 2-3, 3.
    assert pooled[0, 0].tolist() == [[0, 2, 4, 10, 15, 20]] * 6


def test_ratio_invariant_pooling_keeps_the_aspect_ratio_where_pspnets_does_not():
    # C5 of 20 × 40 cells, twice as wide as high. A pooled cell of ratio-invariant pooling is as wide as it is high: 10,
    # 5 and 10 / 3 cells of C5. One of PSPNet's is as wide for its height as the image: 20 × 40, 10 × 20 and so on.
    assert pooled_sizes(augmentation_of(ratios=(0.1, 0.2, 0.3)), 20, 40) == [(2, 4), (4, 8), (6, 12)]
    assert pooled_sizes(augmentation_of(pooling="psp", ratios=()), 20, 40) == [(1, 1), (2, 2), (3, 3), (6, 6)]
    # What is square in the image stays square in its context, and is flattened in PSPNet's: a light square of 10 × 10
    # cells is one cell of 2 × 4, and half a cell of 2 × 2.
    c5 = torch.zeros(1, 1, 20, 40)
    c5[..., :10, :10] = 1
    assert ratio_invariant_pooling(c5, 0.1)[0, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    two_by_two = augmentation_of(pooling="psp", ratios=()).poolings[1]
    assert two_by_two(c5)[0, 0].tolist() == [[0.5, 0], [0, 0]]


def test_a_turned_image_has_a_turned_context_of_the_same_ratio():
    c5 = torch.randn(1, 3, *PAPERS_C5)
    for ratio in (0.1, 0.2, 0.3):
        pool = partial(ratio_invariant_pooling, ratio=ratio)
        torch.testing.assert_close(pool(c5.mT), pool(c5).mT)


@pytest.mark.parametrize("pooling", ["ra-ap", "gap", "gmp", "psp"])
@pytest.mark.parametrize("fusion", ["asf", "sum", "psp"])
def test_every_parameter_and_all_channels_of_c5_receive_a_gradient(pooling, fusion):
    augmentation = augmentation_of(pooling=pooling, ratios=(0.1, 0.3) if pooling == "ra-ap" else (), fusion=fusion)
    c5 = torch.randn(1, 10, *PAPERS_C5, requires_grad=True)
    augmentation(c5).fused.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in augmentation.parameters())
    assert (c5.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
