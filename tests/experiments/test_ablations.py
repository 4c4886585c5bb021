"""Every row of the ablations, Tables 2 to 5, is a real difference to its baseline, and to the rows beside it.

First what a row adds: modules, parameters and losses, against counts by hand. Then what a row does, where rows have the
same parameters and differ in a weight, a ratio, a pooling or a fusion only.
"""

from dataclasses import dataclass, field
from itertools import combinations

import pytest
import torch

from augfpn import build_from_config, plan
from augfpn.experiments import EXPERIMENTS, SCALES
from augfpn.ops.roi_align import roi_align_every_level
from augfpn.structures import RoISamples
from tests.analysis.test_cost import full_size, num_parameters
from tests.components.test_soft_roi_selection import STRIDES, random_pyramid
from tests.detectors.test_detectors import batch


@dataclass(frozen=True)
class Added:
    """``modules``: of the package's own, by name; ``at_inference`` and ``in_training``: numbers of parameters."""

    modules: dict[str, str]
    at_inference: int = 0
    in_training: int = 0
    losses: set[str] = field(default_factory=set)


# The paper's detector has C5 of 2048 channels, a pyramid of 256, RoIs of 7 × 7 = 49 cells (12544 inputs), hidden layers
# of 1024, and 80 classes with background. The last number in brackets is a bias.
A_CONTEXT = (2048 + 1) * 256
CS = Added(
    {"consistent_supervision": "ConsistentSupervision", "consistent_supervision.head": "BoxHead"},
    in_training=(12544 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 81 + (1024 + 1) * 81 * 4,
    losses={"loss_aux_classifier", "loss_aux_box_reg"},
)


def asf(num_inputs):
    """A 1 × 1 convolution of the concatenation, and a 3 × 3 convolution to a map for each input."""
    return (num_inputs * 256 + 1) * 256 + num_inputs * (256 * 9 + 1)


def rfa(num_contexts, fusion, parameters):
    name = "pyramid.residual_feature_augmentation"
    modules = {name: "ResidualFeatureAugmentation", f"{name}.fusion": fusion}
    return Added(modules, num_contexts * A_CONTEXT + parameters)


def rfa_asf(num_contexts):
    return rfa(num_contexts, "AdaptiveSpatialFusion", asf(num_contexts))


def srs(fusion, parameters):
    return Added({"roi_pooling": "SoftRoISelection", "roi_pooling.fusion": fusion}, parameters)


RFA, SRS = rfa_asf(3), srs("AdaptiveSpatialFusion", asf(4))

ROWS = {
    "table2/baseline": [],
    "table2/cs": [CS],
    "table2/rfa": [RFA],
    "table2/srs": [SRS],
    "table2/cs+rfa": [CS, RFA],
    "table2/cs+srs": [CS, SRS],
    "table2/rfa+srs": [RFA, SRS],
    "table2/cs+rfa+srs": [CS, RFA, SRS],
    # The weight and the levels have no parameters: below.
    "table3/none": [],
    "table3/single_level_1.2": [CS],
    "table3/single_level_1.0": [CS],
    "table3/single_level_0.5": [CS],
    "table3/single_level_0.25": [CS],
    "table3/all_level_0.5": [CS],
    "table3/all_level_0.25": [CS],
    "table3/all_level_0.125": [CS],
    "table4/baseline": [],
    "table4/sum_gmp": [rfa(1, "SumFusion", 0)],
    "table4/sum_gap": [rfa(1, "SumFusion", 0)],
    "table4/sum_raap_0.1_0.2_0.3": [rfa(3, "SumFusion", 0)],
    "table4/asf_raap_0.1": [rfa_asf(1)],
    "table4/asf_raap_0.1_0.2": [rfa_asf(2)],
    "table4/asf_raap_0.1_0.2_0.3": [rfa_asf(3)],
    "table4/asf_raap_0.1_0.2_0.3_0.4": [rfa_asf(4)],
    "table4/asf_raap_0.1_0.2_0.4": [rfa_asf(3)],
    "table4/asf_raap_0.1_0.2_0.5": [rfa_asf(3)],
    "table4/asf_psp": [rfa_asf(4)],
    # A 3 × 3 convolution of four contexts.
    "table4/psp_psp": [rfa(4, "ConvolutionalFusion", (4 * 256 * 9 + 1) * 256)],
    "table5/baseline": [],
    "table5/srs_sum": [srs("SumFusion", 0)],
    "table5/srs_max": [srs("MaxFusion", 0)],
    # Two layers, from the means of four levels to 256 and back.
    "table5/srs_acf": [srs("AdaptiveChannelFusion", (4 * 256 + 1) * 256 + (256 + 1) * 4 * 256)],
    "table5/srs_asf": [SRS],
    # A first layer for each of three levels more.
    "table5/panet_max": [
        Added({"roi_pooling": "AdaptiveFeaturePooling", "box_head.fc1": "MaxOverLevels"}, 3 * (12544 + 1) * 1024)
    ],
}


def own_modules(model):
    """The names and classes of the modules that are the package's and not PyTorch's or timm's."""
    modules = dict(model.named_modules()).items()
    return {name: type(module).__name__ for name, module in modules if type(module).__module__.startswith("augfpn.")}


def shapes_outside(model, modules):
    """Of all parameters and buffers that are in none of ``modules``."""
    prefixes = tuple(f"{name}." for name in modules)
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(prefixes)}


