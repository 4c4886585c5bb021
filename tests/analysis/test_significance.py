from dataclasses import replace

import numpy as np
import pytest

from augfpn.analysis.significance import MatchedImages, differences_to_baselines, paired_difference
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
    run = Run.create(path, config_of(experiment, seed), ())
    run.write_results(dict.fromkeys(FIGURES, 0.5), results)
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
    assert differences["table2/cs"].is_clear


def test_runs_that_make_no_pairs_are_refused(truth, tmp_path):
    run = made_up_run(tmp_path / "a", noisy(truth, 3))
    other_seed = made_up_run(tmp_path / "b", noisy(truth, 3), "table2/baseline", seed=1)
    with pytest.raises(UserError, match=r"same seeds: there are \[0\] and, of the baseline, \[1\]"):
        paired_difference([run], [other_seed], draws=1)
    with pytest.raises(UserError, match="same experiment"):
        paired_difference([run, made_up_run(tmp_path / "c", [], "table2/srs", seed=1)], [run, other_seed], draws=1)
