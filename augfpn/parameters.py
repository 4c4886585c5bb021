"""Notebook parameters that are checked.

papermill puts parameters into a notebook as plain variables, and one that is misspelt as just another variable that
nobody reads. So the cell behind the parameters hands all variables to `read_parameters`, which knows the valid ones.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from augfpn.errors import UserError
from augfpn.experiments.config import RunConfig
from augfpn.experiments.paper import TABLES, unknown
from augfpn.experiments.scales import SCALES, default_run_path, plan

Parameters = TypeVar("Parameters")

# What IPython itself puts beside a notebook's variables.
_NOT_PARAMETERS = {"In", "Out", "exit", "quit", "open", "get_ipython", "read_parameters"}


@dataclass(frozen=True, kw_only=True)
class ExperimentParameters:
    """Parameters of ``experiment.ipynb``.

    ``run``: the run directory, by default named after the others. ``data``: a folder in COCO's layout, by default the
    scale's synthetic images. ``steps``: in the place of the scale's. ``devices``: which share
    each batch. ``result``: a file for the figures.
    """

    experiment: str
    scale: str
    seed: int = 0
    run: str | None = None
    data: str | None = None
    steps: int | None = None
    devices: int = 1
    result: str | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "devices")
        self.plan()

    @property
    def run_path(self) -> Path:
        return default_run_path(self.experiment, self.scale, self.seed) if self.run is None else Path(self.run)

    def plan(self) -> RunConfig:
        return plan(self.experiment, self.scale, seed=self.seed, data=self.data, steps=self.steps)

    def training_command(self) -> list[str]:
        """The command that trains the run, and goes on with it where it was interrupted."""
        command = [sys.executable, "-m", "augfpn", "train", self.experiment, "--scale", self.scale]
        command += ["--seed", str(self.seed), "--out", str(self.run_path), "--resume"]
        command += ["--data", self.data] if self.data is not None else []
        command += ["--steps", str(self.steps)] if self.steps is not None else []
        command += ["--devices", str(self.devices)] if self.devices > 1 else []
        return command


@dataclass(frozen=True, kw_only=True)
class TourParameters:
    """Parameters of ``tour.ipynb``: the scale and seed of what it trains, and ``run``, the run directory.

    ``result``: a file for its figures, see `TableParameters`.
    """

    scale: str
    seed: int = 0
    run: str | None = None
    result: str | None = None

    def __post_init__(self) -> None:
        self.training.plan()

    @property
    def training(self) -> ExperimentParameters:
        """AugFPN in Faster R-CNN."""
        return ExperimentParameters(experiment="table2/cs+rfa+srs", scale=self.scale, seed=self.seed, run=self.run)


@dataclass(frozen=True, kw_only=True)
class TableParameters:
    """Parameters of the notebooks of tables: the folder in which finished runs are, and their scale (None: any).

    ``result``, as in all notebooks that have it: a file for what the notebook shows, as JSON (None: none). It is
    written last, so that a notebook that fails leaves none.
    """

    runs: str
    scale: str | None = None
    result: str | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale not in SCALES:
            raise UserError(unknown("scale", self.scale, SCALES))


@dataclass(frozen=True, kw_only=True)
class SemanticGapParameters(TableParameters):
    """Parameters of ``semantic_gaps.ipynb``.

    ``table``: only runs with a row in this table (None: all). ``images``: only so many validation and training images.
    ``along``: also for every checkpoint that was kept.
    """

    table: str | None = None
    images: int | None = None
    along: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_table(self.table)
        _at_least_one(self, "images")


@dataclass(frozen=True, kw_only=True)
class RuntimeParameters(TableParameters):
    """Parameters of ``runtime.ipynb``.

    ``table``: only runs with a row in this table (None: all). How many ``rounds``; timed ``steps`` and ``images`` of a
    turn (None: the usual ones).
    """

    table: str | None = None
    rounds: int = 5
    steps: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_table(self.table)
        _at_least_one(self, "rounds", "steps", "images")


@dataclass(frozen=True, kw_only=True)
class RunParameters:
    """Parameters of the notebooks that look at one run: its directory, and at how many images (None: all)."""

    run: str
    images: int | None = None
    result: str | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "images")


@dataclass(frozen=True, kw_only=True)
class ViewerParameters:
    """Parameters of ``detection_viewer.ipynb``.

    ``run`` and ``other``: evaluated runs of the same data (None: only the first). ``threshold``: the score from which
    detections count. ``losses``: compute each image's loss, to sort by, where it is not kept with the run already.
    ``live_images``: how many images are detected again when a control is turned.
    """

    run: str
    other: str | None = None
    threshold: float = 0.3
    losses: bool = False
    live_images: int = 6
    result: str | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "live_images")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"The parameter 'threshold' must be 0 to 1, not {self.threshold}.")


def _check_table(table: str | None) -> None:
    if table is not None and table not in TABLES:
        raise UserError(unknown("table", table, TABLES))


def _at_least_one(parameters: object, *names: str) -> None:
    for name in names:
        value = getattr(parameters, name)
        if value is not None and value < 1:
            raise UserError(f"The parameter {name!r} must be at least 1, not {value}.")


def read_parameters(kind: type[Parameters], namespace: Mapping[str, Any]) -> Parameters:
    """The parameters among the variables of a notebook, `globals()`, as an object of ``kind``.

    Called before the notebook makes variables of its own. A UserError names unknown parameters and wrong types, and
    lists the valid ones.
    """
    hints = get_type_hints(kind)
    valid = {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _NOT_PARAMETERS
        and not isinstance(value, types.ModuleType | type | types.FunctionType)
    }
    for name, value in given.items():
        if name not in valid:
            raise UserError(unknown("parameter", name, valid))
        allowed = get_args(valid[name]) or (valid[name],)
        if type(value) not in allowed:
            expected = " or ".join("nothing (None)" if kind is types.NoneType else kind.__name__ for kind in allowed)
            raise UserError(f"The parameter {name!r} must be {expected}, not {value!r} ({type(value).__name__}).")
    for field in fields(kind):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in given:
            raise UserError(f"The parameter {field.name!r} is missing; it has no default.")
    return kind(**given)
