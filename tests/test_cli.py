import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augfpn.cli import _print_figures, main
from augfpn.engine import Run
from augfpn.engine.evaluate import FIGURES, MASK_FIGURES
from augfpn.files import write_json


def augfpn(*arguments, cwd=None):
    """The command in this process, which has imported everything already; `in_a_process` is the real one."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(output), redirect_stderr(errors):
        patched.setattr(sys, "argv", ["augfpn", *map(str, arguments)])
        patched.chdir(cwd or Path.cwd())
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def in_a_process(*arguments):
    return subprocess.run([sys.executable, "-m", "augfpn", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run of the full model, trained by the command."""
    path = tmp_path_factory.mktemp("cli") / "run"
    done = in_a_process("train", "table2/cs+rfa+srs", "--scale", "smoke", "--out", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(path)
    return path


def test_train_leaves_an_evaluated_run(run):
    assert Run(run).is_trained
    assert Run(run).is_evaluated


def test_a_training_on_two_devices_is_one_run(tmp_path):
    done = in_a_process(
        "train", "table2/baseline", "--scale", "smoke", "--steps", 2, "--device", "cpu", "--devices", 2,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "A step: 2 images = 2 devices × 1. Learning rate 0.001 = 0.001 × 2 / 2." in done.stdout
    assert done.stdout.count("AP50") == 1
    run = Run(tmp_path / "run")
    assert run.is_evaluated
    assert run.provenance["derived"]["devices"] == 2
    assert len(run.history()) == 2


def test_devices_that_cannot_share_a_batch_are_not_started(tmp_path):
    done = augfpn("train", "table2/baseline", "--scale", "smoke", "--devices", 3, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == (
        "error: A batch of 2 images cannot be shared evenly between 3 devices; choose a --batch-size that is a "
        "multiple of 3.\n"
    )
    assert not (tmp_path / "run").exists()


def test_evaluate_prints_the_twelve_figures(run):
    done = augfpn("evaluate", run)
    assert done.returncode == 0
    assert [word for word in done.stdout.split() if word.startswith("A")][:12] == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
    ]  # fmt: skip


def test_the_figures_of_masks_are_printed_on_a_line_of_their_own_where_there_are_any(tmp_path, capsys):
    boxes = dict.fromkeys(FIGURES, 0.5)
    masks = dict.fromkeys(MASK_FIGURES, 0.25) | {"mask_APl": None}
    for metrics, expected in ((boxes, 1), (boxes | masks, 2)):
        write_json(tmp_path / "metrics.json", metrics)
        _print_figures(tmp_path)
        *lines, path = capsys.readouterr().out.splitlines()
        assert path == str(tmp_path)
        assert len(lines) == expected
    assert lines[0].startswith("AP 0.500  AP50 0.500")
    assert lines[1].startswith("mask_AP 0.250  mask_AP50 0.250")
    assert "mask_APl –" in lines[1]


def test_predict_writes_annotated_pictures_and_coco_json(run, tmp_path):
    rng = np.random.default_rng(0)
    names = ["a.png", "grey.jpg", "a copy.png"]
    for name in names:
        picture = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        (picture.convert("L") if name == "grey.jpg" else picture).save(tmp_path / name)
    out = tmp_path / "out"
    done = augfpn("predict", run, *(tmp_path / name for name in names), "--out", out, "--score-threshold", "0")
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "predictions.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert {c["name"] for c in content["categories"]} == {"disk", "ring", "square", "window", "kite", "boat"}
    assert all({"image_id", "category_id", "bbox", "score"} <= a.keys() for a in content["annotations"])
    assert len(list(out.glob("*.png"))) == 3


def test_report_writes_pages_about_a_run_and_says_where(run, tmp_path):
    done = augfpn("report", run, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "report" / "index.html")
    assert "Average precision" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "table2/nothing"], "There is no experiment 'table2/nothing'"),
        (["train", "table2/cs", "--scale", "tiny"], "There is no scale 'tiny'"),
        (["train", "table2/cs", "--scale", "paper"], "--data DIR"),
        (["train", "table2/cs", "--data", "nowhere"], "nowhere is not a folder"),
        (["train", "table2/cs", "--scale", "smoke", "--device", "cuda:99"], "The device 'cuda:99' cannot be used here"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["report"], "runs is not a folder"),
        (["predict", "nowhere", "a.jpg", "--out", "out"], "nowhere is not a run"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(arguments, expected, tmp_path):
    done = augfpn(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_that_cannot_be_read_is_named(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = augfpn("predict", run, tmp_path / "broken.jpg", "--out", tmp_path / "out")
    assert done.returncode != 0
    assert "broken.jpg: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_faulty_data_set_is_refused_before_anything_is_written(tmp_path):
    augfpn("data", "synthetic", "--out", tmp_path / "data", "--size", 64, "--train", 4, "--val", 2)
    broken = next((tmp_path / "data" / "train2017").iterdir())
    broken.write_bytes(broken.read_bytes()[:-100])
    done = augfpn("train", "table2/cs", "--scale", "smoke", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert done.returncode != 0
    assert broken.name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_data_set_on_disk_is_trained_and_evaluated(tmp_path):
    written = augfpn("data", "synthetic", "--out", tmp_path / "data", "--size", 64, "--train", 4, "--val", 2)
    assert written.returncode == 0, written.stderr
    done = augfpn("train", "table2/cs", "--scale", "smoke", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").metrics["num_images"] == 2


def test_list_prints_the_tables_and_show_the_difference_and_the_expanded_experiment(tmp_path):
    listed = augfpn("list", cwd=tmp_path).stdout.splitlines()
    assert "38.7" in next(line for line in listed if line.startswith("table2/cs+rfa+srs"))
    assert augfpn("list", "--table", "table9").returncode != 0
    content = json.loads(augfpn("list", "--json", cwd=tmp_path).stdout)
    assert len(content) == 33 + 8 + 8 + 12 + 6

    shown = augfpn("show", "table3/single_level_0.5", "--scale", "paper").stdout
    assert "table3/none:\n  consistent_supervision: None → " in shown
    shown = json.loads(augfpn("show", "table2/cs", "--scale", "paper", "--json").stdout)
    assert shown["model"]["consistent_supervision"] == {"weight": 0.25, "levels": "all"}
    assert shown["training"]["learning_rate"] == 0.02


def test_a_run_is_listed_in_every_row_that_is_its_model(run, tmp_path):
    listed = json.loads(augfpn("list", "--json", "--runs", run.parent, cwd=tmp_path).stdout)
    with_results = {entry["id"]: entry["results"] for entry in listed if entry["results"]}
    assert with_results.keys() == {"table1/faster_rcnn_r50_augfpn_1x", "table2/cs+rfa+srs"}
    (result,) = with_results["table2/cs+rfa+srs"]
    assert (result["scale"], result["seed"], result["as_planned"]) == ("smoke", 0, True)
    assert result["AP"] == pytest.approx(100 * Run(run).metrics["AP"], abs=0.01)


def test_runs_that_cannot_be_read_are_named_and_the_others_listed_all_the_same(run, tmp_path):
    description = (run / "run.json").read_text()
    broken = {
        "empty": ("{}", "{}"),
        "unknown": (description.replace("table2/cs+rfa+srs", "table2/nothing"), "{}"),
        "no scale": (description.replace('"scale": "smoke"', '"scale": "tiny"'), "{}"),
        "cut": (description, "{"),
        "no figures": (description, "{}"),
    }
    for name, texts in broken.items():
        (tmp_path / name).mkdir()
        for file, text in zip(("run.json", "metrics.json"), texts, strict=True):
            (tmp_path / name / file).write_text(text)
    done = augfpn("list", "--runs", tmp_path, "--runs", run.parent)
    for name in broken:
        assert f"warning: {tmp_path / name} is left out: " in done.stderr
    assert "smoke" in done.stdout
    done = augfpn("list", "--runs", tmp_path / "nowhere")
    assert done.returncode != 0
    assert "is not a folder" in done.stderr


def test_the_recorded_results_are_listed_beside_the_papers():
    done = augfpn("list", "--table", "table2", "--runs", Path(__file__).parents[1] / "results")
    assert done.stderr == ""
    rows = {line.split(" ")[0]: line for line in done.stdout.splitlines()}
    for row in ("table2/baseline", "table2/cs", "table2/cs+rfa+srs"):
        assert re.search(r"micro \d\d\.\d ± \d\.\d, 3 seeds", rows[row])


def test_what_a_run_is_asked_is_printed_and_written_with_its_provenance(run, tmp_path):
    for command, expected in (
        ("figure4", "P5 ("),
        ("semantic-gap", "auxiliary head"),
        ("runtime", "table2/cs+rfa+srs"),
    ):
        few = ["--rounds", 1, "--steps", 1, "--images", 2] if command == "runtime" else ["--images", 2]
        done = augfpn(command, run, *few, "--out", tmp_path / f"{command}.json")
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        content = json.loads((tmp_path / f"{command}.json").read_text())
        assert content["provenance"]["command"].startswith(f"augfpn {command} ")
    gaps = json.loads((tmp_path / "semantic-gap.json").read_text())["gaps"]
    assert [gap["classifier"] for gap in gaps] == ["probe", "auxiliary head"]
    assert len(gaps[0]["cka"]) == 4
    done = augfpn("figure4", tmp_path)
    assert done.returncode != 0
    assert "is not a run" in done.stderr


def test_compare_needs_a_run_of_the_baseline(run, tmp_path):
    done = augfpn("compare", run.parent)
    assert done.returncode != 0
    assert "no run" in done.stderr


def test_viewer_writes_a_page_with_the_losses_to_sort_by(run, tmp_path):
    done = augfpn("viewer", run, "--html", tmp_path / "made" / "page.html", "--images", "2", "--losses")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "made" / "page.html")
    page = (tmp_path / "made" / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    losses = json.loads((run / "image_losses.json").read_text())["losses"]
    assert f'"losses": {json.dumps([round(loss, 5) for loss in losses[:2]])}' in page


def test_viewer_serves_until_it_is_interrupted(run):
    command = [sys.executable, "-m", "augfpn", "viewer", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        link = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/\?token=.{20,}", link)
        assert b"Detections of CS + RFA + SRS" in urllib.request.urlopen(link).read()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_viewer_of_what_is_no_run_says_so(tmp_path):
    done = augfpn("viewer", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} is not a run" in done.stderr
