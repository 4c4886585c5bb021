import pytest

from augfpn.analysis.comparison import (
    FIGURES,
    comparison,
    find_runs,
    gains,
    gains_by_size,
    not_run,
    one_of_each,
    runs_in,
    tables_with,
)
from augfpn.data import SyntheticDataset
from augfpn.engine import Run
from augfpn.errors import UserError
from augfpn.experiments import plan


def made_up_run(path, experiment, ap, mask_ap=None, **changes):
    run = Run.create(path, plan(experiment, "smoke", **changes), SyntheticDataset.categories)
    masks = {} if mask_ap is None else {"mask_AP": mask_ap}
    run.write_detections([])
    run.write_metrics({**dict.fromkeys(FIGURES, 0.5), "APl": None, "AP": ap, **masks})
    return run


def test_ours_stand_beside_the_papers_with_the_difference_to_the_baseline_of_the_same_seed(tmp_path):
    made_up_run(tmp_path / "a", "table2/baseline", 0.30)
    made_up_run(tmp_path / "b", "table2/cs+rfa+srs", 0.35)
    made_up_run(tmp_path / "c", "table2/cs+rfa+srs", 0.20, seed=1)
    made_up_run(tmp_path / "e", "table2/baseline", 0.10, steps=7)
    Run.create(tmp_path / "d", plan("table2/cs", "smoke"), SyntheticDataset.categories)
    runs = [Run(path.parent) for path in sorted(tmp_path.rglob("metrics.json"))]
    table = comparison(runs, "table2").set_index(["experiment", "seed"])
    assert table.loc[("table2/cs+rfa+srs", 0), ["AP", "gain", "paper AP", "paper gain"]].tolist() == [35, 5, 38.7, 2.4]
    # The baseline that was trained for another number of steps is compared with itself only.
    assert table.loc[("table2/baseline", 0), "gain"].tolist() == [0, 0]
    assert table.loc[("table2/cs+rfa+srs", 1), ["gain", "APl"]].isna().all()
    # A run that is not evaluated yet is no result; its row is there with the paper's figures.
    assert table.loc["table2/cs"]["AP"].isna().all()
    assert len(table.index.get_level_values("experiment").unique()) == 8


def test_runs_of_different_training_are_not_compared(tmp_path):
    made_up_run(tmp_path / "a", "table2/baseline", 0.30)
    made_up_run(tmp_path / "b", "table2/cs", 0.35, seed=1)
    assert len(find_runs(tmp_path)) == 2
    made_up_run(tmp_path / "c", "table2/cs", 0.35, steps=7)
    with pytest.raises(UserError, match=r"cannot be compared.*training.steps: 4 → 7"):
        find_runs(tmp_path)


def test_runs_of_different_baselines_can_be_of_different_training(tmp_path):
    made_up_run(tmp_path / "a", "table1/faster_rcnn_r50_fpn_1x", 0.30)
    made_up_run(tmp_path / "b", "table1/mask_rcnn_r50_fpn_1x", 0.35)
    made_up_run(tmp_path / "c", "table1/retinanet_r50_fpn_1x", 0.35, steps=7)
    assert len(find_runs(tmp_path)) == 3
    made_up_run(tmp_path / "d", "table1/retinanet_r50_augfpn_1x", 0.35, steps=8)
    with pytest.raises(UserError, match=r"training\.steps: 7 → 8"):
        find_runs(tmp_path)


def test_tables_with_masks_have_their_ap(tmp_path):
    run = made_up_run(tmp_path / "a", "table1/mask_rcnn_r50_augfpn_1x", 0.30, mask_ap=0.25)
    table = comparison([run], "table1").set_index("experiment")
    assert table.loc[run.config.experiment, ["mask AP", "paper mask AP"]].tolist() == [25, 36.3]
    assert table.loc["table1/fcos_r50_fpn_1x", ["mask AP", "paper mask AP"]].isna().all()
    assert "mask AP" not in comparison([run], "table2")


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no evaluated run of scale 'micro'"):
        find_runs(tmp_path, "micro")


def test_a_run_stands_in_every_table_that_has_its_model_with_its_gain(tmp_path):
    made_up_run(tmp_path / "a", "table2/baseline", 0.30)
    run = made_up_run(tmp_path / "b", "table5/srs_asf", 0.33)
    assert run.config.experiment == "table2/srs"
    runs = find_runs(tmp_path)
    for table, experiment, paper_gain in (("table2", "table2/srs", 0.8), ("table5", "table5/srs_asf", 0.8)):
        row = comparison(runs, table).set_index("experiment").loc[experiment]
        assert row[["AP", "gain", "paper gain"]].tolist() == [33, 3, paper_gain]
    table_1 = comparison(runs, "table1").set_index("experiment")
    assert len(table_1) == 33
    assert table_1.loc["table1/faster_rcnn_r50_fpn_1x", "AP"] == 30
    # Rows that the paper quotes have its figures only.
    assert table_1.loc["table1/quoted_yolov2", "paper AP"] == 21.6
    assert table_1.loc["table1/quoted_yolov2", ["AP", "gain", "paper gain"]].isna().all()


