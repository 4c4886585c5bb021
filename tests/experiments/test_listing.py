import pytest

from augfpn.errors import UserError
from augfpn.experiments import EXPERIMENTS, PAPER, plan
from augfpn.experiments.listing import FIGURES, Result, as_text, entries


def result(experiment, ap, **changes):
    config = plan(experiment, changes.pop("scale", "micro"), **changes)
    masks = dict.fromkeys((f"mask_{name}" for name in FIGURES), 0.25)
    return Result(path="runs/x", config=config, metrics=dict.fromkeys(FIGURES, 0.5) | {"APl": None, "AP": ap} | masks)


def test_entries_are_the_papers_rows_in_its_order_and_say_what_can_be_run():
    listed = entries()
    assert [entry["id"] for entry in listed] == list(PAPER)
    assert [entry["id"] for entry in listed if entry["runnable"]] == list(EXPERIMENTS)
    of_id = {entry["id"]: entry for entry in listed}
    assert of_id["table2/cs"]["published"] == {
        "AP": 37.2, "AP50": 59.2, "AP75": 40.1, "APs": 21.8, "APm": 40.9, "APl": 47.8,
    }  # fmt: skip
    masks = of_id["table1/mask_rcnn_r50_augfpn_1x"]
    assert (masks["published"]["mask_AP"], masks["gain"], masks["mask_gain"]) == (36.3, 2.0, 1.9)
    assert of_id["table3/all_level_0.25"]["run_as"] == "table2/cs"
    quoted = of_id["table1/quoted_faster_rcnn_r101"]
    assert (quoted["runnable"], quoted["run_as"], quoted["baseline"]) == (False, None, None)
    assert "repeat the row of RetinaNet" in quoted["notes"][0]


def test_results_stand_in_every_row_of_their_model_in_percent():
    listed = entries([result("table3/none", 0.501), result("table2/baseline", 0.4, seed=1)])
    with_results = [entry for entry in listed if entry["results"]]
    assert [entry["id"] for entry in with_results] == [
        "table1/faster_rcnn_r50_fpn_1x", "table2/baseline", "table3/none", "table4/baseline", "table5/baseline",
    ]  # fmt: skip
    assert [one["AP"] for one in with_results[0]["results"]] == [50.1, 40.0]
    assert with_results[0]["results"][0]["APl"] is None


def test_the_text_has_the_mean_of_the_seeds_and_leaves_other_trainings_out():
    text = as_text(
        entries(
            [
                result("table2/cs", 0.50),
                result("table2/cs", 0.52, seed=1),
                # Not the scale's own training, not its data, and the same seed again.
                result("table2/cs", 0.10, steps=7),
                result("table2/cs", 0.10, data="/somewhere"),
                result("table2/cs", 0.10),
                result("table2/cs", 0.01, scale="smoke"),
                result("table1/mask_rcnn_r50_fpn_1x", 0.3),
            ]
        )
    )
    rows = {line.split(" ")[0]: line for line in text.splitlines()}
    assert rows["table2/cs"].endswith("micro 51.0 ± 1.4, 2 seeds; smoke 1.0")
    assert rows["table3/all_level_0.25"].endswith("; = table2/cs")
    assert rows["table1/quoted_yolov2"].endswith("quoted")
    assert rows["table2/rfa"].endswith("–")
    lines = text.splitlines()
    boxes = lines.index(rows["table1/mask_rcnn_r50_fpn_1x"])
    assert lines[boxes].endswith("micro 30.0")
    assert lines[boxes + 1].split() == ["masks", "34.4", "56.3", "36.6", "18.6", "37.2", "44.5", "micro", "25.0"]
    assert "AP           AP50" in text
    assert "37.5 [+1.6]" in text
    assert "23.31" in text
    assert "(1) AP50 to APl" in text


def test_at_the_papers_scale_any_folder_can_be_coco_and_folders_are_not_mixed():
    runs = [result("table2/cs", ap, scale="paper", data=data) for ap, data in ((0.3, "/coco"), (0.4, "/others"))]
    text = as_text(entries(runs))
    assert next(line for line in text.splitlines() if line.startswith("table2/cs ")).endswith("paper 30.0; paper 40.0")


def test_a_result_of_a_model_that_is_the_same_at_one_scale_only_says_as_what_it_was_run():
    text = as_text(entries([result("table1/faster_rcnn_x101_64x4d_fpn_1x", 0.4)]))
    rows = {line.split(" ")[0]: line for line in text.splitlines()}
    assert rows["table1/faster_rcnn_x101_32x4d_fpn_1x"].endswith("micro 40.0")
    assert rows["table1/faster_rcnn_x101_64x4d_fpn_1x"].endswith("micro 40.0 (as table1/faster_rcnn_x101_32x4d_fpn_1x)")


def test_a_result_without_figures_is_refused():
    metrics = dict.fromkeys([*FIGURES, *(f"mask_{name}" for name in FIGURES)], 0.5)
    del metrics["AP75"], metrics["mask_AP"]
    with pytest.raises(UserError, match="runs/x has no figures AP75, mask_AP"):
        Result(path="runs/x", config=plan("table1/mask_rcnn_r50_fpn_1x", "micro"), metrics=metrics)
