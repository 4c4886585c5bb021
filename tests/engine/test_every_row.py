"""Every row of the paper that can be run is trained and evaluated, at the smoke scale."""

import math

import pytest
import torch
from safetensors.torch import load_file

from augfpn.engine import evaluate, train
from augfpn.engine.evaluate import FIGURES, MASK_FIGURES
from augfpn.experiments import EXPERIMENTS, plan, run_as

CPU = torch.device("cpu")
# Rows that are the same model are one run.
RUNS = list(dict.fromkeys(run_as(id, "smoke") for id in EXPERIMENTS))


@pytest.mark.parametrize("experiment", RUNS)
def test_a_row_is_trained_evaluated_and_loaded(tmp_path, experiment):
    run = train(plan(experiment, "smoke"), tmp_path, device=CPU)
    assert run.config.experiment == experiment
    assert run.history()[-1]["step"] == run.config.training.steps
    for line in run.history():
        losses = {name: value for name, value in line.items() if name.startswith("loss")}
        assert losses["loss"] == pytest.approx(math.fsum(losses.values()) - losses["loss"], rel=1e-4)
        assert all(math.isfinite(value) for value in line.values())

    metrics = evaluate(run, CPU)
    has_masks = "/mask_rcnn" in experiment
    assert set(FIGURES) <= metrics.keys()
    assert (set(MASK_FIGURES) <= metrics.keys()) == has_masks
    # None is where there is nothing to measure.
    figures = [metrics[name] for name in (*FIGURES, *(MASK_FIGURES if has_masks else ()))]
    assert all(figure is None or 0 <= figure <= 1 for figure in figures)

    loaded, written = run.load_model(CPU).state_dict(), load_file(run.weights)
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())
