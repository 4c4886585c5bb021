from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.analysis.significance import (
    MatchedImages,
    _Bootstrap,
    differences_to_baselines,
    intervals,
    paired_difference,
)
from augfpn.data import SyntheticDataset
from augfpn.data.loading import open_dataset
from augfpn.engine import Run
from augfpn.engine.evaluate import FIGURES, coco_metrics
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.experiments.config import SyntheticConfig

NUM_IMAGES = 30


def config_of(experiment, seed=0):
    config = plan(experiment, "smoke", seed=seed)
    return replace(
        config, data=replace(config.data, synthetic=SyntheticConfig(size=64, num_train=1, num_val=NUM_IMAGES))
    )


@pytest.fixture(scope="module")
def truth():
    return open_dataset(config_of("table2/baseline").data, "val").ground_truth()


def noisy(truth, noise, seed=0):
    """The objects with boxes that are off by so many pixels, and scores by chance."""
    random = np.random.default_rng(seed)
    return [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": (np.array(entry["bbox"]) + random.normal(0, noise, 4)).clip(1).tolist(),
            "score": float(random.uniform()),
        }
        for entry in truth["annotations"]
    ]


def made_up_run(path, results, experiment="table2/cs", seed=0):
    run = Run.create(path, config_of(experiment, seed), SyntheticDataset.categories)
    run.write_detections(results)
    run.write_metrics(dict.fromkeys(FIGURES, 0.5))
    return run


def of_images(truth, results, positions):
    """Truth and results of images, of which one may be there twice, under other ids."""
    images, annotations, found = [], [], []
    for number, position in enumerate(positions, start=1):
        image = truth["images"][position]
        images.append({**image, "id": number})
        for kind, into in ((truth["annotations"], annotations), (results, found)):
            into += [{**entry, "image_id": number} for entry in kind if entry["image_id"] == image["id"]]
    for number, entry in enumerate(annotations, start=1):
        entry["id"] = number
    return {**truth, "images": images, "annotations": annotations}, found


def test_ap_of_drawn_images_is_cocos_of_a_data_set_that_has_some_of_them_twice(truth):
    results = noisy(truth, 3)
    matched = MatchedImages(truth, results, "bbox")
    drawn = np.random.default_rng(0).integers(NUM_IMAGES, size=NUM_IMAGES)
    assert len(set(drawn.tolist())) < NUM_IMAGES
    for images in (np.arange(NUM_IMAGES), drawn):
        expected = coco_metrics(*of_images(truth, results, images))["AP"]
        assert 0.05 < expected < 0.95
        assert matched.average_precision(images) == pytest.approx(100 * expected)


def made_up(seed):
    """Truth and results by chance: crowds, images without either, a category in one image, and equal scores.

    Detections with equal scores are of different images: what comes first within an image that is there twice is a
    matter of taste.
    """
    random = np.random.default_rng(seed)
    truth = {"images": [{"id": i} for i in range(1, 21)], "categories": [{"id": c} for c in (1, 3, 7)]}
    annotations, results = [], []
    for image, category in ((i, c) for i in range(1, 17) for c in (1, 3, 7) if c != 7 or i == 5):
        boxes = np.concatenate([random.uniform(0, 60, (4, 2)), random.uniform(8, 40, (4, 2))], axis=1)
        scores = random.permutation(12) / 12
        for number in range(random.integers(5)):
            box, crowd = boxes[number], int(random.uniform() < 0.2)
            area = float(box[2] * box[3])
            entry = {"image_id": image, "category_id": category, "bbox": box.tolist(), "area": area, "iscrowd": crowd}
            annotations.append({**entry, "id": len(annotations) + 1})
        for number, score in enumerate(scores[: random.integers(12)]):
            box = (boxes[number % 4] + random.normal(0, 3, 4)).clip(1)
            results.append(
                {"image_id": image, "category_id": category, "bbox": box.tolist(), "score": float(score) + 0.01}
            )
    return {**truth, "annotations": annotations}, results


def cocos(truth, results, positions):
    """AP in percent by pycocotools alone, of a data set that has these images, and which categories it has."""
    content, found = of_images(truth, results, positions)
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return 100 * precision[precision > -1].mean(), (precision > -1).any(axis=(0, 1))


@pytest.mark.parametrize("seed", range(6))
def test_ap_by_how_often_images_are_drawn_is_pycocotools_own(seed):
    truth, results = made_up(seed)
    drawn = [np.arange(20), *np.random.default_rng(seed).integers(20, size=(8, 20))]
    expected, categories = zip(*(cocos(truth, results, np.sort(images)) for images in drawn), strict=True)
    assert any(not there.all() for there in categories)
    matched = MatchedImages(truth, results, "bbox")
    weights = np.stack([np.bincount(images, minlength=20) for images in drawn])
    np.testing.assert_allclose(matched.average_precisions(weights), expected, rtol=0, atol=1e-9)
    assert [matched.average_precision(images) for images in drawn] == pytest.approx(expected, abs=1e-9)


