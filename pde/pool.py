"""Arrays whose memory is used again: what a march leaves behind is what the next one needs.

The system gives a large array as pages of zeros, one by one at first touch, and takes them back when it is
freed; for arrays that are made anew at every step of an optimiser that takes as long as filling them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

#: bytes that a pool keeps for later; what comes back beyond is freed
KEPT = 256 * 2**20


class Pool:
    """Float64 arrays, lent while somebody holds them or a view of them."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[np.ndarray]] = {}
        self._bytes = 0

    def take(self, *shape: int) -> np.ndarray:
        """An array of this shape: zeros, or what an earlier holder has left in one of the same shape."""
        free = self._free.get(shape)
        if free:
            array = free.pop()
            self._bytes -= array.nbytes
        else:
            array = np.zeros(prod(shape)).reshape(shape)
        return np.asarray(_Lent(self, array))

    def give(self, array: np.ndarray) -> None:
        """Keep an array that nobody holds any more."""
        if self._bytes + array.nbytes <= KEPT:
            self._bytes += array.nbytes
            self._free.setdefault(array.shape, []).append(array)


class _Lent:
    """The owner that numpy sees: gone when the last view is gone."""

    def __init__(self, pool: Pool, array: np.ndarray) -> None:
        self._pool, self._array = pool, array
        self.__array_interface__: dict[str, Any] = array.__array_interface__

    def __del__(self) -> None:
        self._pool.give(self._array)
