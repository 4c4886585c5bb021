"""The smoke-scale models are small and untrained; an alteration does the same to any weights."""

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from augfpn.analysis.alterations import Alteration, WeighedByHand, altered, applicable
from augfpn.analysis.level_ratios import level_ratios
from augfpn.components.adaptive_fusion import fusion_of
from augfpn.data import evaluation_batches, open_dataset
from augfpn.detectors import build_from_config
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.heads.roi_pooling import SingleLevelPooling
from augfpn.ops.level_assignment import assigned_levels
from augfpn.ops.roi_align import roi_align_every_level
from augfpn.structures import Pyramid

AUGFPN = "table2/cs+rfa+srs"
MASK_RCNN = "table1/mask_rcnn_r50_augfpn_1x"
RETINANET = "table1/retinanet_r50_augfpn_1x"
STRIDES = (4, 8, 16, 32, 64)
WITHOUT_SELECTION = Alteration(soft_roi_selection=False)
WITHOUT_AUGMENTATION = Alteration(residual_feature_augmentation=False)
ALTERATIONS = [
    Alteration(level_weights=(1, 0, 0, 0)),
    Alteration(level_weights=(0.5, 1, 2, 0), weights_are="fixed"),
    WITHOUT_SELECTION,
    WITHOUT_AUGMENTATION,
    Alteration(soft_roi_selection=False, residual_feature_augmentation=False),
    Alteration(level_weights=(0, 0, 3, 1), residual_feature_augmentation=False),
]


def picture(seed=0):
    return torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(seed))