def test_the_size_of_blocks_does_not_matter(monkeypatch):
    matched = MatchedImages(*made_up(0), "bbox")
    weights = np.random.default_rng(0).integers(4, size=(9, 20))
    expected = matched.average_precisions(weights)
    monkeypatch.setattr("augfpn.analysis.significance._BLOCK", 300)
    assert (matched.average_precisions(weights) == expected).all()


def test_a_draw_without_objects_has_no_ap():
    matched = MatchedImages(*made_up(0), "bbox")
    assert np.isnan(matched.average_precision(np.array([18, 19])))


def test_a_model_that_finds_nothing_has_an_ap_of_0(truth):
    assert MatchedImages(truth, [], "bbox").average_precision(np.arange(NUM_IMAGES)) == 0


def test_a_model_does_not_differ_from_itself(truth, tmp_path):
    run = made_up_run(tmp_path / "a", noisy(truth, 3))
    difference = paired_difference([run], [made_up_run(tmp_path / "b", noisy(truth, 3), "table2/baseline")], draws=20)
    assert (difference.mean, difference.low, difference.high, difference.is_clear) == (0, 0, 0, False)
    assert str(difference) == "+0.0 (+0.0 to +0.0)"


def test_a_model_that_is_much_better_is_clearly_better_by_the_difference_of_ap(truth, tmp_path):
    results = {"table2/cs": noisy(truth, 1), "table2/baseline": noisy(truth, 4)}
    ours, baseline = (made_up_run(tmp_path / id, found, id) for id, found in results.items())
    difference = paired_difference([ours], [baseline], draws=200)
    aps = [100 * coco_metrics(truth, found)["AP"] for found in results.values()]
    assert difference.mean == pytest.approx(aps[0] - aps[1])
    assert 0 < difference.low < difference.mean < difference.high
    assert difference.is_clear
    assert (difference.num_images, difference.num_seeds) == (NUM_IMAGES, 1)
    # The same draws every time, and the other way round the same with the other sign.
    assert paired_difference([ours], [baseline], draws=200) == difference
    turned = paired_difference([baseline], [ours], draws=200)
    assert (turned.low, turned.high) == pytest.approx((-difference.high, -difference.low))


def test_noise_alone_is_not_clear_and_the_pairing_makes_the_interval_narrow(truth, tmp_path):
    """Nine of ten detections are the same in both models."""
    one, other = noisy(truth, 3), noisy(truth, 3)
    other[::10] = noisy(truth, 3, seed=1)[::10]
    runs = [
        made_up_run(tmp_path / str(n), found, id)
        for n, (found, id) in enumerate([(one, "table2/cs"), (other, "table2/baseline")])
    ]
    difference = paired_difference([runs[0]], [runs[1]], draws=200)
    assert not difference.is_clear
    matched = MatchedImages(truth, one, "bbox")
    random = np.random.default_rng(0)
    alone = [matched.average_precision(random.integers(NUM_IMAGES, size=NUM_IMAGES)) for _ in range(200)]
    low, high = np.percentile(alone, (2.5, 97.5))
    assert difference.high - difference.low < 0.7 * (high - low)


def test_differences_of_all_experiments_are_over_the_seeds_that_their_baseline_has(truth, tmp_path):
    for seed in (0, 1):
        made_up_run(tmp_path / f"b{seed}", noisy(truth, 4, seed), "table2/baseline", seed)
    for seed in (0, 1, 2):
        made_up_run(tmp_path / f"c{seed}", noisy(truth, 1, seed), "table2/cs", seed)
    made_up_run(tmp_path / "f", noisy(truth, 1), "table1/fcos_r50_augfpn_1x")
    runs = [Run(path) for path in sorted(tmp_path.iterdir())]
    differences = differences_to_baselines(runs, draws=100)
    assert list(differences) == ["table2/cs"]
    assert differences["table2/cs"].num_seeds == 2
    assert differences["table2/cs"].mean > 0


