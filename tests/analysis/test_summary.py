"""The README's table is what the recorded results say."""

import json
import re
import runpy
from pathlib import Path

import pytest

from augfpn.analysis.summary import as_markdown
from augfpn.errors import UserError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "micro"


def test_the_table_of_the_readme_is_made_of_the_recorded_results():
    with_table = runpy.run_path(str(ROOT / "pipelines" / "keep_results.py"))["with_table"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- results: begin -->\n| | AP |" in readme
    assert with_table(readme, as_markdown(RESULTS)) == readme


def test_a_row_is_what_its_files_say():
    """By hand, from the files themselves."""

    def ap(row, seed):
        return json.loads((RESULTS / "table2" / row / f"seed{seed}" / "metrics.json").read_text())["AP"]

    difference = json.loads((RESULTS / "differences.json").read_text())["differences"]["table2/cs"]
    mean = 100 * sum(ap("cs", seed) for seed in range(3)) / 3
    gain = mean - 100 * sum(ap("baseline", seed) for seed in range(3)) / 3
    [line] = re.findall(r"^\| CS \(3 seeds\) \| (.*) \|$", as_markdown(RESULTS), re.MULTILINE)
    row = line.split(" | ")
    assert float(row[0]) == pytest.approx(mean, abs=0.051)
    assert float(row[1]) == pytest.approx(gain, abs=0.051)
    low, high = (float(bound.replace("−", "-")) for bound in row[2].split(" to "))
    assert (low, high) == (pytest.approx(difference["low"], abs=0.051), pytest.approx(difference["high"], abs=0.051))
    assert row[3] == ("yes" if low > 0 else "no")
    # Table 2: 37.2 and 36.3.
    assert row[4] == "+0.9"


def test_rows_that_are_the_same_model_stand_in_every_table():
    table = as_markdown(RESULTS)
    same = re.findall(r"^\| (?:CS|CS, all level, λ 0.25) \(3 seeds\) \| (.*)$", table, re.M)
    assert len(same) == 2
    assert len(set(same)) == 1


def test_results_without_differences_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no .*differences.json; `augfpn compare RUNS --out"):
        as_markdown(tmp_path)
