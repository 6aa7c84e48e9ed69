"""What this machine could do: memory bandwidth, multiply-adds, tanh; one core and all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

from kolmo.benchmarks.timing import cores, threads

#: numbers of an array that no cache holds, and of one that the second-level cache does
_LARGE, _SMALL = 8_000_000, 16384
#: rows of a dense product
_MATRIX = 512


@njit(nogil=True, fastmath=True, cache=True)
def _triad(a: Any, b: Any, c: Any) -> None:
    """a = b + 3 c: two reads and a write."""
    for i in range(a.size):
        a[i] = b[i] + 3.0 * c[i]


def measure(seconds: float = 0.4) -> dict[str, dict[str, float]]:
    """Rates in 10^9 a second, one core and all: bytes, multiply-adds, and tanh in both precisions.

    seconds: for each rate, the best of which counts.
    """
    return {"one_core": _rates(1, seconds), "all_cores": _rates(len(cores()), seconds)}


def _rates(count: int, seconds: float) -> dict[str, float]:
    with threads(count):
        found = {"cores": float(count), "bandwidth_GB_s": _bandwidth(count, seconds)}
        for name, kind in (("float64", torch.float64), ("float32", torch.float32)):
            found[f"multiply_add_G_s_{name}"] = _multiply_add(count, kind, seconds)
            found[f"tanh_G_s_{name}"] = _tanh(count, kind, seconds)
    return found


def _bandwidth(count: int, seconds: float) -> float:
    parts = [[np.ones(_LARGE // count) for _ in range(3)] for _ in range(count)]
    return _best(count, lambda i: _triad(*parts[i]), 3 * 8 * (_LARGE // count), seconds)


def _multiply_add(count: int, kind: Any, seconds: float) -> float:
    """By torch's dense product, which is as close to the peak as libraries come."""
    n = _MATRIX
    a = [torch.ones(n, n, dtype=kind) for _ in range(count)]
    out = [torch.empty_like(m) for m in a]
    return _best(count, lambda i: torch.mm(a[i], a[i], out=out[i]), n**3, seconds)


def _tanh(count: int, kind: Any, seconds: float) -> float:
    """The best of what torch and numpy offer on an array in cache."""
    values = [torch.linspace(-3, 3, _SMALL, dtype=kind) for _ in range(count)]
    outs = [torch.empty_like(v) for v in values]
    arrays = [(v.numpy(), o.numpy()) for v, o in zip(values, outs, strict=True)]

    def by_torch(i: int) -> None:
        for _ in range(8):
            torch.tanh(values[i], out=outs[i])

    def by_numpy(i: int) -> None:
        for _ in range(8):
            np.tanh(arrays[i][0], out=arrays[i][1])

    return max(_best(count, kernel, 8 * _SMALL, seconds) for kernel in (by_torch, by_numpy))


def _best(count: int, kernel: Callable[[int], object], work: float, seconds: float) -> float:
    """10^9 units of work a second, all threads together: the best of many turns."""
    # torch counts threads for each thread of ours by itself
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(kernel, range(count)))
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(kernel, range(count)))
            best = min(best, time.perf_counter() - start)
    return count * work / best / 1e9
