"""The registry against the paper's tables."""

import os
import re
from dataclasses import astuple
from pathlib import Path

import pytest

from augfpn.experiments import EXPERIMENTS, PAPER
from augfpn.experiments.inconsistencies import INCONSISTENCIES, notes_of
from augfpn.experiments.paper import SECTION_4_5, TABLES
from augfpn.experiments.rows import QuotedRow


def rows_of(table):
    return [row for row in PAPER.values() if row.table == table]


def test_every_table_has_all_of_its_rows():
    assert {table: len(rows_of(table)) for table in TABLES} == {
        "table1": 33, "table2": 8, "table3": 8, "table4": 12, "table5": 6,
    }  # fmt: skip
    quoted = [row for row in PAPER.values() if isinstance(row, QuotedRow)]
    assert len(quoted) == 9
    assert {row.table for row in quoted} == {"table1"}
    assert len(EXPERIMENTS) == 24 + 8 + 8 + 12 + 6


def test_every_published_figure_is_there_and_is_a_percentage():
    for row in PAPER.values():
        published = [row.published, *([row.published_masks] if row.published_masks else [])]
        for figures in map(astuple, published):
            assert len(figures) == 6
            assert all(0 < figure < 100 for figure in figures)
            ap, ap50, ap75, small, medium, large = figures
            assert ap50 > ap75
            assert ap50 > ap
            assert small < medium < large
    with_masks = [row for row in PAPER.values() if row.published_masks]
    assert [row.method.split("R-CNN")[0] for row in with_masks] == 6 * ["Mask "]


def test_the_improvements_in_brackets_are_the_differences_of_the_rows():
    ours = [row for row in EXPERIMENTS.values() if row.gain is not None]
    assert len(ours) == 12
    for row in ours:
        baseline = EXPERIMENTS[row.baseline]
        # To a rounding of 0.1 would do; they are exact.
        assert row.gain == pytest.approx(row.published.AP - baseline.published.AP, abs=1e-9)
        assert (row.mask_gain is None) == (row.published_masks is None)
        if row.mask_gain is not None:
            assert row.mask_gain == pytest.approx(row.published_masks.AP - baseline.published_masks.AP, abs=1e-9)
    assert [row.gain for row in ours] == [1.6, 1.3, 0.9, 2.3, 1.7, 1.8, 1.4, 1.3, 1.6, 2.0, 1.5, 1.6]


def test_table_2_has_all_eight_combinations():
    components = ("consistent_supervision", "residual_feature_augmentation", "soft_roi_selection")
    combinations = [
        tuple(getattr(row.model, component) is not None for component in components) for row in rows_of("table2")
    ]
    # The order that the check marks of the printed table have.
    assert combinations == [
        (False, False, False), (True, False, False), (False, True, False), (False, False, True),
        (True, True, False), (True, False, True), (False, True, True), (True, True, True),
    ]  # fmt: skip


def test_rows_that_are_one_model_have_the_same_figures_but_for_the_inconsistency_that_is_named():
    """The ablations are all on val2017; Table 1 is on test-dev."""
    ablations = [row for row in EXPERIMENTS.values() if row.table != "table1"]
    different = {
        (one.id, other.id)
        for one in ablations
        for other in ablations
        if one.id < other.id and one.model == other.model and one.published != other.published
    }
    assert different == {("table2/rfa", "table4/asf_raap_0.1_0.2_0.3")}
    named = next(entry for entry in INCONSISTENCIES if entry.where == "Tables 2 and 4")
    assert set(named.rows) == {"table2/rfa", "table4/asf_raap_0.1_0.2_0.3"}
    two, four = (PAPER[id].published for id in named.rows)
    assert (two.APm, two.APl, four.APm, four.APl) == (41.3, 47.2, 41.1, 47.4)


def test_inconsistencies_are_kept_as_printed_and_are_of_rows_that_exist():
    retinanet, faster = (PAPER[f"table1/quoted_{name}_r101"].published for name in ("retinanet", "faster_rcnn"))
    assert astuple(retinanet)[1:] == astuple(faster)[1:]
    assert retinanet.AP != faster.AP
    for number, entry in enumerate(INCONSISTENCIES, start=1):
        assert all(number in notes_of(id) for id in entry.rows)
        assert set(entry.rows) <= PAPER.keys()
    assert not notes_of("table2/baseline")


def test_the_readme_lists_the_inconsistencies():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for entry in INCONSISTENCIES:
        assert f"| {entry.where} | {entry.what} | {entry.here} |" in readme


def test_section_4_5():
    fpn, augfpn = SECTION_4_5["table2/baseline"], SECTION_4_5["table2/cs+rfa+srs"]
    assert (fpn.hours_per_epoch, augfpn.hours_per_epoch) == (0.9, 1.1)
    assert (fpn.images_per_second, augfpn.images_per_second) == (13.4, 11.1)


def test_every_baseline_is_one_and_is_in_the_same_table():
    for row in EXPERIMENTS.values():
        baseline = EXPERIMENTS[row.baseline]
        assert baseline.baseline == baseline.id
        assert baseline.table == row.table
        assert baseline.training == row.training


@pytest.fixture(scope="module")
def printed():
    """The figures of each table of the paper's text, a list a row; in Mask R-CNN's rows boxes, then masks."""
    path = os.environ.get("AUGFPN_PAPER")
    if not path or not Path(path).is_file():
        pytest.skip("AUGFPN_PAPER does not name the paper as Markdown, with tables of cells between tabs")
    tables = {}
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if len(cells) >= 8 and re.match(r"\d", cells[-1]):
            # Brackets hold improvements.
            cells = [re.sub(r"\[.*?\]", "", cell) for cell in cells[-6:]]
            boxes = [float(cell.split("(")[0]) for cell in cells]
            rows.append(boxes + [float(cell.split("(")[1].rstrip(")")) for cell in cells if "(" in cell])
        if caption := re.match(r"Table (\d)\. ", line):
            tables[f"table{caption[1]}"], rows = rows, []
    return tables


@pytest.mark.parametrize("table", TABLES)
def test_every_figure_is_the_papers(printed, table):
    ours = [
        [*astuple(row.published), *(astuple(row.published_masks) if row.published_masks else ())]
        for row in rows_of(table)
    ]
    assert ours == printed[table]
