"""Faults at random moments: trainings are killed, signalled, filled up, damaged and cut off from their data.

Each goes on until it is finished, and must end with what an undisturbed one ends with: weights, detections and figures
to the bit, every line of the history. Faults that a training can see must be told in a sentence, with a status that is
not 0.

The slow test makes all of them, in two lanes; a few stand in for them in the normal suite.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from augfpn.data import SyntheticDataset
from augfpn.engine import Run
from augfpn.errors import REQUEUE

# What differs between two runs that compute the same.
TIMES = ("seconds", "training_seconds", "images_per_second", "waiting_seconds", "memory_mb")
# Seconds after which a process is taken to hang.
PATIENCE = 240
# Processes are forked from one that has imported everything.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["augfpn.cli", "augfpn.engine", "faster_coco_eval"])


def augfpn(arguments, log, most_bytes):
    """The command, in a process of its own."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    import augfpn.cli

    sys.argv = ["augfpn", *arguments]
    augfpn.cli.main()


class Training:
    """A run that is trained by the command, again and again until it is done."""

    def __init__(self, folder, data, *options):
        self.path = folder / "run"
        self.data = data
        self.log = folder / "log.txt"
        self.arguments = [
            "train", "table2/cs+rfa+srs", "--scale", "smoke", "--data", str(data), "--steps", "10", "--device", "cpu",
            "--evaluate-every", "4", "--timeout", "15", "--out", str(self.path), "--resume", *options,
        ]  # fmt: skip

    @contextlib.contextmanager
    def started(self, most_bytes=None):
        self.written = self.log.stat().st_size if self.log.exists() else 0
        process = SERVER.Process(target=augfpn, args=(self.arguments, self.log, most_bytes))
        process.start()
        try:
            yield process
        finally:
            if process.is_alive():
                process.kill()
            process.join()

    def output(self):
        """Of the last start."""
        return self.log.read_bytes()[self.written :].decode(errors="replace")

    def waits_for(self, process, happens):
        """Whether it happens before the process ends."""
        end = time.monotonic() + PATIENCE
        while process.is_alive() and time.monotonic() < end:
            if happens():
                return True
            time.sleep(0.002)
        return False

    def ends(self, process):
        process.join(PATIENCE)
        assert process.exitcode is not None, f"it hangs:\n{self.output()}"
        return process.exitcode

    def reaches(self, process, step):
        """Whether it makes so many steps before it ends."""
        return self.waits_for(process, lambda: self.steps() >= step)

    def finishes(self):
        with self.started() as process:
            assert self.ends(process) == 0, self.output()

    def steps(self):
        with contextlib.suppress(OSError, ValueError):
            return len(Run(self.path).history())
        return 0

    def result(self):
        """All that was computed."""
        run = Run(self.path)
        lines = [{name: line[name] for name in line if name not in TIMES} for line in run.history()]
        metrics = {name: value for name, value in run.metrics.items() if name not in TIMES}
        return lines, run.evaluations, metrics, run.weights.read_bytes(), (run.path / "detections.json").read_bytes()

    def moment(self):
        """What it was doing, as far as its files tell."""
        if not (self.path / "run.json").exists():
            return "before the first step"
        if list((self.path / "checkpoints").glob(".*.tmp")):
            return "in a checkpoint"
        run = Run(self.path)
        if run.is_evaluated:
            return TOO_LATE
        step = self.steps()
        is_evaluated_now = step in (4, 8) and step in run.checkpoint_steps and step not in run.evaluated_steps
        return "in an evaluation" if run.is_trained or is_evaluated_now else "in a step"

    def tells(self, *parts):
        output = self.output()
        assert "Traceback" not in output, output
        for part in parts:
            assert re.search(part, output), f"{part!r} is not told:\n{output}"


# The training had ended before its fault came.
TOO_LATE = "after the end"


def killed(chance, training, seconds):
    with training.started() as process:
        process.join(chance.uniform(0, seconds))
        moment = training.moment()
        process.kill()
    return moment


def killed_in_a_checkpoint(chance, training, seconds):
    after = chance.choice([0, 2, 4, 6])
    with training.started() as process:
        checkpoints = training.path / "checkpoints"
        began = lambda: training.steps() >= after and any(checkpoints.glob(".step_*.tmp"))  # noqa: E731
        seen = training.waits_for(process, began)
        process.kill()
    return "in a checkpoint" if seen else TOO_LATE


def killed_in_an_evaluation(chance, training, seconds):
    step = chance.choice([4, 8, 10])
    with training.started() as process:
        evaluates = lambda: training.steps() >= step and training.moment() == "in an evaluation"  # noqa: E731
        seen = training.waits_for(process, evaluates)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
    return "in an evaluation" if seen else TOO_LATE


