"""Training as a command that a notebook starts, watches and reads.

A kernel that trains loses everything with the browser tab; a command with a run directory does not.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from augfpn.engine.runs import Run, RunError


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
    if process.returncode != 0:
        last = "\n".join(log.read_text(encoding="utf-8").replace("\r", "\n").splitlines()[-12:])
        raise RunError(f"Training failed with status {process.returncode}; the end of {log}:\n{last}")
    yield Run.open(out)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
