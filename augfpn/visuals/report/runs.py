"""Every run with where it comes from and what it took."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from augfpn.engine.runs import Run, build_model
from augfpn.visuals.plots import name_of


@dataclass(frozen=True)
class ReportRun:
    """A run as the report's page of runs shows it; None for what its directory does not have."""

    run: Run
    name: str
    provenance: dict[str, Any]
    training_seconds: float | None
    evaluation_seconds: float | None
    num_parameters: int | None

    @property
    def whole_provenance(self) -> str:
        return json.dumps(self.provenance, indent=2, ensure_ascii=False)


def report_run(run: Run) -> ReportRun:
    metrics = run.metrics
    return ReportRun(
        run=run,
        name=name_of(run),
        provenance=run.provenance if (run.path / "provenance.json").is_file() else {},
        # Older runs have it in their history alone.
        training_seconds=metrics.get("training_seconds") or run.training_seconds,
        evaluation_seconds=metrics.get("seconds"),
        num_parameters=_num_parameters(run),
    )


def _num_parameters(run: Run) -> int | None:
    """Of the detector as it detects, without what only training needs."""
    categories = run.categories if (run.path / "categories.json").is_file() else ()
    if not categories:
        return None
    with torch.device("meta"):
        detector = build_model(run.config, len(categories), pretrained=False).for_inference()
    return sum(parameter.numel() for parameter in detector.parameters())