def test_no_row_of_an_ablation_is_left_out():
    assert list(ROWS) == [id for id in EXPERIMENTS if not id.startswith("table1/")]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_adds_the_modules_and_parameters_worked_by_hand_to_its_baseline_and_nothing_else(row):
    model, baseline = full_size(row), full_size(EXPERIMENTS[row].baseline)
    modules = {name: kind for part in ROWS[row] for name, kind in part.modules.items()}
    ours, theirs = own_modules(model), own_modules(baseline)
    assert {name: kind for name, kind in ours.items() if theirs.get(name) != kind} == modules
    assert theirs.keys() <= ours.keys()
    assert shapes_outside(model, modules) == shapes_outside(baseline, modules)

    at_inference = num_parameters(model.for_inference())
    assert at_inference - num_parameters(baseline) == sum(part.at_inference for part in ROWS[row])
    assert num_parameters(model) - at_inference == sum(part.in_training for part in ROWS[row])


@pytest.mark.parametrize("row", ROWS)
def test_a_row_adds_the_losses_of_consistent_supervision_or_none(small_model, row):
    losses, of_baseline = (small_model(id).losses(*batch()) for id in (row, EXPERIMENTS[row].baseline))
    assert of_baseline.keys() == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert losses.keys() - of_baseline.keys() == {name for part in ROWS[row] for name in part.losses}
    assert of_baseline.keys() <= losses.keys()


# Table 3: the same parameters.


@pytest.mark.parametrize(
    ("row", "reference", "factor"),
    [
        ("single_level_1.2", "single_level_0.25", 4.8),
        ("single_level_1.0", "single_level_0.25", 4.0),
        ("single_level_0.5", "single_level_0.25", 2.0),
        ("all_level_0.5", "all_level_0.25", 2.0),
        ("all_level_0.125", "all_level_0.25", 0.5),
    ],
)
def test_the_weight_scales_the_auxiliary_losses_and_no_others(small_model, row, reference, factor):
    losses = []
    for name in (row, reference):
        model = small_model(f"table3/{name}")
        # The same weights and the same batch; the same RoIs are sampled.
        torch.manual_seed(0)
        losses.append(model.losses(*batch()))
    assert losses[1]["loss_aux_box_reg"] > 0
    expected = {name: loss * (factor if "aux" in name else 1) for name, loss in losses[1].items()}
    torch.testing.assert_close(losses[0], expected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("single_level_0.25", [True, False, True, False]),
        ("all_level_0.25", [True, True, True, True]),
    ],
)
def test_a_single_level_supervises_the_laterals_that_rois_are_assigned_to_and_all_levels_all(
    small_model, row, expected
):
    model = small_model(f"table3/{row}")
    pyramid = model.features(batch()[0])
    # At this scale RoIs of less than 28 pixels are M2's, of less than 56 M3's, of less than 112 M4's.
    boxes = torch.tensor([[5.0, 5.0, 25.0, 25.0], [2.0, 2.0, 62.0, 62.0]]).expand(2, 2, 4)
    labels = torch.tensor([[1, 2], [0, 3]])
    samples = RoISamples(boxes, labels, boxes + 2, torch.zeros(2, 2).long(), torch.ones(2, 2).bool())
    total = sum(model.consistent_supervision(pyramid, samples).values())
    gradients = torch.autograd.grad(total, pyramid.laterals, allow_unused=True)
    assert [gradient is not None and gradient.abs().sum().item() > 0 for gradient in gradients] == expected


