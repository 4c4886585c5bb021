"""Files and folders that are whole or not there: they are written under another name first, and then renamed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from augfpn.errors import UserError

# In every folder that was written whole: such a folder may be replaced.
MARKER = ".written-by-augfpn"


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


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside ``path`` to write to; on success it takes the place of ``path``.

    An older folder that was written like this is removed then, with all that is in it. A folder with other things in
    it, or a file, is a UserError and stays as it is.
    """
    path = path.resolve()
    if path.exists() and not (path.is_dir() and ((path / MARKER).is_file() or not any(path.iterdir()))):
        raise UserError(f"{path} is there already and was not made by this command; name a new or an empty folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        (temporary / MARKER).touch()
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        # Stopped between the two renames.
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


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
