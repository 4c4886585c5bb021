"""A small COCO-format data set, and everything that can be wrong with one."""

import contextlib
import io
import json
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torchvision.ops import masks_to_boxes

from augfpn.data import CocoDataset, DataError

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}]


def picture(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def annotation(id, image_id, bbox, category_id=7, **more):
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


@pytest.fixture
def content():
    return {
        "images": [
            {"id": 42, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 17, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            annotation(0, 42, [1, 2, 10, 12], area=100.0),
            annotation(5, 42, [20, 2, 15, 12], category_id=90),
            annotation(6, 42, [0, 0, 40, 30], iscrowd=1),
        ],
        "categories": CATEGORIES,
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in ("a.jpg", "b.jpg"):
        picture().save(tmp_path / "train2017" / name, quality=95)
    return tmp_path


def opened(root, content, strict=False, masks=False):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / "instances_train2017.json").write_text(text)
    return CocoDataset.open(root, "train", strict, masks)


def test_samples_have_the_labels_of_the_sorted_categories_and_no_crowds(root, content):
    dataset = opened(root, content, strict=True)
    assert [category.name for category in dataset.categories] == ["train", "toothbrush"]
    first, second = dataset[0], dataset[1]
    assert first.image_id == 42
    assert first.boxes.tolist() == [[1, 2, 11, 14], [20, 2, 35, 14]]
    assert first.labels.tolist() == [1, 2]
    assert second.boxes.shape == (0, 4)
    assert second.labels.shape == (0,)


def test_the_ground_truth_keeps_crowds_and_category_ids_and_numbers_annotations_from_1(root, content):
    truth = opened(root, content).ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3]
    assert [a["category_id"] for a in truth["annotations"]] == [7, 90, 7]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1]
    assert [a["area"] for a in truth["annotations"]] == [100, 15 * 12, 40 * 30]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_images_of_every_kind_are_read_as_rgb(root, content, mode):
    grey = Image.fromarray(np.linspace(0, 255, 1200).astype(np.uint8).reshape(30, 40))
    if mode == "I;16":
        odd = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        odd = grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)
    name = "odd.jpg" if mode in ("L", "CMYK") else "odd.png"
    odd.save(root / "train2017" / name)
    content["images"][0]["file_name"] = name
    image = opened(root, content)[0].image
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    # The ramp from black to white is kept, whatever the encoding; one bit keeps only its ends.
    tolerance = 255 if mode == "1" else 12
    assert (image.float().mean(dim=0) - torch.from_numpy(np.asarray(grey).astype(np.float32))).abs().max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_by_exif_is_applied_where_the_annotation_was_made_on_the_rotated_image(root, content, orientation):
    stored = picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(root / "train2017" / "a.png", exif=exif)
    turned = orientation >= 5
    content["images"][0] |= {"file_name": "a.png", "width": 30 if turned else 40, "height": 40 if turned else 30}
    content["annotations"] = []
    image = opened(root, content)[0].image
    assert image.shape == ((3, 40, 30) if turned else (3, 30, 40))
    pixels = np.asarray(stored)
    corner_of = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}
    assert image[:, 0, 0].tolist() == pixels[corner_of[orientation]].tolist()


def test_a_rotation_by_exif_is_ignored_where_the_annotation_was_made_on_the_stored_image(root, content):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 30).save(root / "train2017" / "a.jpg", exif=exif)
    assert opened(root, content)[0].image.shape == (3, 30, 40)


def broken(change):
    """A name for the change in the test's output, and the change itself."""
    return pytest.param(change, id=change.__name__.strip("_"))


def _missing_image(root, content):
    (root / "train2017" / "b.jpg").unlink()
    return "b.jpg: there is no such file"


def _truncated_jpeg(root, content):
    path = root / "train2017" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    return "b.jpg: the image cannot be read"


def _truncated_header(root, content):
    path = root / "train2017" / "b.jpg"
    path.write_bytes(path.read_bytes()[:10])
    return "b.jpg: "


def _empty_image_file(root, content):
    (root / "train2017" / "b.jpg").write_bytes(b"")
    return "b.jpg: not an image"


def _text_for_an_image(root, content):
    (root / "train2017" / "b.jpg").write_text("not an image")
    return "b.jpg: not an image"


def _another_size(root, content):
    content["images"][1]["width"] = 41
    return "b.jpg: the image is 40 × 30 pixels, but annotated as 41 × 30"


def _unknown_category(root, content):
    content["annotations"][1]["category_id"] = 3
    return r"annotations\[1\] \(id 5\): category_id 3 is not among the categories \[7, 90\]"


def _unknown_image(root, content):
    content["annotations"][1]["image_id"] = 3
    return r"annotations\[1\] \(id 5\): image_id 3 is not among the images"


def _no_bbox(root, content):
    del content["annotations"][1]["bbox"]
    return r"annotations\[1\] \(id 5\): the field 'bbox' is missing"


def _bbox_of_three(root, content):
    content["annotations"][1]["bbox"] = [1, 2, 3]
    return "'bbox' must be four finite numbers"


