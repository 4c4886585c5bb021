"""The report: what its pages show, and that they hold all of it themselves."""

import json
import re
import shutil
import subprocess
from urllib.parse import unquote

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from augfpn.engine import evaluate, train
from augfpn.errors import UserError
from augfpn.experiments import plan
from augfpn.files import write_json
from augfpn.visuals import report
from augfpn.visuals.report import write_report
from augfpn.visuals.report.notebooks import report_notebooks
from augfpn.visuals.report.side_by_side import chosen_pair
from augfpn.visuals.report.tables import report_table
from tests.analysis.test_comparison import made_up_run

CPU = torch.device("cpu")
EVIL = "<img src=x onerror=alert(1)>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


LINKS = """See [the release](https://github.com/Gus-Guo/AugFPN), [what failed](failed.ipynb),
[code](../augfpn/cli.py) and [a notebook](experiment.ipynb) that was not executed."""


def notebook(title, *outputs, **metadata):
    cells = [new_markdown_cell(f"# {title}\n\n{LINKS}")]
    cells += [new_code_cell("show()", outputs=[output]) for output in outputs]
    return new_notebook(cells=cells, metadata=metadata)


def html(text):
    return new_output("display_data", {"text/html": text, "text/plain": "a view"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, one of which has a class with a name of HTML, notebooks, one of which is broken, and a result."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for name, id in (("fpn", "table2/baseline"), ("augfpn", "table2/cs+rfa+srs")):
        evaluate(train(plan(id, "smoke"), folder / name, device=CPU), CPU)
    path = folder / "fpn" / "categories.json"
    write_json(path, [{**category, "name": f"{EVIL} $x_"} for category in json.loads(path.read_text())])
    path = folder / "fpn" / "provenance.json"
    write_json(path, {**json.loads(path.read_text()), "command": f"augfpn train {EVIL}"})
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/html": "<b>the view itself</b>"}
    inner = "<body><p id=inner>still</p><script>document.getElementById(`inner`).textContent = `moved`</script>"
    view = notebook(
        "An interactive view",
        html('<p id="probe">still</p><script>document.getElementById("probe").textContent = "it " + "moved"</script>'),
        html(f'<iframe srcdoc="{inner}"></iframe>'),
        html('<img id="outside" src="https://example.com/x.png" onerror="this.alt = `not ` + `loaded`">'),
        new_output("display_data", widget),
    )
    nbformat.write(view, notebooks / "view #1.ipynb")
    nbformat.write(notebook(EVIL, papermill={"exception": True}), notebooks / "failed.ipynb")
    (notebooks / "broken.ipynb").write_text("{")
    write_json(folder / "results" / "view #1.json", {"answer": 42})
    nbformat.write(notebook("One experiment"), notebooks / "augfpn.ipynb")
    return folder


@pytest.fixture(scope="module")
def site(folder):
    return write_report([folder], folder.parent / "site", CPU).parent


def pages(site):
    return {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_the_first_page_has_every_table_with_a_row_that_was_run(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert page.count("<table>") == 5
    for part in ("Table 2. Effect of each component", "side by side", "Figure 4", "Fusion weights", "38.7", "23.31"):
        assert part in page
    # All rows are there: two run and six not; in Table 1 31 not run or quoted.
    [table_2] = re.findall(r'<h3 id="table2">.*?</table>', page, flags=re.DOTALL)
    assert table_2.count('<th scope="row">') == 8
    assert table_2.count("not run") == 6
    assert re.search(r"[+−]\d\.\d<br>\([+−]\d\.\d to [+−]\d\.\d\)", table_2)
    assert "Differences between different seeds are noise, too." in page
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", page))


def test_every_run_is_listed_with_what_it_took(site):
    page = (site / "runs.html").read_text(encoding="utf-8")
    for part in (
        "table2/baseline",
        "table2/cs+rfa+srs",
        "CPU, ",
        "2 runs together",
        "faster-coco-eval",
        "augfpn train",
    ):
        assert part in page
    assert re.search(r"<td>\d\.\d\d M</td>\s*<td>0:00:\d\d</td>\s*<td>0:00:\d\d</td>", page)
    assert '<a href="notebooks/augfpn.html">executed</a>' in page


def test_links_lead_to_files_of_the_report(site):
    assert '<a href="failed.html">what failed</a>' in pages(site)["notebooks/augfpn.html"]
    for name, page in pages(site).items():
        for target in re.findall(r'href="([^"#]+)', page):
            outside = target.startswith("https://github.com/")
            assert outside == target.startswith("http")
            assert outside or (site / name).parent.joinpath(unquote(target)).is_file(), (name, target)


def test_nothing_is_loaded_from_a_network(site):
    for name, page in pages(site).items():
        assert re.findall(r"<link|@import|url\(\s*['\"]?(?!data:)", page) == [], name
        loaded = re.findall(r"(?:src|srcset|data|poster)\s*=\s*['\"]?(https?:[^'\"\s>]*|//[^'\"\s>]*)", page)
        # The one that an output of a notebook asks for is refused by the page itself.
        assert loaded == (["https://example.com/x.png"] if "view" in name else []), name
        [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
        assert "http" not in policy
        assert "*" not in policy


def test_names_from_data_are_text(site):
    for name, page in pages(site).items():
        if name != "notebooks/failed.html":  # its own heading is the notebook's own HTML
            assert EVIL not in page, name
    assert "&lt;img src=x onerror=alert(1)&gt;" in (site / "index.html").read_text()
    assert "augfpn train &lt;img src=x" in (site / "runs.html").read_text()
    assert "<title>&lt;img src=x" in (site / "notebooks" / "failed.html").read_text()


def test_notebooks_that_failed_or_cannot_be_read_are_named(site):
    index = (site / "index.html").read_text()
    assert "It did not run to its end." in index
    assert "It did not run to its end." in (site / "notebooks" / "failed.html").read_text()
    assert re.search(r"broken\.ipynb: It cannot be read: ", index)
    assert not (site / "notebooks" / "broken.html").exists()
    assert (site / "notebooks" / "broken.ipynb").read_text() == "{"
    assert json.loads((site / "notebooks" / "view #1.json").read_text()) == {"answer": 42}


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5}', b"\xff"])
def test_whatever_is_in_a_notebooks_file_it_is_no_crash(tmp_path, content):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "a.ipynb").write_bytes(content if isinstance(content, bytes) else content.encode())
    [found] = report_notebooks([tmp_path], [])
    assert found.title == "a.ipynb"
    assert found.body is None
    assert found.problem.startswith("It cannot be read: ")


def test_notebooks_of_the_same_name_have_pages_of_their_own(tmp_path):
    for name in "ab":
        (tmp_path / name / "notebooks").mkdir(parents=True)
        nbformat.write(notebook(name), tmp_path / name / "notebooks" / "view.ipynb")
    found = report_notebooks([tmp_path / "a", tmp_path / "b"], [])
    assert [(one.name, one.title) for one in found] == [("view", "a"), ("view-2", "b")]


def test_views_are_as_they_were_in_the_notebook(site):
    page = (site / "notebooks" / "view #1.html").read_text()
    assert '<script>document.getElementById("probe").textContent' in page
    assert "<b>the view itself</b>" in page
    assert "widget-view" not in page


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_views_are_alive_in_a_browser_and_load_nothing(site, tmp_path):
    address = (site / "notebooks" / "view #1.html").resolve().as_uri()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}"]
    command = [BROWSER, *flags, "--disable-background-networking", "--dump-dom", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert '<p id="probe">it moved</p>' in dom
    assert 'alt="not loaded"' in dom


def test_an_interrupted_writing_leaves_the_older_report(tmp_path, monkeypatch):
    made_up_run(tmp_path / "runs" / "a", "table2/baseline", 0.3)
    index = write_report([tmp_path / "runs"], tmp_path / "site", CPU)
    old = index.read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "report_notebooks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report([tmp_path / "runs"], tmp_path / "site", CPU)
    assert index.read_text() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"]


def test_runs_of_figures_alone_are_a_report_without_what_they_have_not(tmp_path):
    for number, (id, ap) in enumerate({"table2/baseline": 0.3, "table2/cs": 0.33}.items()):
        (made_up_run(tmp_path / str(number), id, ap).path / "detections.json").unlink()
    page = write_report([tmp_path], tmp_path / "site", CPU).read_text()
    assert "+3.0" in page
    assert " to " not in re.search(r'<h3 id="table2">.*?</table>', page, flags=re.DOTALL).group()
    assert "side by side" not in page


def test_folders_that_make_no_report_are_refused_before_anything_is_written(tmp_path):
    made_up_run(tmp_path / "runs" / "a", "table2/cs", 0.3)
    for folders, expected in (
        ([tmp_path / "nowhere"], "nowhere is not a folder"),
        ([tmp_path / "runs" / "a" / "b"], "There is no evaluated run in"),
    ):
        (tmp_path / "runs" / "a" / "b").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=expected):
            write_report(folders, tmp_path / "site", CPU)
    with pytest.raises(UserError, match="was not made by this command"):
        write_report([tmp_path / "runs"], tmp_path / "runs", CPU)
    made_up_run(tmp_path / "runs" / "c", "table2/cs", 0.3)
    with pytest.raises(UserError, match="the same experiment with the same seed"):
        write_report([tmp_path / "runs"], tmp_path / "site", CPU)
    made_up_run(tmp_path / "runs" / "d", "table2/cs", 0.3, seed=1, steps=7)
    with pytest.raises(UserError, match="cannot be compared"):
        write_report([tmp_path / "runs"], tmp_path / "site", CPU)
    assert not (tmp_path / "site").exists()


def test_rows_are_means_over_seeds_and_gains_those_of_the_table(tmp_path):
    runs = [made_up_run(tmp_path / f"fpn{seed}", "table2/baseline", 0.3, seed=seed) for seed in (0, 1)]
    runs += [made_up_run(tmp_path / f"srs{seed}", "table2/srs", 0.32 + 0.02 * seed, seed=seed) for seed in (0, 1)]
    table = report_table("table5", runs, {"table2/srs": "its interval"})
    rows = {row.id: row for row in table.rows}
    srs = rows["table5/srs_asf"]
    assert srs.figures["AP"] == (pytest.approx(33), 37.1)
    assert srs.figures["APl"] == (None, 47.5)
    assert (srs.num_seeds, srs.state, srs.gain, srs.paper_gain, srs.difference) == (2, "", 3, 0.8, "its interval")
    assert srs.spread == pytest.approx(2**0.5)
    baseline = table.rows[0]
    assert (baseline.gain, baseline.paper_gain, baseline.difference) == (None, None, None)
    assert rows["table5/panet_max"].state == "not run"
    assert report_table("table1", runs, {}).rows[0].state == "quoted"
    assert len(table.pictures) == 2
    # Without a gain there is nothing to draw.
    assert report_table("table5", runs[:2], {}).pictures == []


def test_the_fullest_run_is_shown_with_its_baseline_of_the_same_seed(tmp_path):
    ids = (
        "table1/mask_rcnn_r50_fpn_1x",
        "table1/mask_rcnn_r50_augfpn_1x",
        "table2/baseline",
        "table2/cs",
        "table2/cs+rfa+srs",
    )
    runs = {}
    for seed in (1, 0):
        for number, id in enumerate(ids):
            runs[id, seed] = made_up_run(tmp_path / f"{number}{seed}", id, 0.3, seed=seed)
            runs[id, seed].weights.touch()
    both = list(runs.values())
    assert chosen_pair(both) == [runs["table2/baseline", 0], runs["table2/cs+rfa+srs", 0]]
    assert chosen_pair(both[:2]) == [runs[ids[0], 1], runs[ids[1], 1]]
    # Without a baseline there is nothing to lay beside: the first two.
    others = [runs["table2/cs", 0], runs["table2/cs", 1], runs["table2/cs+rfa+srs", 0]]
    assert chosen_pair(others) == others[:2]
    assert chosen_pair([runs["table2/cs", 0]]) == [runs["table2/cs", 0]]
    runs["table2/baseline", 0].weights.unlink()
    assert chosen_pair(both) == [runs["table2/baseline", 1], runs["table2/cs+rfa+srs", 1]]
