"""How time is taken: contenders in turns in one process, medians and quartiles, on one core.

Whatever else the machine does meets all contenders alike, because they take turns until each has spent its
share of the time; ratios of medians within one run survive a slow minute, single timings do not.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kolmo.benchmarks.peers import MissingPeerError
from kolmo.errors import KolmoError
from kolmo.text import one_line

#: repetitions of a contender: at least, and at most where it is fast
LEAST, MOST = 3, 200
#: seconds that one turn of a fast contender takes, about
TURN = 0.05
#: seconds of one call beyond which it is not repeated for the sake of `LEAST`
SLOW = 8.0


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    build: makes what is timed, not timed itself; it returns a function, whose first result is kept.
    units: of work done by one call, in what seconds are given for. prepared: nothing is left to be compiled
    by the first call. What build or a call raises is the reason why there is no time.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    units: float = 1.0
    prepared: bool = False


@dataclass
class Timing:
    """What a contender took: seconds a unit, the first result, and the most memory above the start, MiB."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None
    memory: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(low), float(high)


def interleave(
    contenders: Sequence[Contender], share: float, least: int = LEAST
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time contenders in turns until each has spent `share` seconds and had `least` turns.

    Returns the timings, and the reasons of those that could not be timed. Every contender runs once before
    the clock starts: compilers are done and caches warm.
    """
    timings: dict[str, Timing] = {}
    missing: dict[str, str] = {}
    calls: dict[str, Callable[[], Any]] = {}
    repeats: dict[str, int] = {}
    for contender in contenders:
        timing = Timing()
        try:
            with peak_memory() as peak:
                call = contender.build()
                first, timing.result = _timed(call)
        except Exception as error:
            missing[contender.name] = reason(error)
            continue
        # a slow call that waited for no compiler is not made twice
        once = first if contender.prepared and first > SLOW else _timed(call)[0]
        if once > TURN:
            timing.seconds.append(once / contender.units)
        timing.memory = peak.mebibytes
        timings[contender.name], calls[contender.name] = timing, call
        repeats[contender.name] = max(1, min(20, int(TURN / max(once, 1e-9))))

    def wants(contender: Contender) -> bool:
        seconds = timings[contender.name].seconds
        spent = sum(seconds) * contender.units
        if not seconds or spent < share:
            return len(seconds) < MOST
        return len(seconds) < least and spent < SLOW

    waiting = [c for c in contenders if c.name in timings]
    while waiting := [c for c in waiting if wants(c)]:
        for contender in waiting:
            gc.collect()
            for _ in range(repeats[contender.name]):
                timings[contender.name].seconds.append(_timed(calls[contender.name])[0] / contender.units)
    return timings, missing


def reason(error: Exception) -> str:
    """Why there is no number, in one line: of a peer whose library has changed too. Faults of ours are shown
    whole with KOLMO_TRACEBACK, like everywhere."""
    if isinstance(error, (MissingPeerError, KolmoError)):
        return one_line(error)
    if os.environ.get("KOLMO_TRACEBACK"):
        raise error
    return f"{type(error).__name__}: {one_line(error)}"


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def ratio(above: Timing, below: Timing) -> tuple[float, tuple[float, float]]:
    """Ratio of medians, and what the quartiles make of it."""
    (low, high), (least, most) = above.quartiles, below.quartiles
    return above.median / below.median, (low / most, high / least)


# threads


def cores() -> list[int]:
    """The cores that this process may use."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Keep all threads of the process to `count` cores, and numba's pool to as many.

    torch, OpenMP and BLAS get one each: Kolmo's own threads call them, and pools within pools would fight for
    the cores (see `kolmo.commands.set_threads`).
    """
    import numba

    most: int = getattr(numba.config, "NUMBA_NUM_THREADS", 1)
    before, torches, numbas = cores(), torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(min(count, most))
    limits = None
    with suppress(ImportError):
        from threadpoolctl import threadpool_limits

        limits = threadpool_limits(1)
    _pin(before[-count:])
    try:
        yield
    finally:
        _pin(before)
        if limits is not None:
            limits.restore_original_limits()
        torch.set_num_threads(torches)
        numba.set_num_threads(numbas)


def _pin(allowed: Sequence[int]) -> None:
    """Keep all threads of this process, those there are and those to come, to these cores (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        return
    tasks = Path("/proc/self/task")
    for thread in os.listdir(tasks) if tasks.is_dir() else ["0"]:
        with suppress(OSError):  # a thread may have ended
            os.sched_setaffinity(int(thread), allowed)


# memory


class Peak:
    """The most memory that was resident while it was watched, above what was at the start."""

    mebibytes: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the resident memory; mebibytes stays None where the system does not tell (Linux does)."""
    peak = Peak()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to serve again unseen
    start = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's way to start the high-water mark anew
    except OSError:
        start = None
    yield peak
    most = _resident("VmHWM")
    if start is not None and most is not None:
        peak.mebibytes = max(0.0, (most - start) / 1024)


def _resident(key: str) -> int | None:
    """A line of /proc/self/status, KiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    rows = dict(row.split(":", 1) for row in status.read_text().splitlines() if ":" in row)
    return int(rows[key].split()[0]) if key in rows else None
