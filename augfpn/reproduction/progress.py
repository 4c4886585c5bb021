"""How far a reproduction is, read from what its jobs left on disk; so it can be asked from anywhere, at any time."""

from __future__ import annotations

import json
import socket
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from augfpn.errors import UserError
from augfpn.experiments.checks import read_description
from augfpn.reproduction.jobs import CHECKOUT, Job, Request
from augfpn.reproduction.record import INTERRUPTED, Record, record_path

State = Literal["done", "running", "failed", "interrupted", "waiting"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of a job. ``part``: of its training, 0-1; ``note``: what there is to say of it; ``seconds``: it took in all."""

    job: Job
    state: State
    part: float = 0.0
    note: str = ""
    seconds: float | None = None


def progress_of(jobs: Mapping[str, Job]) -> dict[str, Progress]:
    """Of all jobs of a request, by their names."""
    current: dict[str, bool] = {}
    for job in jobs.values():
        current[job.name] = _is_current(job, jobs, current)
    return {name: _progress(job, current) for name, job in jobs.items()}


def _is_current(job: Job, jobs: Mapping[str, Job], current: Mapping[str, bool]) -> bool:
    """Whether a job's result is there and not older than what it is made from; as Snakemake sees it, by dates."""
    if not job.result.is_file() or not all(current[name] for name in job.needs):
        return False
    if job.run is not None and not (job.run / "metrics.json").is_file():
        return False
    made_from = [*(jobs[name].result for name in job.needs), *job.sources]
    made = job.result.stat().st_mtime
    return all(path.stat().st_mtime <= made for path in made_from)


def _progress(job: Job, current: Mapping[str, bool]) -> Progress:
    recorded = _recorded(job.log)
    is_here = recorded is not None and recorded.host == socket.gethostname()
    at_work = recorded is not None and recorded.status is None
    if at_work and is_here:
        at_work = is_locked(job.log.with_suffix(".lock"))
    # The result is there a moment before the job ends. (Whether another machine is still at work, nobody knows.)
    if current[job.name] and not (at_work and is_here):
        return Progress(job=job, state="done", part=1.0, seconds=None if recorded is None else recorded.seconds)
    part, note = _training(job)
    if at_work:
        return Progress(job=job, state="running", part=part, note=note)
    if recorded is None or recorded.status == 0:
        return Progress(job=job, state="waiting", part=part, note=note)
    if recorded.status in (None, INTERRUPTED):
        return Progress(job=job, state="interrupted", part=part, note=note)
    if not all(current[name] for name in job.needs):
        # It failed once; before it is tried again, others must be done.
        return Progress(job=job, state="waiting", part=part, note=note)
    note = recorded.problem or f"exit status {recorded.status}"
    return Progress(job=job, state="failed", part=part, note=note)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, PermissionError):
        # In a folder that may only be read, nobody can tell; its owner has not said that it ended.
        return True


def _training(job: Job) -> tuple[float, str]:
    """How much of a run is trained, and in words."""
    if job.run is None:
        return 0.0, ""
    step, total = last_step(job.run), _num_steps(job.run)
    if step is None or total is None:
        return 0.0, ""
    if (job.run / "model.safetensors").is_file():
        return 1.0, "evaluation"
    return step / total, f"step {step} of {total}"


def last_step(run: Path) -> int | None:
    """The last step in ``metrics.jsonl``; None before the first, and where it cannot be read."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return int(json.loads(whole[-1])["step"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _num_steps(run: Path) -> int | None:
    """How many steps a training has in all; None where nobody wrote it down."""
    derived = (read_json(run / "provenance.json") or {}).get("derived")
    total = derived.get("num_steps") if isinstance(derived, dict) else None
    return total if isinstance(total, int) and total > 0 else None


class Times:
    """How long jobs take, from those that were done: in the request's folder, and in the recorded results."""

    def __init__(self, request: Request) -> None:
        self._of_experiment: dict[str, list[float]] = {}
        around = []
        for root in (CHECKOUT / "results" / request.scale, request.root):
            for name, seconds in _times_of_runs(root):
                self._of_experiment.setdefault(name.rpartition("/")[0], []).append(seconds)
                record = _recorded(root / "logs" / f"{name}.log")
                if record and record.status == 0 and (took := record.seconds) is not None:
                    # Where it had been trained before, the notebook is all that took time.
                    around.append(took - seconds if took > seconds else took)
        self._around = statistics.median(around) if around else 0.0

    def seconds(self, job: Job, part: float = 0.0) -> float | None:
        """Of a job of which a part is trained.

        A run takes what its experiment took with any seed, or the median of all runs, and its notebook a little more.
        Another notebook takes what it took last time.
        """
        if job.run is not None:
            own = self._of_experiment.get(job.target)
            every = own or [seconds for some in self._of_experiment.values() for seconds in some]
            return (1 - part) * statistics.median(every) + self._around if every else None
        record = _recorded(job.log)
        return record.seconds if record and record.status == 0 else None

    def knows(self, job: Job) -> bool:
        """Whether this very experiment was measured."""
        return job.run is None or job.target in self._of_experiment

    def remaining(self, progress: Mapping[str, Progress], at_once: int) -> tuple[float, int]:
        """Seconds until all is done that is not, and how many jobs are left out because nothing was measured."""
        rest = [self.seconds(one.job, one.part) for one in progress.values() if one.state != "done"]
        known = [seconds for seconds in rest if seconds is not None]
        return sum(known) / at_once, len(rest) - len(known)


def _times_of_runs(root: Path) -> Iterator[tuple[str, float]]:
    """Runs, such as table2/cs/seed0, with seconds of training and evaluation together."""
    for path in sorted(root.glob("table*/*/seed*/metrics.json")):
        metrics = read_json(path) or {}
        training, evaluation = metrics.get("training_seconds"), metrics.get("seconds")
        if isinstance(training, int | float) and isinstance(evaluation, int | float):
            yield path.parent.relative_to(root).as_posix(), training + evaluation


def as_text(request: Request, progress: Mapping[str, Progress]) -> str:
    """What `augfpn status` prints."""
    every = list(progress.values())
    lines = [headline(request, progress)]
    for state in ("running", "failed", "interrupted"):
        of_state = [one for one in every if one.state == state]
        lines += [f"{state}:"] if of_state else []
        lines += [f"  {one.job.name:48}{one.note:24}{one.job.log}" for one in of_state]
    return "\n".join(lines)


def headline(request: Request, progress: Mapping[str, Progress]) -> str:
    """One line: what is done, what is not, and for how long."""
    runs = [one for one in progress.values() if one.job.run is not None]
    notebooks = [one for one in progress.values() if one.job.notebook is not None and one.job.run is None]
    counts = ", ".join(
        f"{sum(one.state == 'done' for one in some)} of {len(some)} {name}"
        for name, some in (("runs", runs), ("notebooks", notebooks))
        if some
    )
    failed = sum(one.state == "failed" for one in progress.values())
    running = sum(one.state == "running" for one in progress.values())
    seconds, unknown = Times(request).remaining(progress, request.at_once)
    parts = [f"{counts} done", f"{running} at work"] + ([f"{failed} failed"] if failed else [])
    parts += [f"about {in_words(seconds)} left"] if seconds else []
    parts += [f"{unknown} not measured yet"] if unknown else []
    return "; ".join(parts)


def in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _recorded(log: Path) -> Record | None:
    """How the job with this log went; None where nobody wrote it down, or nobody can read it."""
    try:
        return read_description(Record, read_json(record_path(log)) or {})
    except UserError:
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none, or nobody can read it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
