"""Annotation files that are none, lack something, or have something else in its place."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from augfpn.data import CocoDataset, DataError
from tests.malformed.generation import JSON, MISSING, changed, places, repeatable

CONTENT = {
    "images": [
        {"id": 42, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 17, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 100.0, "iscrowd": 0},
        {"id": 5, "image_id": 42, "category_id": 90, "bbox": [20, 2, 15, 12]},
        {"id": 6, "image_id": 42, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}],
}
TEXT = json.dumps(CONTENT)
HUGE = 10**400  # beyond any float
NAN, INFINITY = math.nan, math.inf
# Not a value: the field is taken out.

NO_JSON = {
    **{f"cut off after {n} of {len(TEXT)} bytes": TEXT[:n].encode() for n in range(1, len(TEXT), 41)},
    "a byte": b"\0",
    "all bytes": bytes(range(256)),
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "an archive": b"PK\x03\x04",
    "a page": b"<!doctype html><title>404</title>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "YAML": b"images: []\nannotations: []\n",
    "a Python dictionary": repr(CONTENT).encode(),
    "one document after another": f"{TEXT}\n{TEXT}".encode(),
    "a trailing comma": f"{TEXT[:-1]},}}".encode(),
    "a comment": f"// annotations\n{TEXT}".encode(),
    "Latin-1": TEXT.replace("train", "métro").encode("latin-1"),
    "half a character": TEXT.encode()[:-3] + b"\xe2\x82",
    "a number of 5000 digits": TEXT.replace("100.0", "9" * 5000).encode(),
    "100,000 lists in one another": b"[" * 100_000,
    "100,000 objects in one another": b'{"images":' * 100_000,
}
OTHER_JSON = {
    "null": "expected an object",
    "true": "expected an object",
    "3": "expected an object",
    "NaN": "expected an object",
    '"images"': "expected an object",
    "[]": "expected an object",
    json.dumps(CONTENT["annotations"]): "expected an object",
    "{}": "is missing or not a list",
    **{json.dumps({**CONTENT, name: value}): f"'{name}' is missing or not a list" for name in CONTENT for value in (
        None, {}, "", 0, True
    )},
    **{json.dumps({k: v for k, v in CONTENT.items() if k != name}): f"'{name}' is missing" for name in CONTENT},
    **{json.dumps({**CONTENT, name: []}): f"'{name}' is empty" for name in ("images", "categories")},
    json.dumps(CONTENT).upper(): "is missing or not a list",
}  # fmt: skip

# What each field cannot be. 2.0 is a whole number, for JSON has one kind of numbers.
NO_OBJECT = (None, True, 0, 1.5, "", "text", [], [1])
NO_TEXT = (MISSING, None, True, 0, 1.5, NAN, "", "\ud800", [], ["a.png"], {})
NO_INTEGER = (MISSING, None, True, 1.5, NAN, INFINITY, -INFINITY, "", "42", "42.0", [], [42], {}, 2**63, -(2**63) - 1)
NO_SIZE = (*NO_INTEGER, 0, -1, -0.0, 2**18 + 1)
NO_BOX = (
    MISSING, None, True, 7, "1, 2, 3, 4", {}, [], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2], [3, 4]], [1, 2, 3, "4"],
    [1, 2, 3, None], [1, 2, 3, True], [1, 2, NAN, 4], [INFINITY, 2, 3, 4], [1, -INFINITY, 3, 4], [1, 2, 3, HUGE],
    [1, 2, 3, []], {"x": 1, "y": 2, "width": 3, "height": 4},
)  # fmt: skip
WRONG = {
    ("images", 1): NO_OBJECT,
    ("images", 1, "id"): (*NO_INTEGER, 42),
    ("images", 1, "file_name"): NO_TEXT,
    ("images", 1, "width"): NO_SIZE,
    ("images", 1, "height"): NO_SIZE,
    ("annotations", 2): NO_OBJECT,
    ("annotations", 2, "image_id"): (*NO_INTEGER, 0, -42, 43),
    ("annotations", 2, "category_id"): (*NO_INTEGER, 0, -7, 8),
    ("annotations", 2, "bbox"): NO_BOX,
    ("annotations", 2, "iscrowd"): (None, 2, -1, 0.5, NAN, "", "0", [], {}),
    ("categories", 1): NO_OBJECT,
    ("categories", 1, "id"): (*NO_INTEGER, 90),
    ("categories", 1, "name"): NO_TEXT,
}
WRONG_PLACES = {
    f"{place[0]}[{place[1]}]{''.join(f'.{name}' for name in place[2:])} {describe}": (place, value)
    for place, values in WRONG.items()
    for value in values
    for describe in ["is missing" if value is MISSING else f"is {value!r:.20}"]
}

# Faults of one object: it is dropped and reported, or refused with `strict`.
FAULTY_BOXES = {
    "no width": [1, 2, 0, 4],
    "no height": [1, 2, 3, 0],
    "a negative width": [10, 2, -3, 4],
    "a negative height": [1, 20, 3, -4],
    "corners for sides, to the left": [30, 10, -20, 5],
    "right of the image": [40, 2, 3, 4],
    "left of the image": [-10, 2, 10, 4],
    "below the image": [1, 30, 3, 4],
    "above the image": [1, -9, 3, 4],
    "far away": [1e300, 1e300, 1e300, 1e300],
    "beyond the floats": [1e308, 0, 1e308, 4],
}

# What is unusual and used all the same: a change of the content, and how many objects come out of it.
HANDLED = {
    "objects without ids": ([(("annotations", 0, "id"), MISSING)], 2),
    "ids of objects twice": ([(("annotations", 0, "id"), 5)], 2),
    "ids of objects as texts": ([(("annotations", 0, "id"), "1")], 2),
    "ids of objects that are not finite": ([(("annotations", 0, "id"), NAN)], 2),
    "ids as whole floats": ([(("images", 0, "id"), 42.0), (("annotations", 0, "category_id"), 7.0)], 2),
    "sides as whole floats": ([(("images", 0, "width"), 40.0)], 2),
    "negative ids": (
        [(("images", 1, "id"), -3), (("categories", 0, "id"), -1), (("annotations", 1, "category_id"), -1)],
        2,
    ),
    "the id zero": (
        [(("images", 1, "id"), 0), (("categories", 0, "id"), 0), (("annotations", 1, "category_id"), 0)],
        2,
    ),
    "no objects at all": ([(("annotations",), [])], 0),
    "crowds only": ([(("annotations", 0, "iscrowd"), 1), (("annotations", 1, "iscrowd"), True)], 0),
    "an area that is no number": ([(("annotations", 0, "area"), "large")], 2),
    "an area that is not finite": ([(("annotations", 0, "area"), NAN)], 2),
    "an area beyond the floats": ([(("annotations", 0, "area"), HUGE)], 2),
    "a box that leaves its image": ([(("annotations", 0, "bbox"), [-5, -5, 1e300, 20])], 2),
    "a name of other letters": ([(("categories", 0, "name"), "зубная щётка 🪥")], 2),
    "a name with tags": ([(("categories", 0, "name"), "<script>alert(1)</script>")], 2),
    "a name of 10,000 letters": ([(("categories", 0, "name"), "x" * 10_000)], 2),
    "two categories of one name": ([(("categories", 0, "name"), "train")], 2),
    "two images of one file": ([(("images", 1, "file_name"), "a.png")], 2),
    "an info that is none": ([(("info",), [1, NAN])], 2),
    "unknown fields": (
        [(("licenses",), 3), (("images", 0, "flickr_url"), {}), (("annotations", 0, "keypoints"), NAN)],
        2,
    ),
    "segmentations that nobody asked for": ([(("annotations", 0, "segmentation"), {"counts": [[]]})], 2),
    "a file in a folder below": ([(("images", 1, "file_name"), "below/c.png")], 2),
    "a way back that stays inside": ([(("images", 1, "file_name"), "below/../b.png")], 2),
}

FILE_NAMES = {
    "an absolute path": ("/etc/hostname", "leads out of the folder"),
    "an absolute path of an image": ("{outside}", "leads out of the folder"),
    "the folder above": ("../outside.png", "leads out of the folder"),
    "the folder above, by a way round": ("below/../../outside.png", "leads out of the folder"),
    "the folder above, by another": ("./.././outside.png", "leads out of the folder"),
    "far above": ("../" * 50 + "etc/hostname", "leads out of the folder"),
    "the folder itself": (".", "a folder"),
    "a folder": ("below", "a folder"),
    "a folder with a slash": ("below/", "a folder"),
    "only spaces": ("   ", "no such file"),
    "a file that is not there": ("c.png", "no such file"),
    "below a file": ("a.png/b.png", "cannot be opened"),
    "a NUL byte": ("a.png\0.jpg", "null byte"),
    "5,000 letters": ("a" * 5000, "name too long"),
    "20,000 folders": ("a/" * 20_000, "name too long"),
    "the home folder": ("~/a.png", "no such file"),
    "a variable": ("$HOME/a.png", "no such file"),
    "a command": ("$(touch outside).png", "no such file"),
    "a URL": ("https://images.cocodataset.org/a.png", "no such file"),
    "a URL of a file": ("file:///etc/hostname", "no such file"),
    "another system's path": ("C:\\images\\a.png", "no such file"),
    "another system's folder above": ("..\\outside.png", "no such file"),
    "a device": ("device", "a device"),
    "a pipe": ("pipe", "a pipe"),
    "a link to nothing": ("broken", "no such file"),
    "a link to itself": ("loop", "symbolic links"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, and beside them what names can lead to."""
    folder = tmp_path_factory.mktemp("data") / "images"
    (folder / "below").mkdir(parents=True)
    picture = Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8))
    for name in ("a.png", "b.png", "below/c.png", "../outside.png"):
        picture.save(folder / name)
    (folder / "device").symlink_to("/dev/null")
    (folder / "broken").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def opened(folder, tmp_path):
    """Opens the images with annotations that are given as bytes, text or content."""

    def open_with(content, **options):
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path = tmp_path / "instances.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return CocoDataset(folder, path, **options)

    return open_with


