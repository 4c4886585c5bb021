"""The main job on a small scale: FPN against AugFPN on synthetic images, and a report about it.

Trains two rows of Table 2, executes the notebooks on the runs, and writes `runs/demo/report/index.html`. Interrupted,
it goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import papermill
import torch

from augfpn.engine.train import default_device
from augfpn.visuals.report import write_report

EXPERIMENTS = ("table2/baseline", "table2/cs+rfa+srs")
SCALE = "micro"
OUT = Path("runs/demo")
NOTEBOOKS = Path("notebooks")


def main() -> None:
    started = time.monotonic()
    paths = [OUT / experiment.replace("/", "_") for experiment in EXPERIMENTS]
    for number, (experiment, path) in enumerate(zip(EXPERIMENTS, paths, strict=True), start=1):
        print(f"\n[{number}/4] {experiment}", flush=True)
        command = ["train", experiment, "--scale", SCALE, "--out", str(path), "--resume"]
        subprocess.run([sys.executable, "-m", "augfpn", *command], check=True)

    print("\n[3/4] notebooks", flush=True)
    execute("table2_components", runs=str(OUT))
    execute("experiment", experiment=EXPERIMENTS[-1], scale=SCALE, run=str(paths[-1]))

    print("\n[4/4] report", flush=True)
    report = write_report([OUT], OUT / "report", default_device())
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes on {torch.get_num_threads()} threads.")
    print(report.resolve())


def execute(notebook: str, **parameters: str) -> None:
    """Executes a notebook; the executed copy stays, whole or as far as it came."""
    copy = OUT / "notebooks" / f"{notebook}.ipynb"
    copy.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(NOTEBOOKS / f"{notebook}.ipynb", copy, parameters, progress_bar=False)
    print(copy)


if __name__ == "__main__":
    main()
