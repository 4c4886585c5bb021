"""Starts Snakemake on `pipelines/Snakefile`, and says how it goes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path

import torch
from tqdm import tqdm

from augfpn.errors import UserError
from augfpn.experiments.scales import SCALES
from augfpn.files import write_json
from augfpn.reproduction.jobs import CHECKOUT, Job, Request, check_runs, jobs_of
from augfpn.reproduction.progress import Progress, Times, headline, in_words, is_locked, progress_of, read_json

SNAKEFILE = CHECKOUT / "pipelines" / "Snakefile"
PROFILES = CHECKOUT / "pipelines" / "profiles"

_OF_TIMES = (
    "Times are of earlier runs in that folder, or of those in results/ (one thread of a CPU), training and evaluation."
)

# Lines of a log that a summary shows, without the colours of IPython's tracebacks.
_LAST = 12
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


def reproduce(
    request: Request, *, at_once: int | None = None, profile: str | None = None, options: Sequence[str] = ()
) -> bool:
    """Does what is missing of a request; whether all of it is done in the end.

    Args:
        at_once: jobs at the same time; by default one on a GPU, as many as there are cores without, or as the profile
            says.
        profile: ``slurm``, ``kubernetes``, or a profile of your own; by default jobs run on this machine.
        options: for Snakemake; each may be several words, as a shell would read them.
    """
    _check_installed()
    if request.root.exists() and not request.root.is_dir():
        raise UserError(f"{request.root} is a file; name a folder (--out).")
    if is_locked(lock_path(request)):
        raise UserError(
            f"Another reproduction is at work in {request.root}; follow it with `augfpn status {request.root}`."
        )
    request, arguments = _distribute(request, at_once, profile)
    jobs = jobs_of(request)
    check_runs(jobs)
    log = request.root / "logs" / "snakemake.log"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--configfile", str(_write_request(request)), *arguments]
    command += [word for option in options for word in shlex.split(option)]
    print(f"{headline(request, progress_of(jobs))}. Logs: {log.parent}; from elsewhere: {_status(request)}")
    with log.open("a", encoding="utf-8") as file:
        print(f"--- {shlex.join(command)}", file=file, flush=True)
        # Profiles may name it: the scheduler's logs belong to the others.
        environment = os.environ | {"AUGFPN_OUT": str(request.root)}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            _follow(process, request, jobs)
        except KeyboardInterrupt:
            print("\nStopping; what is done stays, and the same command goes on with the rest.")
            process.wait()
    options_again = ["--profile", profile] if profile is not None else ["--jobs", str(request.at_once)]
    options_again += [f"--snakemake={option}" for option in options]
    return _sum_up(request, jobs, process.returncode, log, options_again)


def _write_request(request: Request) -> Path:
    """A file of its own for every request: on a cluster, jobs of an earlier one may still be in the queue."""
    config = request.to_config()
    name = hashlib.sha256(dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    return write_json(request.root / "logs" / "requests" / f"{name}.json", config, indent=1)


def lock_path(request: Request) -> Path:
    """Held by the Snakemake that works in a request's folder."""
    return request.root / "logs" / "snakemake.lock"


def last_request(root: Path | None = None) -> Request:
    """What was last begun in a folder, or in any below ``runs``; the Snakefile keeps it."""
    pattern, above = ("*/reproduction.json", Path("runs")) if root is None else ("reproduction.json", root)
    path = max(above.glob(pattern), key=lambda found: found.stat().st_mtime, default=None)
    if path is None:
        raise UserError(f"Nothing was reproduced in {above}; name the folder of `augfpn reproduce … --out`.")
    config = read_json(path)
    if config is None:
        raise UserError(f"{path} is damaged; give the command `augfpn reproduce` again, and it is written anew.")
    try:
        # The folder as it is seen from here.
        return Request.from_config({**config, "out": str(path.parent)})
    except UserError as error:
        raise UserError(f"{path} is no request: {error}") from error


def describe(request: Request, at_once: int | None = None, profile: str | None = None) -> str:
    """What is still to be done, and for how long, from measured times where there are any."""
    request, _ = _distribute(request, at_once, profile)
    jobs, times = jobs_of(request), Times(request)
    check_runs(jobs)
    progress = progress_of(jobs)
    missing = [one for one in progress.values() if one.state != "done"]
    lines = []
    for one in missing:
        seconds = times.seconds(one.job, one.part)
        if seconds is None:
            took = "not measured yet"
        else:
            took = in_words(seconds) + ("" if times.knows(one.job) else ", as others")
        part = f"from {one.note}" if 0 < one.part < 1 else ""
        lines.append(f"{one.job.name:48}{took:24}{part}".rstrip())
    return "\n".join([*lines, f"{headline(request, progress)}, {request.at_once} at once.", _OF_TIMES])


