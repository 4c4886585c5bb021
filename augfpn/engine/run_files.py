"""What the files of a run directory may say: a disk fails, and people edit JSON by hand.

Each function is given what stands in a file, and gives it back as what it should be, or says which place is not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from augfpn.data.dataset import Category
from augfpn.errors import UserError


def as_categories(content: Any, path: Path) -> tuple[Category, ...]:
    """The classes, of which there is at least one."""
    entries = _list(content, path)
    for number, entry in enumerate(entries):
        is_category = isinstance(entry, dict) and entry.keys() == {"id", "name"}
        if not is_category or not _is_integer(entry["id"]) or not isinstance(entry["name"], str):
            raise _damaged(path, f"[{number}] must have an integer 'id' and a text 'name', and is {entry!r:.80}")
    if not entries:
        raise _damaged(path, "it names no class")
    return tuple(Category(**entry) for entry in entries)


def as_metrics(content: Any, path: Path) -> dict[str, Any]:
    """Figures by their names; None where there was nothing to measure."""
    metrics = as_object(content, path)
    for name, value in metrics.items():
        if value is not None and not _is_finite(value):
            raise _damaged(path, f"{name!r} must be a number or null, and is {value!r:.80}")
    return metrics


def as_detections(content: Any, path: Path) -> list[dict[str, Any]]:
    """Detections in COCO's result format."""
    detections: list[dict[str, Any]] = _list(content, path)
    for number, entry in enumerate(detections):
        try:
            box, ids = entry["bbox"], (entry["image_id"], entry["category_id"])
            whole = len(box) == 4 and all(map(_is_finite, (*box, entry["score"]))) and all(map(_is_integer, ids))
        except (KeyError, TypeError):
            whole = False
        if not whole:
            expected = "'image_id', 'category_id', four numbers as 'bbox', and a 'score'"
            raise _damaged(path, f"[{number}] must have {expected}, and is {entry!r:.80}")
    return detections


def as_history(lines: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Figures after some ``step`` each; None where there was nothing to measure."""
    for number, line in enumerate(lines, start=1):
        if not _is_integer(line.get("step")) or not all(value is None or _is_number(value) for value in line.values()):
            raise _damaged(path, f"line {number} must have a 'step', and numbers only, and is {line!r:.80}")
    return lines


def as_object(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise _damaged(path, f"expected an object, found {content!r:.80}")
    return content


def load_trained(model: nn.Module, path: Path, device: torch.device) -> None:
    """Gives a model the weights that its training ended with; a UserError if the file has not just those, all finite.

    Of tensors that the model has under several names, the file has one.
    """
    try:
        tensors = safetensors.torch.load_file(path, device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise _damaged(path, f"the run's model has no {name}")
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            found, expected = (f"{tuple(of.shape)} {of.dtype}" for of in (tensor, own[name]))
            raise _damaged(path, f"{name} must be {expected}, and is {found}")
        if not tensor.isfinite().all():
            raise _damaged(path, f"{name} has numbers that are not finite")
    there = {own[name].data_ptr() for name in tensors}
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in there]
    if missing:
        raise _damaged(path, f"{len(missing)} tensors are missing: {', '.join(missing[:3])}")
    model.load_state_dict(tensors, strict=False)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}. Take it from a copy of the run, or make the run again.")


def _list(content: Any, path: Path) -> list[Any]:
    if not isinstance(content, list):
        raise _damaged(path, f"expected a list, found {content!r:.80}")
    return content


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_finite(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))
