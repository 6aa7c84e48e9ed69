"""How Kolmo's kernels are compiled: once per machine (numba's cache), without the interpreter lock.

Module-level functions only: closures would be compiled anew in every process, and fill the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
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
#: the same for what may assume that no value is nan: maxima are vectorised only then
ordered: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    nogil=True, cache=True, fastmath=_FAST | {"nnan"}, error_model="numpy"
)