@pytest.mark.parametrize("num_seeds", [1, 2, 3, 5])
def test_an_interval_holds_the_truth_as_often_as_it_says(num_seeds):
    """Models that do not differ: seeds do by a point, and what images are drawn changes all seeds by half a point."""
    random = np.random.default_rng(0)
    bootstrap = object.__new__(_Bootstrap)
    bootstrap.seed, bootstrap.weights = 0, np.ones((1 + 400, 1))
    trials, clear = 400, 0
    for _ in range(trials):
        of_images, of_seeds = 0.5 * random.standard_normal(), random.standard_normal(num_seeds)
        drawn = of_images + of_seeds[:, None] + 0.5 * random.standard_normal(400)
        of_pairs = np.column_stack([of_images + of_seeds, drawn])
        bootstrap._average_precisions = lambda run, of_pairs=of_pairs: of_pairs[run] if run is not None else 0
        difference = bootstrap.difference([(pair, None) for pair in range(num_seeds)], level=0.95)
        clear += difference.is_clear
    if num_seeds == 1:
        # Nothing is known of seeds, and that is said.
        assert clear > 0.3 * trials
        assert difference.verdict in ("no", "with this seed")
    else:
        assert clear < 0.08 * trials


def test_runs_that_make_no_pairs_are_refused(truth, tmp_path):
    run = made_up_run(tmp_path / "a", noisy(truth, 3))
    other_seed = made_up_run(tmp_path / "b", noisy(truth, 3), "table2/baseline", seed=1)
    with pytest.raises(UserError, match=r"same seeds: there are \[0\] and, of the baseline, \[1\]"):
        paired_difference([run], [other_seed], draws=1)
    with pytest.raises(UserError, match="same experiment with a seed each"):
        paired_difference([run, made_up_run(tmp_path / "c", [], "table2/srs", seed=1)], [run, other_seed], draws=1)


def test_two_runs_with_the_same_experiment_and_seed_are_refused_by_name(truth, tmp_path):
    baseline, *twice = (
        made_up_run(tmp_path / name, noisy(truth, 3), id)
        for name, id in (("a", "table2/baseline"), ("b", "table2/cs"), ("c", "table2/cs"))
    )
    for refused in (lambda: differences_to_baselines([baseline, *twice]), lambda: paired_difference(twice, [baseline])):
        with pytest.raises(UserError, match=f"{twice[0].path} and {twice[1].path} are both of table2/cs with seed 0"):
            refused()


def test_a_baseline_is_matched_once_for_all_its_rows(truth, tmp_path, monkeypatch):
    ids = ("table2/baseline", "table2/cs", "table2/srs")
    runs = [made_up_run(tmp_path / id, noisy(truth, 3), id) for id in ids]
    matched = []
    monkeypatch.setattr(COCOeval, "evaluate", lambda self, once=COCOeval.evaluate: matched.append(0) or once(self))
    assert list(differences_to_baselines(runs, draws=2)) == ["table2/cs", "table2/srs"]
    assert len(matched) == 3


def test_a_table_has_the_intervals_of_its_rows_that_were_run_beside_their_baselines(truth, tmp_path):
    for seed in (0, 1):
        made_up_run(tmp_path / f"b{seed}", noisy(truth, 4, seed), "table2/baseline", seed)
        made_up_run(tmp_path / f"c{seed}", noisy(truth, 1, seed), "table2/cs", seed)
    same = noisy(truth, 4)
    made_up_run(tmp_path / "s", same, "table2/srs")
    made_up_run(tmp_path / "g", noisy(truth, 3), "table4/sum_gap")
    made_up_run(tmp_path / "f", noisy(truth, 1), "table1/fcos_r50_augfpn_1x")
    runs = [Run(path) for path in sorted(tmp_path.iterdir())]
    # The run of Table 2 with the same model stands in Table 3, beside the same baseline.
    for table, method in (("table2", "CS"), ("table3", "CS, all level, λ 0.25")):
        found = intervals(runs, table, draws=100)
        row = found.loc[method]
        assert row["low"] < row["gain"] < row["high"]
        assert (row["seeds"], row["paper gain"]) == (2, 0.9)
        assert row["larger than the noise"] == ("yes" if row["low"] > 0 else "no")
    of_table_2 = intervals(runs, "table2", draws=100)
    assert list(of_table_2.index) == ["CS", "SRS"]
    assert of_table_2.loc["SRS", ["gain", "low", "high"]].tolist() == [0, 0, 0]
    assert of_table_2.loc["SRS", "larger than the noise"] == "no"
    # FCOS was not run with FPN; Faster R-CNN with FPN is a baseline.
    assert intervals(runs, "table1", draws=100).empty
    assert intervals([], "table2").empty


def test_every_row_of_table_1_has_a_baseline_of_its_own(truth, tmp_path):
    for detector, noise in (("fcos", 4), ("retinanet", 2)):
        made_up_run(tmp_path / f"{detector}-", noisy(truth, noise), f"table1/{detector}_r50_fpn_1x")
        made_up_run(tmp_path / detector, noisy(truth, 3), f"table1/{detector}_r50_augfpn_1x")
    gains = intervals([Run(path) for path in sorted(tmp_path.iterdir())], "table1", draws=100)["gain"]
    assert (gains > 0).tolist() == [False, True]