def _distribute(request: Request, at_once: int | None, profile: str | None) -> tuple[Request, list[str]]:
    """The request with how many jobs there are at once, and the threads of each; and what Snakemake is told of them."""
    if profile is not None:
        own = PROFILES / profile
        arguments = ["--profile", str(own) if own.is_dir() else profile]
        arguments += [] if at_once is None else ["--jobs", str(at_once)]
        threads = SCALES[request.scale].resources.cpus
        return replace(request, threads=threads, at_once=at_once or len(jobs_of(request))), arguments
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = at_once or (1 if torch.cuda.is_available() else cores)
    threads = max(1, cores // (at_once * request.devices))
    arguments = ["--cores", str(at_once * request.devices * threads)]
    return replace(request, threads=threads, at_once=at_once), arguments


def _follow(process: subprocess.Popen[bytes], request: Request, jobs: Mapping[str, Job]) -> None:
    """A line for every job that starts or ends; on a terminal, below them, one that is rewritten."""
    before = {name: one.state for name, one in progress_of(jobs).items()}
    with tqdm(bar_format="{desc}", leave=False, disable=not sys.stderr.isatty()) as line:
        ended = False
        while not ended:
            ended = process.poll() is not None
            progress = progress_of(jobs)
            for name, one in progress.items():
                if one.state != before[name]:
                    _tell(one, progress)
                before[name] = one.state
            if not line.disable:
                at_work = (f"{one.job.name} {one.note}" for one in progress.values() if one.state == "running")
                text = f"{headline(request, progress)}. {', '.join(at_work)}"
                # A line that wraps cannot be rewritten.
                line.set_description_str(text[: shutil.get_terminal_size().columns - 1])
            if not ended:
                time.sleep(1)


def _tell(one: Progress, progress: Mapping[str, Progress]) -> None:
    if one.state == "waiting":
        return
    done = sum(other.state == "done" for other in progress.values())
    what = {"running": "started", "done": "done"}.get(one.state, one.state)
    took = f" in {in_words(one.seconds)}" if one.state == "done" and one.seconds is not None else ""
    problem = f": {one.note}" if one.state == "failed" else ""
    tqdm.write(f"[{done}/{len(progress)}] {one.job.name} {what}{took}{problem}")
    sys.stdout.flush()


def _sum_up(request: Request, jobs: Mapping[str, Job], status: int, log: Path, options: Sequence[str]) -> bool:
    """Prints what is done, and of each failure the end of its log and how to try it alone."""
    progress = progress_of(jobs)
    rest = [one for one in progress.values() if one.state != "done"]
    if status == 0 and not rest:
        print(f"All done: {jobs['report'].result}")
        return True
    failed = [one for one in rest if one.state == "failed"]
    for one in failed:
        print(f"\n{one.job.name} failed ({one.note}). The end of {one.job.log}:")
        print(*(f"    {line}" for line in _last_lines(one.job.log)), sep="\n")
        print(f"  Alone: {_command(request, one.job.target, options)}")
    stopped = [one.job.name for one in rest if one.state == "interrupted"]
    if stopped:
        print(f"\nStopped: {', '.join(stopped)}.")
    elif not failed:
        print(f"\nThe workflow ended with status {status}. From {log}:")
        print(*(f"    {line}" for line in _first_error(log) or _last_lines(log)), sep="\n")
    others = len(rest) - len(failed)
    print(
        f"\n{len(progress) - len(rest)} of {len(progress)} done, {len(failed)} failed, {others} left that were stopped "
        f"or need those. The same command does what is missing."
    )
    return False


def _last_lines(log: Path) -> list[str]:
    if not log.is_file():
        return ["(there is none)"]
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return [_COLOURS.sub("", line) for line in lines if line.strip()][-_LAST:]


def _first_error(log: Path) -> list[str]:
    """Of the last workflow. It ends with a list of all jobs that failed, without why a cluster did not take them."""
    last = log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2].splitlines()
    first = next((index for index, line in enumerate(last) if re.match(r"\w*(Error|Exception)\b", line)), len(last))
    return last[first : first + _LAST]


def _command(request: Request, target: str, options: Sequence[str]) -> str:
    command = ["augfpn", "reproduce", *target.split(), "--scale", request.scale]
    command += [] if request.seeds == 1 else ["--seeds", str(request.seeds)]
    command += [] if request.out is None else ["--out", request.out]
    command += [] if request.data is None else ["--data", request.data]
    command += [] if request.devices == 1 else ["--devices", str(request.devices)]
    return shlex.join([*command, *options])


def _status(request: Request) -> str:
    return shlex.join(["augfpn", "status", str(request.root)])


def _check_installed() -> None:
    missing = [name for name in ("snakemake", "papermill") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} is not installed; `pip install 'augfpn[pipelines]'` does that.")
    if not SNAKEFILE.is_file():
        raise UserError(
            f"There is no {SNAKEFILE}: notebooks and workflow are in the repository, not in the installed package. "
            "Clone it and install it with `pip install --editable .`."
        )
