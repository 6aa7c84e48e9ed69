"""The numerical self-check behind `kolmo verify`: every scheme against what is known of it.

>>> from kolmo.verify import verify
>>> report = verify("skfem", only=["matrices"])
>>> report.holds
True
>>> [figure.what for figure in report.figures("matrices")][0]
'1-D: the generator against the forms of skfem'
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kolmo.errors import InputError
from kolmo.experiments.progress import Progress, Silent
from kolmo.pde.backend import resolve
from kolmo.text import nearest
from kolmo.verify import equation, gradients, recursion, sampling, structure
from kolmo.verify.figure import Check, Figure

#: every check by name, those that explain others first
CHECKS: dict[str, Check] = {
    "coefficients": structure.coefficients,
    "matrices": structure.matrices,
    "conservation": structure.conservation,
    "equation": equation.closed_forms,
    "time-steps": equation.time_orders,
    "transport": equation.transport,
    "weak-orders": equation.weak_orders,
    "recursion": recursion.closed_forms,
    "grids": recursion.grid_orders,
    "taylor": gradients.taylor,
    "limiters": gradients.limited,
    "chain-gradient": gradients.sampled,
    "chain": sampling.chain,
    "sde": sampling.sde,
    "one-step": sampling.one_steps,
    "coverage": sampling.coverage,
}


@dataclass(frozen=True)
class Report:
    """What was found: figures in the order of CHECKS, each with the name of its check."""

    backend: str
    results: tuple[tuple[str, Figure], ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every figure is in its range."""
        return all(figure.holds for _, figure in self.results)

    def figures(self, check: str) -> list[Figure]:
        """The figures of one check."""
        return [figure for name, figure in self.results if name == check]


def verify(
    backend: str = "auto", only: Sequence[str] | None = None, progress: Progress | None = None
) -> Report:
    """Run all checks, or those named in `only`, with one finite-element backend.

    A check that raises has failed, and its figure says what was raised. Raises InputError on an unknown
    check, MissingBackendError on a backend that is not installed.
    """
    start, chosen = time.perf_counter(), resolve(backend)
    progress = Silent() if progress is None else progress
    for name in only or ():
        if name not in CHECKS:
            raise InputError(f"check: {name!r} is unknown{nearest(name, CHECKS)}")
    results: list[tuple[str, Figure]] = []
    for name in CHECKS if only is None else only:
        progress.start(name, 1)
        began = time.perf_counter()
        found = list(_figures(CHECKS[name], chosen))
        results += [(name, figure) for figure in found]
        held = sum(figure.holds for figure in found)
        progress.advance(f"{held} of {len(found)} figures hold, {time.perf_counter() - began:.1f} s")
    return Report(chosen, tuple(results), time.perf_counter() - start)


def _figures(check: Check, backend: str) -> Iterator[Figure]:
    """A check's figures; where it breaks down, a last one that says so."""
    try:
        yield from check(backend)
    except (
        Exception
    ) as error:  # a broken installation raises anything, and the other checks still have to run
        text = (str(error).splitlines() or [""])[0][:120]
        yield Figure(f"{type(error).__name__}: {text}", float("nan"), 0.0, 0.0)
