"""Tables and the whole paper in one command, at the smoke scale."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import nbformat
import pytest

from augfpn.engine import Run
from augfpn.errors import UserError
from augfpn.reproduction import Request, jobs_of
from augfpn.reproduction.workflow import describe
from augfpn.reproduction.workflow import reproduce as start


def augfpn(folder, *arguments, timeout=600):
    # A job a core, with a thread each.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "augfpn", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def reproduce(folder, *arguments, timeout=600):
    return augfpn(folder, "reproduce", *arguments, "--scale", "smoke", "--jobs", str(os.cpu_count()), timeout=timeout)


def check_whole(folder, request):
    """Every run is evaluated, every notebook was executed to its end, without an error."""
    jobs = jobs_of(request)
    for job in jobs.values():
        assert (folder / job.result).stat().st_size > 0
        if job.run is not None:
            assert Run.open(folder / job.run).is_evaluated
        if job.notebook is not None:
            assert "provenance" in json.loads((folder / job.result).read_text())
            cells = nbformat.read(folder / job.copy, as_version=4).cells
            code = [cell for cell in cells if cell.cell_type == "code"]
            assert all(cell.execution_count is not None for cell in code)
            assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    return jobs


def missing(request):
    """What a dry run names: jobs, their lines, and the one below them."""
    *lines, headline, _ = describe(request).splitlines()
    return [line.split()[0] for line in lines], lines, headline


@pytest.mark.slow
def test_a_table_with_a_failure_that_stays_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What a full disk may have left stands in the way of one row.
    broken = tmp_path / "runs/smoke/table2/srs/seed0/run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    first = reproduce(tmp_path, "table2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "0 of 8 runs, 0 of 1 notebooks done" in first.stdout
    assert "[7/10]" in first.stdout
    assert "table2/srs/seed0 failed (exit status 1). The end of runs/smoke/logs/table2/srs/seed0.log:" in first.stdout
    assert "table2/srs/seed0/run.json cannot be read" in first.stdout
    assert f"Alone: augfpn reproduce table2/srs --scale smoke --jobs {os.cpu_count()}\n" in first.stdout
    assert "7 of 10 done, 1 failed, 2 left that were stopped or need those." in first.stdout
    seen = augfpn(tmp_path, "status", "runs/smoke").stdout
    assert "7 of 8 runs, 0 of 1 notebooks done; 0 at work; 1 failed" in seen
    assert "runs/smoke/logs/table2/srs/seed0.log" in seen
    assert "Nothing is at work now." in seen

    broken.unlink()
    names, lines, _ = missing(TABLE_2)
    assert names == ["table2/srs/seed0", "table2_components", "report"]
    assert "s, as others" in lines[0]
    done = {job.copy: (tmp_path / job.copy).stat().st_mtime_ns for job in jobs_of(TABLE_2).values() if job.run}
    second = reproduce(tmp_path, "table2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "All done: runs/smoke/report/index.html" in second.stdout
    done_again = [copy for copy in done if (tmp_path / copy).stat().st_mtime_ns != done[copy]]
    assert done_again == [jobs_of(TABLE_2)["table2/srs/seed0"].copy]
    check_whole(tmp_path, TABLE_2)
    table = json.loads((tmp_path / "runs/smoke/results/table2_components.json").read_text())
    assert "table2/cs+rfa+srs" in json.dumps(table)

    # Nothing is left; where a run was made again, its table is, too.
    names, _, headline = missing(TABLE_2)
    assert names == []
    assert headline.startswith("8 of 8 runs, 1 of 1 notebooks done")
    os.utime(tmp_path / "runs/smoke/results/table2/cs/seed0.json")
    assert missing(TABLE_2)[0] == ["table2_components", "report"]

    # Results do not tell on which images they were made; runs do.
    refused = (
        r"table2/baseline/seed0 holds another run than the one that is asked for .*Choose another folder \(--out\)"
    )
    with pytest.raises(UserError, match=refused):
        start(replace(TABLE_2, data=str(tmp_path)))


TABLE_2 = Request(targets=("table2",), scale="smoke")


@pytest.mark.slow
def test_the_whole_paper(tmp_path):
    done = reproduce(tmp_path, "all", timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = check_whole(tmp_path, Request(scale="smoke"))
    assert len(jobs) == 48 + 11 + 1
    again = reproduce(tmp_path, "all")
    assert again.returncode == 0
    assert "started" not in again.stdout
