"""The profiles for clusters: what would be submitted, and, marked as slow, jobs of a SLURM of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from augfpn.engine.evaluate import FIGURES
from augfpn.reproduction import Request, jobs_of
from augfpn.reproduction.record import INTERRUPTED
from augfpn.reproduction.workflow import PROFILES, SNAKEFILE

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SNAKEFILE.parents[1])}

# Snakemake asks for the states of its jobs seldom, which clusters like and tests do not.
OFTEN = "--slurm-init-seconds-before-status-checks 1"


def augfpn(*arguments, cwd, timeout=300, **environment):
    return subprocess.run(
        [sys.executable, "-m", "augfpn", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT | environment,
        timeout=timeout,
    )


# What would be submitted.


@pytest.fixture
def refusing_slurm(tmp_path):
    """A folder with SLURM's commands, of which sbatch keeps what it is asked for, and refuses it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "sbatch": f"printf '%s\\n' \"$*\" >> {tmp_path}/submitted; echo 'no such partition' >&2; exit 1",
        "sacctmgr": "echo mine",
        "scontrol": "echo 'MinJobAge = 300 sec'",
        **dict.fromkeys(["squeue", "sacct", "scancel", "sinfo"], ":"),
    }
    for name, command in commands.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def test_a_run_asks_slurm_for_what_it_needs(refusing_slurm, tmp_path):
    (tmp_path / "coco").mkdir()
    done = augfpn(
        *("reproduce", "table1/faster_rcnn_r101_augfpn_2x", "--scale", "paper", "--data", "coco", "--devices", "4"),
        *("--out", "runs", "--profile", "slurm", "--snakemake", OFTEN),
        *("--snakemake", "--default-resources slurm_partition=gpu slurm_account=mine"),
        cwd=tmp_path,
        PATH=f"{refusing_slurm}:{os.environ['PATH']}",
    )

    (submitted,) = (tmp_path / "submitted").read_text().splitlines()
    options, command = submitted.split(" --wrap=")
    # All GPUs, cores and memory of a training on four devices in one machine, for the six days of the 2x schedule.
    assert {"--gpus=4", "--nodes=1", "--cpus-per-task=32", "--requeue"} <= set(options.split())
    for option in ("--mem 256000", f"-t {6 * 24 * 60}", "-p gpu", "-A mine", f"-D {tmp_path}"):
        assert option in options
    assert f"--output {tmp_path}/runs/logs/slurm/" in options
    assert "--executor slurm-jobstep" in command
    assert done.returncode == 1
    assert "no such partition" in done.stdout


def test_the_notebook_that_measures_time_does_not_ask_for_the_cores_of_the_login_node(refusing_slurm, tmp_path):
    """On one machine it has all of them to itself."""
    (tmp_path / "coco").mkdir()
    request = Request(targets=("runtime",), scale="paper", data=str(tmp_path / "coco"), out=str(tmp_path / "runs"))
    for job in jobs_of(request).values():
        if job.run is not None:
            for path in (job.result, job.run / "metrics.json"):
                path.parent.mkdir(parents=True)
                path.touch()

    augfpn(
        *("reproduce", *request.targets, "--scale", request.scale, "--data", request.data, "--devices", "4"),
        *("--out", request.out, "--profile", "slurm", "--snakemake", OFTEN),
        cwd=tmp_path,
        PATH=f"{refusing_slurm}:{os.environ['PATH']}",
    )

    (submitted,) = (tmp_path / "submitted").read_text().splitlines()
    assert {"--gpus=1", "--cpus-per-task=8"} <= set(submitted.split())


