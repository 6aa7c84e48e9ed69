"""Where the time of a command goes: `kolmo COMMAND --profile`.

Sections are named where the work is done, and each has the seconds spent in it but in no section within it:

>>> from kolmo import profile
>>> with profile.profiling() as recorder:
...     with profile.section("outer"):
...         with profile.section("inner"):
...             pass
>>> sorted(recorder.sections)
['inner', 'outer']

Off by default, when a section costs a tenth of a microsecond.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: sections of modules that know nothing of this one: name -> module, class or none, functions
OUTSIDE: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "chain": ("kolmo.chain", "Chain", ("estimate", "difference", "gradient")),
    "sde": ("kolmo.sde", "SDE", ("estimate",)),
    "exact recursion": ("kolmo.pde.exact", "ExactRecursion", ("_value", "_gradient")),
    "stochastic training": ("kolmo.training", None, ("train",)),
    "writing": ("kolmo.report", None, ("write_run", "write_study")),
}


@dataclass
class Section:
    """Seconds in a section itself, and how often it was entered."""

    seconds: float = 0.0
    calls: int = 0


@dataclass
class Recorder:
    """The sections of one thread, and when it began."""

    start: float = field(default_factory=time.perf_counter)
    sections: dict[str, Section] = field(default_factory=dict)
    #: seconds that sections inside took, for each section that is open
    inside: list[float] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)

    def table(self) -> list[tuple[str, float, float, int]]:
        """(section, seconds, share of the total, calls), the longest first, then 'other' and 'total'."""
        total = time.perf_counter() - self.start
        rows = sorted(self.sections.items(), key=lambda item: -item[1].seconds)
        other = total - sum(found.seconds for _, found in rows)
        named = [(name, found.seconds, found.calls) for name, found in rows]
        return [
            (name, s, s / total, calls)
            for name, s, calls in (*named, ("other", other, 0), ("total", total, 1))
        ]


_recorder: Recorder | None = None


class _Off:
    """No section: profiling is off."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _On:
    """One passage through a section of a recorder."""

    __slots__ = ("_name", "_recorder", "_start")

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def __enter__(self) -> None:
        self._recorder.inside.append(0.0)
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spent, inside = time.perf_counter() - self._start, self._recorder.inside
        section = self._recorder.sections.setdefault(self._name, Section())
        section.seconds += spent - inside.pop()
        section.calls += 1
        if inside:
            inside[-1] += spent


_OFF = _Off()


def section(name: str) -> AbstractContextManager[None]:
    """Time spent in the `with` block is this section's, but for that of sections within it.

    Only the thread that began the profile is timed: it waits for those that it starts, and seconds of
    several at once would not add up.
    """
    if _recorder is None or _recorder.thread != threading.get_ident():
        return _OFF
    return _On(_recorder, name)


def timed(name: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A decorator: the function's calls are a section."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def wrapped(*args: _P.args, **keys: _P.kwargs) -> _T:
            with section(name):
                return function(*args, **keys)

        return wrapped

    return decorate


@contextmanager
def profiling() -> Iterator[Recorder]:
    """Sections are timed inside; gives the recorder. One profile at a time."""
    global _recorder
    _recorder = recorder = Recorder()
    try:
        yield recorder
    finally:
        _recorder = None


@contextmanager
def _outside() -> Iterator[None]:
    """What OUTSIDE lists are sections inside, and itself again after it."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for name, (module, kind, functions) in OUTSIDE.items():
            with section("imports"):
                owner = importlib.import_module(module)
            owner = owner if kind is None else getattr(owner, kind)
            for function in functions:
                plain = vars(owner)[function]
                before.append((owner, function, plain))
                setattr(owner, function, timed(name)(plain))
        yield
    finally:
        for owner, function, plain in before:
            setattr(owner, function, plain)


@contextmanager
def printed(wanted: bool, outside: bool = True) -> Iterator[None]:
    """A profile of the block on standard error, where it is wanted, however the block ends.

    outside: with the sections of OUTSIDE, whose modules are imported for it.
    """
    if not wanted:
        yield
        return
    with profiling() as recorder:
        try:
            with _outside() if outside else nullcontext():
                yield
        finally:
            print(report(recorder), file=sys.stderr)


def report(recorder: Recorder) -> str:
    """The recorder's table as lines of text."""
    lines = [f"{'section':<20}{'seconds':>10}{'share':>8}{'calls':>9}"]
    for name, seconds, share, calls in recorder.table():
        lines.append(f"{name:<20}{seconds:>10.3f}{share:>8.1%}{calls or '':>9}")
    return "\n".join(lines)
