"""What FPN and AugFPN do on the same images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from augfpn.analysis.comparison import find_baseline
from augfpn.analysis.level_ratios import level_ratios_of_run
from augfpn.engine.runs import Run
from augfpn.experiments.paper import find_experiment
from augfpn.visuals import plots
from augfpn.visuals.plots import name_of
from augfpn.visuals.report.pictures import Picture, picture
from augfpn.visuals.samples import sample_detections, sample_fusion, sample_images

# Images that are shown with detections.
SHOWN = 4


def chosen_pair(runs: Sequence[Run]) -> list[Run]:
    """The run with the most of AugFPN's components and its baseline with the same seed; else the first two.

    The paper's own detector comes before others, and smaller seeds before larger ones. Only of runs whose weights are
    there.
    """
    trained = [run for run in runs if run.is_trained]
    for fullest in sorted(trained, key=_rank):
        baselines = [
            run for run in trained if run.config.experiment == find_baseline(fullest) != fullest.config.experiment
        ]
        same_seed = [run for run in baselines if run.config.seed == fullest.config.seed]
        if same_seed:
            return [same_seed[0], fullest]
    return trained[:2]


def _rank(run: Run) -> tuple[int, bool, int]:
    model = run.config.model
    parts = (
        model.consistent_supervision,
        model.residual_feature_augmentation,
        getattr(model, "soft_roi_selection", None),
    )
    other_detector = find_experiment(run.config.experiment).method != "Faster R-CNN"
    return -sum(part is not None for part in parts), other_detector, run.config.seed


def pictures_of(runs: Sequence[Run], device: torch.device) -> dict[str, Picture]:
    """``curves``, ``losses``, ``detections``; ``ratios`` and ``weights`` if the last has Soft RoI Selection."""
    samples = sample_images(runs[0], SHOWN)
    models = [run.load_model(device) for run in runs]
    columns: dict[str, Sequence[dict[str, Tensor]]] = {"ground truth": samples.ground_truth}
    for run, model in zip(runs, models, strict=True):
        columns[name_of(run)] = sample_detections(run, samples, device, model)
    names = [category.name for category in runs[0].categories]
    last, model = runs[-1], models[-1]
    figures = {
        "curves": (plots.training_curves(runs), "Loss and learning rate of each run over the steps"),
        "losses": (plots.losses_by_component(last), f"Losses of {name_of(last)} by component, over the steps"),
        "detections": (
            plots.side_by_side(samples.images, columns, names),
            "Ground truth and the detections of each model on the same images",
        ),
    }
    if getattr(last.config.model, "soft_roi_selection", None) is not None:
        ratios = level_ratios_of_run(last, device, model=model)
        figures["ratios"] = (plots.level_ratio_bars(ratios), "Share of each level in the RoIs of each level")
        rois = sample_fusion(last, samples, device, model)
        if rois.crops:
            figures["weights"] = (
                plots.weight_maps(rois.crops, rois.weights, rois.titles),
                "The surest detection of each image with its four weight maps",
            )
    return {name: picture(figure, description) for name, (figure, description) in figures.items()}
