"""Our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.experiments.config import RunConfig, differences
from augfpn.experiments.paper import EXPERIMENTS, PAPER, TABLES, find_experiment
from augfpn.experiments.rows import FIGURES, Experiment
from augfpn.experiments.scales import at_scale, run_as

# The column of instance masks' AP, in tables that have any.
MASK_AP = "mask AP"


def find_runs(root: Path | str, scale: str | None = None, table: str | None = None) -> list[Run]:
    """All evaluated runs in or below ``root``, of a scale or of any, and with a row in a table or in any.

    A UserError if there are none, or if they cannot be compared with one another.
    """
    runs = [run for run in evaluated_runs(root) if scale in (None, run.config.scale)]
    runs = runs if table is None else runs_in(table, runs)
    if not runs:
        wanted = "evaluated run" + (f" of scale {scale!r}" if scale else "") + (f" of {table}" if table else "")
        raise UserError(f"There is no {wanted} in {root}; name the folder of your runs, or make some with `make demo`.")
    check_comparable(runs)
    return runs


def evaluated_runs(root: Path | str) -> list[Run]:
    """All evaluated runs in or below ``root``, but for those in hidden folders."""
    paths = (path for path in sorted(Path(root).rglob("run.json")) if not _is_hidden(path.relative_to(root)))
    runs = [Run(path.parent) for path in paths]
    return [run for run in runs if run.is_evaluated]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def check_comparable(runs: Iterable[Run]) -> None:
    """A UserError unless all runs are of one scale and the same data, and of the same training as their baseline's.

    What was changed in a model besides its experiment, such as the backbone's weights, must be so in its baseline, too.
    """
    first_of: dict[str, Run] = {}
    for run in runs:
        overall, of_baseline = first_of.setdefault("", run), first_of.setdefault(find_baseline(run), run)
        for first, training in ((overall, overall.config.training), (of_baseline, run.config.training)):
            same = replace(
                run.config,
                experiment=first.config.experiment,
                model=first.config.model,
                seed=first.config.seed,
                training=training,
                # Masks are loaded for those that need them; the images are the same.
                data=replace(run.config.data, masks=first.config.data.masks),
            )
            if different := differences(first.config, same):
                raise UserError(
                    f"{first.path} and {run.path} cannot be compared, because more than their models differs: "
                    f"{'; '.join(different)}. Keep runs of different data or training in folders of their own."
                )
        first = first_of[find_baseline(run)]
        if overrides(first.config) != overrides(run.config):
            raise UserError(
                f"{first.path} and {run.path} cannot be compared, because their models differ from their experiments' "
                f"in different ways: {'; '.join(overrides(first.config)) or 'not at all'}, and "
                f"{'; '.join(overrides(run.config)) or 'not at all'}."
            )


def overrides(config: RunConfig) -> tuple[str, ...]:
    """In what a run's model differs from its experiment's at its scale, such as in the backbone's weights."""
    model, _ = at_scale(config.experiment, config.scale)
    return tuple(differences(model, config.model))


def find_baseline(run: Run) -> str:
    """The id under which the baseline of the run's row is run at its scale."""
    return run_as(find_experiment(run.config.experiment).baseline, run.config.scale)