def signalled(number, times=1):
    def inject(chance, training, seconds):
        with training.started() as process:
            training.reaches(process, chance.choice([1, 3, 5, 9]))
            process.join(chance.uniform(0, 0.3))
            moment = training.moment()
            for _ in range(times):
                if process.is_alive():
                    os.kill(process.pid, number)
                    time.sleep(0.001)
            status = training.ends(process)
            # A second Ctrl-C may come before the first was looked at.
            expected = {REQUEUE, 130, 1} if times == 2 else {REQUEUE}
            # What has ended cannot be stopped; between training and evaluation it is ended as any process is.
            assert status in expected or moment in ("after the end", "in an evaluation"), (status, moment)
        return moment if status in expected else TOO_LATE

    return inject


def group_signalled(chance, training, seconds):
    """As a scheduler does it: to the processes that load images, too."""
    with training.started() as process:
        training.reaches(process, chance.choice([1, 5]))
        os.killpg(process.pid, signal.SIGTERM)
        status = training.ends(process)
        assert status in (0, REQUEUE)
        training.tells("SIGTERM: stopped" if status else "AP")
    return "in a step" if status else TOO_LATE


def damaged(how):
    def inject(chance, training, seconds):
        with training.started() as process:
            assert training.reaches(process, 7)
            process.kill()
        newest = max((training.path / "checkpoints").glob("step_*.pt"))
        content = bytearray(newest.read_bytes())
        if how == "cut off":
            newest.write_bytes(content[: chance.randrange(len(content))])
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            newest.write_bytes(content)
        training.finishes()
        training.tells(f"warning: The checkpoint {re.escape(str(newest))} is damaged")
        return "in a step"

    return inject


def full_disk(chance, training, seconds):
    with training.started(most_bytes=chance.choice([3_000, 100_000, 300_000])) as process:
        assert training.ends(process) == 2
        training.tells("error: .* cannot be written: File too large")
    return "in a checkpoint"


def worker_killed(chance, training, seconds):
    with training.started() as process:
        training.reaches(process, chance.choice([0, 3]))
        workers = []
        if training.waits_for(process, lambda: workers.extend(loading_processes(process.pid)) or workers):
            os.kill(chance.choice(workers), signal.SIGKILL)
        status = training.ends(process)
        # Workers that have made all their batches are not missed.
        assert status in (0, 2)
        if status:
            training.tells("error: The images could not be loaded: .* Use fewer workers")
    return "in a step" if status else TOO_LATE


