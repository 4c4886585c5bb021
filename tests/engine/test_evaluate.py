import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from augfpn.data import CocoDataset, SyntheticDataset
from augfpn.data.dataset import Category
from augfpn.data.segmentations import decode, encode
from augfpn.engine import Run, evaluate
from augfpn.engine.evaluate import FIGURES, MASK_FIGURES, coco_metrics, coco_results
from augfpn.experiments import plan
from augfpn.structures import Detections


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


def pycocotools_figures(truth, results, kind="bbox"):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), kind)
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


def masks_disturbed(truth, seed=0):
    """Detections of masks made from the truth: shifted, with holes, of the wrong class, twice, missing, or empty."""
    rng = np.random.default_rng(seed)
    categories = [category["id"] for category in truth["categories"]]
    results = []
    for annotation in truth["annotations"]:
        [mask] = decode([annotation["segmentation"]], *annotation["segmentation"]["size"])
        for _ in range(rng.integers(0, 3)):
            side = max(1, int(0.1 * annotation["bbox"][2]))
            moved = mask.roll(tuple(rng.integers(-side, side + 1, 2)), dims=(0, 1))
            moved = moved * torch.from_numpy(rng.random(mask.shape) < rng.choice([0.0, 0.7, 1.0], p=[0.1, 0.3, 0.6]))
            category = rng.choice(categories) if rng.random() < 0.15 else annotation["category_id"]
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(category),
                    "segmentation": encode(moved[None])[0],
                    "score": rng.random(),
                }
            )
    return results


def test_all_twelve_figures_of_masks_equal_pycocotools_on_synthetic_images():
    truth = SyntheticDataset(128, 120).ground_truth()
    results = masks_disturbed(truth)
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    assert any(rle.area(result["segmentation"]) == 0 for result in results)
    figures = coco_metrics(truth, results, "segm")
    assert figures == pytest.approx(pycocotools_figures(truth, results, "segm"), abs=1e-9)
    assert 0.1 < figures["AP"] < 0.9


def test_all_twelve_figures_of_masks_equal_pycocotools_on_real_annotations(real_images):
    truth = CocoDataset.open(real_images / "coco_tiny", "val", masks=True).ground_truth()
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    results = masks_disturbed(truth)
    figures = coco_metrics(truth, results, "segm")
    assert figures == pytest.approx(pycocotools_figures(truth, results, "segm"), abs=1e-9)
    perfect = [{**a, "score": 1.0} for a in truth["annotations"] if not a["iscrowd"]]
    assert coco_metrics(truth, perfect, "segm")["AP"] == pytest.approx(1.0)


def packed(x, y, width, height):
    mask = torch.zeros(1, 100, 100, dtype=torch.uint8)
    mask[0, y : y + height, x : x + width] = 1
    return encode(mask)[0]


def test_results_with_box_and_mask_are_measured_by_what_is_asked_for():
    truth = truth_of([[0, 0, 40, 40]])
    truth["annotations"][0]["segmentation"] = packed(0, 0, 40, 40)
    # The right mask in a wrong box, and the right box with a wrong mask.
    right_mask = {**found([60, 60, 40, 40], 0.9), "segmentation": packed(0, 0, 40, 40)}
    right_box = {**found([0, 0, 40, 40], 0.8), "segmentation": packed(60, 60, 40, 40)}
    # The right one comes second among boxes, so that precision is a half, and first among masks.
    assert coco_metrics(truth, [right_mask, right_box], "bbox")["AP"] == pytest.approx(0.5)
    assert coco_metrics(truth, [right_mask, right_box], "segm")["AP"] == pytest.approx(1.0)


def test_size_classes_of_detections_are_by_the_area_of_what_is_measured():
    # A large object is found, and before it something wrong: no error among large ones if it is small itself.
    truth = truth_of([[0, 0, 98, 98]])
    truth["annotations"][0]["segmentation"] = packed(0, 0, 98, 98)
    right = {**found([0, 0, 98, 98], 0.9), "segmentation": packed(0, 0, 98, 98)}
    small_mask = {**found([2, 2, 97, 97], 0.95), "segmentation": packed(90, 98, 5, 2)}
    small_box = {**found([90, 90, 5, 5], 0.95), "segmentation": packed(2, 2, 97, 97)}
    assert coco_metrics(truth, [small_mask, right], "segm")["APl"] == pytest.approx(1.0)
    assert coco_metrics(truth, [small_box, right], "bbox")["APl"] == pytest.approx(1.0)


