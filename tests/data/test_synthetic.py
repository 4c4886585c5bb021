import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torchvision.ops import masks_to_boxes

from augfpn.data import CocoDataset, SyntheticDataset
from augfpn.errors import UserError


@pytest.fixture(scope="module")
def dataset():
    return SyntheticDataset(128, 150)


def test_an_image_is_a_function_of_seed_and_index(dataset):
    again = SyntheticDataset(128, 150)
    # In another order, so that nothing depends on what was drawn before.
    for index in (7, 3):
        assert torch.equal(again[index].image, dataset[index].image)
        assert torch.equal(again[index].boxes, dataset[index].boxes)
    assert not torch.equal(SyntheticDataset(128, 150, seed=1)[3].image, dataset[3].image)


def test_objects_of_every_class_and_size_crowds_and_empty_images_occur(dataset):
    truth = dataset.ground_truth()
    plain = [a for a in truth["annotations"] if not a["iscrowd"]]
    assert {a["category_id"] for a in plain} == {category.id for category in dataset.categories}
    areas = np.array([a["area"] for a in plain])
    small, large = (areas < 32**2).mean(), (areas >= 96**2).mean()
    assert small > 0.3
    assert 1 - small - large > 0.15
    assert large > 0.04
    assert any(a["iscrowd"] for a in truth["annotations"])
    assert len({a["image_id"] for a in plain}) < len(dataset)


def test_boxes_are_those_of_the_masks_that_can_be_seen(dataset):
    for annotation in dataset.ground_truth()["annotations"][:200]:
        mask = rle.decode({**annotation["segmentation"], "counts": annotation["segmentation"]["counts"].encode()})
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + width, y + height)


def test_kites_are_in_the_sky_and_boats_on_the_water(dataset):
    names = {category.id: category.name for category in dataset.categories}
    middle = {"kite": [], "boat": []}
    for annotation in dataset.ground_truth()["annotations"]:
        if names[annotation["category_id"]] in middle:
            middle[names[annotation["category_id"]]].append(annotation["bbox"][1] + annotation["bbox"][3] / 2)
    assert np.mean(middle["kite"]) + 20 < np.mean(middle["boat"])


def test_the_colour_of_an_object_does_not_tell_its_class(dataset):
    """The mean colour of each class is that of all classes, within the spread of such means."""
    colours, labels = [], []
    for annotation in dataset.ground_truth()["annotations"]:
        mask = rle.decode({**annotation["segmentation"], "counts": annotation["segmentation"]["counts"].encode()})
        pixels = dataset[annotation["image_id"] - 1].image[:, torch.from_numpy(mask).bool()].float()
        light = pixels[:, pixels.amax(dim=0) > 80]  # without the outline
        if annotation["area"] > 600 and light.shape[1] > 0 and not annotation["iscrowd"]:  # small ones blend with it
            colours.append(light.median(dim=1).values.tolist())
            labels.append(annotation["category_id"])
    colours, labels = np.array(colours), np.array(labels)
    for label in np.unique(labels):
        own = colours[labels == label]
        error = colours.std(axis=0) / np.sqrt(len(own))
        assert (np.abs(own.mean(axis=0) - colours.mean(axis=0)) < 4 * error).all()


def test_written_to_disk_it_is_a_coco_data_set_with_the_same_content(tmp_path):
    dataset = SyntheticDataset(64, 12, seed=3)
    file = dataset.write(tmp_path, "train")
    written = CocoDataset.open(tmp_path, "train", strict=True)
    assert len(COCO(str(file)).getImgIds()) == len(written) == 12
    assert written.categories == dataset.categories
    for index in range(12):
        assert torch.equal(written[index].image, dataset[index].image)
        assert torch.equal(written[index].boxes, dataset[index].boxes)
        assert torch.equal(written[index].labels, dataset[index].labels)


def test_images_too_small_for_their_objects_are_refused():
    with pytest.raises(UserError, match="at least 32 pixels"):
        SyntheticDataset(16, 1)


def test_masks_are_what_can_be_seen_of_the_objects(dataset):
    masked = SyntheticDataset(128, 150, masks=True)
    for index in range(40):
        sample = masked[index]
        assert sample.masks.shape == (len(sample.labels), 128, 128)
        assert torch.equal(masks_to_boxes(sample.masks) + torch.tensor([0, 0, 1, 1]), sample.boxes)
        assert sample.masks.sum(dim=0).max() <= 1  # a pixel shows one object
        assert dataset[index].masks is None


def test_written_to_disk_its_masks_are_the_same(tmp_path):
    dataset = SyntheticDataset(64, 12, seed=3, masks=True)
    dataset.write(tmp_path, "train")
    written = CocoDataset.open(tmp_path, "train", strict=True, masks=True)
    assert all(torch.equal(written[index].masks, dataset[index].masks) for index in range(12))