@pytest.mark.parametrize("name", NO_JSON)
def test_a_file_that_is_no_json_is_named(opened, name):
    with pytest.raises(DataError, match=r"instances\.json: not valid JSON"):
        opened(NO_JSON[name])


@pytest.mark.parametrize("text", ["", " \n\t ", "\r\n"], ids=["nothing", "spaces", "a line"])
def test_an_empty_file_is_named(opened, text):
    with pytest.raises(DataError, match=r"instances\.json: the file is empty"):
        opened(text)


@pytest.mark.parametrize("text", OTHER_JSON, ids=lambda text: text if len(text) < 30 else f"{text[:12]}…{text[-18:]}")
def test_json_of_something_else_is_named(opened, text):
    with pytest.raises(DataError, match=re.escape(OTHER_JSON[text])) as error:
        opened(text)
    assert "instances.json: " in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_of_json_is_read(opened, encoding):
    assert [category.name for category in opened(TEXT.encode(encoding)).categories] == ["train", "toothbrush"]


@pytest.mark.parametrize("name", WRONG_PLACES)
def test_a_wrong_value_is_named_by_file_place_and_field(opened, name):
    place, value = WRONG_PLACES[name]
    with pytest.raises(DataError) as error:
        opened(changed(CONTENT, (place, value)))
    message = str(error.value)
    assert "instances.json: " in message
    list_name, *position = place
    # An id that is another one's is a fault of both.
    expected = [list_name] if "used 2 times" in message else [f"{list_name}[{position[0]}]"]
    if position[1:] and "used 2 times" not in message and "width and height must be" not in message:
        expected.append(position[1])
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("name", FAULTY_BOXES)
def test_a_box_without_pixels_is_dropped_and_reported_or_refused(opened, name, strict):
    content = changed(CONTENT, (("annotations", 0, "bbox"), FAULTY_BOXES[name]))
    if strict:
        with pytest.raises(DataError, match=r"annotations\[0\]"):
            opened(content, strict=True)
    else:
        dataset = opened(content)
        assert dataset[0].labels.tolist() == [2]
        assert [problem.where.startswith("annotations[0] (id 1)") for problem in dataset.problems] == [True]