def test_measuring_leaves_ground_truth_and_results_as_they_were():
    truth = SyntheticDataset(64, 5).ground_truth()
    results = masks_disturbed(truth)
    before = copy.deepcopy((truth, results))
    coco_metrics(truth, results, "segm")
    assert (truth, results) == before


def test_results_carry_masks_where_the_detections_do():
    masks = torch.zeros(2, 1, 10, 12)
    masks[0, 0, 2:5, 3:9] = 0.7
    masks[0, 0, 5, 3:9] = 0.4
    masks[1] = 0.3  # nothing of it is above the threshold
    detections = {
        "boxes": torch.tensor([[3.0, 2.0, 9.0, 6.0], [0.0, 0.0, 5.0, 5.0]]),
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.8]),
        "rois": torch.tensor([[2.0, 2.0, 8.0, 8.0], [0.0, 0.0, 5.5, 5.0]]),
    }
    without = coco_results(5, detections, (Category(7, "thing"),))
    results = coco_results(5, {**detections, "masks": masks}, (Category(7, "thing"),))
    assert [result["roi"] for result in without] == [[2, 2, 6, 6], [0, 0, 5.5, 5]]
    assert [{k: v for k, v in result.items() if k != "segmentation"} for result in results] == without
    assert torch.equal(decode([r["segmentation"] for r in results], 10, 12), (masks[:, 0] > 0.5).to(torch.uint8))
    assert all(isinstance(result["segmentation"]["counts"], str) for result in results)


class Oracle:
    """A detector that knows the data set: it finds every object with its mask, in so many images at once."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.seen = 0

    def detect(self, images):
        samples = [self.dataset[index] for index in range(self.seen, self.seen + len(images.sizes))]
        self.seen += len(samples)
        room = max(1, *(len(sample.labels) for sample in samples))
        boxes, masks = torch.zeros(len(samples), room, 4), torch.zeros(len(samples), room, 28, 28)
        labels, valid = torch.ones(len(samples), room, dtype=torch.int64), torch.zeros(len(samples), room).bool()
        for i, sample in enumerate(samples):
            num = len(sample.labels)
            boxes[i, :num], labels[i, :num], valid[i, :num] = sample.boxes, sample.labels, True
            for j, (box, mask) in enumerate(zip(sample.boxes.int().tolist(), sample.masks, strict=True)):
                x1, y1, x2, y2 = box
                cut = mask[None, None, y1:y2, x1:x2].float()
                masks[i, j] = torch.nn.functional.interpolate(cut, (28, 28), mode="bilinear")[0, 0]
        return Detections(boxes, valid.float(), labels, valid, boxes, masks)


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_run_with_masks_has_the_twelve_figures_of_masks_too(tmp_path, monkeypatch, with_masks):
    config = plan("table1/mask_rcnn_r50_fpn_1x" if with_masks else "table2/baseline", "smoke")
    synthetic = config.data.synthetic
    dataset = SyntheticDataset(synthetic.size, synthetic.num_val, synthetic.seed, 1_000_000, masks=True)
    run = Run.create(tmp_path, config, dataset.categories)
    monkeypatch.setattr(Run, "load_model", lambda self, device: Oracle(dataset))
    metrics = evaluate(run, torch.device("cpu"))
    assert metrics["AP"] == pytest.approx(1.0)
    assert set(FIGURES) <= run.metrics.keys()
    assert (set(MASK_FIGURES) & run.metrics.keys()) == (set(MASK_FIGURES) if with_masks else set())
    if with_masks:
        assert metrics["mask_AP50"] > 0.9
    assert {"image_id", "category_id", "bbox", "score", "roi", "segmentation"} == run.detections[0].keys()
