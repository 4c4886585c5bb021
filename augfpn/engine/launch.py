"""Training as a command that something else starts: torchrun, one for each device; a notebook, which watches and reads.

A kernel that trains loses everything with the browser tab; a command with a run directory does not.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from augfpn.engine.runs import Run, RunError
from augfpn.errors import REQUEUE, UserError


def on_devices(devices: int, arguments: Sequence[str], device: torch.device) -> int:
    """Runs ``augfpn`` with these arguments in as many processes as ``devices``, as torchrun does; the exit status.

    torchrun itself ends with 1, whatever its processes ended with; this one passes `REQUEUE` on, and the signals for
    which they stop (`augfpn.engine.interruption`).
    """
    if device.type == "cuda" and torch.cuda.device_count() < devices:
        raise UserError(f"There are {torch.cuda.device_count()} GPUs here, not {devices} (--devices).")
    # As many threads in all as one process would have.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // devices)))
    # What happens is told by the processes themselves.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as logs:
        return _launch(devices, ["-m", "augfpn", *arguments], logs)


def _launch(devices: int, arguments: Sequence[str], logs: str) -> int:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id="augfpn",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        ended = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # Those that were asked to stop because of the one that failed.
        failed = {rank: code for rank, code in ended.items() if code not in (0, REQUEUE, -signal.SIGTERM)}
        for rank, code in failed.items():
            if code < 0:
                print(f"error: Rank {rank} was killed by {signal.Signals(-code).name}.", file=sys.stderr)
        return 2 if failed else REQUEUE
    except SignalException:
        return REQUEUE
    return 0


def follow(command: list[str], out: Path, every: float = 5.0) -> Iterator[Run]:
    """Runs a training command to its end and gives the run, every few seconds and at the end, to look at.

    Its output goes to ``train.log`` in the run directory; a RunError shows the last lines where it failed. The command
    is stopped with the caller, for example when the cell is interrupted; what it has made so far stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / "train.log"
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if (out / "run.json").exists():
                    yield Run(out)
                _wait(process, every)
        finally:
            if process.poll() is None:
                process.terminate()
    if process.returncode == REQUEUE:
        raise RunError(f"The training of {out} was interrupted, and goes on from there when this is executed again.")
    if process.returncode != 0:
        last = "\n".join(log.read_text(encoding="utf-8").replace("\r", "\n").splitlines()[-12:])
        raise RunError(f"Training failed with status {process.returncode}; the end of {log}:\n{last}")
    yield Run.open(out)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
