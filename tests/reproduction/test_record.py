"""Jobs leave behind how they went, and only one process does a job at a time."""

import json
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from augfpn.experiments.scales import SCALES
from augfpn.reproduction import Job, Request
from augfpn.reproduction.progress import Times, headline, in_words, progress_of
from augfpn.reproduction.record import INTERRUPTED, main, record_path


@pytest.fixture
def job(tmp_path):
    return Job(
        name="job",
        target="job",
        command=(),
        result=tmp_path / "results" / "job.json",
        log=tmp_path / "logs" / "job.log",
        resources=SCALES["smoke"].resources,
    )


def record(job, code):
    job.result.parent.mkdir(exist_ok=True)
    return main([str(job.result), str(job.log), sys.executable, "-c", code])


def state(job):
    one = progress_of({"job": job})["job"]
    return one.state, one.note


def test_a_job_that_ends_well_and_left_its_result_is_done(job):
    assert state(job) == ("waiting", "")
    assert record(job, f"print('at it'); open({str(job.result)!r}, 'w').write('1')") == 0
    assert state(job) == ("done", "")
    assert "at it" in job.log.read_text()
    assert json.loads(record_path(job.log).read_text())["status"] == 0


@pytest.mark.parametrize(
    ("code", "status", "note"),
    [
        ("raise SystemExit(3)", 3, "exit status 3"),
        ("pass", 1, "ended well, but did not write"),
        ("import os; os.kill(os.getpid(), 9)", 137, "ended by SIGKILL"),
    ],
)
def test_any_other_job_has_failed(job, code, status, note):
    job.result.parent.mkdir(parents=True)
    # What an earlier one left is none of this one's.
    job.result.write_text("old")
    assert record(job, code) == status
    assert state(job)[0] == "failed"
    assert note in state(job)[1]
    assert not job.result.exists()


def test_a_job_whose_recorder_was_killed_is_interrupted(job):
    job.result.parent.mkdir(parents=True)
    arguments = [str(job.result), str(job.log), sys.executable, "-c", "import time; time.sleep(2)"]
    process = subprocess.Popen([sys.executable, "-m", "augfpn.reproduction.record", *arguments])
    while not record_path(job.log).is_file():
        time.sleep(0.01)
    assert state(job) == ("running", "")
    # It has started its command: until that is another program, it holds the lock, too.
    time.sleep(1)
    process.kill()
    process.wait()
    assert state(job) == ("interrupted", "")


def test_one_process_waits_for_another_and_has_nothing_left_to_do(job):
    job.result.parent.mkdir(parents=True)
    write = f"import time; time.sleep(1); open({str(job.result)!r}, 'w').write('first')"
    arguments = [sys.executable, "-m", "augfpn.reproduction.record", str(job.result), str(job.log)]
    first = subprocess.Popen([*arguments, sys.executable, "-c", write])
    while not record_path(job.log).is_file():
        time.sleep(0.01)
    second = subprocess.run([*arguments, sys.executable, "-c", "raise SystemExit(9)"], capture_output=True, text=True)
    assert (first.wait(), second.returncode) == (0, 0)
    assert "waiting for it" in second.stdout
    assert job.result.read_text() == "first"


def test_sigterm_reaches_the_command_and_is_waited_for(job):
    job.result.parent.mkdir(parents=True)
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(5)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "augfpn.reproduction.record", str(job.result), str(job.log), sys.executable, "-c", code]
    )
    while not job.log.is_file() or "ready" not in job.log.read_text():
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=20) == INTERRUPTED
    assert "saved" in job.log.read_text()
    assert state(job)[0] == "interrupted"


def test_times_come_from_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("augfpn.reproduction.progress.CHECKOUT", tmp_path)
    request = Request(targets=("table2/cs", "table2/srs"), scale="smoke", out=str(tmp_path / "runs"))
    from augfpn.reproduction import jobs_of

    jobs = jobs_of(request)
    assert Times(request).remaining(progress_of(jobs), 1) == (0, 3)
    for id, seconds in (("table2/cs", 100.0), ("table2/rfa", 60.0)):
        measured = tmp_path / "results" / "smoke" / id / "seed0" / "metrics.json"
        measured.parent.mkdir(parents=True)
        measured.write_text(json.dumps({"training_seconds": seconds, "seconds": 10.0}))
    times = Times(request)
    assert times.seconds(jobs["table2/cs/seed0"]) == 110
    assert times.knows(jobs["table2/cs/seed0"])
    # Never run: the median of the others.
    assert times.seconds(jobs["table2/srs/seed0"]) == 90
    assert not times.knows(jobs["table2/srs/seed0"])
    assert times.remaining(progress_of(jobs), at_once=2) == (100, 1)

    # Half of its steps are made.
    run = jobs["table2/cs/seed0"].run
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 2, "seconds": 5}\n{"step": 3')
    (run / "provenance.json").write_text(json.dumps({"derived": {"num_steps": 4}}))
    progress = progress_of(jobs)
    assert progress["table2/cs/seed0"].note == "step 2 of 4"
    assert times.remaining(progress, at_once=1) == (55 + 90, 1)
    assert headline(request, progress) == "0 of 2 runs done; 0 at work; about 2 min left; 1 not measured yet"


def test_words_for_times():
    assert [in_words(seconds) for seconds in (20, 100, 5000, 10000)] == ["20 s", "2 min", "83 min", "2.8 h"]


def test_a_lock_that_is_held_elsewhere_is_not_broken_by_looking(job):
    job.log.parent.mkdir(parents=True)
    record(job, f"open({str(job.result)!r}, 'w').write('1')")
    with FileLock(job.log.with_suffix(".lock")):
        assert state(job)[0] == "done"
