"""Files that are whole or not there: everything is written under another name first, and then renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` to write to; on success the file is synced and takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any, indent: int | None = None) -> Path:
    return write_text(path, json.dumps(value, indent=indent))


def without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: None in their place, in lists and dictionaries, too.

    >>> without_nan({"AP": [float("nan"), 0.5]})
    {'AP': [None, 0.5]}
    """
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
