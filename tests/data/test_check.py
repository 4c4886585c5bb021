"""Everything that can be wrong with a data set is found, and nothing of it is left in a mended copy."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from augfpn import cli
from augfpn.data import CocoDataset, DataError
from augfpn.data.check import check
from augfpn.data.findings import KINDS
from augfpn.data.mend import mend
from augfpn.errors import UserError
from tests.data.damage import HEIGHT, WIDTH, save, write

TRAIN, VAL = "train2017", "val2017"
OUTSIDE, INSIDE = [50, 2, 10, 10], [1, 2, 10, 12]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def contents(root):
    return write(root)


def kinds(report):
    return sorted(finding.kind for finding in report.findings)


def saved(root, contents):
    for split, content in contents.items():
        save(root, split, content)
    return root


def mended(root, tmp_path):
    """The mended copy, checked, its changes, and the content of its training file."""
    out = tmp_path / "mended"
    changes = mend(check(root), out)
    report = check(out)
    assert not report.is_faulty, report.as_text()
    assert json.loads((out / "changes.json").read_text())["changes"] == [vars(change) for change in changes]
    return changes, json.loads((out / "annotations" / "instances_train2017.json").read_text())


def ids(content, name):
    return [entry["id"] for entry in content[name]]


def test_in_a_whole_data_set_nothing_is_found_and_nothing_mended(root, contents, tmp_path):
    assert check(root).findings == ()
    changes, content = mended(root, tmp_path)
    assert changes == []
    assert content == contents["train"]
    assert (tmp_path / "mended" / TRAIN / "0.jpg").samefile(root / TRAIN / "0.jpg")


# What is done to the data; what is found then, of which kinds; and what is left of training images and objects.
DAMAGE = []


def damage(found, images=3, objects=6):
    def add(change):
        DAMAGE.append(pytest.param(change, sorted(found.split()), images, objects, id=change.__name__.strip("_")))
        return change

    return add


@damage("missing-image", 2, 4)
def _image_file_that_is_not_there(root, train, val):
    (root / TRAIN / "0.jpg").unlink()


@damage("missing-image", 2, 4)
def _folder_in_the_place_of_an_image(root, train, val):
    (root / TRAIN / "0.jpg").unlink()
    (root / TRAIN / "0.jpg").mkdir()


@damage("missing-image", 2, 4)
def _pipe_in_the_place_of_an_image(root, train, val):
    (root / TRAIN / "0.jpg").unlink()
    os.mkfifo(root / TRAIN / "0.jpg")


@damage("broken-image", 2, 4)
def _truncated_image(root, train, val):
    path = root / TRAIN / "0.jpg"
    path.write_bytes(path.read_bytes()[:-400])


@damage("broken-image", 2, 4)
def _damage_in_the_middle_of_an_image(root, train, val):
    path = root / TRAIN / "0.png"
    Image.open(root / TRAIN / "0.jpg").save(path)
    (root / TRAIN / "0.jpg").unlink()
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 255
    path.write_bytes(text)
    train["images"][0]["file_name"] = "0.png"


@damage("broken-image", 2, 4)
def _text_for_an_image(root, train, val):
    (root / TRAIN / "0.jpg").write_text("no image")


@damage("image-size broken-segmentation broken-segmentation")
def _sides_in_each_others_place(root, train, val):
    train["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    train["annotations"][1]["bbox"] = [1, 2, 3, 4]


@damage("image-size broken-segmentation broken-segmentation", 2, 4)
def _boxes_of_another_size(root, train, val):
    train["images"][0] |= {"width": 100, "height": 31}
    train["annotations"][0]["bbox"] = [60, 2, 10, 10]


@damage("image-size broken-segmentation broken-segmentation", 2, 4)
def _image_at_half_the_annotated_scale(root, train, val):
    train["images"][0] |= {"width": 2 * WIDTH, "height": 2 * HEIGHT}


@damage("repeated-image-id")
def _image_entry_repeated(root, train, val):
    train["images"].append(train["images"][0])


@damage("repeated-image-id", 1, 2)
def _id_of_two_images(root, train, val):
    train["images"][1]["id"] = 10
    del train["annotations"][2:4]


@damage("repeated-category-id")
def _category_entry_repeated(root, train, val):
    train["categories"] = [*train["categories"], train["categories"][0]]


@damage("repeated-category-id different-categories", 3, 3)
def _id_of_two_categories(root, train, val):
    train["categories"] = [*train["categories"], {"id": 7, "name": "plane"}]


@damage("repeated-annotation-id repeated-annotation-id")
def _ids_of_several_objects(root, train, val):
    train["annotations"][1]["id"] = train["annotations"][2]["id"] = 1
    train["annotations"][5]["id"] = 4


@damage("missing-annotation-id")
def _objects_without_an_id(root, train, val):
    del train["annotations"][1]["id"], train["annotations"][3]["id"]


@damage("broken-entry broken-entry unlisted-image", 2, 3)
def _entries_that_are_broken(root, train, val):
    del train["images"][0]["width"]
    train["annotations"][2] = "no object"


@damage("broken-entry different-categories", 3, 3)
def _category_without_a_name(root, train, val):
    train["categories"] = [{"id": 7}, train["categories"][1]]


@damage("box-no-area box-outside box-cut", objects=4)
def _faulty_boxes(root, train, val):
    for entry, bbox in zip(train["annotations"], ([5, 5, 0, 10], OUTSIDE, [30, 20, 20, 20]), strict=False):
        entry["bbox"] = bbox


@damage("unknown-image unknown-category", objects=4)
def _objects_of_nothing_that_is_listed(root, train, val):
    train["annotations"][0]["image_id"] = 3
    train["annotations"][1]["category_id"] = 3


@damage("broken-segmentation broken-segmentation no-segmentation")
def _segmentations_that_give_no_mask(root, train, val):
    train["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    train["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "cut"}
    train["annotations"][2]["segmentation"] = []


@damage("image-twice", objects=6)
def _file_under_two_ids(root, train, val):
    train["images"].append({**train["images"][0], "id": 99, "file_name": "./0.jpg"})
    # One object that both have, and one that only the second has.
    train["annotations"][1]["image_id"] = 99
    train["annotations"].append({**train["annotations"][0], "id": 99, "image_id": 99})


@damage("same-content", 2, 5)
def _file_under_two_names(root, train, val):
    shutil.copy(root / TRAIN / "0.jpg", root / TRAIN / "2.jpg")
    # One object that both have, and one that only the second has.
    train["annotations"][5]["bbox"] = [3, 3, 9, 9]


@damage("shared-image", 2, 4)
def _image_that_val_has_too(root, train, val):
    shutil.copy(root / VAL / "1.jpg", root / TRAIN / "0.jpg")


@damage("image-outside")
def _image_outside_its_folder(root, train, val):
    (root / TRAIN / "0.jpg").rename(root / "1.jpg")
    train["images"][0]["file_name"] = "../1.jpg"


@damage("different-categories")
def _splits_of_other_categories(root, train, val):
    val["categories"] = [{"id": 1, "name": "toothbrush"}, {"id": 7, "name": "train"}, {"id": 90, "name": "boat"}]
    for entry in val["annotations"]:
        entry["category_id"] = 1


@damage("unlisted-image")
def _file_that_nobody_lists(root, train, val):
    shutil.copy(root / TRAIN / "0.jpg", root / TRAIN / "new.jpg")
    (root / TRAIN / "readme.txt").write_text("no image")


@damage("repeated-category-name repeated-category-name")
def _name_of_two_categories(root, train, val):
    train["categories"] = val["categories"] = [*train["categories"], {"id": 8, "name": "train"}]


@damage("missing-list", objects=0)
def _no_list_of_objects(root, train, val):
    del train["annotations"]


@pytest.mark.parametrize(("change", "found", "num_images", "num_objects"), DAMAGE)
def test_what_is_wrong_is_found_and_mended(root, contents, tmp_path, change, found, num_images, num_objects):
    change(root, contents["train"], contents["val"])
    report = check(saved(root, contents))
    assert kinds(report) == found
    assert report.to_dict()["counts"] == {
        severity: sum(KINDS[kind].severity == severity for kind in found) for severity in ("error", "warning", "note")
    }
    # Training refuses what is an error, and nothing else. It compares categories where it opens both splits.
    if any(KINDS[kind].severity == "error" for kind in found if kind != "different-categories"):
        with pytest.raises(DataError):
            CocoDataset.open(root, "train")
    else:
        CocoDataset.open(root, "train")
    changes, content = mended(root, tmp_path)
    mends = {kind for kind in found if KINDS[kind].severity != "note"}
    assert mends <= {change.kind for change in changes} or change is _sides_in_each_others_place or num_images < 3
    assert (len(content["images"]), len(content["annotations"])) == (num_images, num_objects)
    assert all(image["license"] == 1 for image in content["images"]), "fields that nobody asked for stay"
    CocoDataset.open(tmp_path / "mended", "train", strict=True)


def test_all_faults_are_found_at_once_with_their_places(root, contents):
    for change in (_truncated_image, _faulty_boxes, _image_that_val_has_too):
        change(root, contents["train"], contents["val"])
    contents["train"]["annotations"][4]["id"] = 6
    report = check(saved(root, contents))
    assert kinds(report) == ["box-cut", "box-no-area", "box-outside", "repeated-annotation-id", "shared-image"]
    found = {finding["kind"]: finding for finding in report.to_dict()["findings"]}
    assert found["box-outside"] == {
        "kind": "box-outside",
        "severity": "warning",
        "split": TRAIN,
        "entry": "annotations[1]",
        "where": "annotations[1] (id 2), bbox [50.0, 2.0, 10.0, 10.0] in 0.jpg of 40 × 30",
        "what": "the box is outside its image; dropped.",
    }
    assert found["shared-image"]["entry"] == "images[0]"
    assert "val2017 has this image, too: images[1] (1.jpg)" in found["shared-image"]["what"]


def test_training_and_the_check_find_the_same_in_annotations(root, contents):
    _faulty_boxes(root, contents["train"], contents["val"])
    contents["train"]["annotations"][4]["id"] = 6
    found = check(saved(root, contents)).findings
    assert [str(problem) for problem in CocoDataset.open(root, "train").problems] == list(map(str, found))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"images": []}', "9" * 5000, "[" * 100_000])
def test_a_split_that_cannot_be_read_is_found_and_left_out(root, contents, tmp_path, text):
    save(root, "val", text)
    report = check(root)
    assert {finding.severity for finding in report.findings} >= {"error"}
    changes = mend(report, tmp_path / "mended")
    assert "left out" in changes[0].what
    assert kinds(check(tmp_path / "mended")) == ["missing-split"]


def test_a_split_without_a_folder_is_found_and_left_out(root, contents, tmp_path):
    shutil.rmtree(root / VAL)
    report = check(root)
    assert kinds(report) == ["no-folder"]
    mend(report, tmp_path / "mended")
    assert [split.name for split in check(tmp_path / "mended").splits] == [TRAIN]


def test_what_cannot_be_mended_is_refused(root, contents, tmp_path):
    save(root, "train2014", contents["train"])
    report = check(root)
    assert "several-files" in kinds(report)
    with pytest.raises(DataError, match=r"instances_train2017\.json.*cannot be mended"):
        mend(report, tmp_path / "mended")
    for path in (root / "annotations").iterdir():
        path.write_text("")
    (root / "annotations" / "instances_train20142017.json").unlink()
    with pytest.raises(DataError, match="nothing would be left"):
        mend(check(root), tmp_path / "mended")
    for path in (root / "annotations").iterdir():
        path.unlink()
    assert kinds(check(root)) == ["no-split"]
    with pytest.raises(DataError, match="cannot be mended"):
        mend(check(root), tmp_path / "mended")
    assert not (tmp_path / "mended").exists()


def test_the_original_is_never_replaced(root, contents, tmp_path):
    mend(check(root), tmp_path / "copy")
    for out in (tmp_path / "copy", tmp_path):
        with pytest.raises(UserError, match="holds the data"):
            mend(check(tmp_path / "copy"), out)
    with pytest.raises(UserError, match="is there already"):
        mend(check(tmp_path / "copy"), root)


def test_val_and_test_keep_what_train_has_too(root, tmp_path):
    contents = write(root, ("train", "val", "test"))
    shutil.copy(root / "test2017" / "0.jpg", root / TRAIN / "0.jpg")
    shutil.copy(root / VAL / "1.jpg", root / "test2017" / "1.jpg")
    assert kinds(check(root)) == ["shared-image"] * 2
    _, content = mended(root, tmp_path)
    assert ids(content, "images") == [11, 12]
    kept = {split.name: len(split.examined.images) for split in check(tmp_path / "mended").splits}
    assert kept == {"test2017": 2, TRAIN: 2, VAL: 3}
    assert contents["val"] == json.loads((tmp_path / "mended/annotations/instances_val2017.json").read_text())


def test_objects_follow_their_image_and_their_category(root, contents, tmp_path):
    _file_under_two_ids(root, contents["train"], contents["val"])
    _splits_of_other_categories(root, contents["train"], contents["val"])
    saved(root, contents)
    _, content = mended(root, tmp_path)
    assert [entry["bbox"][0] for entry in content["annotations"] if entry["image_id"] == 10] == [1, 20]
    val = json.loads((tmp_path / "mended" / "annotations" / "instances_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in val["categories"]}
    assert names == {7: "train", 90: "toothbrush", 2: "boat"}
    assert {names[entry["category_id"]] for entry in val["annotations"]} == {"toothbrush"}
    assert val["categories"] == content["categories"]


def test_an_object_of_an_unknown_category_gets_none_of_another_split(root, contents, tmp_path):
    contents["train"]["annotations"][0]["category_id"] = 8
    contents["val"]["categories"] = [*contents["val"]["categories"], {"id": 8, "name": "boat"}]
    saved(root, contents)
    _, content = mended(root, tmp_path)
    assert ids(content, "annotations") == [2, 3, 4, 5, 6]


def test_several_processes_find_the_same(root, monkeypatch):
    monkeypatch.setattr("augfpn.data.check.ALONE", 100)
    write(root, num_images=64)
    (root / TRAIN / "3.jpg").write_bytes(b"\xff\xd8no image")
    (root / VAL / "60.jpg").unlink()
    assert check(root, jobs=2).findings == check(root, jobs=1).findings
    assert kinds(check(root, jobs=2)) == ["broken-image", "missing-image"]


def run(*arguments):
    return CliRunner().invoke(cli.app, ["data", "check", *map(str, arguments)])


def test_the_command_says_what_is_wrong_and_ends_with_a_status_for_scripts(root, contents, tmp_path):
    done = run(root)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "Nothing is wrong (0 errors, 0 warnings, 0 notes).")
    _faulty_boxes(root, contents["train"], contents["val"])
    for number in range(3):
        (root / TRAIN / f"{number}.jpg").write_bytes(b"")
    (root / VAL / "1.jpg").unlink()
    saved(root, contents)
    done = run(root)
    assert done.exit_code == 1
    assert "error    missing-image                  1  image files that are not there" in done.stdout
    assert "    val2017: images[1] val2017/1.jpg: there is no such file." in done.stdout
    assert "… and 1 more" not in done.stdout
    assert "4 errors, 3 warnings, 0 notes. Training refuses this folder" in done.stdout

    done = run(root, "--json", tmp_path / "found.json")
    assert (done.exit_code, str(tmp_path / "found.json") in done.stdout) == (1, True)
    done = run(root, "--json", "-", "--fix", tmp_path / "mended")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "found.json").read_text()) == check(root).to_dict()
    assert run(tmp_path / "mended").exit_code == 0

    with pytest.raises(UserError, match="is not a folder"):
        CliRunner().invoke(cli.app, ["data", "check", str(root / "nowhere")], catch_exceptions=False)


def test_what_cannot_be_checked_ends_with_2(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["augfpn", "data", "check", str(root)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {root} is not a folder.")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10, 11, 7, 2**63, 10**400, "0.jpg", "../0.jpg", "\ud800", "\x00", -0.5, 1e308])
    | st.floats()
    | st.text(max_size=3),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=2),
    max_leaves=6,
)
NAMES = {
    "images": ["id", "file_name", "width", "height"],
    "annotations": ["id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area"],
    "categories": ["id", "name"],
}


@st.composite
def changes_of_content(draw):
    """Any value at any place of an annotation file: a split, the list, the entry, the field, and the value."""
    name = draw(st.sampled_from(sorted(NAMES)))
    field = draw(st.sampled_from([*NAMES[name], None, "the list"]))
    near = st.lists(st.floats(-50, 90) | st.sampled_from([0, 1e-9, 1 / 32, 40]), min_size=4, max_size=4)
    value = near if field == "bbox" and draw(st.booleans()) else ANYTHING
    return draw(st.sampled_from(["train", "val"])), name, draw(st.integers(0, 5)), field, draw(value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "data"
    return root, write(root)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(changes_of_content(), max_size=4),
    st.lists(st.tuples(st.sampled_from([TRAIN, VAL]), st.integers(0, 2), st.binary(max_size=40) | st.integers(0, 900))),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=1),
)
def test_nothing_crashes_the_check_and_nothing_is_wrong_with_what_it_mends(whole, values, files, shared):
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "mended"
        shutil.copytree(whole[0], root)
        contents = json.loads(json.dumps(whole[1]))
        for split, name, position, field, value in values:
            entries = contents[split].get(name)
            if field == "the list":
                contents[split][name] = value
            elif isinstance(entries, list) and position < len(entries):
                if field is None or not isinstance(entries[position], dict):
                    entries[position] = value
                else:
                    entries[position][field] = value
        for split, image, text in files:
            path = root / split / f"{image}.jpg"
            original = path.read_bytes()
            # Other bytes, or one bit turned.
            path.write_bytes(text if isinstance(text, bytes) else flipped(original, text))
        for theirs, ours in shared:
            shutil.copy(root / VAL / f"{theirs}.jpg", root / TRAIN / f"{ours}.jpg")
        report = check(saved(root, contents), jobs=1)
        report.as_text().encode()
        json.dumps(report.to_dict()).encode()
        try:
            mend(report, out)
        except DataError:
            assert report.is_faulty
            return
        left = check(out, jobs=1)
        assert not left.is_faulty, left.as_text()


def flipped(text, position):
    if not text:
        return text
    changed = bytearray(text)
    changed[position % len(text)] ^= 1 << position % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["coco_tiny", "aquarium"])
def test_nothing_is_wrong_with_real_data(real_images, name):
    assert not check(real_images / name).is_faulty
