"""Files from outside, opened with care: plain files only, and none larger than expected.

A pipe or a device would make its reader wait or read for ever: both are refused before a byte is
read. Whoever parses a file checks sizes again, for a small file can claim a lot.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from kolmo.errors import InputError


def opened(path: str | Path) -> BinaryIO:
    """A plain file (or a link to one) for reading; raises InputError that names it and the reason."""
    try:
        # opening a pipe would wait for a writer without O_NONBLOCK, which plain files do not mind
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL or half a surrogate pair
        raise InputError(f"{str(path)!r}: not a file name") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise InputError(f"{path}: is {_kind(mode)}, expected a file")


def size(file: BinaryIO) -> int:
    """Bytes in an open file."""
    return os.fstat(file.fileno()).st_size


def content(path: str | Path, limit: int, what: str) -> bytes:
    """All of a file; raises InputError where it has more than `limit` bytes."""
    with opened(path) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise InputError(f"{path}: more than {limit} bytes, too many for {what}")
    return found


def is_folder(path: Path) -> bool:
    """Whether there is a folder; raises InputError where that cannot be found out."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r}: not a file name") from error


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")
