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
#: numbers of a cache line, and of the widest register: rows of whole lines are loaded without crossing one
LINE = 8


def zeros(*shape: int) -> np.ndarray:
    """Zeros whose first is that of a cache line."""
    room = np.zeros(prod(shape) + LINE)
    skipped = -(room.ctypes.data // room.itemsize) % LINE
    return room[skipped : skipped + prod(shape)].reshape(shape)


class Pool:
    """Float64 arrays, lent while somebody holds them or a view of them."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[tuple[np.ndarray, dict[str, Any]]]] = {}
        self._bytes = 0

    def take(self, *shape: int) -> np.ndarray:
        """An array of this shape: zeros, or what an earlier holder has left in one of the same shape."""
        free = self._free.get(shape)
        if free:
            array, interface = free.pop()
            self._bytes -= array.nbytes
        else:
            array = zeros(*shape)
            interface = array.__array_interface__
        return np.asarray(_Lent(self, array, interface))

    def give(self, array: np.ndarray, interface: dict[str, Any]) -> None:
        """Keep an array that nobody holds any more, with what numpy asks of it."""
        if self._bytes + array.nbytes <= KEPT:
            self._bytes += array.nbytes
            self._free.setdefault(array.shape, []).append((array, interface))


class _Lent:
    """The owner that numpy sees: gone when the last view is gone."""

    __slots__ = ("__array_interface__", "_array", "_pool")

    def __init__(self, pool: Pool, array: np.ndarray, interface: dict[str, Any]) -> None:
        self._pool, self._array, self.__array_interface__ = pool, array, interface

    def __del__(self) -> None:
        self._pool.give(self._array, self.__array_interface__)
