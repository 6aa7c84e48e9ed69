"""How many threads compiled kernels use, and the pool that runs them: the one place where this is decided.

Kernels release the interpreter lock and start no threads of their own; torch and BLAS keep to one inside a
pool's thread, so that cores are never asked for twice. Parts do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import torch

_NAME = "kolmo-kernel"
_T = TypeVar("_T")


def count() -> int:
    """Threads of a kernel that is split: OMP_NUM_THREADS where it is set, else the cores at hand."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function: Callable[..., Any], parts: Iterable[Any]) -> list[Any]:
    """function(part) for every part, in order; side by side where there is more than one thread."""
    items = list(parts)
    # a thread of the pool that waited for the pool would wait for itself
    if len(items) == 1 or count() == 1 or threading.current_thread().name.startswith(_NAME):
        return [function(item) for item in items]
    return list(_pool(count()).map(function, items))


def start(function: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """function(*arguments) on a thread of the pool, beside the caller's own work."""
    return _pool(count()).submit(function, *arguments)


def shares(length: int) -> list[slice]:
    """0, ..., length - 1 in contiguous parts, one for each thread that has work."""
    parts = max(1, min(count(), length))
    return [slice(a, b) for a, b in pairwise(length * i // parts for i in range(parts + 1))]


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, _NAME, initializer=torch.set_num_threads, initargs=(1,))
