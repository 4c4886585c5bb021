"""Keeps what a reproduction found as small files beside the code, and writes the README's table from them.

    python pipelines/keep_results.py runs/micro results/micro

Of each run its description, figures and provenance; of each notebook its result; of all runs the differences to their
baselines, with their intervals.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import torch

from augfpn.analysis.comparison import find_runs
from augfpn.analysis.significance import differences_to_baselines
from augfpn.analysis.summary import as_markdown
from augfpn.engine.runs import write_measured
from augfpn.files import write_text

README = Path(__file__).parents[1] / "README.md"
FILES = ("run.json", "metrics.json", "provenance.json")


def main(runs: Path, results: Path) -> None:
    found = find_runs(runs)
    for table in results.glob("table*"):
        shutil.rmtree(table)
    for run in found:
        kept = results / run.path.relative_to(runs)
        kept.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(run.path / name, kept / name)
    for result in sorted((runs / "results").glob("*.json")):
        (results / "notebooks").mkdir(exist_ok=True)
        shutil.copyfile(result, results / "notebooks" / result.name)
    differences = {id: vars(difference) for id, difference in differences_to_baselines(found).items()}
    write_measured(results / "differences.json", {"differences": differences}, torch.device("cpu"))
    write_text(README, with_table(README.read_text(encoding="utf-8"), as_markdown(results)))


def with_table(readme: str, table: str) -> str:
    """The README with this table between its two comments."""
    between = re.compile(r"(<!-- results: begin -->\n).*(<!-- results: end -->)", re.DOTALL)
    changed, times = between.subn(lambda found: found[1] + table + found[2], readme)
    if times != 1:
        raise SystemExit(f"The README has {times} places between <!-- results: begin --> and end, and must have one.")
    return changed


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
