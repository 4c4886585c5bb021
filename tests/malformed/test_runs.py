"""Run directories of which a file is damaged: what each command needs is refused, what can be made again is."""

import hashlib
import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_columns
from safetensors.numpy import save_file as save_columns
from safetensors.torch import load_file, save_file

from augfpn.analysis.image_losses import kept_image_losses
from augfpn.data.loading import open_dataset
from augfpn.engine import Run
from augfpn.engine.checkpoint import Checkpoint, load_checkpoint, load_last_checkpoint, save_checkpoint
from augfpn.engine.outcomes_file import Outcomes, write_outcomes
from augfpn.engine.runs import build_model
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.files import write_json
from tests.malformed.generation import JSON, places, repeatable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is as if it was trained and evaluated."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    config = plan("table2/baseline", "smoke")
    data = open_dataset(config.data, "val")
    run = Run.create(path, config, data.categories)
    torch.manual_seed(0)
    run.save_weights(build_model(config, len(data.categories), pretrained=False))
    run.write_provenance(CPU, {"num_steps": 4})
    run.record({"step": 2, "seconds": 1.0, "loss": 3.0})
    truth = data.ground_truth()
    detections = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": entry["bbox"], "score": 0.9}
        for entry in truth["annotations"]
    ]
    write_json(path / "detections.json", detections)
    write_json(path / "metrics.json", {"AP": 0.5, "seconds": 1.0})
    write_outcomes(run, truth, detections)
    return run


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the run, to be damaged."""
    # Not by its dates: of the detections they say that the outcomes were made from them.
    shutil.copytree(whole.path, tmp_path / "run")
    return Run(tmp_path / "run")


# How a JSON file of each of them is asked for.
ASKED = {
    "run.json": lambda run: run.config,
    "categories.json": lambda run: run.categories,
    "provenance.json": lambda run: run.provenance,
    "metrics.json": lambda run: run.metrics,
    "metrics.jsonl": lambda run: run.history(),
    "evaluations.jsonl": lambda run: run.evaluations,
    "detections.json": lambda run: run.detections,
}
NO_JSON = {
    "empty": b"",
    "cut off": b'{"step": 2, "AP": [1,',
    "zeros": bytes(100),
    "binary": bytes(range(256)),
    "Latin-1": '{"name": "métro"}'.encode("latin-1"),
    "no JSON": b"{'step': 2}",
    "a page": b"<!doctype html>",
    "a number of 5000 digits": b"9" * 5000,
    "100,000 lists": b"[" * 100_000,
}
OTHER_JSON = {
    "run.json": ["null", "3", "[]", "{}", '"run"', "[[]]"],
    "categories.json": [
        "null",
        "3",
        "{}",
        "[]",
        '["disk"]',
        "[null]",
        '[{"id": 1}]',
        '[{"name": "disk"}]',
        '[{"id": "1", "name": "disk"}]',
        '[{"id": 1, "name": 3}]',
        '[{"id": true, "name": "disk"}]',
        '[{"id": NaN, "name": "disk"}]',
        '[{"id": 1, "name": "disk", "colour": "red"}]',
    ],
    "provenance.json": ["null", "3", "[]", '"made"'],
    "metrics.json": [
        "null",
        "3",
        "[]",
        '{"AP": "0.5"}',
        '{"AP": [0.5]}',
        '{"AP": NaN}',
        '{"AP": Infinity}',
        '{"AP": true}',
    ],
    "metrics.jsonl": [
        "null",
        "3",
        "[]",
        "{}",
        '{"step": "2"}',
        '{"step": null}',
        '{"step": 2.5}',
        '{"step": true}',
        '{"step": 2, "loss": "3"}',
        '{"step": 2, "loss": [3]}',
        '{"step": 2}\n{"ste\n{"step": 3}',
    ],
    "evaluations.jsonl": ["null", "[]", "{}", '{"step": "2", "AP": 0.5}', '{"step": 2, "AP": "0.5"}'],
    "detections.json": [
        "null",
        "3",
        "{}",
        "[null]",
        "[[]]",
        "[3]",
        "[{}]",
        *(
            json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, **changes}])
            for changes in (
                {"bbox": None},
                {"bbox": 3},
                {"bbox": [1, 2, 3]},
                {"bbox": [1, 2, 3, "4"]},
                {"bbox": [1, 2, 3, math.nan]},
                {"bbox": "1234"},
                {"score": None},
                {"score": "high"},
                {"score": math.nan},
                {"score": math.inf},
                {"score": True},
                {"image_id": None},
                {"image_id": "1"},
                {"image_id": 1.5},
                {"category_id": None},
                {"category_id": []},
            )
        ),
    ],
}
DAMAGED = {
    **{
        f"{name} is {what}": (name, content)
        for name in ASKED
        for what, content in NO_JSON.items()
        if not name.endswith("l") or what != "empty"
    },
    **{f"{name} is {text[:60]}": (name, text.encode()) for name, texts in OTHER_JSON.items() for text in texts},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name):
    run, (file, content) = Run(tmp_path), DAMAGED[name]
    # The last line of a history may have been cut off; this one was not.
    (run.path / file).write_bytes(content + (b"\n" if file.endswith("l") else b""))
    with pytest.raises(UserError) as error:
        ASKED[file](run)
    assert str(run.path / file) in str(error.value)


@pytest.mark.parametrize("file", ["categories.json", "provenance.json", "metrics.json", "detections.json"])
def test_a_missing_file_is_named(tmp_path, file):
    with pytest.raises(UserError, match=f"has no {file}"):
        ASKED[file](Run(tmp_path))


def safetensors_without(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def poisoned(tensors):
    tensors["box_head.classifier.bias"][0] = torch.nan


# What is done to model.safetensors, and what is said.
WEIGHTS = {
    "empty": (lambda path: path.write_bytes(b""), ""),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), ""),
    **{
        f"cut off at {tenths * 10} %": (
            lambda path, tenths=tenths: path.write_bytes(path.read_bytes()[: path.stat().st_size * tenths // 10]),
            "",
        )
        for tenths in range(1, 10)
    },
    "a byte short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), ""),
    "a byte long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), ""),
    "with a header of 2^63 bytes": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:]),
        "",
    ),
    "a pickle": (lambda path: torch.save({}, path), ""),
    "of no tensors": (lambda path: save_file({}, path), "tensors are missing"),
    "without a tensor": (
        lambda path: safetensors_without(path, lambda tensors: tensors.pop("box_head.classifier.bias")),
        "1 tensors are missing: box_head.classifier.bias",
    ),
    "with a tensor more": (
        lambda path: safetensors_without(path, lambda tensors: tensors.update(other=torch.zeros(1))),
        "has no other",
    ),
    "of another name": (
        lambda path: safetensors_without(
            path, lambda tensors: tensors.update({"box_head.bias": tensors.pop("box_head.classifier.bias")})
        ),
        "has no box_head.bias",
    ),
    "of another shape": (
        lambda path: safetensors_without(
            path, lambda tensors: tensors.update({"box_head.classifier.bias": torch.zeros(3)})
        ),
        "box_head.classifier.bias must be",
    ),
    "of half precision": (
        lambda path: safetensors_without(
            path, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()})
        ),
        "torch.float32, and is",
    ),
    "of integers": (
        lambda path: safetensors_without(
            path, lambda tensors: tensors.update({name: tensor.int() for name, tensor in tensors.items()})
        ),
        "and is",
    ),
    "with a number that is none": (lambda path: safetensors_without(path, poisoned), "not finite"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is not trained to its end"),
    "gone": (lambda path: path.unlink(), "is not trained to its end"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_the_runs_whole_ones_are_refused(run, name):
    damage, expected = WEIGHTS[name]
    damage(run.weights)
    with pytest.raises(UserError) as error:
        run.load_model(CPU)
    assert expected in str(error.value)
    assert str(run.path) in str(error.value)


def with_columns(path, change):
    with Path(path).open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    columns, metadata = load_columns(path), header["__metadata__"]
    change(columns, metadata)
    save_columns(columns, path, metadata)


# What can be made again is.
OUTCOMES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a text": lambda path: path.write_text("outcomes"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "cut off in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "without metadata": lambda path: save_columns(load_columns(path), path),
    "without images": lambda path: with_columns(path, lambda columns, metadata: metadata.pop("images")),
    "with broken images": lambda path: with_columns(path, lambda columns, metadata: metadata.update(images="{")),
    "with images that are a list": lambda path: with_columns(
        path, lambda columns, metadata: metadata.update(images="[]")
    ),
    "with an image less": lambda path: with_columns(
        path, lambda columns, metadata: metadata.update(images=json.dumps({"ids": [], "names": [], "sizes": []}))
    ),
    "without a column": lambda path: with_columns(path, lambda columns, metadata: columns.pop("found.scores")),
    "without where images start": lambda path: with_columns(
        path, lambda columns, metadata: columns.pop("found.starts")
    ),
    "with a shorter column": lambda path: with_columns(
        path, lambda columns, metadata: columns.update({"found.scores": columns["found.scores"][:1]})
    ),
    "with images that start backwards": lambda path: with_columns(
        path, lambda columns, metadata: columns.update({"found.starts": columns["found.starts"][::-1].copy()})
    ),
    "with images that start before the first": lambda path: with_columns(
        path, lambda columns, metadata: columns.update({"found.starts": columns["found.starts"] - 1})
    ),
    "of other detections": lambda path: with_columns(path, lambda columns, metadata: metadata.update(sources="[]")),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_damaged_outcomes_are_made_again(run, name):
    expected = [Outcomes(run).image(position) for position in range(len(Outcomes(run)))]
    OUTCOMES[name](run.path / "outcomes.safetensors")
    again = Outcomes(run)
    for position, of_image in enumerate(expected):
        np.testing.assert_array_equal(again.image(position).found.scores, of_image.found.scores)
        np.testing.assert_array_equal(again.image(position).objects.boxes, of_image.objects.boxes)


LOSSES = [
    b"",
    b"{",
    b"null",
    b"3",
    b"[]",
    b"{}",
    b'{"weights": null}',
    b'{"weights": "0", "losses": [1, 2]}',
    b"[" * 100_000,
    b'{"weights": "DIGEST"}',
    b'{"weights": "DIGEST", "losses": null}',
    b'{"weights": "DIGEST", "losses": 3}',
    b'{"weights": "DIGEST", "losses": "12"}',
    b'{"weights": "DIGEST", "losses": {"a": 1, "b": 2}}',
    b'{"weights": "DIGEST", "losses": [1]}',
    b'{"weights": "DIGEST", "losses": [1, "x"]}',
    b'{"weights": "DIGEST", "losses": [1, [2]]}',
    b'{"weights": "DIGEST", "losses": [1, 1' + b"0" * 400 + b"]}",
    bytes(range(256)),
]


@pytest.mark.parametrize("content", LOSSES, ids=lambda content: repr(content[:50]))
def test_damaged_losses_are_as_if_they_were_not_kept(run, content):
    digest = hashlib.sha256(run.weights.read_bytes()).hexdigest().encode()
    (run.path / "image_losses.json").write_bytes(content.replace(b"DIGEST", digest))
    assert kept_image_losses(run, 2) is None


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


CHECKPOINTS = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a text": lambda path: path.write_text("a checkpoint"),
    **{
        f"cut off at {tenths * 10} %": lambda path, tenths=tenths: path.write_bytes(
            path.read_bytes()[: path.stat().st_size * tenths // 10]
        )
        for tenths in range(1, 10)
    },
    "a byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "with a bit turned": flipped,
    "that of another step": lambda path: shutil.copyfile(path.with_name("step_00000001.pt"), path),
    "of a checksum that is another's": lambda path: path.with_name(f"{path.name}.sha256").write_text("0" * 64),
    "of an empty checksum": lambda path: path.with_name(f"{path.name}.sha256").write_text(""),
    "of a checksum that is binary": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(bytes(range(256))),
    "without checksum, and cut off": lambda path: (
        path.with_name(f"{path.name}.sha256").unlink(),
        path.write_bytes(path.read_bytes()[:-100]),
    ),
    "without checksum, and a list": lambda path: (
        path.with_name(f"{path.name}.sha256").unlink(),
        torch.save([1], path),
    ),
    "without checksum, and without its step": lambda path: (
        path.with_name(f"{path.name}.sha256").unlink(),
        torch.save({"model": {}}, path),
    ),
    "without checksum, and with a field more": lambda path: (
        path.with_name(f"{path.name}.sha256").unlink(),
        torch.save({**torch.load(path), "other": 1}, path),
    ),
}


@pytest.fixture
def checkpoints(tmp_path):
    """The checkpoints of two steps."""
    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(step, 0.5, {"weight": torch.full((64,), float(step))}, {"state": {}}))
    return tmp_path


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_of_damaged_checkpoints_the_one_before_is_taken_with_a_warning(checkpoints, name, capsys):
    damage = CHECKPOINTS[name]
    damage(checkpoints / "step_00000002.pt")
    with pytest.raises(UserError, match=r"step_00000002\.pt is damaged"):
        load_checkpoint(checkpoints, 2, CPU)
    assert load_last_checkpoint(checkpoints, CPU).step == 1
    warning = capsys.readouterr().err
    assert "step_00000002.pt is damaged" in warning
    assert "That of step 1 is taken" in warning
    # All of them.
    (checkpoints / "step_00000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        load_last_checkpoint(checkpoints, CPU)


NUM_GENERATED = 100


@repeatable(NUM_GENERATED)
@given(st.sampled_from(["categories.json", "metrics.json", "detections.json"]), st.data())
def generated(whole, run, seen, file, data):
    content = json.loads((whole.path / file).read_text())
    *way, last = data.draw(st.sampled_from(list(places(content))))
    inside = content
    for step in way:
        inside = inside[step]
    inside[last] = data.draw(JSON)
    seen.add((file, json.dumps(content)))
    (run.path / file).write_text(json.dumps(content))
    try:
        ASKED[file](run)
    except UserError as error:
        said = str(error)
    else:
        return
    assert file in said


def test_any_value_at_any_place_of_a_file_is_refused_or_fits(whole, tmp_path):
    seen = set()
    generated(whole, Run(tmp_path), seen)
    assert len(seen) >= NUM_GENERATED // 2
