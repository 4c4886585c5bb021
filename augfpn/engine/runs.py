"""The run directory: everything about one run, in one place, readable at any moment.

    run.json            the expanded experiment (RunConfig)
    categories.json     the classes, as the data set names them
    provenance.json     commit, versions, device, command, and what was derived from experiment, data and scale
    metrics.jsonl       losses, rates, speed and memory while training goes on
    tensorboard/        the same, where TensorBoard is installed
    evaluations.jsonl   COCO's figures on the way, where somebody asked for it
    checkpoints/        from which training can go on, with their checksums; *.damaged: put aside
    model.safetensors   the trained weights
    metrics.json        COCO's figures of the evaluation, and how long training and evaluation took
    detections.json     the detections, in COCO's result format, each with the RoI that it was refined from
    outcomes.safetensors  what became of each of them, made from the detections and the data
    image_losses.json   the loss of each validation image, where somebody asked for it

    faults/             batches of which losses were not finite
    train.lock          held by the process that trains
    train.log           what a training that a notebook started has printed

Every file is written whole or not at all, except the ``.jsonl`` files, which grow by a line at a time.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout

from augfpn.data.dataset import Category
from augfpn.detectors.build import build_from_config
from augfpn.detectors.detector import Detector
from augfpn.engine.checkpoint import checkpoint_steps, load_checkpoint
from augfpn.engine.run_files import as_categories, as_detections, as_history, as_metrics, as_object, load_trained
from augfpn.errors import UserError
from augfpn.experiments.config import RunConfig
from augfpn.experiments.scales import run_as
from augfpn.files import append_line, keep_lines, read_lines, without_nan, write_json, write_text, written_whole

PACKAGES = ("augfpn", "torch", "torchvision", "timm", "numpy", "pycocotools", "faster-coco-eval")


class RunError(UserError):
    """A run directory that is not what was asked for; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @staticmethod
    def create(path: Path, config: RunConfig, categories: tuple[Category, ...]) -> Run:
        """A new run; a RunError if there is one already."""
        check_new(path)
        run = Run(path)
        write_json(path / "categories.json", [vars(category) for category in categories], indent=2)
        write_text(path / "run.json", config.to_json())
        return run

    @staticmethod
    def open(path: Path) -> Run:
        """An existing run; a RunError if there is none."""
        if not (path / "run.json").is_file():
            raise RunError(
                f"{path} is not a run: there is no run.json in it. Runs are made by `augfpn train … --out {path}`."
            )
        return Run(path)

    @property
    def config(self) -> RunConfig:
        """What is run; a RunError where ``run.json`` cannot be read."""
        path = self.path / "run.json"
        try:
            config = RunConfig.from_json(path.read_text(encoding="utf-8"))
            # Rows can become the same model as another one, when the package changes.
            return replace(config, experiment=run_as(config.experiment, config.scale))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error

    @property
    def label(self) -> dict[str, Any]:
        """Which run it is, as files of what was measured of it say it."""
        config = self.config
        of_config = {name: getattr(config, name) for name in ("experiment", "scale", "seed")}
        return {"run": str(self.path), **of_config}

    @property
    def categories(self) -> tuple[Category, ...]:
        return as_categories(self._json("categories.json"), self.path / "categories.json")

    @property
    def provenance(self) -> dict[str, Any]:
        return as_object(self._json("provenance.json"), self.path / "provenance.json")

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def is_trained(self) -> bool:
        return self.weights.is_file()

    @property
    def is_evaluated(self) -> bool:
        return (self.path / "metrics.json").is_file()

    @property
    def metrics(self) -> dict[str, Any]:
        """COCO's figures, 0-1; None where there is nothing to measure, such as AP of large objects without any."""
        return as_metrics(self._json("metrics.json"), self.path / "metrics.json")

    @property
    def detections(self) -> list[dict[str, Any]]:
        return as_detections(self._json("detections.json"), self.path / "detections.json")

    def history(self) -> list[dict[str, float]]:
        """The lines of ``metrics.jsonl``. A last line that is being written is left out."""
        return as_history(read_lines(self.path / "metrics.jsonl"), self.path / "metrics.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """COCO's figures after some ``step`` each, in order (`train --evaluate-every`)."""
        return as_history(read_lines(self.path / "evaluations.jsonl"), self.path / "evaluations.jsonl")

    @property
    def evaluated_steps(self) -> tuple[int, ...]:
        return tuple(line["step"] for line in self.evaluations)

    @property
    def best_step(self) -> int | None:
        """The step with the highest AP among `evaluations`, the first of several; None where there are none."""
        lines = self.evaluations
        return max(lines, key=lambda line: line.get("AP") or 0.0)["step"] if lines else None

    @property
    def training_seconds(self) -> float | None:
        """How long training took so far, interruptions left out; None before the first line of ``metrics.jsonl``."""
        history = self.history()
        return history[-1].get("seconds") if history else None

    def forget_history_after(self, step: int) -> None:
        """Drops the lines of steps that will be made again."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            keep_lines(self.path / name, lambda line: isinstance(line.get("step"), int) and line["step"] <= step)

    def record(self, line: dict[str, float]) -> None:
        """Adds a line to ``metrics.jsonl``."""
        append_line(self.path / "metrics.jsonl", line)

    def record_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds a line to ``evaluations.jsonl``."""
        append_line(self.path / "evaluations.jsonl", {"step": step, **metrics})

    def write_provenance(self, device: torch.device, derived: dict[str, Any]) -> None:
        """Where and with what the run is made; for a run that goes on, that of its beginning stays first."""
        path = self.path / "provenance.json"
        content = provenance(device) | {"derived": derived}
        if path.is_file():
            content = self.provenance | {"resumed": [*self.provenance.get("resumed", []), content]}
        write_json(path, content, indent=2)

    def write_detections(self, detections: list[dict[str, Any]]) -> None:
        write_json(self.path / "detections.json", detections)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_json(self.path / "metrics.json", metrics, indent=2)

    def save_weights(self, model: Detector) -> None:
        with written_whole(self.weights) as temporary:
            safetensors.torch.save_model(model, str(temporary))

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps of which a checkpoint was kept, in order."""
        return checkpoint_steps(self.path / "checkpoints")

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether its training began with all checkpoints to be kept."""
        started = (self.path / "provenance.json").is_file()
        return started and bool(self.provenance.get("derived", {}).get("keep_checkpoints", False))

    def load_model(self, device: torch.device, step: int | None = None) -> Detector:
        """The trained model, ready to detect; or as it was after ``step`` steps, if a checkpoint of it was kept."""
        if step is not None:
            checkpoint = load_checkpoint(self.path / "checkpoints", step, device)
            model = build_model(self.config, len(self.categories), pretrained=False).to(device)
            model.load_state_dict(checkpoint.model)
            return model.eval()
        if not self.is_trained:
            raise RunError(
                f"{self.path} is not trained to its end; finish it with `augfpn train … --out {self.path} --resume`."
            )
        model = build_model(self.config, len(self.categories), pretrained=False).to(device)
        load_trained(model, self.weights, device)
        return model.eval()

    def _json(self, name: str) -> Any:
        path = self.path / name
        if not path.is_file():
            raise RunError(f"{self.path} has no {name} yet.")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error


def check_new(path: Path) -> None:
    """A RunError if there is a run already."""
    if (path / "run.json").exists():
        raise RunError(f"{path} holds a run already. Go on with it (--resume), or choose another folder (--out).")


@contextmanager
def alone(path: Path, *, waiting: bool = True) -> Iterator[None]:
    """Holds a run directory for this process, and makes it; while another one holds it, waits, and says so.

    Not ``waiting``, it is a RunError then.

    A training whose notebook or scheduler was killed goes on; a second one beside it would spoil both. A directory in
    which nothing was made is not left behind.
    """
    is_new = not path.exists()
    lock = FileLock(path / "train.lock")
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not waiting:
            raise RunError(f"Another process trains {path}; wait for its end, or choose another folder.") from None
        print(f"Another process trains {path}; waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        if is_new and {found.name for found in path.iterdir()} <= {"train.lock"}:
            shutil.rmtree(path)
        lock.release()


def build_model(config: RunConfig, num_classes: int, *, pretrained: bool) -> Detector:
    """The model of a run as it starts; without the backbone's pretrained weights where others will be loaded."""
    short_side, long_side = config.data.resized_sides
    backbone = config.model.backbone if pretrained else replace(config.model.backbone, weights=None)
    model = replace(config.model, backbone=backbone)
    return build_from_config(model, num_classes, short_side=short_side, long_side=long_side)


def provenance(device: torch.device) -> dict[str, Any]:
    """Where, when and with what something is computed."""
    program = Path(sys.argv[0]).name
    command = shlex.join(["augfpn" if program == "__main__.py" else program, *sys.argv[1:]])
    return {
        "commit": _commit(),
        # The command of a notebook's kernel names a temporary file, and nothing of the notebook.
        "command": "in a notebook" if program == "ipykernel_launcher.py" else command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "processor": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def write_measured(path: Path, content: dict[str, Any], device: torch.device) -> Path:
    """Writes what was measured as JSON, with where and with what it was; null in the place of NaN."""
    return write_json(path, {**without_nan(content), "provenance": provenance(device)}, indent=1)


def keep(result: str | None, content: dict[str, Any], device: torch.device | None = None) -> Path | None:
    """`write_measured` for the last cell of a notebook, where it has a file for its ``result``; on a CPU by default."""
    return None if result is None else write_measured(Path(result), content, device or torch.device("cpu"))


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, marked where files differ from it; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()).resolve() != root:
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with uncommitted changes" if changed.strip() else commit


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
