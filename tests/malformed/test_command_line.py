"""What people type: every mistake ends with a message, a status that is not 0, no traceback, and nothing half done."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from augfpn import cli
from augfpn.data.loading import open_dataset
from augfpn.engine import Run
from augfpn.engine.runs import build_model
from augfpn.experiments import plan
from augfpn.reproduction import Request, jobs_of
from augfpn.reproduction.workflow import SNAKEFILE

# In an empty folder; "folder" is one, "file" is none, "pipe" would be waited for.
MISTAKES = {
    "": "Usage",
    "nothing": "No such command 'nothing'",
    "train": "Missing argument",
    "train table2/nothing": "There is no experiment 'table2/nothing'",
    "train table2/cs --nothing": "No such option",
    "train table2/cs --scale tiny": "There is no scale 'tiny'",
    "train table2/cs --seed x": "'--seed'",
    "train table2/cs --seed -1": "the seed must not be negative",
    "train table2/cs --seed 99999999999999999999": "the seed must not be negative and below 2^63",
    "train table2/cs --steps 0": "steps must be positive, not 0",
    "train table2/cs --steps 99999999999": "steps must be at most",
    "train table2/cs --batch-size -4": "batch_size must be positive, not -4",
    "train table2/cs --learning-rate nan": "learning_rate must be positive, not nan",
    "train table2/cs --learning-rate inf": "learning_rate must be positive, not inf",
    "train table2/cs --learning-rate 0": "learning_rate must be positive, not 0",
    "train table2/cs --overfit 0": "overfit must be positive",
    "train table2/cs --scale smoke --overfit 9": "of a data set of 8",
    "train table2/cs --data nowhere": "nowhere is not a folder",
    "train table2/cs --data folder": "no annotation file for the split 'train'",
    "train table2/cs --data file": "file is not a folder",
    "train table2/cs --data pipe": "pipe is not a folder",
    "train table2/cs --scale smoke --out file": "File exists: 'file'",
    "train table2/cs --scale smoke --out file/run": "Not a directory",
    f"train table2/cs --scale smoke --out {'a' * 300}": "File name too long",
    "train table2/cs --scale smoke --out /proc/run": "/proc",
    "train table2/cs --device other": "The device 'other' cannot be used here",
    "train table2/cs --device cuda:99": "The device 'cuda:99' cannot be used here",
    "train table2/cs --scale smoke --backbone-weights other": "There is no tag",
    "train table2/cs --scale smoke --backbone-weights nowhere.pth": "There is no file of weights nowhere.pth",
    "train table2/cs --scale smoke --backbone-weights ./file": "file cannot be read as a file of weights",
    "train table2/cs --scale smoke --backbone-weights ./pipe": "There is no file of weights pipe",
    "train table2/cs --scale smoke --backbone-weights file:///etc/hostname": "by http and https only",
    "evaluate nowhere": "nowhere is not a run",
    "evaluate file": "file is not a run",
    "evaluate run --batch-size 0": "at least one image, not 0",
    "predict nowhere a.png --out out": "nowhere is not a run",
    "report nowhere": "nowhere is not a folder",
    "report folder": "no evaluated run in folder",
    "compare folder": "no evaluated run in folder",
    "compare folder --draws 3": "'--draws'",
    "status folder": "Nothing was reproduced in folder",
    "list --table table9": "There is no table 'table9'",
    "list --runs nowhere": "nowhere is not a folder",
    "show table9/x": "There is no experiment",
    "cost --classes 0": "at least one class, not 0",
    "cost --height -5": "at least one pixel a side",
    "viewer nowhere": "nowhere is not a run",
    "figure4 folder": "folder is not a run",
    "semantic-gap nowhere": "nowhere is not a run",
    "runtime nowhere": "nowhere is not a run",
    "submission nowhere --images x --info y --name z": "nowhere is not a run",
    "data synthetic --out out --size 0": "size must be positive",
    "data synthetic --out out --size 10": "at least 32 pixels",
    "data synthetic --out out --size 99999999": "size must be at most 65535",
    "data synthetic --out out --train -1": "num_train must be positive",
    "data synthetic --out out --seed -1": "the seed must not be negative",
    "data synthetic --out file": "Not a directory",
    "reproduce table9 --dry-run": "There is no target 'table9'",
    "reproduce table2 --seeds 0 --dry-run": "The number of seeds must be at least 1",
    "reproduce table2 --seeds 1000000000 --dry-run": "The number of seeds must be at most 10000",
    "reproduce table2 --jobs 0 --dry-run": "'--jobs'",
    "reproduce table2 --scale paper --dry-run": "--data DIR",
    "reproduce table2 --out a{b} --dry-run": "without braces",
}


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Gives a command what is typed, in a folder of its own; its exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no run")
    os.mkfifo(tmp_path / "pipe")

    def type_in(*words):
        monkeypatch.setattr(sys, "argv", ["augfpn", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out, " ".join(err.replace("│", " ").split())

    return type_in


@pytest.mark.parametrize("line", MISTAKES, ids=lambda line: line[:60] or "nothing at all")
def test_a_mistake_ends_with_a_message_and_leaves_nothing(typed, tmp_path, line):
    status, out, err = typed(*line.split())
    assert status not in (0, None)
    assert MISTAKES[line] in (err or out)
    assert "Traceback" not in err
    # At most empty folders.
    assert {path.name for path in tmp_path.rglob("*") if not path.is_dir()} == {"file", "pipe"}


@pytest.mark.slow
def test_the_command_itself_ends_likewise(tmp_path):
    line = "train table2/cs --learning-rate nan"
    command = [sys.executable, "-m", "augfpn", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert MISTAKES[line] in done.stderr
    assert done.stdout == ""


@pytest.fixture
def run(tmp_path):
    """A run with a model that has learnt nothing."""
    config = plan("table2/baseline", "smoke")
    categories = open_dataset(config.data, "val").categories
    run = Run.create(tmp_path / "run", config, categories)
    run.save_weights(build_model(config, len(categories), pretrained=False))
    return run


PICTURES = {
    "empty": (lambda path: path.write_bytes(b""), "not an image in a known format"),
    "a text": (lambda path: path.write_text("a cat"), "not an image in a known format"),
    "a folder": (lambda path: path.mkdir(), "a folder"),
    "a pipe": (os.mkfifo, "a pipe"),
    "not there": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_read_is_named_and_none_is_predicted(typed, run, tmp_path, name):
    make, expected = PICTURES[name]
    make(tmp_path / "picture.jpg")
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    status, _, err = typed("predict", run.path, "good.png", "picture.jpg", "--out", "out")
    assert status == 2
    assert "picture.jpg: " in err
    assert expected in err
    assert not (tmp_path / "out").exists()


UNUSUAL = {
    "a name of 200 letters": "a" * 200 + ".png",
    "a name like an option": "--out.png",
    "a name like a command": "$(touch made);`touch made`.png",
    "a name with tags": "<script>alert(1)<script>.png",
    "a name with a line": "a\nb.png",
    "a name of dots": "...png",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_pictures_of_unusual_names_are_predicted_into_the_folder(typed, run, tmp_path, name):
    picture = tmp_path / "folder" / UNUSUAL[name]
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(picture, format="PNG")
    status, _, err = typed("predict", run.path, picture, "--out", "out")
    assert (status, err) == (0, "")
    written = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert written == [".json", ".png"]
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["images"][0]["file_name"] == str(picture)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file", "pipe", "run", "out"}


NASTY = "a b; touch made; $(touch made) `touch made` 'q' \"d\" & c | d > e"


@pytest.mark.slow
def test_folders_are_words_and_no_commands_to_the_workflow(tmp_path):
    """Snakemake prints what it would give to a shell; read as a shell does, it is the job's command."""
    out, data = tmp_path / NASTY, tmp_path / f"data {NASTY}"
    request = Request(targets=("table2/baseline",), scale="smoke", out=str(out), data=str(data))
    (tmp_path / "request.json").write_text(json.dumps(request.to_config()))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--cores", "1", "--dry-run"]
    command += ["--printshellcmds", "--configfile", str(tmp_path / "request.json"), "--quiet", "progress"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = f"{done.stdout}\n{done.stderr}"
    lines = [line.partition("Shell command: ")[2] or line.strip() for line in printed.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("OMP_NUM_THREADS=")]
    jobs = jobs_of(request).values()
    assert sorted(words[-len(job.command) :] for words, job in zip(commands, jobs, strict=True)) == sorted(
        list(job.command) for job in jobs
    )
    assert not list(tmp_path.rglob("made"))
