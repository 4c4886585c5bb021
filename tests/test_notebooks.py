"""The notebooks as files, and executed as papermill users execute them."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import papermill as papermill_api
import pytest
import torch

from augfpn.engine import Execution, Run, evaluate, train
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.parameters import (
    ExperimentParameters,
    RunParameters,
    RuntimeParameters,
    SemanticGapParameters,
    TableParameters,
    TourParameters,
    ViewerParameters,
    read_parameters,
)

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PARAMETERS = {
    "experiment": ExperimentParameters,
    "asf_weights": RunParameters,
    "detection_viewer": ViewerParameters,
    "figure4_level_ratios": RunParameters,
    "runtime": RuntimeParameters,
    "semantic_gaps": SemanticGapParameters,
    "table1_main_results": TableParameters,
    "table2_components": TableParameters,
    "table3_consistent_supervision": TableParameters,
    "table4_residual_feature_augmentation": TableParameters,
    "table5_soft_roi_selection": TableParameters,
    "tour": TourParameters,
}


def papermill(notebook, copy, *arguments):
    # A core a process: tests may share the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "papermill",
        NOTEBOOKS / f"{notebook}.ipynb",
        copy,
        "--no-progress-bar",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=copy.parent, env=environment)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_defines_nothing(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(cell.source)))
    prose = sum(len(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose > 0.5 * sum(len(cell.source) for cell in code)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_cell_has_exactly_the_parameters_that_are_checked(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    namespace = {}
    exec(cell.source, namespace)
    del namespace["__builtins__"]
    assert set(namespace) == {field.name for field in fields(PARAMETERS[name])}
    read_parameters(PARAMETERS[name], namespace)


@pytest.mark.parametrize("name", sorted(PARAMETERS.keys() - {"experiment"}))
def test_the_result_is_the_last_thing_that_a_notebook_makes(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    *others, last = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert "keep(parameters.result, " in last.splitlines()[-1]
    assert not any("keep(" in cell for cell in others)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sclae": "micro"}, "no parameter 'sclae'; did you mean 'scale'.*Valid: experiment, scale, seed, run, data"),
        ({"seed": "1"}, "'seed' must be int, not '1'"),
        ({"steps": True}, r"'steps' must be int or nothing \(None\), not True"),
        ({"scale": "huge"}, "no scale 'huge'.*Valid: smoke, micro, mini, paper"),
        ({"experiment": "table2/all"}, "no experiment 'table2/all'.*Valid: .*table2/baseline"),
    ],
)
def test_wrong_parameters_are_refused_with_the_valid_ones(changes, expected):
    with pytest.raises(UserError, match=expected):
        read_parameters(ExperimentParameters, {"experiment": "table2/cs", "scale": "smoke", "json": json, **changes})


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (SemanticGapParameters, {"runs": ".", "table": "table6"}, "no table 'table6'; did you mean 'table"),
        (SemanticGapParameters, {"runs": ".", "images": 0}, "'images' must be at least 1, not 0"),
        (RuntimeParameters, {"runs": ".", "rounds": 0}, "'rounds' must be at least 1"),
        (RuntimeParameters, {"runs": ".", "scale": "huge"}, "no scale 'huge'"),
        (TourParameters, {"scale": "huge"}, "no scale 'huge'"),
        (RunParameters, {"run": ".", "images": -1}, "'images' must be at least 1"),
        (ViewerParameters, {"run": ".", "threshold": 1.5}, "'threshold' must be 0 to 1, not 1.5"),
        (ViewerParameters, {"run": ".", "live_images": 0}, "'live_images' must be at least 1"),
    ],
)
def test_wrong_parameters_of_the_other_notebooks_are_refused(kind, given, expected):
    with pytest.raises(UserError, match=expected):
        read_parameters(kind, given)


def test_the_notebooks_run_by_hand_under_papermill(tmp_path):
    done = papermill(
        "experiment", tmp_path / "a.ipynb", "-p", "experiment", "table2/cs+rfa+srs", "-p", "scale", "smoke"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = [Run(path.parent) for path in (tmp_path / "runs").rglob("run.json")]
    assert run.is_evaluated
    shown = pictures(tmp_path / "a.ipynb")
    assert len(shown) == 3


def test_the_tour_trains_its_own_run_and_shows_each_idea(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    copy, result = tmp_path / "tour.ipynb", tmp_path / "result.json"
    given = {"scale": "smoke", "run": "run", "result": str(result)}
    papermill_api.execute_notebook(NOTEBOOKS / "tour.ipynb", copy, given, cwd=tmp_path, progress_bar=False)
    assert Run(tmp_path / "run").is_evaluated
    # An image, losses, contexts, levels of RoIs, detections.
    assert len(pictures(copy)) == 5
    content = json.loads(result.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["experiment"] == "table2/cs+rfa+srs"
    of_fpn = {row["loss"]: row["FPN"] for row in content["losses"]}
    assert [loss for loss, value in of_fpn.items() if value is None] == ["loss_aux_classifier", "loss_aux_box_reg"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, id in (("fpn", "table2/baseline"), ("augfpn", "table2/cs+rfa+srs")):
        run = train(
            plan(id, "smoke"), folder / name, execution=Execution(keep_checkpoints=True), device=torch.device("cpu")
        )
        evaluate(run, torch.device("cpu"))
    return folder


# Each starts a kernel that imports the package, about eight seconds. Tables are alike, and the workflow's tests execute
# Table 2's every day, and all of them in their slow part.
SLOW = pytest.mark.slow

# What the files of results have, besides their provenance.
TABLE = {"table", "rows", "differences"}
RUN = {"run", "experiment", "scale", "seed"}
VIEWER = {"runs", "threshold", "outcomes", "found_by"}
RATIOS = {"levels", "shares", "means", "counts"}


@pytest.mark.parametrize(
    ("name", "parameters", "num_pictures", "kept"),
    [
        ("table1_main_results", {"runs": "."}, 1, TABLE),
        ("semantic_gaps", {"runs": ".", "scale": "smoke", "images": 4}, 4, {"gaps"}),
        pytest.param("table2_components", {"runs": "."}, 2, TABLE, marks=SLOW),
        pytest.param("table3_consistent_supervision", {"runs": "."}, 1, TABLE, marks=SLOW),
        pytest.param("table4_residual_feature_augmentation", {"runs": "."}, 1, TABLE, marks=SLOW),
        pytest.param("table5_soft_roi_selection", {"runs": "."}, 1, TABLE, marks=SLOW),
        pytest.param("figure4_level_ratios", {"run": "augfpn", "images": 4}, 1, RUN | RATIOS, marks=SLOW),
        pytest.param("figure4_level_ratios", {"run": "fpn", "images": 4}, 1, RUN | RATIOS, marks=SLOW),
        pytest.param("asf_weights", {"run": "augfpn", "images": 2}, 2, RUN | {"rois", "contexts"}, marks=SLOW),
        pytest.param("asf_weights", {"run": "fpn", "images": 2}, 2, RUN | {"rois", "contexts"}, marks=SLOW),
        ("detection_viewer", {"run": "fpn", "other": "augfpn", "live_images": 2}, 0, VIEWER),
        pytest.param("detection_viewer", {"run": "augfpn", "other": None, "losses": True}, 0, VIEWER, marks=SLOW),
        ("runtime", {"runs": ".", "rounds": 2, "steps": 1, "images": 2}, 1, {"scale", "runs"}),
    ],
    ids=str,
)
def test_a_notebook_reads_finished_runs_and_shows_what_it_speaks_of(
    runs, tmp_path, monkeypatch, name, parameters, num_pictures, kept
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    copy, source, result = tmp_path / "copy.ipynb", NOTEBOOKS / f"{name}.ipynb", tmp_path / "made" / "result.json"
    papermill_api.execute_notebook(source, copy, {**parameters, "result": str(result)}, cwd=runs, progress_bar=False)
    assert len(pictures(copy)) == num_pictures
    assert sorted(path.name for path in runs.iterdir()) == ["augfpn", "fpn"]
    content = json.loads(result.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content.keys() == kept | {"provenance"}


def pictures(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_a_misspelt_parameter_under_papermill_is_a_clear_error(tmp_path):
    done = papermill("experiment", tmp_path / "a.ipynb", "-p", "experimnet", "table2/cs", "-p", "scale", "smoke")
    assert done.returncode != 0
    assert "There is no parameter 'experimnet'; did you mean 'experiment'?" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_training_that_fails_shows_the_end_of_its_log(tmp_path):
    done = papermill("experiment", tmp_path / "a.ipynb", "-p", "scale", "smoke", "-p", "data", "nowhere")
    assert done.returncode != 0
    assert "nowhere is not a folder" in done.stderr
