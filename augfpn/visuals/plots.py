"""Plots of runs. Every function returns a figure; none shows or writes it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import NullLocator
from torch import Tensor

from augfpn.analysis.comparison import is_ablation
from augfpn.analysis.level_ratios import LEVELS, LevelRatios
from augfpn.analysis.semantic_gap import MEASURES, MeasuredGap
from augfpn.engine.runs import Run
from augfpn.experiments.paper import EXPERIMENTS, find_experiment
from augfpn.visuals.drawing import draw_detections

_GAIN = "AP points over the baseline"


class Figure(MatplotlibFigure):
    """A figure that a notebook shows where it is the value of a cell, and only there.

    Figures made by pyplot would be shown again at the end of the cell; bare ones not at all.
    """

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    _repr_png_ = png


def name_of(run: Run) -> str:
    """How a run is called in a legend: its row of the paper's table, and its seed if that is not 0."""
    title = find_experiment(run.config.experiment).title
    return f"{title}, seed {run.config.seed}" if run.config.seed else title


def training_curves(runs: Sequence[Run]) -> Figure:
    """The detector's own loss of each run, and its learning rate, over the steps.

    The auxiliary losses of Consistent Supervision are left out, so that models with and without it can be compared.
    """
    frames = []
    for run in runs:
        history = pd.DataFrame(run.history())
        if len(history):
            own = [column for column in _losses(history) if "aux" not in column]
            history["detector's loss"] = history[own].sum(axis=1)
            frames.append(history.assign(model=name_of(run)))
    figure = Figure(figsize=(11, max(3.2, 1 + 0.25 * len(frames))), layout="constrained")
    axes = figure.subplots(1, 2)
    if frames:
        history = pd.concat(frames, ignore_index=True)
        for axis, column in zip(axes, ("detector's loss", "learning_rate"), strict=True):
            sns.lineplot(history, x="step", y=column, hue="model", style="model", palette="colorblind", ax=axis)
        axes[0].legend_.remove()
        axes[1].set_ylabel("learning rate")
        sns.move_legend(axes[1], "upper left", bbox_to_anchor=(1, 1), title="")
    return figure


def losses_by_component(run: Run) -> Figure:
    """Every loss of a run over the steps; those of Consistent Supervision with their weight."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    history = pd.DataFrame(run.history())
    if len(history):
        long = history[["step", *_losses(history)]].melt("step", var_name="component", value_name="loss")
        long["component"] = long["component"].str.removeprefix("loss_").str.replace("_", " ")
        sns.lineplot(long, x="step", y="loss", hue="component", style="component", palette="colorblind", ax=axis)
        sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1))
    axis.set_title(name_of(run))
    return figure


def ap_beside_paper(table: pd.DataFrame) -> Figure:
    """The difference to its baseline of every row, ours beside the paper's: AP itself differs with the scale.

    Ours are means over the seeds, with their standard deviation. Baselines and quoted rows are left out.
    """
    rows = table[table["experiment"].map(is_ablation)]
    long = _ours_and_papers(rows, ["method"])
    figure = Figure(figsize=(8, 1 + 0.38 * rows["method"].nunique()), layout="constrained")
    axis = figure.subplots()
    sns.barplot(long, x=_GAIN, y="method", hue="whose", palette="colorblind", errorbar="sd", ax=axis)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(ylabel="")
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), title="")
    return figure


def gain_over_weight(table: pd.DataFrame) -> Figure:
    """Table 3: the gain in AP over λ, ours beside the paper's; a line for the supervision of a single level and of all.

    Ours are means over the seeds, with their standard deviation; no line where nothing was run.
    """
    settings = [EXPERIMENTS[id].settings for id in table["experiment"]]
    rows = table.assign(supervision=[row["Setting"] for row in settings])
    rows["λ"] = [float(row["λ"]) for row in settings]
    long = _ours_and_papers(rows[rows["λ"] > 0], ["λ", "supervision"])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    levels = ["all level", "single level"]
    for axis, whose in zip(axes, ("ours", "the paper's"), strict=True):
        chosen = long[long["whose"] == whose]
        sns.lineplot(
            chosen,
            x="λ",
            y=_GAIN,
            hue="supervision",
            hue_order=levels,
            style="supervision",
            style_order=levels,
            palette="colorblind",
            markers=True,
            errorbar="sd",
            err_style="bars",
            ax=axis,
        )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=whose, xscale="log", xticks=sorted(long["λ"].unique()))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        if chosen[_GAIN].isna().all():
            axis.text(0.5, 0.6, "not run", ha="center", transform=axis.transAxes)
    return figure


def _ours_and_papers(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Gains in long form, with ``whose`` they are."""
    long = rows.melt(by, ["gain", "paper gain"], var_name="whose", value_name=_GAIN).astype({_GAIN: float})
    return long.assign(whose=long["whose"].map({"gain": "ours", "paper gain": "the paper's"}))