def random_pyramid(channels=16, seed=0):
    """Of two images of 128 pixels."""
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(2, channels, 128 // stride, 128 // stride, generator=generator) for stride in STRIDES)
    return Pyramid(levels, levels[:4], STRIDES)


def boxes_of_every_level():
    """``(2, 8, 4)``: two for each level P2…P5, which end at the smoke scale with sides of 28, 56 and 112 pixels."""
    sides = torch.tensor([5.0, 20.0, 30.0, 50.0, 60.0, 100.0, 113.0, 128.0])
    corners = torch.tensor([[7.0, 70.0, 40.0, 3.0, 60.0, 20.0, 9.0, 0.0]]).T.expand(-1, 2)
    return torch.cat([corners, corners + sides[:, None]], dim=1).expand(2, -1, -1)


def same(one, other):
    return all(
        of_one.keys() == of_other.keys() and all(torch.equal(of_one[name], of_other[name]) for name in of_one)
        for of_one, of_other in zip(one, other, strict=True)
    )


def with_biases(module):
    """Biases start at zero, where they could be forgotten."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return module


# Weights turned by hand.


def slow_weights(name, fusion, features):
    """Figure 3 without a line of the fusion's own: the weight ``(N, L, C, H, W)`` of every number that goes in."""
    concatenated = features.flatten(1, 2)
    if name == "sum":
        return torch.ones_like(features)
    if name == "asf":
        hidden = F.conv2d(concatenated, fusion.reduce.weight, fusion.reduce.bias).clamp(min=0)
        scores = F.conv2d(hidden, fusion.weigh.weight, fusion.weigh.bias, padding=1)
        return torch.sigmoid(scores)[:, :, None].expand_as(features)
    squeezed = concatenated.mean(dim=(2, 3))
    hidden = F.linear(squeezed, fusion.reduce.weight, fusion.reduce.bias).clamp(min=0)
    scores = F.linear(hidden, fusion.weigh.weight, fusion.weigh.bias).reshape(features.shape[:3])
    return torch.sigmoid(scores)[..., None, None].expand_as(features)


@pytest.mark.parametrize("by_hand", [(1, 0, 0, 0), (0, 0, 1, 0), (0.5, 2.0, 0.0, 1.25), (0, 0, 0, 0)])
@pytest.mark.parametrize("weights_are", ["factors", "fixed"])
@pytest.mark.parametrize("name", ["asf", "acf", "sum"])
def test_weights_by_hand_equal_a_slow_loop_over_levels_channels_and_places(name, weights_are, by_hand):
    torch.manual_seed(0)
    fusion = with_biases(fusion_of(name, channels=3, num_inputs=4))
    features = torch.randn(2, 4, 3, 2, 3)
    with torch.no_grad():
        fused, weights = WeighedByHand(fusion, by_hand, weights_are)(features)
        learnt = slow_weights(name, fusion, features)
    expected, used = torch.zeros(2, 3, 2, 3), torch.zeros(2, 4, 2, 3)
    for roi, level, channel, y, x in torch.cartesian_prod(*map(torch.arange, features.shape)).tolist():
        of_roi = 1.0 if weights_are == "fixed" else learnt[roi, level, channel, y, x].item()
        expected[roi, channel, y, x] += by_hand[level] * of_roi * features[roi, level, channel, y, x]
        used[roi, level, y, x] += by_hand[level] * of_roi / features.shape[2]
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(weights, used)


@pytest.mark.parametrize("name", ["asf", "acf", "sum"])
def test_factors_of_1_give_the_same_bits(name):
    torch.manual_seed(0)
    fusion = fusion_of(name, channels=6, num_inputs=4)
    features = torch.randn(5, 4, 6, 7, 7)
    with torch.no_grad():
        for before, after in zip(fusion(features), WeighedByHand(fusion, (1, 1, 1, 1))(features), strict=True):
            assert torch.equal(before, after)


def test_factors_multiply_when_an_altered_detector_is_altered_again(small_model):
    model = small_model(AUGFPN).eval()
    half = Alteration(level_weights=(0.5, 1, 2, 1))
    twice = altered(altered(model, half), half)
    assert same(twice([picture()]), altered(model, Alteration(level_weights=(0.25, 1, 4, 1)))([picture()]))


@pytest.mark.parametrize("name", ["asf", "acf", "sum"])
def test_the_weights_that_are_reported_are_those_that_are_used(small_model, name):
    model = small_model(AUGFPN if name == "asf" else f"table5/srs_{name}").eval()
    turned = altered(model, Alteration(level_weights=(0.25, 0, 2, 1)))
    pyramid, boxes = random_pyramid(), boxes_of_every_level()
    # The same number in every channel, so that means over channels are all that counts.
    pyramid = Pyramid(tuple(level[:, :1].expand(-1, 16, -1, -1) for level in pyramid.levels), (), STRIDES)
    with torch.no_grad():
        fused, weights = turned.roi_pooling(pyramid, boxes)
        learnt = model.roi_pooling(pyramid, boxes).weights
    pooled = roi_align_every_level(pyramid.levels[:4], STRIDES[:4], boxes)
    torch.testing.assert_close(fused.mean(dim=1), (weights * pooled[:, :, 0]).sum(dim=1))
    torch.testing.assert_close(weights, learnt * torch.tensor([0.25, 0, 2, 1])[:, None, None])
    assert weights.shape == (16, 4, 7, 7)


def test_level_ratios_are_of_the_weights_that_are_used(small_model):
    config = plan(AUGFPN, "smoke").data
    [batch] = evaluation_batches(open_dataset(config, "val"), config, batch_size=4)
    model = small_model(AUGFPN)
    p3_alone = level_ratios(altered(model, Alteration(level_weights=(0, 1, 0, 0))), [batch], torch.device("cpu"))
    expected = level_ratios(model, [batch], torch.device("cpu")).means
    expected[:, [0, 2, 3]] = 0
    torch.testing.assert_close(p3_alone.means, expected)
    single = level_ratios(altered(model, WITHOUT_SELECTION), [batch], torch.device("cpu"))
    present = single.counts > 0
    assert present.any()
    assert torch.equal(single.means[present], torch.eye(4, dtype=torch.float64)[present])


# Components taken out.


@pytest.mark.parametrize("level", range(4))
def test_a_fixed_weight_of_1_for_the_assigned_level_is_no_soft_roi_selection_for_its_rois(small_model, level):
    model = small_model(MASK_RCNN).eval()
    one_hot = tuple(float(index == level) for index in range(4))
    fixed = altered(model, Alteration(level_weights=one_hot, weights_are="fixed"))
    off = altered(model, WITHOUT_SELECTION)
    pyramid, boxes = random_pyramid(), boxes_of_every_level()
    own = assigned_levels(boxes, model.finest_side).flatten() == level
    assert own.sum() == 4
    poolings = [(fixed.roi_pooling, off.roi_pooling), (fixed.mask_branch.roi_pooling, off.mask_branch.roi_pooling)]
    for of_fixed, of_off in poolings:
        expected, assigned = of_off(pyramid, boxes)
        fused, weights = of_fixed(pyramid, boxes)
        torch.testing.assert_close(fused[own], expected[own], atol=1e-5, rtol=1e-5)
        assert torch.equal(weights[own], assigned[own])
        # Of RoIs of other levels it is something else.
        assert ((fused - expected)[~own].abs().amax(dim=(1, 2, 3)) > 1e-2).all()


def without(config, *components):
    return replace(config, **dict.fromkeys(components))


@pytest.mark.parametrize(
    ("experiment", "component", "alteration"),
    [
        (AUGFPN, "soft_roi_selection", WITHOUT_SELECTION),
        (AUGFPN, "residual_feature_augmentation", WITHOUT_AUGMENTATION),
        (MASK_RCNN, "soft_roi_selection", WITHOUT_SELECTION),
        ("table5/srs_max", "soft_roi_selection", WITHOUT_SELECTION),
        (RETINANET, "residual_feature_augmentation", WITHOUT_AUGMENTATION),
        ("table1/fcos_r50_augfpn_1x", "residual_feature_augmentation", WITHOUT_AUGMENTATION),
    ],
)
def test_a_component_taken_out_is_a_detector_built_without_it_with_the_same_weights(
    small_model, experiment, component, alteration
):
    model = with_biases(small_model(experiment)).eval()
    built = build_from_config(
        without(plan(experiment, "smoke").model, component), model.num_classes, short_side=64, long_side=128
    ).eval()
    missing, unexpected = built.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all("roi_pooling.fusion" in name or component in name for name in unexpected)
    taken_out = altered(model, alteration)
    pictures = [picture(), picture(1)]
    found = taken_out(pictures)
    assert len(found[0]["boxes"]) > 0
    assert same(found, built(pictures))
    assert not same(found, model(pictures))
    # What is not there has no parameters either.
    assert taken_out.state_dict().keys() == built.state_dict().keys()


@pytest.mark.parametrize("experiment", [AUGFPN, RETINANET])
def test_without_residual_feature_augmentation_the_pyramid_is_fpns(small_model, experiment):
    model = small_model(experiment).eval()
    c5 = model.pyramid.residual_feature_augmentation.convs[0].in_channels
    stages = [conv.in_channels for conv in model.pyramid.lateral_convs]
    assert stages[-1] == c5
    features = [torch.randn(2, channels, 32 >> i, 48 >> i) for i, channels in enumerate(stages)]
    with torch.no_grad():
        before = model.pyramid(features)
        after = altered(model, WITHOUT_AUGMENTATION).pyramid(features)
    # Consistent Supervision looks at the laterals before the addition; all levels come after it, P6 and P7 too.
    assert all(map(torch.equal, before.laterals, after.laterals))
    assert not any(map(torch.equal, before.levels, after.levels))
    assert len(after.levels) == 5 + (experiment == RETINANET)


# Whatever the alteration.


@pytest.mark.parametrize("experiment", [AUGFPN, MASK_RCNN])
def test_the_model_stays_as_it_was(small_model, experiment):
    model = small_model(experiment).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    text, before = repr(model), model([picture()])
    for alteration in ALTERATIONS:
        other = altered(model, alteration)
        found = other([picture()])
        assert not same(found, before), alteration
        assert found[0].keys() == before[0].keys()
        assert not any(module.training for module in other.modules())
        other.train()
    assert not any(module.training for module in model.modules())
    assert repr(model) == text
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert same(model([picture()]), before)


@pytest.mark.parametrize("alteration", [Alteration(), *ALTERATIONS])
def test_all_parameters_and_buffers_are_the_models_own(small_model, alteration):
    model = small_model(MASK_RCNN)
    other = altered(model, alteration)
    own = {id(tensor): tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    shared = {id(tensor): tensor.data_ptr() for tensor in (*other.parameters(), *other.buffers())}
    assert shared.items() <= own.items()
    if alteration.soft_roi_selection and alteration.residual_feature_augmentation:
        assert shared == own
    assert all(module.training for module in other.modules())
    # The modules are others, all of them: one can be put into evaluation mode without the other.
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}


@pytest.mark.parametrize("experiment", [AUGFPN, "table5/srs_max", "table2/baseline", RETINANET])
@pytest.mark.parametrize("alteration", [Alteration(), Alteration(level_weights=(1, 1, 1, 1))])
def test_an_alteration_that_changes_nothing_gives_the_same_detections_in_every_detector(
    small_model, experiment, alteration
):
    assert alteration.is_none
    model = small_model(experiment).eval()
    other = altered(model, alteration)
    assert other is not model
    assert same(other([picture()]), model([picture()]))


def test_fixed_weights_of_1_are_those_of_the_sum_and_alter_all_others(small_model):
    ones = Alteration(level_weights=(1, 1, 1, 1), weights_are="fixed")
    assert not ones.is_none
    for experiment, is_sum in ((AUGFPN, False), ("table5/srs_acf", False), ("table5/srs_sum", True)):
        model = small_model(experiment).eval()
        assert same(altered(model, ones)([picture()]), model([picture()])) == is_sum


def test_the_masks_of_mask_rcnn_are_altered_with_its_boxes(small_model):
    model = small_model(MASK_RCNN).eval()
    assert isinstance(altered(model, WITHOUT_SELECTION).mask_branch.roi_pooling, SingleLevelPooling)
    pyramid, boxes = random_pyramid(), boxes_of_every_level()
    with torch.no_grad():
        learnt = model.mask_branch.roi_pooling(pyramid, boxes).weights
        turned = altered(model, Alteration(level_weights=(0, 2, 0, 1))).mask_branch.roi_pooling(pyramid, boxes)
    assert turned.weights.shape == (16, 4, 14, 14)
    assert torch.equal(turned.weights, learnt * torch.tensor([0.0, 2.0, 0.0, 1.0])[:, None, None])


def test_what_applies_to_which_detector(small_model):
    weights = {"level_weights", "weights_are"}
    selection, augmentation = {"soft_roi_selection"}, {"residual_feature_augmentation"}
    expected = {
        AUGFPN: weights | selection | augmentation,
        "table2/srs": weights | selection,
        "table2/rfa": augmentation,
        "table2/baseline": set(),
        "table5/srs_acf": weights | selection,
        "table5/srs_sum": {"level_weights"} | selection,
        "table5/srs_max": selection,
        "table5/panet_max": set(),
        MASK_RCNN: weights | selection | augmentation,
        RETINANET: augmentation,
    }
    names = {field.name for field in fields(Alteration)}
    for experiment, of_experiment in expected.items():
        model = small_model(experiment)
        assert applicable(model) == of_experiment <= names, experiment
        asked = {"level_weights": (0, 1, 1, 1), "soft_roi_selection": False, "residual_feature_augmentation": False}
        for name, value in asked.items():
            alteration = Alteration(**{name: value})
            if name in of_experiment:
                altered(model, alteration)
            else:
                with pytest.raises(UserError, match=f"{name} cannot be altered"):
                    altered(model, alteration)


@pytest.mark.parametrize(
    ("experiment", "alteration", "message"),
    [
        ("table2/baseline", WITHOUT_SELECTION, "SingleLevelPooling for its RoIs.*altered in it: nothing"),
        ("table2/baseline", WITHOUT_AUGMENTATION, "no Residual Feature Augmentation"),
        ("table5/srs_max", ALTERATIONS[0], "Soft RoI Selection by MaxFusion.*altered in it: soft_roi_selection"),
        ("table5/panet_max", WITHOUT_SELECTION, "AdaptiveFeaturePooling for its RoIs"),
        (RETINANET, ALTERATIONS[-1], "no RoIs, as a one-stage detector.*altered in it: residual_feature_augmentation"),
    ],
)
def test_a_refusal_says_what_the_detector_has(small_model, experiment, alteration, message):
    with pytest.raises(UserError, match=message):
        altered(small_model(experiment), alteration)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level_weights": (1, 1, 1)}, "four"),
        ({"level_weights": (1, 1, 1, -0.5)}, "not negative.*-0.5"),
        ({"level_weights": (1, 1, 1, math.inf)}, "finite"),
        ({"level_weights": (1, 1, 1, math.nan)}, "finite"),
        ({"weights_are": "softmax"}, "factors or fixed.*'softmax'"),
        ({"level_weights": (1, 2, 1, 1), "soft_roi_selection": False}, "leave it in"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Alteration(**values)


def test_what_is_an_alteration():
    assert not any(alteration.is_none for alteration in ALTERATIONS)
    # Sliders may stay where they begin when Soft RoI Selection is taken out.
    assert not Alteration(level_weights=(1, 1, 1, 1), soft_roi_selection=False).is_none
