"""The semantic gap between the levels before they are fused, which Consistent Supervision is to narrow (Section 3.1).

The paper argues from this gap and never measures it. Here the same objects are looked at in every lateral M2…M5 (M3…M5
of one-stage detectors), and the levels are compared with one another, pair by pair:

- **linear CKA** (Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019): whether the levels
  arrange the objects in the same way, whatever the scale and the axes of their features. 1 for the same arrangement.
- **cosine similarity** of an object's features in the two levels, averaged over the objects. The sum of the top-down
  path adds features as they are, so here scale and axes count.
- **disagreement** of one classifier: the share of objects that it gives another class when it sees them in the other
  level. 0 for no gap.

The classifier is a linear probe, trained on the frozen features of all levels of training images, so that models with
and without Consistent Supervision are measured alike; or the auxiliary head of a model that was trained with it
(`augfpn.analysis.probe`).

RoIs are the objects of the data set and not a model's own proposals, so that all models are compared on the same RoIs.
They are pooled as for Consistent Supervision (RoIAlign, 7 × 7) and averaged over their cells; only the auxiliary head
sees the cells. CKA is biased upwards where there are not many more objects than channels.

Shapes: N objects, L levels, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from augfpn.analysis.probe import Classifier, ObjectFeatures, objects_of_run, probe_of
from augfpn.engine.runs import Run
from augfpn.errors import UserError
from augfpn.experiments.config import differences
from augfpn.experiments.paper import find_experiment
from augfpn.files import without_nan


@dataclass(frozen=True)
class SemanticGap:
    """How the levels see the same ``num_rois`` objects.

    ``levels``: their names, finest first. ``cka``, ``cosine`` and ``disagreement``: ``(L, L)`` float64, symmetric.
    ``accuracy (L)``: how many objects the ``classifier`` gets right in each level.
    """

    levels: tuple[str, ...]
    cka: Tensor
    cosine: Tensor
    disagreement: Tensor
    accuracy: Tensor
    num_rois: int
    classifier: Classifier

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the means, as JSON can have it."""
        content = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        all_of_it: dict[str, Any] = without_nan({**content, "means": self.summary()})
        return all_of_it

    def summary(self) -> dict[str, float]:
        """The means over all pairs of different levels, and the mean accuracy."""
        first, second = torch.triu_indices(len(self.levels), len(self.levels), offset=1)
        pairs = {name: getattr(self, name)[first, second] for name in ("cka", "cosine", "disagreement")}
        return {name: float(of_pairs.mean()) for name, of_pairs in (pairs | {"accuracy": self.accuracy}).items()}


@dataclass(frozen=True)
class MeasuredGap:
    """The gap in a run's model after ``step`` steps of its training; None for its end."""

    run: Run
    step: int | None
    gap: SemanticGap

    @property
    def num_steps(self) -> int:
        """``step``, at the end of training as well."""
        return int(self.run.history()[-1]["step"]) if self.step is None else self.step


HEADING = (
    f"{'':44}{'step':>7}  {'classifier':14}{'CKA':>7}{'cosine':>8}{'disagree':>10}{'right':>7}  right in each level"
)


def as_line(measured: MeasuredGap) -> str:
    """The means of a gap, below `HEADING`."""
    gap, step = measured.gap, measured.step
    means = gap.summary()
    figures = f"{means['cka']:7.3f}{means['cosine']:8.3f}{means['disagreement']:10.3f}{means['accuracy']:7.3f}"
    levels = "  ".join(f"{level} {share:.2f}" for level, share in zip(gap.levels, gap.accuracy.tolist(), strict=True))
    return f"{measured.run.path!s:44}{'end' if step is None else step:>7}  {gap.classifier:14}{figures}  {levels}"


def to_dict(measured: Iterable[MeasuredGap]) -> dict[str, Any]:
    """All gaps with their runs, as JSON can have it."""
    return {"gaps": [{**one.run.label, "step": one.step, **one.gap.to_dict()} for one in measured]}


