"""What there is to do for a table or the whole paper, and that notebooks understand what they are given."""

from dataclasses import fields
from json import loads
from pathlib import Path

import nbformat
import pytest

from augfpn.errors import UserError
from augfpn.experiments import EXPERIMENTS, plan
from augfpn.parameters import read_parameters
from augfpn.reproduction import Request, check_runs, jobs_of
from augfpn.reproduction.jobs import STUDIES, TARGETS
from tests.test_notebooks import NOTEBOOKS, PARAMETERS


def runs_of(request):
    return [name for name, job in jobs_of(request).items() if job.run is not None]


def test_rows_that_are_the_same_model_are_one_run():
    assert runs_of(Request(targets=("table2",))) == [f"table2/{row}/seed0" for row in table_2()]
    shared = runs_of(Request(targets=("table2", "table3", "table4", "table5")))
    assert (
        len(shared)
        == len(set(shared))
        < sum(len(runs_of(Request(targets=(f"table{number}",)))) for number in range(2, 6))
    )
    assert runs_of(Request(targets=("table3/none", "table3/all_level_0.25"))) == [
        "table2/baseline/seed0",
        "table2/cs/seed0",
    ]


def table_2():
    return [id.removeprefix("table2/") for id in EXPERIMENTS if id.startswith("table2/")]


@pytest.mark.parametrize(("scale", "num_runs"), [("smoke", 48), ("micro", 48), ("mini", 50)])
def test_the_whole_paper(scale, num_runs):
    jobs = jobs_of(Request(scale=scale))
    assert sum(job.run is not None for job in jobs.values()) == num_runs
    # Every notebook but that of one experiment is a study; every one is executed.
    assert {job.notebook for job in jobs.values()} - {None} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert len({job.result for job in jobs.values()}) == len(jobs)
    assert len(runs_of(Request(scale=scale, seeds=3))) == 3 * num_runs


@pytest.mark.parametrize("target", TARGETS)
def test_every_job_stands_after_those_that_it_needs(target):
    jobs = jobs_of(Request(targets=(target,), seeds=2))
    before = set()
    for job in jobs.values():
        assert set(job.needs) <= before
        before.add(job.name)
    assert list(jobs)[-1] == "report"


@pytest.mark.parametrize("targets", [("table2", "demo"), ("demo", "table2")])
def test_a_table_is_of_all_its_rows_also_beside_the_demo(targets):
    jobs = jobs_of(Request(targets=targets))
    assert set(jobs["table2_components"].needs) == {f"table2/{row}/seed0" for row in table_2()}
    assert jobs["table2_components"].target == "table2"


def test_a_result_whose_run_is_gone_counts_for_nothing(tmp_path):
    jobs = jobs_of(Request(targets=("table2/cs",), scale="smoke", out=str(tmp_path)))
    job = jobs["table2/cs/seed0"]
    job.result.parent.mkdir(parents=True)
    job.result.touch()
    check_runs(jobs)
    assert not job.result.exists()


def test_a_run_of_something_else_is_named_with_what_differs(tmp_path):
    jobs = jobs_of(Request(targets=("table2/cs",), scale="smoke", out=str(tmp_path)))
    [run, _] = (job.run for job in jobs.values())
    run.mkdir(parents=True)
    (run / "run.json").write_text(plan("table2/cs", "smoke", seed=0, steps=3).to_json())
    with pytest.raises(UserError, match=r"holds another run .* \(there → here\): training.steps: 3 → 4"):
        check_runs(jobs)


@pytest.mark.parametrize("target", [*STUDIES, "table2/cs"])
def test_what_is_passed_to_a_notebook_is_what_it_reads(target):
    """The pipeline, the `parameters` cell and the class that checks them agree, in names and in types."""
    data = {"data": "data/coco", "devices": 2}
    for request in (Request(targets=(target,)), Request(targets=(target,), scale="paper", seeds=3, **data)):
        for job in jobs_of(request).values():
            if job.notebook is None:
                continue
            kind, cell = PARAMETERS[job.notebook], parameters_cell(job.notebook)
            assert set(cell) == {field.name for field in fields(kind)}
            assert set(job.parameters) <= set(cell)
            # In the form in which they come out of papermill's YAML.
            passed = loads(job.command[job.command.index("--parameters_yaml") + 1])
            assert passed == job.parameters
            read = read_parameters(kind, {**cell, **passed})
            assert {name: getattr(read, name) for name in passed} == passed
            assert Path(passed["result"]) == job.result


def parameters_cell(notebook):
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    [cell] = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    namespace = {}
    exec(cell.source, namespace)
    del namespace["__builtins__"]
    return namespace


def test_a_training_on_several_devices_is_told_how_many():
    [job, _] = jobs_of(Request(targets=("table2/cs",), scale="mini", devices=4)).values()
    assert (job.resources.gpus, job.resources.cpus) == (4, 32)
    parameters = PARAMETERS["experiment"](**job.parameters)
    command = parameters.training_command()
    assert command[-2:] == ["--devices", "4"]
    assert command[1:5] == ["-m", "augfpn", "train", "table2/cs"]


def test_twice_the_schedule_may_take_twice_the_time():
    one, two = (
        jobs_of(Request(targets=(f"table1/faster_rcnn_r101_fpn_{times}",)))[
            f"table1/faster_rcnn_r101_fpn_{times}/seed0"
        ]
        for times in ("1x", "2x")
    )
    assert two.resources.minutes == 2 * one.resources.minutes


def test_a_request_survives_its_configuration():
    request = Request(targets=("table2", "figure4"), scale="smoke", seeds=2, out="here")
    assert Request.from_config(request.to_config()) == request
    assert Request.from_config({"targets": "table2, figure4", "scale": "smoke", "seeds": 2, "out": "here"}) == request


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"targets": ("table6",)}, "no target 'table6'; did you mean 'table"),
        ({"targets": ()}, "Name what to reproduce"),
        ({"scale": "huge"}, "no scale 'huge'"),
        ({"scale": "paper"}, "--data DIR"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"devices": 0}, "devices must be at least 1"),
        ({"out": "{seed}"}, "must be without braces"),
    ],
)
def test_a_wrong_request_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Request(**wrong)


def test_a_wrong_configuration_is_refused():
    with pytest.raises(UserError, match="no configuration 'target'; did you mean 'targets'"):
        Request.from_config({"target": "table2"})