def comparison(runs: Iterable[Run], table: str) -> pd.DataFrame:
    """A row for each run of each row of a table, in the paper's order, with our figures and the paper's, in percent.

    Columns: ``experiment``, ``method``, ``scale``, ``seed``; for each of AP, AP50, AP75, APs, APm, APl ours under its
    name and the paper's under ``paper AP`` and so on; the difference of AP to the baseline's, ours as ``gain`` (same
    data, training, scale and seed) and the paper's as ``paper gain``; for tables with Mask R-CNN ``mask AP`` and
    ``paper mask AP``. Rows that were not run have none of ours; those that the paper quotes have no gain either. A run
    stands in every row that is the same model (`augfpn.experiments.scales.run_as`).
    """
    runs = list(runs)
    ap_of = {_conditions(run.config, run.config.experiment): run.metrics["AP"] for run in runs}
    rows = []
    for printed in PAPER.values():
        if printed.table != table:
            continue
        paper = {f"paper {name}": value for name, value in asdict(printed.published).items()}
        if printed.published_masks is not None:
            paper[f"paper {MASK_AP}"] = printed.published_masks.AP
        row = {"experiment": printed.id, "method": printed.title, **paper}
        if not isinstance(printed, Experiment):
            rows.append(row)
            continue
        row["paper gain"] = round(printed.published.AP - EXPERIMENTS[printed.baseline].published.AP, 1)
        own_runs = runs_of(printed.id, runs)
        for run in own_runs:
            ours = {name: _percent(run.metrics[name]) for name in FIGURES}
            ours[MASK_AP] = _percent(run.metrics.get("mask_AP"))
            config = run.config
            baseline, own = ap_of.get(_conditions(config, printed.baseline)), run.metrics["AP"]
            gain = None if baseline is None or own is None else _percent(own - baseline)
            rows.append({**row, "scale": config.scale, "seed": config.seed, **ours, "gain": gain})
        if not own_runs:
            rows.append(row)
    columns = ["experiment", "method", "scale", "seed"]
    names = [*FIGURES, MASK_AP] if any(f"paper {MASK_AP}" in row for row in rows) else FIGURES
    columns += [column for name in names for column in (name, f"paper {name}")]
    return pd.DataFrame(rows).reindex(columns=[*columns, "gain", "paper gain"])


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """From a `comparison`, by method: the mean gain in AP over the seeds, its standard deviation, and the paper's gain.

    ``seeds``: how many the mean is of; 0 for rows that were not run, or whose baseline was not. Baselines and rows that
    the paper quotes are left out.
    """
    rows = table[table["experiment"].map(is_ablation)]
    by_method = rows.groupby("method", sort=False)
    columns = by_method["gain"].agg(["mean", "std", "count"]).astype({"mean": float, "std": float})
    columns.columns = pd.Index(["gain", "standard deviation", "seeds"])
    return columns.assign(**{"paper gain": by_method["paper gain"].first()}).round(2)


def gains_by_size(table: pd.DataFrame) -> pd.DataFrame:
    """From a `comparison`, by method: what APs, APm and APl differ by from the baseline with the same seed, ours.

    Means over the seeds; only rows that were run with a seed with which their baseline was run, too.
    """
    sizes = ["APs", "APm", "APl"]
    rows = table.dropna(subset=["AP"]).astype(dict.fromkeys(sizes, float))
    of_run = rows.drop_duplicates(["experiment", "scale", "seed"]).set_index(["experiment", "scale", "seed"])[sizes]
    ablations = rows[rows["experiment"].map(is_ablation).astype(bool)]
    baselines = [EXPERIMENTS[id].baseline for id in ablations["experiment"]]
    keys = pd.MultiIndex.from_arrays([baselines, ablations["scale"], ablations["seed"]])
    differences = ablations[sizes] - of_run.reindex(keys).to_numpy()
    return differences.groupby(ablations["method"], sort=False).mean().dropna(how="all").round(2)


def is_ablation(id: str) -> bool:
    """Whether a row is compared with a baseline: it is no baseline itself, and nothing that the paper quotes."""
    return id in EXPERIMENTS and EXPERIMENTS[id].baseline != id


def not_run(table: pd.DataFrame) -> list[str]:
    """The ids of a `comparison`'s rows that could be run and were not."""
    missing = table[table["AP"].isna()]["experiment"]
    return [id for id in missing.unique() if id in EXPERIMENTS]


def runs_in(table: str, runs: Iterable[Run]) -> list[Run]:
    """Those of the runs that have a row in a table, whichever row they are named after."""
    rows = [row.id for row in EXPERIMENTS.values() if row.table == table]
    return [run for run in runs if any(runs_of(row, [run]) for row in rows)]


def one_of_each(runs: Iterable[Run]) -> list[Run]:
    """The first run of each experiment, such as that of seed 0."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.config.experiment, run)
    return list(first.values())


def tables_with(runs: Sequence[Run]) -> list[str]:
    """The tables of the paper in which any of the runs has a row."""
    return [table for table in TABLES if runs_in(table, runs)]


def runs_of(experiment: str, runs: Iterable[Run]) -> list[Run]:
    """Those of the runs that are of the experiment's model, whichever row they are named after."""
    return [run for run in runs if run.config.experiment == run_as(experiment, run.config.scale)]


def _conditions(config: RunConfig, experiment: str) -> tuple[object, ...]:
    """The model, and what two runs must share for their difference to be that of their models."""
    same = (config.scale, config.seed, config.data, config.training, overrides(config))
    return run_as(experiment, config.scale), *same


def _percent(figure: float | None) -> float | None:
    return None if figure is None else round(100 * figure, 2)
