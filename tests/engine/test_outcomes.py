"""What became of detections: against pycocotools, cases worked by hand, and the file that holds them."""

import io
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.data.synthetic import SyntheticDataset
from augfpn.engine import Run, evaluate, outcomes_file, train
from augfpn.engine.outcomes import SCORES_IN_ONE, Outcome, outcomes_of
from augfpn.engine.outcomes_file import Outcomes
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.files import write_json

CPU = torch.device("cpu")
CLASSES = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]


def truth_of(*objects, images=1, categories=CLASSES):
    """Objects as (image id, category id, box, is crowd)."""
    annotations = [
        {"id": id, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for id, (image, category, box, crowd) in enumerate(objects, start=1)
    ]
    return {
        "images": [{"id": id, "file_name": f"{id}.jpg", "width": 200, "height": 100} for id in range(1, images + 1)],
        "annotations": annotations,
        "categories": categories,
    }


def result(image, category, box, score, **more):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, **more}


def test_every_kind_of_outcome_by_hand():
    truth = truth_of(
        (1, 7, [0, 0, 20, 20], 0),
        (1, 90, [100, 0, 20, 20], 0),
        (1, 7, [0, 60, 20, 20], 0),
        (1, 7, [100, 50, 80, 50], 1),
    )
    results = [
        result(1, 7, [0, 0, 20, 16], 0.9),  # IoU 0.8
        result(1, 7, [0, 0, 20, 12], 0.8),  # IoU 0.6 with what the first has
        result(1, 7, [100, 0, 20, 20], 0.7),  # a dog's box
        result(1, 7, [0, 60, 20, 5], 0.6),  # IoU 0.25
        result(1, 90, [50, 50, 10, 10], 0.5),
        result(1, 7, [110, 60, 20, 20], 0.4),  # inside the crowd
        result(1, 7, [120, 60, 20, 20], 0.3),  # a crowd has room for many
    ]
    [image] = outcomes_of(truth, results)
    expected = ["correct", "duplicate", "wrong class", "badly placed", "background", "ignored", "ignored"]
    assert [str(Outcome(kind)) for kind in image.found.outcomes] == expected
    assert image.found.of_object.tolist() == [0, 0, 1, 2, -1, 3, 3]
    np.testing.assert_allclose(image.found.ious, [0.8, 0.6, 1, 0.25, 0, 1, 1])
    assert image.objects.found_by.tolist() == [0, -1, -1, 5]
    assert image.objects.labels.tolist() == [1, 2, 1, 1]
    assert image.objects.boxes[1].tolist() == [100, 0, 120, 20]
    assert image.found.scores.tolist() == [90000, 80000, 70000, 60000, 50000, 40000, 30000]


def test_what_fits_another_class_and_touches_its_own_is_of_the_wrong_class():
    truth = truth_of((1, 7, [0, 0, 20, 20], 0), (1, 90, [8, 0, 20, 20], 0))
    [image] = outcomes_of(truth, [result(1, 7, [9, 0, 20, 20], 0.9)])
    assert image.found.outcomes.tolist() == [Outcome.WRONG_CLASS]
    assert image.found.of_object.tolist() == [1]


def test_images_without_objects_or_detections_and_no_detections_at_all():
    truth = truth_of((2, 7, [0, 0, 20, 20], 0), images=3)
    of_images = list(outcomes_of(truth, [result(1, 7, [0, 0, 20, 20], 0.9)]))
    assert [len(image.objects.boxes) for image in of_images] == [0, 1, 0]
    assert [image.found.outcomes.tolist() for image in of_images] == [[Outcome.BACKGROUND], [], []]
    assert of_images[1].objects.found_by.tolist() == [-1]
    assert [image.found.boxes.shape for image in outcomes_of(truth, [])] == [(0, 4)] * 3


@pytest.fixture(scope="module")
def crowded():
    """Random objects and detections of many classes, crowds among them, some scores equal."""
    random = np.random.default_rng(0)
    categories = [{"id": 3 * k + 1, "name": str(k)} for k in range(5)]

    def box():
        width, height = random.uniform(10, 60, 2)
        return [*random.uniform(0, [200 - width, 100 - height]).round(2).tolist(), round(width, 2), round(height, 2)]

    def category():
        return categories[random.integers(5)]["id"]

    objects = [(image, category(), box(), int(random.random() < 0.1)) for image in range(1, 13) for _ in range(8)]
    truth = truth_of(*objects, images=13, categories=categories)
    near = [
        (image, kind, (np.array(place) + random.normal(0, 4, 4)).clip(1, 90).round(2).tolist())
        for image, kind, place, _ in objects * 2
    ]
    far = [(int(random.integers(1, 14)), category(), box()) for _ in range(100)]
    return truth, [result(*one, round(float(random.random()), 2)) for one in near + far]


def test_matches_are_pycocotools_own(crowded):
    truth, results = crowded
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in results]), "bbox")
        evaluation.evaluate()
    every_size = [one for one in evaluation.evalImgs if one is not None and one["aRng"] == [0, 1e10]]
    # At an IoU of 0.5, which is the first; as (image, score, box) because ids are pycocotools' own.
    expected = {
        (one["image_id"], id): (int(match), bool(ignored))
        for one in every_size
        for id, match, ignored in zip(one["dtIds"], one["dtMatches"][0], one["dtIgnore"][0], strict=True)
    }
    position = {annotation["id"]: annotation for annotation in truth["annotations"]}
    found = {}
    for image, of_image in zip(truth["images"], outcomes_of(truth, results), strict=True):
        annotations = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        mine = [(id, one) for id, one in enumerate(results, start=1) if one["image_id"] == image["id"]]
        mine.sort(key=lambda pair: -pair[1]["score"])
        for (id, _), kind, at in zip(mine, of_image.found.outcomes, of_image.found.of_object, strict=True):
            matched = kind in (Outcome.CORRECT, Outcome.IGNORED)
            found[image["id"], id] = (annotations[at]["id"] if matched else 0, kind == Outcome.IGNORED)
        for annotation, by in zip(annotations, of_image.objects.found_by, strict=True):
            assert (by >= 0) == any(match == annotation["id"] for match, _ in expected.values())
    assert found == expected
    assert sum(match > 0 for match, _ in found.values()) > 50
    assert any(position[match]["iscrowd"] for match, _ in found.values() if match)


