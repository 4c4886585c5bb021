from dataclasses import replace

import pytest

import augfpn
from augfpn.errors import UserError
from augfpn.experiments import EXPERIMENTS, SCALES, RunConfig, find_experiment, plan, run_as
from augfpn.experiments.config import (
    BackboneConfig,
    ConsistentSupervisionConfig,
    FasterRCNNConfig,
    ResidualFeatureAugmentationConfig,
    RetinaNetConfig,
    SoftRoISelectionConfig,
    TrainingConfig,
    differences,
)
from augfpn.experiments.conventions import Conventions


def test_a_row_differs_from_its_baseline_in_its_components_only():
    row = find_experiment("table2/cs+srs")
    changed = {difference.split(":")[0] for difference in differences(find_experiment(row.baseline).model, row.model)}
    assert changed == {"consistent_supervision", "soft_roi_selection"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_run_can_be_written_and_read_back(experiment, scale):
    config = plan(experiment, scale, data="somewhere")
    assert RunConfig.from_json(config.to_json()) == config


def test_a_field_that_does_not_exist_is_refused_when_read():
    text = plan("table2/baseline", "smoke").to_json().replace('"channels"', '"chanels"')
    with pytest.raises(Exception, match="chanels"):
        RunConfig.from_json(text)


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_keeps_the_difference_between_rows(scale):
    def difference(of):
        baseline, full = (of(id) for id in ("table2/baseline", "table2/cs+rfa+srs"))
        return differences(baseline, full)

    assert difference(lambda id: plan(id, scale, data="somewhere").model) == difference(
        lambda id: EXPERIMENTS[id].model
    )


def test_at_the_papers_scale_nothing_is_replaced():
    config = plan("table2/cs", "paper", data="data/coco")
    assert config.model == find_experiment("table2/cs").model
    assert (config.training.batch_size, config.training.scaled_learning_rate, config.training.epochs) == (16, 0.02, 12)
    assert (config.data.short_side, config.data.long_side) == (800, 1333)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("table2/cs+rfa+sr", "micro"), r"no experiment 'table2/cs\+rfa\+sr'; did you mean 'table2/cs\+rfa\+srs'\?"),
        (("table2/nonsense", "micro"), "Valid: table1/.*, table2/baseline"),
        (("table1/quoted_yolov2", "micro"), r"quotes from others \(YOLOv2.*nothing to run"),
        (("table2/cs", "mirco"), "no scale 'mirco'; did you mean 'micro'"),
        (("table2/cs", "paper"), "--data DIR"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(arguments, expected):
    with pytest.raises(UserError, match=expected):
        plan(*arguments)


def test_impossible_values_are_refused():
    with pytest.raises(UserError, match="must be positive"):
        ConsistentSupervisionConfig(weight=0.0)
    with pytest.raises(UserError, match=r"\(0, 1\]"):
        ResidualFeatureAugmentationConfig(ratios=(0.1, 1.5))
    with pytest.raises(UserError, match="other poolings have none"):
        ResidualFeatureAugmentationConfig(pooling="gap")
    with pytest.raises(UserError, match="'ra-ap' needs at least one"):
        ResidualFeatureAugmentationConfig(ratios=())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Conventions(fcos_score="sqrt"), "fcos_score must be one of 'product', 'root', not 'sqrt'"),
        (lambda: BackboneConfig(style="Caffe"), "style must be one of 'pytorch', 'caffe'"),
        (lambda: ConsistentSupervisionConfig(levels="some"), "levels must be one of 'all', 'assigned'"),
        (lambda: ResidualFeatureAugmentationConfig(fusion="max"), "fusion must be one of 'asf', 'sum', 'psp'"),
        (lambda: ResidualFeatureAugmentationConfig(pooling="avg"), "pooling must be one of"),
        (lambda: SoftRoISelectionConfig(fusion="psp"), "fusion must be one of 'asf', 'acf', 'sum', 'max'"),
        (lambda: TrainingConfig(schedule="linear"), "schedule must be one of"),
        (lambda: RetinaNetConfig(finest_level=4), "finest_level must be one of 2, 3, not 4"),
        (lambda: augfpn.fcos(num_classes=3, neck="AugFPN", weights=None), "neck must be 'fpn' or 'augfpn'"),
        (lambda: augfpn.fcos(num_classes=0, backbone="resnet18", weights=None), "at least one class"),
    ],
)
def test_names_that_are_none_of_the_choices_are_refused(make, expected):
    with pytest.raises(UserError, match=expected):
        make()


def test_rows_that_are_the_same_model_are_one_run():
    same = {
        "table2/baseline": ["table1/faster_rcnn_r50_fpn_1x", "table3/none", "table4/baseline", "table5/baseline"],
        "table2/cs": ["table3/all_level_0.25"],
        "table2/rfa": ["table4/asf_raap_0.1_0.2_0.3"],
        "table2/srs": ["table5/srs_asf"],
        "table2/cs+rfa+srs": ["table1/faster_rcnn_r50_augfpn_1x"],
    }
    elsewhere = {id: run for run, ids in same.items() for id in ids}
    for scale in ("mini", "paper"):
        assert {id: run_as(id, scale) for id in EXPERIMENTS} == {id: elsewhere.get(id, id) for id in EXPERIMENTS}
        assert len({run_as(id, scale) for id in EXPERIMENTS}) == 58 - 8
    # There is one small ResNeXt.
    pairs = {
        f"table1/faster_rcnn_x101_64x4d_{neck}_1x": f"table1/faster_rcnn_x101_32x4d_{neck}_1x"
        for neck in ("fpn", "augfpn")
    }
    for scale in ("smoke", "micro"):
        assert {id: run_as(id, scale) for id in EXPERIMENTS} == {
            id: (elsewhere | pairs).get(id, id) for id in EXPERIMENTS
        }
    assert plan("table3/none", "micro") == plan("table2/baseline", "micro")


def test_twice_the_schedule_is_twice_the_steps_at_every_scale():
    ids = [f"table1/faster_rcnn_r101_fpn_{schedule}" for schedule in ("1x", "2x")]
    for scale in SCALES:
        once, twice = (plan(id, scale, data="somewhere").training.num_steps(1600) for id in ids)
        assert twice == 2 * once


def test_overfitting_does_not_flip():
    assert plan("table2/baseline", "micro", overfit=4).data.flip_probability == 0


def test_differences_name_nested_fields():
    changed = replace(FasterRCNNConfig(), box=replace(FasterRCNNConfig().box, width=8))
    assert differences(FasterRCNNConfig(), changed) == ["box.width: 1024 → 8"]