def gap_table(measured: Iterable[MeasuredGap]) -> pd.DataFrame:
    """A row for each gap: its means, and how much the classifier gets right in each level, under the level's name.

    ``step``: where training was; ``end``: whether that is its end.
    """
    rows = []
    for one in measured:
        config, means = one.run.config, one.gap.summary()
        rows.append(
            {
                "method": find_experiment(config.experiment).title,
                "seed": config.seed,
                "step": one.num_steps,
                "end": one.step is None,
                "classifier": one.gap.classifier,
                **{name: means[measure] for measure, name in MEASURES.items()},
                "right": means["accuracy"],
                **dict(zip(one.gap.levels, one.gap.accuracy.tolist(), strict=True)),
            }
        )
    return pd.DataFrame(rows)


# How a gap is measured, by the attributes of `SemanticGap`.
MEASURES = {"cka": "CKA", "cosine": "cosine similarity", "disagreement": "disagreement"}


def measure_gaps(
    runs: Sequence[Run], device: torch.device, *, along: bool = False, num_images: int | None = None
) -> Iterator[MeasuredGap]:
    """The gaps of `semantic_gaps` in several runs of the same data, one after the other.

    ``along``: for every checkpoint that was kept, too. A run that is still being trained has no end yet.
    """
    check_same_objects(runs)
    for run in runs:
        steps: list[int | None] = [*run.checkpoint_steps] if along else []
        for step in [*steps, *([None] if run.is_trained or not steps else [])]:
            for gap in semantic_gaps(run, device, step=step, num_images=num_images).values():
                yield MeasuredGap(run, step, gap)


def semantic_gaps(
    run: Run, device: torch.device, *, step: int | None = None, num_images: int | None = None
) -> dict[Classifier, SemanticGap]:
    """The gap in a run's model over its validation images, by the probe and, where there is one, the auxiliary head.

    A UserError for a run that was trained on its validation images (``overfit``): the probe would be, too.

    Args:
        run: a trained run, or with ``step`` any that kept the checkpoint of that step.
        step: the model after so many steps of its training; None for its end.
        num_images: only the first so many images. The probe is trained on as many training images.
    """
    if run.config.data.overfit is not None:
        raise UserError(f"{run.path} was trained on its validation images; a probe has to be tested on others.")
    model = run.load_model(device, step)
    to_measure = objects_of_run(run, model, device, "val", num_images=num_images)
    probe = probe_of(run, model, device, num_images=num_images)
    gaps: dict[Classifier, SemanticGap] = {
        "probe": gap_between(to_measure, probe.classes(to_measure.features), "probe")
    }
    if to_measure.predictions is not None:
        gaps["auxiliary head"] = gap_between(to_measure, to_measure.predictions, "auxiliary head")
    return gaps


def check_same_objects(runs: Sequence[Run]) -> None:
    """A UserError unless the runs have the same data, so that their gaps are of the same objects."""
    for run in runs[1:]:
        first, other = (replace(one.config.data, masks=False) for one in (runs[0], run))
        if different := differences(first, other, "data."):
            raise UserError(f"{runs[0].path} and {run.path} cannot be compared: {'; '.join(different)}.")


def gap_between(objects: ObjectFeatures, predictions: Tensor, classifier: Classifier) -> SemanticGap:
    """Compares the levels; ``predictions (N, L)`` are the classes that ``classifier`` sees in each."""
    features = objects.features.to(torch.float64)
    by_level = features.unbind(1)
    cka = torch.stack([torch.stack([linear_cka(one, other) for other in by_level]) for one in by_level])
    unit = F.normalize(features, dim=2)
    differ = predictions[:, :, None] != predictions[:, None, :]
    return SemanticGap(
        levels=objects.levels,
        cka=cka,
        cosine=(unit @ unit.transpose(1, 2)).mean(dim=0),
        disagreement=differ.to(torch.float64).mean(dim=0),
        accuracy=(predictions == objects.labels[:, None]).to(torch.float64).mean(dim=0),
        num_rois=len(features),
        classifier=classifier,
    )


def linear_cka(one: Tensor, other: Tensor) -> Tensor:
    """Linear CKA of ``one (N, C)`` and ``other (N, D)``, features of the same N objects; NaN where one is constant.

        ‖YᵀX‖² / (‖XᵀX‖ · ‖YᵀY‖)        of the centred features, Frobenius norms

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 2.0]])
    >>> float(linear_cka(x, -2 * x.flip(1)))  # another scale, turned axes
    1.0
    """
    one, other = one - one.mean(dim=0), other - other.mean(dim=0)
    cka: Tensor = (other.T @ one).square().sum() / ((one.T @ one).norm() * (other.T @ other).norm())
    return cka
