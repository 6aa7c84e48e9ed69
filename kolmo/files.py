"""Files that are whole or absent, and output folders that lose nothing."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from kolmo.errors import InputError
from kolmo.profile import timed

#: how the name of a file ends until it is whole; `sweep` removes what a killed process left of them
_UNFINISHED = ".part"


class UnwritableError(InputError):
    """A file cannot be written: the disk is full, the folder has vanished or is not ours."""


@timed("writing")
def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call write(file) on memory, put the bytes into a temporary neighbour, rename it onto `path`.

    Raises UnwritableError where the folder is gone, full or not writable; an older file stays whole.
    """
    path = Path(path)
    temporary = None
    content = io.BytesIO()  # libraries that meet a full disk half-way through a file do not all end cleanly
    write(content)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def sweep(folder: Path) -> None:
    """Remove the unfinished files that a killed process left anywhere in its folder."""
    for path in folder.rglob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Text, UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, content: Any) -> None:
    """Indented JSON without NaN or infinity, atomically."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def check_output(path: str | Path, overwrite: bool) -> None:
    """Raise InputError where an output folder exists, is not empty and may not be reused."""
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: exists and is not a folder; choose another --out")
        if path.is_dir() and any(path.iterdir()) and not overwrite:
            raise InputError(f"{path}: exists and is not empty; choose another --out or add --overwrite")
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from error


def output_folder(path: str | Path, overwrite: bool) -> Path:
    """Make an output folder; raises InputError where it exists, is not empty and may not be reused."""
    path = Path(path)
    check_output(path, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from error
    return path