def loading_processes(pid):
    """The children of the process that DataLoader forks its workers from."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    return [child for child, parent in parents.items() if parent in children]


def image_lost(how):
    def inject(chance, training, seconds):
        images = sorted((training.data / "train2017").iterdir())
        with training.started() as process:
            training.reaches(process, chance.choice([1, 3]))
            kept = {image: image.read_bytes() for image in images}
            for image in images:
                image.write_bytes(kept[image][:200]) if how == "cut off" else image.unlink()
            status = training.ends(process)
            assert status in (0, 2)
            if status:
                what = "there is no such file" if how == "lost" else "may be truncated"
                training.tells(rf"error: .*{re.escape(str(training.data))}.*\.png: .*{what}")
        for image, content in kept.items():
            image.write_bytes(content)
        return "in a step" if status else TOO_LATE

    return inject


def ranks(pid):
    """The two processes of a training on two devices, in their order."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                environment = (folder / "environ").read_bytes().split(b"\0")
                values = dict(entry.split(b"=", 1) for entry in environment if b"=" in entry)
                if b"LOCAL_RANK" in values:
                    found[int(values[b"LOCAL_RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def rank_lost(rank, number):
    def inject(chance, training, seconds):
        with training.started() as process:
            assert training.reaches(process, chance.choice([1, 3, 5]))
            own, other = (ranks(process.pid)[one] for one in (rank, 1 - rank))
            # The other one is in the middle of something when the launcher tells it to stop.
            os.kill(other, signal.SIGSTOP)
            os.kill(own, number)
            time.sleep(chance.uniform(0, 0.5))
            os.kill(other, signal.SIGCONT)
            assert training.ends(process) == 2
            if number == signal.SIGKILL:
                training.tells(f"error: Rank {rank} was killed by SIGKILL")
            else:
                training.tells(r"error: Rank . of 2 gets no answer from the others")
        return "in a step"

    return inject


def launcher_signalled(number):
    def inject(chance, training, seconds):
        with training.started() as process:
            assert training.reaches(process, chance.choice([1, 4, 6]))
            os.kill(process.pid, number)
            status = training.ends(process)
            assert status in (0, REQUEUE)
            training.tells("stopped" if status else "AP")
        return "in a step" if status else TOO_LATE

    return inject


def killed_with_others(others):
    """Nothing lives on without the process that was killed, of which ``others`` finds what it started."""

    def inject(chance, training, seconds):
        with training.started() as process:
            assert training.reaches(process, chance.choice([1, 3]))
            left = others(process.pid)
            process.kill()
            process.join()
            gone(left)
        if others is ranks:
            training.tells("SIGTERM: stopped after step .* with a checkpoint")
        return "in a step" if left else TOO_LATE

    return inject


def gone(processes):
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < end, "processes live on"
        time.sleep(0.05)


def fails_on_one_rank(chance, training, seconds):
    """What one rank alone finds is not taken for a wish to stop."""
    image = min((training.data / "train2017").iterdir())
    with training.started() as process:
        assert training.reaches(process, 1)
        kept = image.read_bytes()
        image.unlink()
        status = training.ends(process)
        assert status in (0, 2)
        if status:
            training.tells(rf"error: .*{re.escape(image.name)}: there is no such file")
    image.write_bytes(kept)
    return "in a step" if status else TOO_LATE


# Kind: how often, the options of the training, the fault.
WORKERS, TWO = ("--workers", "2"), ("--devices", "2")
FAULTS = {
    "SIGKILL at any moment": (10, (), killed),
    "SIGKILL in a checkpoint": (5, (), killed_in_a_checkpoint),
    "SIGKILL in an evaluation": (5, (), killed_in_an_evaluation),
    "SIGTERM": (5, (), signalled(signal.SIGTERM)),
    "SIGUSR1": (3, (), signalled(signal.SIGUSR1)),
    "SIGINT": (3, (), signalled(signal.SIGINT)),
    "SIGINT twice": (3, (), signalled(signal.SIGINT, times=2)),
    "SIGTERM to the group": (3, WORKERS, group_signalled),
    "checkpoint cut off": (3, (), damaged("cut off")),
    "checkpoint with a turned bit": (3, (), damaged("turned bit")),
    "full disk": (4, (), full_disk),
    "loading process killed": (4, WORKERS, worker_killed),
    "images lost": (3, (), image_lost("lost")),
    "images cut off": (2, WORKERS, image_lost("cut off")),
    "rank killed": (2, TWO, rank_lost(1, signal.SIGKILL)),
    "main rank killed": (2, TWO, rank_lost(0, signal.SIGKILL)),
    "rank hangs": (1, TWO, rank_lost(1, signal.SIGSTOP)),
    "image lost to one rank": (2, TWO, fails_on_one_rank),
    "SIGKILL with loading processes": (2, WORKERS, killed_with_others(loading_processes)),
    "launcher killed": (2, TWO, killed_with_others(ranks)),
    "launcher gets SIGTERM": (2, TWO, launcher_signalled(signal.SIGTERM)),
    "launcher gets SIGUSR1": (1, TWO, launcher_signalled(signal.SIGUSR1)),
}
IN_SHORT = ("SIGKILL at any moment", "SIGTERM", "full disk")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    SyntheticDataset(64, 8).write(root, "train")
    SyntheticDataset(64, 4, first=100).write(root, "val")
    return root


def undisturbed(folder, data, *options):
    """What a training ends with, and how long it takes."""
    training = Training(folder, data, *options)
    folder.mkdir()
    started = time.monotonic()
    training.finishes()
    return training.result(), time.monotonic() - started


def disturbed(kind, number, folder, data, expected):
    """A training with a fault, and on to its end; says what it was doing when the fault came."""
    _, options, inject = FAULTS[kind]
    result, seconds = expected[TWO if options == TWO else ()]
    folder.mkdir()
    # Some faults are in the data.
    own = folder / "data"
    shutil.copytree(data, own)
    training = Training(folder, own, *options)
    moment = inject(random.Random(f"{kind} {number}"), training, seconds)
    training.finishes()
    assert training.result() == result, f"{kind} {number}: another result than undisturbed"
    left = [path.name for path in training.path.rglob(".*.tmp")]
    assert left == [], f"{kind} {number}: left behind {left}"
    shutil.rmtree(folder)
    return moment


def test_trainings_with_a_fault_end_as_undisturbed_ones(data, tmp_path):
    expected = {(): undisturbed(tmp_path / "undisturbed", data)}
    for number, kind in enumerate(IN_SHORT):
        disturbed(kind, number, tmp_path / str(number), data, expected)


@pytest.mark.slow
def test_all_faults_leave_nothing_lost_and_the_same_result(data, tmp_path, capsys):
    def outcome(position, entry):
        try:
            return disturbed(*entry, tmp_path / f"fault{position}", data, expected)
        except AssertionError as error:
            return f"FAILED {entry}: {error}"

    with ThreadPoolExecutor(2) as lanes:
        options = [(), TWO]
        folders = [tmp_path / f"undisturbed{len(one)}" for one in options]
        references = list(lanes.map(lambda folder, one: undisturbed(folder, data, *one), folders, options))
        expected = dict(zip(options, references, strict=True))
        todo = [(kind, number) for kind, (times, _, _) in FAULTS.items() for number in range(times)]
        random.Random(0).shuffle(todo)
        found = dict(zip(todo, lanes.map(lambda entry: outcome(*entry), enumerate(todo)), strict=True))
    failures = [what for what in found.values() if what.startswith("FAILED")]
    with capsys.disabled():
        print(
            f"\n{len(found)} faults, {len(found) - len(failures)} survived with the result of an undisturbed training:"
        )
        print(json.dumps(Counter(kind for kind, _ in found), indent=1))
        print("They came", json.dumps(Counter(what for what in found.values() if what not in failures)))
    assert failures == []
    hit = {kind for (kind, _), moment in found.items() if moment != TOO_LATE}
    assert hit == FAULTS.keys(), "no fault of some kind came in time"
    assert len(found) >= 50