def semantic_gap_matrices(gaps: Sequence[MeasuredGap]) -> Figure:
    """A column for each gap, a row for each measure: every level against every other one."""
    figure = Figure(figsize=(1.2 + 2.5 * len(gaps), 7), layout="constrained")
    axes = figure.subplots(len(MEASURES), len(gaps), squeeze=False)
    for row, (measure, name) in zip(axes, MEASURES.items(), strict=True):
        # Cosines have a sign.
        colours, least = ("vlag", -1) if measure == "cosine" else ("cividis", 0)
        for axis, one in zip(row, gaps, strict=True):
            matrix = pd.DataFrame(getattr(one.gap, measure).numpy(), one.gap.levels, one.gap.levels)
            last = axis is row[-1]
            sns.heatmap(
                matrix, cmap=colours, vmin=least, vmax=1, annot=True, fmt=".2f", square=True, cbar=last, ax=axis
            )
            axis.tick_params(rotation=0)
        row[0].set_ylabel(name)
    for axis, one in zip(axes[0], gaps, strict=True):
        axis.set_title(name_of(one.run), fontsize=10)
    return figure


def semantic_gap_means(table: pd.DataFrame) -> Figure:
    """A panel for each measure, a bar for each method: means over the seeds, which are the dots."""
    methods = list(table["method"].unique())
    figure = Figure(figsize=(11, 1.4 + 0.35 * len(methods)), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    for axis, measure in zip(axes, MEASURES.values(), strict=True):
        blue = sns.color_palette("colorblind")[0]
        sns.barplot(table, x=measure, y="method", order=methods, color=blue, alpha=0.6, errorbar=None, ax=axis)
        sns.stripplot(table, x=measure, y="method", order=methods, color="black", size=4, jitter=False, ax=axis)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_ylabel("")
    return figure


def accuracy_by_level(table: pd.DataFrame) -> Figure:
    """How much the classifier gets right in each level: means over the seeds, with their standard deviation."""
    levels = [name for name in table.columns if name[0] == "M" and name[1:].isdigit()]
    long = table.melt(["method", "classifier"], sorted(levels), var_name="level", value_name="share that is right")
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    sns.lineplot(
        long.dropna(),
        x="level",
        y="share that is right",
        hue="method",
        style="classifier",
        palette="colorblind",
        markers=True,
        errorbar="sd",
        err_style="bars",
        ax=axis,
    )
    axis.set_ylim(0, 1)
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1))
    return figure


