"""How Kolmo's kernels are compiled: once per machine (numba's cache), without the interpreter lock.

Module-level functions only: closures would be compiled anew in every process, and fill the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding

# Loops over rows of one work array are vectorised only where LLVM may test at run time that they do not
# overlap; it allows for few such tests by default, and ours have up to several hundred, once for thousands of
# nodes.
for option in ("runtime-memory-check-threshold", "vectorize-memory-check-threshold"):
    binding.set_option("kolmo", f"-{option}=1024")

#: the largest finite number: `abs(x) <= FINITE` where reordered sums make x - x, numba's own test, a zero
FINITE = 1.7976931348623157e308

_FAST = {"contract", "reassoc", "nsz"}

#: sums may be reordered and contracted; infinities and nan are kept
kernel: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    nogil=True, cache=True, fastmath=_FAST, error_model="numpy"
)


@kernel
def aligned(rows, columns):  # type: ignore[no-untyped-def]
    """Room for rows of `columns` or a few more, each from the start of a cache line on."""
    width = columns + -columns % 8
    room = np.empty(rows * width + 8)
    first = -(room.ctypes.data // 8) % 8
    return room[first : first + rows * width].reshape((rows, width))


# A maximum of floats is not vectorised, one of integers is: bits of numbers that are not negative have their
# order.


@kernel
def bits(value):  # type: ignore[no-untyped-def]
    """A float's bits as an integer."""
    return np.float64(value).view(np.int64)


@kernel
def number(found):  # type: ignore[no-untyped-def]
    """The float with these bits."""
    return np.int64(found).view(np.float64)