def test_a_threshold_takes_detections_away_and_changes_nothing_else(crowded):
    truth, results = crowded
    above = [one for one in results if one["score"] >= 0.5]
    for whole, part in zip(outcomes_of(truth, results), outcomes_of(truth, above), strict=True):
        kept = whole.found.scores >= 0.5 * SCORES_IN_ONE
        assert whole.found.outcomes[kept].tolist() == part.found.outcomes.tolist()
        assert whole.found.of_object[kept].tolist() == part.found.of_object.tolist()
        still = (whole.objects.found_by >= 0) & (whole.objects.found_by < kept.sum())
        assert np.where(still, whole.objects.found_by, -1).tolist() == part.objects.found_by.tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = train(
        plan("table1/mask_rcnn_r50_augfpn_1x", "smoke"), tmp_path_factory.mktemp("outcomes") / "run", device=CPU
    )
    evaluate(run, CPU)
    return run


def test_the_evaluation_leaves_a_file_that_gives_each_image_as_it_was(run):
    assert (run.path / "outcomes.safetensors").is_file()
    data = run.config.data.synthetic
    truth = SyntheticDataset(data.size, data.num_val, data.seed, 1_000_000, masks=True).ground_truth()
    expected = list(outcomes_of(truth, run.detections))
    outcomes = Outcomes(run)
    assert (outcomes.has_rois, outcomes.has_masks, outcomes.folder) == (True, True, None)
    assert outcomes.names == [image["file_name"] for image in truth["images"]]
    assert outcomes.sizes == [(data.size, data.size)] * data.num_val
    assert sum(len(image.found.boxes) for image in expected) > 0
    for position, image in enumerate(expected):
        for part, same in (
            (image.objects, outcomes.image(position).objects),
            (image.found, outcomes.image(position).found),
        ):
            assert vars(part).keys() == vars(same).keys()
            for name, value in vars(part).items():
                if name == "masks":
                    assert [dict(mask) for mask in value or []] == [dict(mask) for mask in vars(same)[name]]
                else:
                    np.testing.assert_array_equal(value, vars(same)[name])


def test_detections_say_which_roi_they_were_refined_from(run):
    [first, *_] = run.detections
    dataset = SyntheticDataset(run.config.data.synthetic.size, run.config.data.synthetic.num_val, 0, 1_000_000)
    model = run.load_model(CPU)
    found = model([dataset[first["image_id"] - 1].image])[0]
    x, y, width, height = first["roi"]
    np.testing.assert_allclose([x, y, x + width, y + height], found["rois"][0].tolist(), atol=0.01)


def test_the_overview_has_the_columns_of_all_images(run):
    outcomes, overview = Outcomes(run), Outcomes(run).overview()
    for position in range(len(outcomes)):
        part = slice(*overview.found_starts[position : position + 2])
        image = outcomes.image(position)
        assert overview.found["scores"][part].tolist() == image.found.scores.tolist()
        part = slice(*overview.object_starts[position : position + 2])
        assert overview.objects["found_by"][part].tolist() == image.objects.found_by.tolist()


@pytest.mark.parametrize("what", ["missing", "broken", "older"])
def test_the_file_is_made_again_where_it_is_missing_broken_or_of_other_detections(run, tmp_path, what):
    copy = Run(tmp_path / "run")
    run.path.rename(copy.path)
    try:
        path = copy.path / "outcomes.safetensors"
        kept, original = copy.detections, path.read_bytes()
        if what == "missing":
            path.unlink()
        elif what == "broken":
            path.write_bytes(original[: len(original) // 2])
        else:
            write_json(
                copy.path / "detections.json", [{k: v for k, v in one.items() if k != "roi"} for one in kept[:5]]
            )
        outcomes = Outcomes(copy)
        assert outcomes.has_rois == (what != "older")
        assert len(outcomes.overview().found["scores"]) == (5 if what == "older" else len(kept))
    finally:
        write_json(copy.path / "detections.json", kept)
        copy.path.rename(run.path)


def test_a_run_that_cannot_be_written_to_says_what_to_do(run, monkeypatch):
    monkeypatch.setattr("augfpn.engine.outcomes_file.sources_of", lambda run: "others")

    save = outcomes_file.save_file
    monkeypatch.setattr(
        outcomes_file, "save_file", lambda columns, _, metadata: save(columns, "/proc/no/file", metadata)
    )
    with pytest.raises(UserError, match=r"cannot be written \(.*\). Copy the run"):
        Outcomes(run)


def test_data_of_other_classes_or_images_are_refused(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    write_json(copy.path / "detections.json", [{**one, "image_id": 999} for one in copy.detections])
    with pytest.raises(UserError, match="have other classes or images than when it was evaluated"):
        Outcomes(copy)
    write_json(copy.path / "detections.json", run.detections)
    categories = [{**vars(category), "id": category.id + 1} for category in copy.categories]
    write_json(copy.path / "categories.json", categories)
    with pytest.raises(UserError, match="have other classes or images"):
        Outcomes(copy)
