import pandas as pd
import pytest
import torch

from augfpn.analysis.comparison import comparison
from augfpn.analysis.semantic_gap import MeasuredGap, SemanticGap, gap_table
from augfpn.data import SyntheticDataset
from augfpn.engine import Run
from augfpn.engine.evaluate import FIGURES
from augfpn.experiments import plan
from augfpn.visuals import plots
from augfpn.visuals.tables import shown

PNG = b"\x89PNG"


def made_up_run(path, experiment, ap, seed=0):
    run = Run.create(path, plan(experiment, "smoke", seed=seed), SyntheticDataset.categories)
    run.write_detections([])
    run.write_metrics({**dict.fromkeys(FIGURES, 0.5), "AP": ap})
    return run


@pytest.fixture
def runs(tmp_path):
    ids = ("table3/none", "table3/single_level_0.5", "table3/all_level_0.25", "table3/all_level_0.5")
    return [
        made_up_run(tmp_path / f"{number}{seed}", id, 0.3 + 0.01 * number * (1 + seed), seed)
        for number, id in enumerate(ids)
        for seed in (0, 1)
    ]


def test_bars_are_gains_of_every_row_but_baselines_and_quoted_ones(runs):
    figure = plots.ap_beside_paper(comparison(runs, "table3"))
    [axis] = figure.axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert len(rows) == 7
    assert "FPN" not in rows
    ours = {rows[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.containers[0]}
    # Mean gains of two seeds; rows that were not run have no bar.
    expected = {"CS, single level, λ 0.5": 1.5, "CS, all level, λ 0.25": 3, "CS, all level, λ 0.5": 4.5}
    assert ours == pytest.approx(expected)
    assert figure.png().startswith(PNG)


def test_table_1_has_a_bar_for_each_detector_with_augfpn():
    [axis] = plots.ap_beside_paper(comparison([], "table1")).axes
    assert len(axis.get_yticklabels()) == 12


def test_gains_over_the_weight_are_ours_and_the_papers_a_line_for_each_kind_of_supervision(runs):
    figure = plots.gain_over_weight(comparison(runs, "table3"))
    ours, papers = figure.axes
    lines = [line.get_xydata().tolist() for line in ours.lines if len(line.get_xdata()) == 2]
    assert [[0.25, pytest.approx(3)], [0.5, pytest.approx(4.5)]] in lines
    assert [0.25, pytest.approx(0.9)] in papers.lines[0].get_xydata().tolist()
    assert figure.png().startswith(PNG)
    without = plots.gain_over_weight(comparison([], "table3"))
    assert [text.get_text() for text in without.axes[0].texts] == ["not run"]
    assert without.png().startswith(PNG)


def test_what_is_shown_is_rounded_and_has_dashes():
    html = shown(pd.DataFrame({"seed": [0.0, None], "AP": [12.34, None]})).to_html()
    assert ">0<" in html
    assert ">12.3<" in html
    assert html.count("–") == 2


def test_only_losses_are_in_the_curves_of_losses(runs):
    run = runs[0]
    speed = {"images_per_second": 30.0, "waiting_seconds": 0.1, "memory_mb": 900.0, "gradient_norm": 7.0}
    run.record(
        {"step": 10, "learning_rate": 0.1, "loss": 9.0, "loss_classifier": 2.0, "loss_aux_box_reg": 7.0, **speed}
    )
    curve, _ = plots.training_curves([run]).axes
    assert curve.lines[0].get_xydata().tolist() == [[10, 2]]
    legend = plots.losses_by_component(run).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["classifier", "aux box reg"]


def made_up_gap(run, step, value):
    matrix = torch.full((2, 2), value, dtype=torch.float64)
    gap = SemanticGap(("M2", "M3"), matrix, matrix, matrix, torch.tensor([value, value / 2]), 5, "probe")
    return MeasuredGap(run, step, gap)


def test_gaps_are_drawn_as_matrices_means_accuracies_and_curves(runs):
    for run in runs[:2]:
        run.record({"step": 10})
    gaps = [made_up_gap(runs[0], 5, 0.2), made_up_gap(runs[0], None, 0.4), made_up_gap(runs[1], None, 0.8)]
    table = gap_table(gaps)
    assert table[["step", "end", "CKA", "M3"]].iloc[1].tolist() == [10, True, pytest.approx(0.4), pytest.approx(0.2)]
    matrices = plots.semantic_gap_matrices(gaps[1:])
    assert {text.get_text() for text in matrices.axes[1].texts} == {"0.80"}
    [bar] = plots.semantic_gap_means(table[table["end"]]).axes[0].patches
    assert bar.get_width() == pytest.approx(0.6)
    assert plots.accuracy_by_level(table[table["end"]]).axes[0].lines[0].get_ydata().tolist() == pytest.approx(
        [0.6, 0.3]
    )
    cka = plots.semantic_gap_along(table).axes[0].lines[0]
    assert cka.get_xydata().tolist() == [[5, pytest.approx(0.2)], [10, pytest.approx(0.6)]]


def test_ratios_of_runtimes_are_medians_with_their_range_beside_the_papers():
    ratio = {"median": 1.3, "least": 1.2, "largest": 1.6}
    both = {"training_time_ratio": ratio, "inference_time_ratio": ratio}
    paper = {"training_time_ratio": 1.22, "inference_time_ratio": 1.21}
    measured = {"runs": {"table2/baseline": {}, "table2/cs": both, "table2/cs+rfa+srs": {**both, "paper": paper}}}
    training, _ = plots.runtime_ratios(measured).axes
    places = sorted(x for line in training.lines for x in line.get_xdata())
    assert {1.2, 1.22, 1.3, 1.6} <= {round(float(x), 6) for x in places if x == x}


def test_weight_maps_of_nothing_say_so():
    [text] = plots.weight_maps([], torch.zeros(0, 4, 1, 1), []).texts
    assert text.get_text() == "no weights to show"