def test_the_tables_of_runs_are_one_if_it_has_them_all(tmp_path):
    ids = (
        "table2/baseline",
        "table2/cs",
        "table4/sum_gap",
        "table1/fcos_r50_fpn_1x",
        "table1/faster_rcnn_r50_augfpn_1x",
    )
    baseline, cs, gap, fcos, full = (made_up_run(tmp_path / str(n), id, 0.3) for n, id in enumerate(ids))
    assert tables_with([baseline]) == ["table1", "table2", "table3", "table4", "table5"]
    assert tables_with([cs]) == ["table2", "table3"]
    assert tables_with([gap, fcos]) == ["table1", "table4"]
    assert tables_with([full]) == ["table1", "table2"]
    assert tables_with([]) == []


def test_a_model_that_was_changed_is_not_compared_with_a_baseline_that_was_not(tmp_path):
    made_up_run(tmp_path / "a", "table2/baseline", 0.30, backbone_weights="a1_in1k")
    made_up_run(tmp_path / "b", "table2/cs", 0.35, backbone_weights="a1_in1k")
    assert comparison(find_runs(tmp_path), "table2").set_index("experiment").loc["table2/cs", "gain"] == 5
    made_up_run(tmp_path / "c", "table2/srs", 0.35)
    with pytest.raises(UserError, match=r"backbone.weights: None → a1_in1k, and not at all"):
        find_runs(tmp_path)
    runs = [Run(path.parent) for path in sorted(tmp_path.rglob("run.json"))]
    assert comparison(runs, "table2").set_index("experiment").loc[["table2/srs"], "gain"].isna().all()


def test_gains_are_means_over_seeds_with_their_spread(tmp_path):
    runs = [made_up_run(tmp_path / f"fpn{seed}", "table2/baseline", 0.3, seed=seed) for seed in (0, 1)]
    runs += [made_up_run(tmp_path / f"cs{seed}", "table2/cs", 0.32 + 0.02 * seed, seed=seed) for seed in (0, 1)]
    # Without a baseline of its seed there is no gain.
    runs.append(made_up_run(tmp_path / "rfa", "table2/rfa", 0.4, seed=2))
    table = comparison(runs, "table2")
    assert gains(table).loc["CS"].tolist() == [3, 1.41, 2, 0.9]
    assert gains(table).loc["RFA", ["seeds", "paper gain"]].tolist() == [0, 1]
    assert "FPN" not in gains(table).index
    assert len(gains(comparison([], "table1"))) == 12
    assert not_run(table) == [f"table2/{row}" for row in ("srs", "cs+rfa", "cs+srs", "rfa+srs", "cs+rfa+srs")]
    assert len(not_run(comparison([], "table1"))) == 24


def test_gains_by_size_are_against_the_baseline_of_the_same_seed(tmp_path):
    runs = [made_up_run(tmp_path / f"fpn{seed}", "table2/baseline", 0.3, seed=seed) for seed in (0, 1)]
    runs += [
        made_up_run(tmp_path / "cs", "table2/cs", 0.3, seed=1),
        made_up_run(tmp_path / "x", "table2/rfa", 0.4, seed=2),
    ]
    for run, small in zip(runs, (0.5, 0.2, 0.25, 0.4), strict=True):
        run.write_metrics({**run.metrics, "APs": small})
    by_size = gains_by_size(comparison(runs, "table2"))
    assert by_size.index.tolist() == ["CS"]
    assert by_size.loc["CS", ["APs", "APm"]].tolist() == [5, 0]
    assert by_size.loc["CS"].isna().tolist() == [False, False, True]
    assert len(gains_by_size(comparison([], "table2"))) == 0


def test_runs_of_a_table_and_the_first_of_each_experiment(tmp_path):
    ids = ("table2/baseline", "table2/cs", "table4/sum_gap")
    runs = [made_up_run(tmp_path / f"{n}{seed}", id, 0.3, seed=seed) for n, id in enumerate(ids) for seed in (0, 1)]
    assert runs_in("table3", runs) == runs[:4]
    assert runs_in("table4", runs) == [*runs[:2], *runs[4:]]
    assert one_of_each(runs) == runs[::2]