def test_what_kubernetes_would_do_needs_neither_a_cluster_nor_a_network(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", SNAKEFILE, "--profile", PROFILES / "kubernetes"]
    command += ["--dry-run", "--config", "targets=table2", "scale=mini", "out=runs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=120)

    assert done.returncode == 0, done.stderr
    assert "kubernetes" in done.stderr
    assert "gpu=1" in done.stdout
    assert "gpu_manufacturer=" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_job_that_a_scheduler_ends_is_interrupted_and_not_failed(tmp_path):
    command = [sys.executable, "-m", "augfpn.reproduction.record", tmp_path / "result", tmp_path / "job.log"]
    # It fails when it is asked to end, as a notebook does whose kernel was ended before it.
    fails = "trap 'kill $!; exit 1' TERM; sleep 60 & echo ready; wait"
    process = subprocess.Popen([*command, "sh", "-c", fails], env=ENVIRONMENT)
    _wait(lambda: (tmp_path / "job.log").exists() and "ready" in (tmp_path / "job.log").read_text(), 30)
    process.terminate()

    assert process.wait(30) == INTERRUPTED
    assert json.loads((tmp_path / "job.json").read_text())["status"] == INTERRUPTED


# Jobs of a SLURM of the test's own.

# Without accounting; of one node, which is this machine. It must be /etc/slurm/slurm.conf: Snakemake's plugin takes
# SLURM_CONF from its jobs.
CONFIGURATION = Path("/etc/slurm/slurm.conf")
CONFIGURED = """\
ClusterName=mini
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobAcctGatherParams=OverMemoryKill
MinJobAge=86400
ReturnToService=2
KillWait=5
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
NodeName=localhost CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=02:00:00 DefMemPerCPU=1000 State=UP
"""
SOCKET = Path("/run/munge/munge.socket.2")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of this machine alone; what is done to the machine for it is undone at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can set up a SLURM")
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    if CONFIGURATION.exists() or _is_running("slurmctld"):
        pytest.skip("this machine has a SLURM already")

    state = tmp_path_factory.mktemp("slurm")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
    with ExitStack() as undo:
        for folder in (state / "state", state / "spool"):
            folder.mkdir()
        if not CONFIGURATION.parent.exists():
            undo.callback(shutil.rmtree, CONFIGURATION.parent)
            CONFIGURATION.parent.mkdir()
        undo.callback(CONFIGURATION.unlink)
        CONFIGURATION.write_text(CONFIGURED.format(state=state, cpus=len(os.sched_getaffinity(0)), memory=memory))
        if not _is_running("munged"):
            if not SOCKET.parent.exists():
                undo.callback(shutil.rmtree, SOCKET.parent)
                SOCKET.parent.mkdir()
                shutil.chown(SOCKET.parent, "munge", "munge")
            as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
            _start(undo, state, *as_munge, "munged", "--foreground")
            _wait(SOCKET.exists, 10)
        _start(undo, state, "slurmctld", "-D")
        _start(undo, state, "slurmd", "-D", "-N", "localhost")
        _wait(lambda: "idle" in _output("sinfo", "--noheader"), 30)
        undo.callback(_cancel_all)
        yield state


def _is_running(name: str) -> bool:
    # Those that ended, and that nobody waited for, have no command line any more.
    return any(Path(line.split("\0")[0]).name == name for line in _command_lines())


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_text(errors="replace")


def _start(undo: ExitStack, state: Path, *command: str) -> None:
    with (state / "daemons.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    undo.callback(process.wait, 30)
    undo.callback(process.terminate)


def _cancel_all() -> None:
    subprocess.run(["scancel", "--user", "root"], timeout=30)
    _wait(lambda: not _output("squeue", "--noheader"), 60)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def _wait(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s in vain"
        time.sleep(0.2)


def _job(id: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    fields = _output("scontrol", "show", "job", "--oneliner", id).split()
    return dict(field.split("=", 1) for field in fields if "=" in field)


@pytest.mark.slow
def test_runs_as_jobs_of_slurm_are_those_made_here(slurm, tmp_path):
    experiments = ["table2/baseline", "table2/cs"]
    done = augfpn(
        *("reproduce", *experiments, "--scale", "smoke", "--out", tmp_path / "runs", "--profile", "slurm"),
        *("--snakemake", OFTEN),
        cwd=tmp_path,
    )

    assert "All done" in done.stdout, done.stdout
    jobs = [_job(id) for id in _output("squeue", "--states=all", "--noheader", "--format=%i").split()]
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 3
    for job in jobs:
        assert (job["TimeLimit"], job["MinMemoryNode"], job["Requeue"]) == ("00:20:00", "4000M", "1")
    for experiment in experiments:
        result = tmp_path / "runs" / experiment / "seed0" / "metrics.json"
        here = tmp_path / "here" / experiment
        assert augfpn("train", experiment, "--scale", "smoke", "--out", here, cwd=tmp_path).returncode == 0
        figures, expected = (json.loads(path.read_text()) for path in (result, here / "metrics.json"))
        assert [figures[name] for name in FIGURES] == [expected[name] for name in FIGURES]


@pytest.mark.slow
def test_a_pre_empted_run_is_queued_again_and_goes_on_and_outlives_the_scheduler(slurm, tmp_path):
    before = set(_output("squeue", "--states=all", "--noheader", "--format=%i").split())
    run = tmp_path / "runs" / "table2" / "baseline" / "seed0"
    command = [sys.executable, "-m", "augfpn", "reproduce", "table2/baseline", "--out", tmp_path / "runs"]
    command += ["--profile", "slurm", "--snakemake", OFTEN]
    log = tmp_path / "reproduce.log"
    with log.open("w") as file:
        workflow = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True
        )
    try:
        _wait((run / "checkpoints" / "step_00000100.pt").exists, 300)
        (id,) = set(_output("squeue", "--noheader", "--format=%i").split()) - before
        subprocess.run(["scontrol", "requeue", id], check=True, timeout=30)
        _wait(lambda: _job(id)["JobState"] == "PENDING", 60)
        assert "interrupted:" in augfpn("status", tmp_path / "runs", cwd=tmp_path).stdout

        # SLURM would wait for two minutes.
        subprocess.run(["scontrol", "update", f"JobId={id}", "StartTime=now"], check=True, timeout=30)
        _wait(lambda: "resumed" in _provenance(run), 120)
        _wait(lambda: _steps(run)[-1] >= 120, 180)
        assert _steps(run) == list(range(10, _steps(run)[-1] + 1, 10))
        assert workflow.poll() is None, log.read_text()
        assert "failed" not in log.read_text()

        os.killpg(workflow.pid, signal.SIGKILL)
        steps = len(_steps(run))
        _wait(lambda: len(_steps(run)) > steps, 60)
        assert _job(id)["JobState"] == "RUNNING"
        assert "running:" in augfpn("status", tmp_path / "runs", cwd=tmp_path).stdout
    finally:
        if workflow.poll() is None:
            os.killpg(workflow.pid, signal.SIGKILL)
        workflow.wait(30)
        _cancel_all()


def _provenance(run: Path) -> dict[str, object]:
    provenance: dict[str, object] = json.loads((run / "provenance.json").read_text())
    return provenance


def _steps(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]
