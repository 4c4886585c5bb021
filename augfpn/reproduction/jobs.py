"""What is to be done for a table, a figure, or the whole paper: a list of jobs, which is all that the workflow knows.

Nearly every job executes a notebook. A run is ``experiment.ipynb`` with its parameters, which trains and evaluates; a
table or a figure is a notebook of its own over finished runs. The last job is the report. Everything is kept below one
folder:

    table2/cs/seed0/     a run
    notebooks/           the executed notebooks, of runs and others
    results/             what they found, as JSON; written by their last cells
    logs/                what every job printed, and how it went
    report/              the report
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from json import dumps
from pathlib import Path
from typing import Any

from augfpn.errors import UserError
from augfpn.experiments.checks import read_description
from augfpn.experiments.config import RunConfig, differences
from augfpn.experiments.paper import EXPERIMENTS, TABLES, find_experiment, unknown
from augfpn.experiments.scales import SCALES, Resources, plan, run_as
from augfpn.parameters import ExperimentParameters

# The folder that the notebooks and the workflow are in.
CHECKOUT = Path(__file__).resolve().parents[2]

# Of seeds, devices, threads or jobs at once. More is a mistake, and would take minutes to be listed.
MOST = 10_000

_AUGFPN = "table2/cs+rfa+srs"
_PAIR = ("table2/baseline", _AUGFPN)
_TABLE_2 = tuple(row.id for row in EXPERIMENTS.values() if row.table == "table2")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody asks for.

    Attributes:
        targets: ``all``, the name of a table, figure or study (`STUDIES`), or ids of experiments.
        scale: smoke, micro, mini or paper.
        seeds: every experiment is run with the seeds 0 to ``seeds`` - 1.
        out: the folder for everything; by default ``runs/SCALE``.
        data: a folder in COCO's layout in the place of the scale's images.
        devices: of each training, which share its batches.
        threads: on the CPU, of each job, and of each device of a training.
        at_once: how many jobs are done at the same time, for the remaining time.
    """

    targets: tuple[str, ...] = ("all",)
    scale: str = "micro"
    seeds: int = 1
    out: str | None = None
    data: str | None = None
    devices: int = 1
    threads: int = 1
    at_once: int = 1

    def __post_init__(self) -> None:
        for name in ("seeds", "devices", "threads", "at_once"):
            number = getattr(self, name)
            if not 1 <= number <= MOST:
                limit = "at least 1" if number < 1 else f"at most {MOST}"
                raise UserError(f"The number of {name} must be {limit}, not {number}.")
        if not self.targets:
            raise UserError("Name what to reproduce, such as table2 or all.")
        for target in self.targets:
            if target not in EXPERIMENTS and target not in TARGETS:
                raise UserError(unknown("target", target, [*TARGETS, *EXPERIMENTS]))
        if set("{}") & set(str(self.root)):
            raise UserError(
                f"{self.root}: the folder's name must be without braces, which Snakemake reads as wildcards."
            )
        # Data that a scale must have, or an unknown scale, is said now and not by every job.
        plan("table2/baseline", self.scale, data=self.data)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Request:
        """From what Snakemake was given by ``--config``; ``targets`` may be a list or words with commas."""
        given = dict(config)
        targets = given.pop("targets", ("all",))
        names = targets.replace(",", " ").split() if isinstance(targets, str) else targets
        if wrong := [name for name in given if name not in cls.__dataclass_fields__]:
            raise UserError(unknown("configuration", str(wrong[0]), cls.__dataclass_fields__))
        return read_description(cls, {**given, "targets": tuple(names) if isinstance(names, list) else names})

    def to_config(self) -> dict[str, Any]:
        return {**asdict(self), "targets": list(self.targets)}

    @property
    def root(self) -> Path:
        return Path("runs") / self.scale if self.out is None else Path(self.out)

    def run_path(self, experiment: str, seed: int) -> Path:
        return self.root / run_as(experiment, self.scale) / f"seed{seed}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something to do, in a process of its own.

    Attributes:
        name: such as ``table2/cs/seed0`` or ``table2_components``.
        target: what to ask for to have this job done and little else.
        command: does it, started where the request was made.
        result: the file that is there once it is done, and whole from the moment on that it is there.
        log: what the command prints; how it went is beside it, in a file that ends in ``.json``.
        needs: the names of the jobs that must be done before.
        sources: files that it is made from; when they are newer, it is done again.
        notebook: the name of the notebook, its parameters and its executed copy, if it is one.
        run: the run directory, if the job makes one.
        alone: whether nothing else may run beside it on the same machine, because it measures time.
    """

    name: str
    target: str
    command: tuple[str, ...]
    result: Path
    log: Path
    resources: Resources
    needs: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    notebook: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    copy: Path | None = None
    run: Path | None = None
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """A notebook over finished runs: of ``rows``, all their seeds.

    ``of``: the names of the notebook's parameters that are a run each, the first seed of the rows in their order; none
    if it looks at the whole folder.
    """

    notebook: str
    rows: tuple[str, ...]
    of: tuple[str, ...] = ()
    table: str | None = None
    alone: bool = False

    def parameters(self, request: Request) -> dict[str, Any]:
        if not self.rows:
            # What the tour trains is of another scale: in a hidden folder, no table or report finds it.
            return {"run": str(request.root / ".tour")}
        if self.of:
            return {name: str(request.run_path(row, 0)) for name, row in zip(self.of, self.rows, strict=True)}
        table = {} if self.table is None else {"table": self.table}
        return {"runs": str(request.root), "scale": request.scale, **table}


def _table(notebook: str) -> Study:
    table = notebook.split("_")[0]
    return Study(notebook=notebook, rows=tuple(row.id for row in EXPERIMENTS.values() if row.table == table))


STUDIES: dict[str, Study] = {
    "tour": Study(notebook="tour", rows=()),
    "table1": _table("table1_main_results"),
    "table2": _table("table2_components"),
    "table3": _table("table3_consistent_supervision"),
    "table4": _table("table4_residual_feature_augmentation"),
    "table5": _table("table5_soft_roi_selection"),
    "figure4": Study(notebook="figure4_level_ratios", rows=(_AUGFPN,), of=("run",)),
    "asf_weights": Study(notebook="asf_weights", rows=(_AUGFPN,), of=("run",)),
    "detections": Study(notebook="detection_viewer", rows=_PAIR, of=("run", "other")),
    "semantic_gaps": Study(notebook="semantic_gaps", rows=_TABLE_2, table="table2"),
    "runtime": Study(notebook="runtime", rows=_TABLE_2, table="table2", alone=True),
}

# FPN against AugFPN: Table 2 with these two rows, and their detections.
_DEMO = (Study(notebook="table2_components", rows=_PAIR), STUDIES["detections"])

TARGETS: dict[str, tuple[Study, ...]] = {
    "all": tuple(STUDIES.values()),
    "demo": _DEMO,
    **{name: (study,) for name, study in STUDIES.items()},
}
assert TARGETS.keys() >= TABLES.keys()


def jobs_of(request: Request) -> dict[str, Job]:
    """All jobs of a request by their names, each after those that it needs. Nothing is looked up on disk."""
    studies = [study for target in request.targets for study in TARGETS.get(target, ())]
    rows = [target for target in request.targets if target in EXPERIMENTS]
    rows += [row for study in studies for row in study.rows]
    runs = [_run(request, id, seed) for id in _distinct(rows, request) for seed in range(request.seeds)]
    jobs = {job.name: job for job in [*runs, *(_study(request, study) for study in _merged(studies))]}
    return {**jobs, "report": _report(request, jobs)}


def _merged(studies: list[Study]) -> list[Study]:
    """One of each notebook, over the rows of all: a table and the demo share one."""
    merged: dict[str, Study] = {}
    for study in studies:
        before = merged.get(study.notebook, study)
        merged[study.notebook] = replace(study, rows=tuple(dict.fromkeys([*before.rows, *study.rows])))
    return list(merged.values())


def _distinct(rows: list[str], request: Request) -> list[str]:
    """Rows that are the same model are one run."""
    return list(dict.fromkeys(run_as(find_experiment(row).id, request.scale) for row in rows))


def check_runs(jobs: Mapping[str, Job]) -> None:
    """Drops results whose runs are gone; a UserError if a run directory holds a run of something else.

    The folder does not tell on which data its runs were made; their descriptions do.
    """
    for job in jobs.values():
        if job.run is None:
            continue
        if different := _differences(job, job.run):
            raise UserError(
                f"{job.run} holds another run than the one that is asked for (there → here): {'; '.join(different)}. "
                "Choose another folder (--out)."
            )
        if not (job.run / "metrics.json").is_file():
            job.result.unlink(missing_ok=True)


def _differences(job: Job, path: Path) -> list[str]:
    """In what the run at a path is another one than a job's. A description that cannot be read is left to the job."""
    planned = ExperimentParameters(**job.parameters).plan()
    try:
        there = RunConfig.from_json((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return differences(replace(there, experiment=run_as(there.experiment, there.scale)), planned)


def _run(request: Request, id: str, seed: int) -> Job:
    path = request.run_path(id, seed)
    parameters = {"experiment": id, "scale": request.scale, "seed": seed, "run": str(path)}
    parameters |= {} if request.data is None else {"data": request.data}
    parameters |= {} if request.devices == 1 else {"devices": request.devices}
    return Job(
        target=id,
        resources=SCALES[request.scale].resources_of(EXPERIMENTS[id], request.devices),
        run=path,
        **_notebook(request, f"{id}/seed{seed}", "experiment", parameters),
    )


def _study(request: Request, study: Study) -> Job:
    name = study.notebook
    seeds = range(1 if study.of else request.seeds)
    return Job(
        target=next(target for target, known in STUDIES.items() if known.notebook == name),
        resources=SCALES[request.scale].resources,
        needs=tuple(f"{id}/seed{seed}" for id in _distinct(list(study.rows), request) for seed in seeds),
        sources=(CHECKOUT / "notebooks" / f"{name}.ipynb",),
        alone=study.alone,
        **_notebook(request, name, name, study.parameters(request)),
    )


def _notebook(request: Request, job: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    result = request.root / "results" / f"{job}.json"
    copy = request.root / "notebooks" / f"{job}.ipynb"
    parameters = {**parameters, "result": str(result)}
    # As YAML, of which JSON is a part: by papermill's -p, `false` would be a word.
    command = [sys.executable, "-m", "papermill", str(CHECKOUT / "notebooks" / f"{name}.ipynb"), str(copy)]
    command += ["--parameters_yaml", dumps(parameters), "--no-progress-bar", "--start-timeout", "300"]
    log = request.root / "logs" / f"{job}.log"
    notebook = {"notebook": name, "parameters": parameters, "copy": copy}
    return {**notebook, "name": job, "command": tuple(command), "result": result, "log": log}


def _report(request: Request, jobs: Mapping[str, Job]) -> Job:
    out = request.root / "report"
    return Job(
        name="report",
        target=" ".join(request.targets),
        command=(sys.executable, "-m", "augfpn", "report", str(request.root), "--out", str(out)),
        result=out / "index.html",
        log=request.root / "logs" / "report.log",
        resources=SCALES[request.scale].resources,
        needs=tuple(jobs),
    )