# Table 4: how C5 is pooled, and how contexts are fused.


def augmentation_of(small_model, row):
    return small_model(f"table4/{row}").pyramid.residual_feature_augmentation


def pooled_cells(augmentation, height, width):
    c5 = torch.zeros(1, 1, height, width)
    return [tuple(pool(c5).shape[-2:]) for pool in augmentation.poolings]


def c5_of(height=25, width=42):
    """At the paper's size: an image of 800 × 1333, padded to 800 × 1344. 512 channels, as the small backbone has."""
    torch.manual_seed(2)
    return torch.randn(1, 512, height, width)


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        ("sum_gmp", [(1, 1)]),
        ("sum_gap", [(1, 1)]),
        ("sum_raap_0.1_0.2_0.3", [(2, 4), (5, 8), (7, 12)]),
        ("asf_raap_0.1", [(2, 4)]),
        ("asf_raap_0.1_0.2", [(2, 4), (5, 8)]),
        ("asf_raap_0.1_0.2_0.3", [(2, 4), (5, 8), (7, 12)]),
        ("asf_raap_0.1_0.2_0.3_0.4", [(2, 4), (5, 8), (7, 12), (10, 16)]),
        ("asf_raap_0.1_0.2_0.4", [(2, 4), (5, 8), (10, 16)]),
        ("asf_raap_0.1_0.2_0.5", [(2, 4), (5, 8), (12, 21)]),
        ("asf_psp", [(1, 1), (2, 2), (3, 3), (6, 6)]),
        ("psp_psp", [(1, 1), (2, 2), (3, 3), (6, 6)]),
    ],
)
def test_a_row_pools_the_papers_c5_to_the_cells_listed_by_hand(small_model, row, cells):
    # ⌊25 α⌋ × ⌊42 α⌋, such as 2.5 × 4.2 and 10 × 16.8.
    assert pooled_cells(augmentation_of(small_model, row), 25, 42) == cells


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ("sum_gap", "sum_gmp"),
        ("asf_raap_0.1_0.2_0.3", "asf_raap_0.1_0.2_0.4"),
        ("asf_raap_0.1_0.2_0.3", "asf_raap_0.1_0.2_0.5"),
        ("asf_raap_0.1_0.2_0.4", "asf_raap_0.1_0.2_0.5"),
        ("asf_raap_0.1_0.2_0.3_0.4", "asf_psp"),
    ],
)
def test_rows_with_the_same_weights_make_another_m6_of_the_same_c5(small_model, row, other):
    ours, theirs = augmentation_of(small_model, row), augmentation_of(small_model, other)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    difference = ours(c5_of()).fused - theirs(c5_of()).fused
    assert difference.norm() > 0.01 * ours(c5_of()).fused.norm()


@pytest.mark.parametrize(("row", "other"), [("sum_raap_0.1_0.2_0.3", "asf_raap_0.1_0.2_0.3"), ("asf_psp", "psp_psp")])
def test_rows_with_the_same_contexts_fuse_them_to_another_m6(small_model, row, other):
    contexts, fused = [], []
    for augmentation in (augmentation_of(small_model, row), augmentation_of(small_model, other)):
        augmentation.fusion.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0]))
        fused.append(augmentation(c5_of()).fused)
    assert torch.equal(*contexts)
    assert (fused[0] - fused[1]).norm() > 0.01 * fused[0].norm()


