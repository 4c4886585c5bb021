import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from augfpn.components import FeaturePyramid, ResidualFeatureAugmentation
from augfpn.components.pyramid import ConvolvedP6P7
from augfpn.interop import from_release

CHANNELS = (4, 6, 8, 10)


def features(height=8, width=6):
    torch.manual_seed(1)
    return [torch.randn(2, c, height * 2**i, width * 2**i) for c, i in zip(CHANNELS, (3, 2, 1, 0), strict=True)]


# The form of the pyramid, what P6 is made from, and the levels that it starts with.
FORMS = {"rcnn": (None, 2), "retinanet": ("c5", 3), "fcos": ("p5", 3)}


def pyramid_of(golden_tensors, form):
    """Our pyramid with the weights of the released one."""
    weights = {
        name.removeprefix("weight."): value for name, value in golden_tensors.items() if name.startswith("weight.")
    }
    source, first = FORMS[form]
    in_channels = [golden_tensors[f"in.c{level}"].shape[1] for level in range(first, 6)]
    out_channels = weights["lateral_convs.0.conv.weight"].shape[0]
    top = None
    if source is not None:
        top = ConvolvedP6P7(in_channels[-1] if source == "c5" else out_channels, out_channels, source)
    augmentation = ResidualFeatureAugmentation(in_channels[-1], out_channels)
    strides = [2**level for level in range(first, 6)]
    pyramid = FeaturePyramid(in_channels, out_channels, strides, augmentation, top)
    pyramid.load_state_dict(from_release(weights))
    return pyramid


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", ["landscape", "portrait_32x20", "tiny"])
def test_pyramid_equals_the_authors_release(golden, form, shape):
    tensors = golden(f"neck_{form}_{shape}")
    with torch.no_grad():
        result = pyramid_of(tensors, form)([tensors[f"in.c{level}"] for level in (2, 3, 4, 5)])
    first = FORMS[form][1]
    assert len(result.levels) == len(result.strides) == 5
    for level, ours in enumerate(result.levels, start=first):
        torch.testing.assert_close(ours, tensors[f"out.p{level}"], atol=1e-5, rtol=1e-5)
    assert len(result.laterals) == 6 - first
    for level, ours in enumerate(result.laterals, start=first):
        torch.testing.assert_close(ours, tensors[f"out.m{level}"], atol=1e-5, rtol=1e-5)


def test_without_augmentation_the_pyramid_is_torchvisions_with_the_same_weights():
    torch.manual_seed(0)
    ours = FeaturePyramid(CHANNELS, 5)
    theirs = FeaturePyramidNetwork(list(CHANNELS), 5, extra_blocks=LastLevelMaxPool())
    for level in range(4):
        theirs.inner_blocks[level][0].load_state_dict(ours.lateral_convs[level].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(ours.output_convs[level].state_dict())
    inputs = features()
    expected = theirs({str(level): feature for level, feature in enumerate(inputs)})
    for level, other in zip(ours(inputs).levels, expected.values(), strict=True):
        torch.testing.assert_close(level, other)


def test_augmentation_changes_every_level_but_no_lateral():
    torch.manual_seed(0)
    with_it = FeaturePyramid(CHANNELS, 5, residual_feature_augmentation=ResidualFeatureAugmentation(10, 5))
    without = FeaturePyramid(CHANNELS, 5)
    without.load_state_dict(with_it.state_dict(), strict=False)
    a, b = with_it(features()), without(features())
    assert all(torch.equal(x, y) for x, y in zip(a.laterals, b.laterals, strict=True))
    assert not any(torch.allclose(x, y) for x, y in zip(a.levels, b.levels, strict=True))