def _bbox_of_text(root, content):
    content["annotations"][1]["bbox"] = [1, 2, "3", 4]
    return "'bbox' must be four finite numbers"


def _annotation_that_is_no_object(root, content):
    content["annotations"][1] = 5
    return r"annotations\[1\]: expected an object"


def _image_without_name(root, content):
    del content["images"][0]["file_name"]
    return r"images\[0\] \(id 42\): the field 'file_name' is missing"


def _image_id_of_text(root, content):
    content["images"][0]["id"] = "42"
    return "'id' must be an integer, found '42'"


def _image_id_twice(root, content):
    content["images"][0]["id"] = 17
    return "images: the id 17 is used 2 times"


def _category_id_twice(root, content):
    content["categories"] = [CATEGORIES[0], CATEGORIES[0]]
    return "categories: the id 90 is used 2 times"


def _no_categories(root, content):
    content["categories"] = []
    return "'categories' is empty"


def _no_images(root, content):
    content["images"] = []
    return "'images' is empty"


def _no_annotations_field(root, content):
    del content["annotations"]
    return "the field 'annotations' is missing"


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith("_") and callable(value)]
CHANGES = [change for change in CHANGES if change.__module__ == __name__ and not change.__name__.startswith("__")]


@pytest.mark.parametrize("change", [broken(change) for change in CHANGES])
def test_what_cannot_be_used_is_an_error_that_names_the_place(root, content, change):
    expected = change(root, content)
    with pytest.raises(DataError, match=expected):
        opened(root, content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("[]", "expected an object with images"),
        ("\x00", "not valid JSON"),
    ],
)
def test_an_annotation_file_that_is_none_is_named(root, text, expected):
    with pytest.raises(DataError, match=rf"instances_train2017\.json: {expected}"):
        opened(root, text)


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([50, 2, 10, 10], "outside its image; dropped"),
        ([-20, 2, 10, 10], "outside its image; dropped"),
        ([5, 5, 0, 10], "no area; dropped"),
        ([5, 5, 10, -3], "no area; dropped"),
    ],
)
def test_a_faulty_box_is_reported_and_dropped_or_refused_with_strict(root, content, bbox, expected):
    content["annotations"][1]["bbox"] = bbox
    dataset = opened(root, content)
    assert len(dataset[0].labels) == 1
    assert len(dataset.ground_truth()["annotations"]) == 2
    assert [expected in str(problem) and "id 5" in str(problem) for problem in dataset.problems] == [True]
    with pytest.raises(DataError, match=expected):
        opened(root, content, strict=True)


def test_a_box_that_leaves_its_image_is_cut_and_reported(root, content):
    content["annotations"][1]["bbox"] = [30, 20, 20, 20]
    dataset = opened(root, content)
    assert dataset[0].boxes[1].tolist() == [30, 20, 40, 30]
    assert "cut to it" in str(dataset.problems[0])


def test_an_overhang_of_less_than_a_pixel_is_rounding(root, content):
    content["annotations"][1]["bbox"] = [30, 20, 10.4, 10]
    dataset = opened(root, content, strict=True)
    assert dataset.problems == []
    assert dataset[0].boxes[1].tolist() == [30, 20, 40, 30]


def test_bytes_behind_a_whole_image_are_no_problem(root, content):
    with (root / "train2017" / "b.jpg").open("ab") as file:
        file.write(b"something else" * 20)
    assert len(opened(root, content)) == 2


def test_a_folder_in_another_layout_is_refused_with_the_one_that_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"found no annotation file .* Expected COCO's layout"):
        CocoDataset.open(tmp_path, "train")
    with pytest.raises(DataError, match="is not a folder"):
        CocoDataset.open(tmp_path / "nowhere", "train")


def test_annotations_without_a_folder_of_images_are_refused(tmp_path, content):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match="no folder train2017/"):
        opened(tmp_path, content)


def test_many_problems_are_counted_and_the_first_are_shown(root, content):
    content["annotations"] = [annotation(id, 1, [0, 0, 1, 1]) for id in range(20)]
    with pytest.raises(DataError, match=r"(?s)20 problems:.*and 12 more"):
        opened(root, content)


@pytest.mark.parametrize(("name", "num_boxes"), [("coco_tiny", 740), ("aquarium", 3324)])
def test_real_data_sets_are_read_without_a_problem(real_images, name, num_boxes):
    dataset = CocoDataset.open(real_images / name, "train", strict=True)
    assert sum(len(dataset[index].labels) for index in range(len(dataset))) == num_boxes


SQUARE = [1, 2, 11, 2, 11, 14, 1, 14]


@pytest.fixture
def masked(content):
    """The small data set, its objects with a mask of each kind that COCO has."""
    pixels = np.zeros((30, 40), dtype=np.uint8, order="F")
    pixels[2:14, 20:35] = 1
    packed = rle.encode(pixels)
    segmentations = [
        [SQUARE],
        {"size": [30, 40], "counts": packed["counts"].decode()},
        {"size": [30, 40], "counts": [0, 30 * 40]},
    ]
    for annotation, segmentation in zip(content["annotations"], segmentations, strict=True):
        annotation["segmentation"] = segmentation
    return content


