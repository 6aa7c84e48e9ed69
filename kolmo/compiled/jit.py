"""How functions are compiled here: to machine code without the interpreter's lock, kept on disk."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., Any])

# no sum is reordered: (y + magic) - magic is how numbers are rounded, and sums must not depend on the machine
_FLAGS = {"contract", "nsz"}
_KEYS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FLAGS}
#: what kernels are made of: not callable from Python, which halves the time to compile them
_PART: dict[str, Any] = {**_KEYS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

part: Any = numba.njit(**_PART)
#: what is called for each number of a loop: a call would keep the loop from becoming vector instructions
inline: Any = numba.njit(**_PART, forceinline=True)
# sums over samples are taken in any order, several at a time
_REORDERED: dict[str, Any] = {**_PART, "fastmath": _FLAGS | {"reassoc"}}
reduction: Any = numba.njit(**_REORDERED)
reduction_inline: Any = numba.njit(**_REORDERED, forceinline=True)


def _digest() -> int:
    here = Path(__file__).parent
    sources = [here.parent / "philox.py", *sorted(here.glob("*.py"))]
    return zlib.crc32(b"".join(path.read_bytes() for path in sources))


_SOURCES = _digest()


def kernel(function: _F) -> Any:
    """A function for Python to call; its machine code is kept on disk."""
    # numba looks at a function's own file to see whether what it kept is out of date, not at the files of
    # those that it calls: kept under a name that tells of all of them
    function.__qualname__ += f"_{_SOURCES:08x}"
    return numba.njit(**_KEYS, cache=True)(function)