@pytest.mark.parametrize(
    ("scale", "size", "cells"),
    [
        ("paper", (25, 42), [(2, 4), (5, 8), (7, 12), (10, 16), (12, 21)]),
        ("mini", (16, 16), [(1, 1), (3, 3), (4, 4), (6, 6), (8, 8)]),
        # At the small scales the ratios are hardly a difference, or none; so few cells cannot have one.
        ("micro", (4, 4), [(1, 1), (1, 1), (1, 1), (1, 1), (2, 2)]),
        ("smoke", (2, 2), [(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_the_cells_of_every_ratio_of_table_4_at_each_scale(small_model, scale, size, cells):
    data = SCALES[scale].data
    short, long = data.resized_sides
    # Padded to a multiple of 32, which is C5's stride. Synthetic images are square.
    assert (-(-short // 32), -(-(long if data.synthetic is None else short) // 32)) == size
    ratios = ("asf_raap_0.1_0.2_0.3_0.4", "asf_raap_0.1_0.2_0.5")
    first_four, with_half = (pooled_cells(augmentation_of(small_model, row), *size) for row in ratios)
    assert [*first_four, with_half[-1]] == cells


def test_at_the_micro_scale_table_4_compares_numbers_of_contexts_rather_than_ratios():
    """Its rows of three ratios up to 0.4 are one model there, whose runs of one seed have one result."""
    c5s, m6s = [], []
    for ratios in ("0.1_0.2_0.3", "0.1_0.2_0.4", "0.1_0.2_0.5"):
        config = plan(f"table4/asf_raap_{ratios}", "micro")
        torch.manual_seed(0)
        model = build_from_config(config.model, num_classes=6).eval()
        side = config.data.synthetic.size
        c5s.append(model.backbone(torch.ones(1, 3, side, side))[-1])
        m6s.append(model.pyramid.residual_feature_augmentation(c5s[-1]).fused)
    assert c5s[0].shape[-2:] == (4, 4)
    assert torch.equal(c5s[0], c5s[1])
    assert torch.equal(c5s[0], c5s[2])
    assert torch.equal(m6s[0], m6s[1])
    assert (m6s[0] - m6s[2]).norm() > 0.001 * m6s[0].norm()


# Table 5: the RoI's features.

BOXES = torch.tensor([[5.0, 5.0, 30.0, 40.0], [60.0, 20.0, 120.0, 90.0], [0.0, 0.0, 128.0, 128.0]]).expand(2, -1, -1)


def test_every_fusion_of_table_5_makes_other_roi_features_of_the_same_pyramid(small_model):
    torch.manual_seed(0)
    pyramid = random_pyramid(channels=16)
    of_levels = roi_align_every_level(pyramid.levels[:4], STRIDES[:4], BOXES)
    fused = {
        fusion: small_model(f"table5/{fusion}").roi_pooling(pyramid, BOXES).fused
        for fusion in ("baseline", "srs_sum", "srs_max", "srs_acf", "srs_asf")
    }
    for one, other in combinations(fused, 2):
        assert (fused[one] - fused[other]).norm() > 0.1 * fused[one].norm(), f"{one} is {other}"
    first, second, third, fourth = of_levels.unbind(1)
    torch.testing.assert_close(fused["srs_sum"], first + second + third + fourth)
    torch.testing.assert_close(fused["srs_max"], first.maximum(second).maximum(third).maximum(fourth))
    # The baseline's are one of the four: sides of 29.6, 64.8 and 128 pixels are P3's, P4's and P5's at this scale, at
    # which P3's begin at 28.
    assigned = torch.tensor([1, 2, 3, 1, 2, 3])
    torch.testing.assert_close(fused["baseline"], of_levels[torch.arange(6), assigned])


def test_panet_takes_the_largest_of_what_the_first_layer_makes_of_each_level(small_model):
    torch.manual_seed(0)
    pyramid, model = random_pyramid(channels=16), small_model("table5/panet_max")
    of_levels = roi_align_every_level(pyramid.levels[:4], STRIDES[:4], BOXES)
    predictions = model.box_head(model.roi_pooling(pyramid, BOXES).fused)
    head = model.box_head
    assert len(head.fc1.layers) == 4
    for roi in range(len(of_levels)):
        adapted = [layer(of_levels[roi, level].flatten()) for level, layer in enumerate(head.fc1.layers)]
        # The level is chosen anew in each of the layer's outputs, and differs between them.
        assert len(set(torch.stack(adapted).argmax(dim=0).tolist())) > 1
        largest = torch.tensor([max(values) for values in zip(*(output.tolist() for output in adapted), strict=True)])
        hidden = head.fc2(largest.clamp(min=0)).clamp(min=0)
        torch.testing.assert_close(predictions.logits[roi], head.classifier(hidden))
        torch.testing.assert_close(predictions.deltas[roi].flatten(), head.regressor(hidden))