def semantic_gap_along(table: pd.DataFrame) -> Figure:
    """A panel for each measure and one for accuracy, over the steps; means over the seeds, with their extremes."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    measures = [*MEASURES.values(), "right"]
    axes = figure.subplots(1, len(measures))
    for axis, measure in zip(axes, measures, strict=True):
        sns.lineplot(
            table,
            x="step",
            y=measure,
            hue="method",
            style="method",
            palette="colorblind",
            markers=True,
            errorbar=("pi", 100),
            ax=axis,
        )
        axis.legend_.remove()
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def runtime_ratios(measured: dict[str, Any]) -> Figure:
    """Of `augfpn.analysis.runtime.to_dict`: times over the baseline's, ours with the range of the rounds."""
    figure = Figure(figsize=(10, 1.6 + 0.4 * len(measured["runs"])), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    markers: list[Any] = ["o", "D"]
    for axis, kind in zip(axes, ("training", "inference"), strict=True):
        rows = []
        for id, entry in measured["runs"].items():
            name, ratio = find_experiment(id).title, f"{kind}_time_ratio"
            rows += [(name, "ours, median and range", value) for value in entry.get(ratio, {}).values()]
            rows += [(name, "the paper's", value) for value in [entry.get("paper", {}).get(ratio)] if value]
        long = pd.DataFrame(rows, columns=["method", "whose", "ratio"])
        sns.pointplot(
            long,
            x="ratio",
            y="method",
            hue="whose",
            palette="colorblind",
            hue_order=["ours, median and range", "the paper's"],
            markers=markers,
            linestyle="none",
            dodge=True,
            estimator="median",
            errorbar=("pi", 100),
            ax=axis,
        )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xlabel=f"{kind} time over the baseline's", ylabel="")
        if axis.legend_ is not None:
            axis.legend_.remove()
    if len(rows):
        axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def level_ratio_bars(ratios: LevelRatios) -> Figure:
    """Figure 4: a panel for the RoIs of each level, a bar for the share of each level."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, len(LEVELS), sharey=True)
    for level, axis in enumerate(axes):
        sns.barplot(x=list(LEVELS), y=ratios.shares[level].numpy(), color=sns.color_palette("colorblind")[0], ax=axis)
        for position, mean in enumerate(ratios.means[level].tolist()):
            axis.text(position, 0.01, f"{mean:.2f}", ha="center", color="white", fontsize=8)
        axis.set_title(f"RoIs of {LEVELS[level]} ({int(ratios.counts[level]):,})", fontsize=10)
    axes[0].set_ylabel("share of the weight")
    return figure


def side_by_side(
    images: Sequence[Tensor], columns: dict[str, Sequence[dict[str, Tensor]]], class_names: Sequence[str]
) -> Figure:
    """A row for each image ``(3, H, W)``, a column for each of the detections or ground truths of these images."""
    figure = Figure(figsize=(3.4 * len(columns), 3.4 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, found) in enumerate(columns.items()):
        axes[0][column].set_title(title)
        for row, image in enumerate(images):
            axes[row][column].imshow(np.asarray(draw_detections(image, found[row], class_names)))
            axes[row][column].axis("off")
    return figure


def weight_maps(
    crops: Sequence[Tensor], weights: Tensor, titles: Sequence[str], names: Sequence[str] = LEVELS
) -> Figure:
    """A row for each crop ``(3, h, w)``: the crop itself, then its fusion's weight maps ``weights (N, L, S, S)``.

    Says so where there is nothing to show.
    """
    if not crops:
        figure = Figure(figsize=(4, 0.6))
        figure.text(0.5, 0.5, "no weights to show", ha="center", va="center")
        return figure
    figure = Figure(figsize=(1.9 * (1 + len(names)), 1.9 * len(crops)), layout="constrained")
    axes = figure.subplots(len(crops), 1 + len(names), squeeze=False)
    for row, (crop, maps) in enumerate(zip(crops, weights, strict=True)):
        axes[row][0].imshow(crop.permute(1, 2, 0).numpy())
        # A class can be called anything, with dollars too.
        axes[row][0].set_title(titles[row], fontsize=9, parse_math=False)
        for column, name in enumerate(names, start=1):
            drawn = axes[row][column].imshow(maps[column - 1].numpy(), vmin=0, vmax=1, cmap="cividis")
            axes[row][column].set_title(f"{name}  {maps[column - 1].mean():.2f}", fontsize=9)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="weight")
    return figure


def _losses(history: pd.DataFrame) -> list[str]:
    """The columns that are the loss of one component; a line of metrics.jsonl has others, too."""
    return [column for column in map(str, history) if column.startswith("loss_")]
