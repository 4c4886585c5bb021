"""What was killed goes on where it was, as if nothing had happened: the scheduler, a training, a notebook's kernel."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from augfpn.engine import Run, evaluate, train
from augfpn.experiments import plan

BASELINE, CS = "table2/baseline", "table2/cs"
SECONDS = 240


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same runs, made one after the other in this process, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {}
    for id in (BASELINE, CS):
        runs[id] = train(plan(id, "smoke"), folder / id, device=torch.device("cpu"))
        evaluate(runs[id], torch.device("cpu"))
    torch.set_num_threads(threads)
    return runs


def start(folder, *targets):
    command = [sys.executable, "-m", "augfpn", "reproduce", *targets, "--scale", "smoke"]
    # A job for each core, so that each has one thread, on which results depend.
    options = ["--out", "runs", "--jobs", str(os.cpu_count())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(what, of):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := what():
            return found
        assert of.poll() is None, f"ended before that:\n{of.stdout.read()}"
        time.sleep(0.005)
    raise AssertionError("it did not come to that")


def descendants(process, *words):
    """Processes below this one, with these words on their command lines."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            line = " ".join(one.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            found.append(one)
    return found


def finish(folder, *targets):
    process = start(folder, *targets)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    return output


def check_equal_to(undisturbed, folder, *targets, resumed=()):
    for id in targets:
        reference = undisturbed[id]
        run = Run(folder / "runs" / id / "seed0")
        assert run.weights.read_bytes() == reference.weights.read_bytes()
        assert run.detections == reference.detections
        assert [line["step"] for line in run.history()] == [1, 2, 3, 4]
        assert len(run.provenance.get("resumed", [])) == (1 if id in resumed else 0)
        begun = (run.path / "train.log").read_text().count(f"{id} at smoke:")
        assert begun == (2 if id in resumed else 1)
        result = json.loads((folder / "runs" / "results" / id / "seed0.json").read_text())
        assert result["AP"] == reference.metrics["AP"]
    assert (folder / "runs" / "report" / "index.html").is_file()
    assert not list((folder / "runs").rglob("*.tmp"))


@pytest.mark.slow
def test_a_scheduler_that_is_killed(tmp_path, undisturbed):
    process = start(tmp_path, CS)
    wait_for((tmp_path / "runs" / CS / "seed0" / "run.json").is_file, process)
    [scheduler] = descendants(process, "-m snakemake")
    scheduler.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "The workflow ended with status -9" in output
    # At once, while the job of the first still is at work: it is waited for.
    finish(tmp_path, CS)
    check_equal_to(undisturbed, tmp_path, CS)


def test_a_training_that_is_killed(tmp_path, undisturbed):
    process = start(tmp_path, BASELINE, CS)
    run = tmp_path / "runs" / CS / "seed0"
    [training, *_] = wait_for(lambda: descendants(process, f"augfpn train {CS} "), process)
    wait_for(lambda: list((run / "checkpoints").glob("step_*")), process)
    training.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert f"{CS}/seed0 failed" in output
    assert "Training failed with status -9" in output
    assert f"Alone: augfpn reproduce {CS} --scale smoke --out runs --jobs {os.cpu_count()}" in output
    assert "1 of 3 done, 1 failed, 1 left" in output
    assert not (tmp_path / "runs" / "results" / CS / "seed0.json").exists()
    output = finish(tmp_path, BASELINE, CS)
    assert f"{BASELINE}/seed0 started" not in output
    check_equal_to(undisturbed, tmp_path, BASELINE, CS, resumed=(CS,))


@pytest.mark.slow
def test_a_kernel_that_is_killed(tmp_path, undisturbed):
    process = start(tmp_path, CS)
    [training, *_] = wait_for(lambda: descendants(process, f"augfpn train {CS} "), process)
    wait_for((tmp_path / "runs" / CS / "seed0" / "run.json").is_file, process)
    kernel = training.parent()
    assert "ipykernel" in " ".join(kernel.cmdline())
    kernel.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert f"{CS}/seed0 failed" in output
    assert "DeadKernelError" in output
    # Though papermill has marked every cell as completed.
    assert not (tmp_path / "runs" / "results" / CS / "seed0.json").exists()
    finish(tmp_path, CS)
    # The training itself went on, and was waited for.
    check_equal_to(undisturbed, tmp_path, CS)
