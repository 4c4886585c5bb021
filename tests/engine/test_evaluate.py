import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.data import CocoDataset, SyntheticDataset
from augfpn.engine.evaluate import FIGURES, coco_metrics


def truth_of(boxes, crowds=()):
    return {
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "a.png"}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {
                "id": id, "image_id": 1, "category_id": 7, "bbox": box, "area": box[2] * box[3],
                "iscrowd": int(id - 1 in crowds),
            }
            for id, box in enumerate(boxes, start=1)
        ],
    }  # fmt: skip


def found(box, score):
    return {"image_id": 1, "category_id": 7, "bbox": box, "score": score}


def test_ap_of_a_case_worked_by_hand():
    truth = truth_of([[0, 0, 20, 20], [50, 50, 20, 20]])
    metrics = coco_metrics(truth, [found([0, 0, 20, 20], 0.9), found([30, 0, 10, 10], 0.8)])
    # One of two objects found, before the false one: precision 1 up to recall ½, which is 51 of the 101 points.
    assert metrics["AP"] == metrics["AP50"] == metrics["APs"] == pytest.approx(51 / 101)
    assert metrics["AR100"] == pytest.approx(0.5)
    assert metrics["APm"] is None
    assert metrics["APl"] is None


def test_a_box_that_overlaps_by_three_quarters_counts_up_to_that_threshold():
    # Widths 20 and 15: IoU 0.75 reaches six of the ten thresholds.
    metrics = coco_metrics(truth_of([[0, 0, 20, 20]]), [found([0, 0, 15, 20], 0.9)])
    assert metrics["AP"] == pytest.approx(0.6)
    assert metrics["AP75"] == pytest.approx(1.0)


def test_detections_in_a_crowd_are_not_counted_as_wrong():
    truth = truth_of([[0, 0, 20, 20], [40, 40, 60, 60]], crowds={1})
    results = [found([45, 45, 10, 10], 0.95), found([60, 60, 10, 10], 0.94), found([0, 0, 20, 20], 0.9)]
    assert coco_metrics(truth, results)["AP"] == pytest.approx(1.0)


def test_a_model_that_finds_nothing_has_an_ap_of_0():
    metrics = coco_metrics(truth_of([[0, 0, 20, 20]]), [])
    assert metrics["AP"] == 0


def test_images_without_objects_have_no_ap():
    assert coco_metrics(truth_of([]), [found([0, 0, 5, 5], 0.5)])["AP"] is None


def disturbed(truth, seed=0):
    """Detections made from the truth: moved, of the wrong class, twice, missing, or where nothing is."""
    rng = np.random.default_rng(seed)
    categories = [category["id"] for category in truth["categories"]]
    results = []
    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            box = np.array(annotation["bbox"]) + rng.normal(0, 0.08, 4) * np.tile(annotation["bbox"][2:], 2)
            category = rng.choice(categories) if rng.random() < 0.15 else annotation["category_id"]
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(category),
                    "bbox": box.clip(1).tolist(),
                    "score": rng.random(),
                }
            )
    return results


def pycocotools_figures(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES, evaluation.stats.tolist(), strict=True))


def test_all_twelve_figures_equal_pycocotools_on_synthetic_images():
    truth = SyntheticDataset(128, 120).ground_truth()
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    assert coco_metrics(truth, disturbed(truth)) == pytest.approx(
        pycocotools_figures(truth, disturbed(truth)), abs=1e-9
    )


@pytest.mark.parametrize("name", ["coco_tiny", "aquarium"])
def test_all_twelve_figures_equal_pycocotools_on_real_annotations(real_images, name):
    truth = CocoDataset.open(real_images / name, "val").ground_truth()
    assert coco_metrics(truth, disturbed(truth)) == pytest.approx(
        pycocotools_figures(truth, disturbed(truth)), abs=1e-9
    )
    perfect = [{**a, "score": 1.0} for a in truth["annotations"] if not a["iscrowd"]]
    assert coco_metrics(truth, perfect)["AP"] == pytest.approx(1.0)
