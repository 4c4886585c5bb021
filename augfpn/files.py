"""Files and folders that are whole or not there: they are written under another name first, and then renamed.

Also files of lines, which grow by a line at a time; the last one may have been cut off.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from augfpn.errors import UserError

# In every folder that was written whole: such a folder may be replaced.
MARKER = ".written-by-augfpn"

# What a disk can have against being written to, and what to do.
_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or have the quota raised",
    errno.EFBIG: "Have the limit on the size of files raised",
    errno.EROFS: "Choose another folder",
    errno.EACCES: "Choose another folder, or have its permissions changed",
    errno.EIO: "Look after the disk",
}


class WriteError(UserError, OSError):
    """A file that could not be written; the one that was there before, if any, is as it was."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` to write to; on success the file is synced and takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _explained(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            # Libraries may give it another one, which nobody else can read.
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
            # The name, too: what was there before may be removed next.
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what `written_whole` had begun below a folder when it was killed, for whoever has the folder alone."""
    for leftover in folder.rglob(".*.[0-9]*.tmp"):
        leftover.unlink(missing_ok=True)


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


def append_line(path: Path, line: dict[str, Any]) -> None:
    with _explained(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, if there is one. A last line that is being written, or was cut off, is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1) if line.endswith("\n")]


def keep_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Takes the other lines out of a file, if there is one."""
    if path.exists():
        write_text(path, "".join(json.dumps(line) + "\n" for line in read_lines(path) if is_kept(line)))


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the disk has against writing to ``path`` becomes a WriteError."""
    try:
        yield
    except Exception as error:
        number = _os_error_number(error)
        if number not in _REMEDIES:
            raise
        raise WriteError(
            f"{path} cannot be written: {os.strerror(number)}. {_REMEDIES[number]}, and start again."
        ) from error


def _os_error_number(error: BaseException | None) -> int | None:
    """Of what the operating system said first. Libraries say it in words, or say something else because of it."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    in_words = re.search(r"\(os error (\d+)\)", str(error))
    return int(in_words[1]) if in_words else _os_error_number(error.__cause__ or error.__context__)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}, line {number}: expected an object, found {line.strip()[:80]}.")
    return content