def test_samples_have_the_masks_of_their_objects_where_they_are_asked_for(root, masked):
    dataset = opened(root, masked, strict=True, masks=True)
    masks = dataset[0].masks
    assert masks.dtype == torch.uint8
    assert torch.equal(masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]), dataset[0].boxes)
    assert masks.sum(dim=(1, 2)).tolist() == [10 * 12, 15 * 12]
    assert dataset[1].masks.shape == (0, 30, 40)
    assert opened(root, masked)[0].masks is None


def test_worker_processes_get_the_masks_too(root, masked):
    dataset = opened(root, masked, masks=True)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0].masks, dataset[0].masks)


def test_worker_processes_share_the_annotations_and_have_no_problems(root, content):
    boxes = [annotation(id, 42, [1, 2, 10, 12]) for id in range(5000)]
    content["annotations"] = [*boxes, *(annotation(5000 + id, 17, [50, 2, 10, 10]) for id in range(500))]
    dataset = opened(root, content)
    assert len(dataset.problems) == 500
    # As the data loader sends it to a worker: in shared memory, of which the message has only the address.
    sent = ForkingPickler.dumps(dataset)
    assert len(sent) < 10_000
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy.problems
    assert copy.file_names == dataset.file_names == ["a.jpg", "b.jpg"]
    assert torch.equal(copy[0].boxes, dataset[0].boxes)
    with pytest.raises(IndexError):
        dataset[2]


def test_samples_can_be_changed_without_changing_the_data_set(root, masked):
    dataset = opened(root, masked, masks=True)
    before = dataset[0].boxes.clone()
    sample = dataset[0]
    for tensor in (sample.boxes, sample.labels, sample.masks):
        tensor += 1
    assert torch.equal(dataset[0].boxes, before)
    assert dataset[0].labels.tolist() == [1, 2]


def test_a_side_of_which_nothing_is_left_in_single_precision_is_none(root, content):
    content["annotations"][1]["bbox"] = [20, 2, 1e-7, 12]
    content["annotations"][0]["bbox"] = [39.999999, 2, 10, 12]
    dataset = opened(root, content)
    assert dataset[0].boxes.shape == (0, 4)
    assert ["no area" in str(problem) for problem in dataset.problems] == [False, True]


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2, 3, 4]], {"size": [40, 30], "counts": [1200]}])
def test_an_object_without_a_usable_mask_is_dropped_where_masks_are_asked_for(root, masked, segmentation):
    masked["annotations"][1]["segmentation"] = segmentation
    dataset = opened(root, masked, masks=True)
    assert dataset[0].boxes.tolist() == [[1, 2, 11, 14]]
    assert dataset[0].masks.shape == (1, 30, 40)
    assert len(dataset.ground_truth()["annotations"]) == 2
    [problem] = dataset.problems
    assert "annotations[1] (id 5) in a.jpg: the segmentation " in str(problem)
    assert "; dropped." in str(problem)
    with pytest.raises(DataError, match="the segmentation "):
        opened(root, masked, strict=True, masks=True)
    assert len(opened(root, masked, strict=True)[0].boxes) == 2


def test_a_crowd_without_a_usable_mask_is_dropped_from_the_ground_truth(root, masked):
    del masked["annotations"][2]["segmentation"]
    dataset = opened(root, masked, masks=True)
    assert [a["iscrowd"] for a in dataset.ground_truth()["annotations"]] == [0, 0]
    assert len(dataset.problems) == 1


def test_masks_of_real_images_are_those_of_pycocotools(real_images):
    dataset = CocoDataset.open(real_images / "coco_tiny", "train", strict=True, masks=True)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(dataset.annotations))
    for index in range(0, len(dataset), 4):
        sample = dataset[index]
        annotations = coco.loadAnns(coco.getAnnIds(sample.image_id, iscrowd=False))
        expected = [coco.annToMask(annotation) for annotation in annotations]
        assert len(sample.masks) == len(expected)
        for mask, pixels in zip(sample.masks.numpy(), expected, strict=True):
            assert np.array_equal(mask, pixels)
    # The ground truth has the masks of all, crowds too.
    for annotation, original in zip(dataset.ground_truth()["annotations"], coco.dataset["annotations"], strict=True):
        assert np.array_equal(coco.annToMask(annotation), coco.annToMask(original))


def test_image_files_can_be_left_unchecked_until_they_are_read(root, content):
    (root / "train2017" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b.jpg: there is no such file"):
        opened(root, content)
    dataset = CocoDataset.open(root, "train", check_images=False)
    assert dataset.file_names == ["a.jpg", "b.jpg"]
    assert dataset[0].image.shape == (3, 30, 40)
    with pytest.raises(DataError, match=r"b.jpg: there is no such file"):
        dataset[1]
