import pytest
import torch

from augfpn.analysis.level_ratios import LevelRatios, as_text, level_ratios, level_ratios_of_run, mean_weights_by_level
from augfpn.data import evaluation_batches, open_dataset
from augfpn.engine import train
from augfpn.experiments import plan


def test_ratios_of_a_case_worked_by_hand():
    # Two RoIs of P2 and one of P4; maps of 1 × 2 cells.
    weights = torch.tensor(
        [
            [[[0.2, 0.4]], [[0.0, 0.0]], [[1.0, 1.0]], [[0.5, 0.5]]],
            [[[0.6, 0.8]], [[0.0, 0.2]], [[0.0, 0.0]], [[0.5, 0.7]]],
            [[[0.1, 0.1]], [[0.2, 0.2]], [[0.3, 0.3]], [[0.4, 0.4]]],
        ]
    )
    ratios = mean_weights_by_level(weights, torch.tensor([0, 0, 2]))
    assert ratios.counts.tolist() == [2, 0, 1, 0]
    # Means over places 0.3, 0, 1, 0.5 and 0.7, 0.1, 0, 0.6; then over the two RoIs.
    assert ratios.means[0].tolist() == pytest.approx([0.5, 0.05, 0.5, 0.55])
    assert ratios.means[1].tolist() == [0, 0, 0, 0]
    assert ratios.means[2].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert ratios.shares[0].tolist() == pytest.approx([0.5 / 1.6, 0.05 / 1.6, 0.5 / 1.6, 0.55 / 1.6])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_ratios_over_a_data_set_do_not_depend_on_the_batches(small_model, batch_size):
    config = plan("table2/srs", "smoke").data
    batches = evaluation_batches(open_dataset(config, "val"), config, batch_size=batch_size)
    ratios = level_ratios(small_model("table2/srs"), batches, torch.device("cpu"))
    whole = next(evaluation_batches(open_dataset(config, "val"), config, batch_size=4))
    expected = level_ratios(small_model("table2/srs"), [whole], torch.device("cpu"))
    torch.testing.assert_close(ratios.means, expected.means, atol=1e-4, rtol=1e-3)
    assert ratios.counts.sum() > 0


def test_without_soft_roi_selection_every_roi_takes_all_from_its_own_level(small_model):
    config = plan("table2/baseline", "smoke").data
    batches = evaluation_batches(open_dataset(config, "val"), config, batch_size=4)
    ratios = level_ratios(small_model("table2/baseline"), batches, torch.device("cpu"))
    present = ratios.counts > 0
    assert torch.equal(ratios.means[present], torch.eye(4, dtype=torch.float64)[present])


def test_ratios_as_text_and_as_json_and_of_a_run(tmp_path):
    ratios = LevelRatios(torch.tensor([[0.5, 0.25, 0.25, 0.0]] * 4), torch.tensor([1234, 1, 0, 0]))
    lines = as_text(ratios).splitlines()
    assert lines[2].split() == [
        "P2",
        "(1,234",
        "RoIs)",
        "0.50",
        "(0.50)",
        "0.25",
        "(0.25)",
        "0.25",
        "(0.25)",
        "0.00",
        "(0.00)",
    ]
    assert ratios.to_dict()["counts"] == [1234, 1, 0, 0]
    run = train(plan("table2/srs", "smoke"), tmp_path / "run", device=torch.device("cpu"))
    whole = level_ratios_of_run(run, torch.device("cpu"))
    part = level_ratios_of_run(run, torch.device("cpu"), num_images=1)
    assert 0 < part.counts.sum() < whole.counts.sum()


@pytest.mark.parametrize(("fusion", "least", "most"), [("sum", 1, 1), ("max", 0, 1), ("acf", 0, 1)])
def test_other_fusions_have_ratios_too(small_model, fusion, least, most):
    config = plan(f"table5/srs_{fusion}", "smoke").data
    batches = evaluation_batches(open_dataset(config, "val"), config, batch_size=4)
    ratios = level_ratios(small_model(f"table5/srs_{fusion}"), batches, torch.device("cpu"))
    means = ratios.means[ratios.counts > 0]
    assert ((means >= least) & (means <= most)).all()
    if fusion == "max":
        assert means.sum(dim=1).tolist() == pytest.approx([1] * len(means))
