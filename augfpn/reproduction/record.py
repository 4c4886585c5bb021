"""Does a job and keeps how it went: `python -m augfpn.reproduction.record RESULT LOG COMMAND…`

What the command prints goes to the log; beside it stands a small file, which says whether the job runs, where, since
when, and how it ended. Unless a command ends well *and* leaves its result behind, the job has failed: papermill marks
the cells of a kernel that was killed as completed.

Only one process does a job at a time. After a scheduler was killed, what it had started goes on; a second process then
waits for that, and has nothing left to do.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from augfpn.files import write_json

# What a shell reports of a command that a signal ended.
_BY_SIGNAL = 128

# The status of a job that was asked to end: by Ctrl-C, or by a scheduler that pre-empts it or cancels it.
INTERRUPTED = _BY_SIGNAL + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a job went.

    ``status``: its exit status, None while it runs. ``seconds``: its time in all. ``problem``: what an exit status does
    not tell.
    """

    host: str
    pid: int
    started: str
    status: int | None = None
    seconds: float | None = None
    problem: str | None = None


def main(arguments: list[str]) -> int:
    result, log, command = Path(arguments[0]), Path(arguments[1]), arguments[2:]
    log.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(log.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is at this already; waiting for it. Its log: {log}", flush=True)
        lock.acquire()
        if result.is_file():
            return 0
    with lock:
        return _do(command, result, log)


def _do(command: list[str], result: Path, log: Path) -> int:
    started = time.monotonic()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(host=socket.gethostname(), pid=os.getpid(), started=now)
    write_json(record_path(log), asdict(record), indent=1)
    result.unlink(missing_ok=True)
    with log.open("a", encoding="utf-8") as file:
        print(f"--- {now}", file=file, flush=True)
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        asked = _pass_on(process)
        status = process.wait()
    problem = None
    if asked and status != 0:
        # A cluster's scheduler also signals all that the command started, so it may have failed before it was told.
        status, problem = INTERRUPTED, "asked to end"
    elif status < 0:
        status, problem = _BY_SIGNAL - status, f"ended by {signal.Signals(-status).name}"
    elif status == 0 and not result.is_file():
        status, problem = 1, f"ended well, but did not write {result}"
    record = replace(record, status=status, seconds=round(time.monotonic() - started, 1), problem=problem)
    write_json(record_path(log), asdict(record), indent=1)
    return status


def record_path(log: Path) -> Path:
    """Where it is kept how a job went."""
    return log.with_suffix(".json")


def _pass_on(process: subprocess.Popen[bytes]) -> list[int]:
    """A scheduler ends a job by ending this process: the command is asked to end, and waited for.

    Returns the signals that ask for it, as they come.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        # Ctrl-C reaches the command by itself.
        if number != signal.SIGINT and process.poll() is None:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
