import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from augfpn.data.dataset import Category
from augfpn.engine import Run, predict
from augfpn.engine.predict import as_coco
from augfpn.experiments import plan


class Finder:
    """A detector that finds one object of 6 × 4 pixels in every picture, with a mask of a half of it, or without."""

    def __init__(self, has_masks):
        self.has_masks = has_masks

    def __call__(self, images):
        found = {
            "boxes": torch.tensor([[2.0, 3.0, 8.0, 7.0]]),
            "labels": torch.tensor([1]),
            "scores": torch.tensor([0.9]),
        }
        masks = torch.zeros(1, 1, *images[0].shape[1:])
        masks[:, :, 3:7, 2:5] = 0.8
        return [{**found, "masks": masks} if self.has_masks else found]


@pytest.fixture
def predictions(tmp_path, monkeypatch):
    def predicted(has_masks):
        run = Run.create(tmp_path / f"run-{has_masks}", plan("table2/baseline", "smoke"), (Category(7, "thing"),))
        monkeypatch.setattr(Run, "load_model", lambda self, device: Finder(has_masks))
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        for path, size in zip(paths, [(20, 10), (12, 30)], strict=True):
            Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)).save(path)
        return predict(run, paths, torch.device("cpu")), run

    return predicted


def test_predicted_masks_are_of_the_size_of_their_picture(predictions):
    for prediction in predictions(has_masks=True)[0]:
        expected = torch.zeros(1, *prediction.image.shape[1:], dtype=torch.uint8)
        expected[:, 3:7, 2:5] = 1
        assert torch.equal(prediction.detections["masks"], expected)


def test_annotations_in_cocos_format_have_the_mask_and_its_area(predictions):
    annotations = as_coco(*predictions(has_masks=True))["annotations"]
    assert [annotation["segmentation"]["size"] for annotation in annotations] == [[10, 20], [30, 12]]
    for annotation in annotations:
        assert annotation["bbox"] == [2, 3, 6, 4]
        assert rle.toBbox(annotation["segmentation"]).tolist() == [2, 3, 3, 4]
        assert annotation["area"] == 12


def test_without_masks_the_area_is_that_of_the_box(predictions):
    annotations = as_coco(*predictions(has_masks=False))["annotations"]
    assert [annotation["area"] for annotation in annotations] == [24, 24]
    assert all("segmentation" not in annotation for annotation in annotations)