@pytest.mark.parametrize("name", HANDLED)
def test_what_is_unusual_is_used(opened, name):
    changes, num_objects = HANDLED[name]
    dataset = opened(changed(CONTENT, *changes))
    assert len(dataset[0].labels) == num_objects
    assert_whole(dataset)


@pytest.mark.parametrize("checked", [True, False], ids=["opened", "read"])
@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_file_name_leads_to_an_image_in_the_folder_or_is_refused(opened, folder, name, checked):
    file_name, expected = FILE_NAMES[name]
    file_name = file_name.format(outside=folder.parent / "outside.png")
    content = changed(CONTENT, (("images", 1, "file_name"), file_name))
    with pytest.raises(DataError, match=f"(?i){re.escape(expected)}") as error:
        opened(content, check_images=checked)[1]
    assert Path(file_name).name[:5] in str(error.value)


def test_what_is_no_file_is_refused(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nothing.json", folder / "loop"):
        with pytest.raises(DataError, match="there is no such file"):
            CocoDataset(folder, path)


NUM_DAMAGED = 100


@repeatable(NUM_DAMAGED)
@given(st.lists(st.tuples(st.sampled_from(list(places(CONTENT))), JSON | st.just(MISSING)), min_size=1, max_size=3))
def damaged(opened, seen, changes):
    try:
        content = changed(CONTENT, *changes)
    except (KeyError, IndexError, TypeError):
        # One change took away the place of the next.
        content = changed(CONTENT, changes[0])
    seen.add(json.dumps(content))
    try:
        dataset = opened(content)
    except DataError as error:
        refused = str(error)
    else:
        assert_whole(dataset)
        return
    assert "instances.json: " in refused


def test_any_value_at_any_place_is_refused_or_gives_a_whole_data_set(opened):
    seen = set()
    damaged(opened, seen)
    assert len(seen) >= NUM_DAMAGED // 2


def assert_whole(dataset):
    """Every sample can be learnt from, and the truth be evaluated with."""
    for sample in (dataset[index] for index in range(len(dataset))):
        height, width = sample.image.shape[1:]
        x1, y1, x2, y2 = sample.boxes.unbind(1)
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
        assert all(1 <= label <= len(dataset.categories) for label in sample.labels.tolist())
    truth = dataset.ground_truth()
    assert [entry["id"] for entry in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    assert all(math.isfinite(entry["area"]) for entry in truth["annotations"])
