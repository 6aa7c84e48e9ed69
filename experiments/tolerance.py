r"""J to a tolerance: the cheapest estimator whose stated error meets it.

The equation comes first, on a coarse mesh, to see what it is off by as a model of the chain. Where that
alone is above the tolerance no mesh helps: only the chain's own recursion (`exact`) or more layers can
meet it; where a layer has too many outcomes for that, the chain itself with a control variate.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from kolmo.errors import AuditError, InputError, KolmoError
from kolmo.experiments.crosscheck import SAFETY
from kolmo.experiments.estimators import Options, Reached, of_equation, of_recursion, reach
from kolmo.pde import resolve_exact
from kolmo.pde.domain import choose_half_width, projected_step
from kolmo.pde.mesh import DEFAULT_CELLS
from kolmo.pde.resolution import LIMIT, Effort, ResolvedValue, resolve_value
from kolmo.problem import Problem

#: the estimators that may be told to meet a tolerance, in the order they are tried
METHODS = ("pde", "exact", "chain")
#: of what is left of the tolerance, the part that refinement aims at: its estimates scatter
_AIM = 0.8
#: paths that tell how many are needed
_PILOT = 100_000


@dataclass(frozen=True)
class Certified:
    """The estimate that met the tolerance, or came closest, and how it was chosen, one line a step."""

    reached: Reached
    tolerance: float
    steps: tuple[str, ...]

    @property
    def met(self) -> bool:
        return self.reached.total <= self.tolerance


def certify(
    problem: Problem,
    tolerance: float,
    options: Options,
    methods: tuple[str, ...] = METHODS,
    effort: Effort | None = None,
) -> Certified:
    """J with a stated total error of at most `tolerance`, or the closest to it that `effort` allows.

    methods: of METHODS, those that may be used. Raises InputError on a tolerance that is not a positive
    number, and the last refusal where no estimator answers.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance: {tolerance!r} is not a positive number")
    effort = effort or Effort()
    start = time.perf_counter()
    steps: list[str] = []
    found: list[Reached] = []
    failure: KolmoError | None = None
    options = replace(options, error=True)
    for method in METHODS:
        if method not in methods:
            continue
        left = replace(effort, seconds=effort.seconds - (time.perf_counter() - start))
        try:
            reached = _WAYS[method](problem, tolerance, options, left, steps)
        except AuditError:
            raise
        except KolmoError as error:
            failure = error
            steps.append(f"{method}: refused ({_line(error)})")
            continue
        found.append(reached)
        if reached.total <= tolerance:
            break
    if not found:
        assert failure is not None  # methods are not empty: the command line checks them
        raise failure
    best = min(found, key=lambda reached: reached.total)
    return Certified(best, tolerance, tuple(steps))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _pde(problem: Problem, tolerance: float, options: Options, effort: Effort, steps: list[str]) -> Reached:
    """The equation: first its modelling error, on a mesh half as fine, then the mesh that is left to it."""
    start = time.perf_counter()

    def resolve(cells: int, aim: tuple[float, float]) -> ResolvedValue:
        left = replace(effort, seconds=effort.seconds - (time.perf_counter() - start))
        return resolve_value(
            problem,
            cells=cells,
            refine=True,
            order=options.order,
            backend=options.backend,
            aim=aim,
            effort=left,
            corrected=True,
        )

    coarse = resolve(DEFAULT_CELLS[problem.network.dim] // 2, LIMIT)
    probe = of_equation(problem, coarse, options)
    assert probe.model is not None  # asked for by options.error
    left = (tolerance - SAFETY * probe.model) / SAFETY
    if left <= 0:
        steps.append(
            f"pde: the modified equation alone is off by about {probe.model:.1g}, stated as "
            f"{SAFETY * probe.model:.1g}, above the tolerance {tolerance:g}; only exact or more layers can "
            "meet it"
        )
        return replace(probe, seconds=time.perf_counter() - start)
    fine = coarse if probe.total <= tolerance else resolve(coarse.cells, (_AIM * left / 2, 0.0))
    reached = replace(of_equation(problem, fine, options), seconds=time.perf_counter() - start)
    steps.append(_told("pde", reached, tolerance, fine.stopped))
    return reached


def _exact(problem: Problem, tolerance: float, options: Options, effort: Effort, steps: list[str]) -> Reached:
    """The recursion, on a grid and in a box for this tolerance."""
    start = time.perf_counter()
    part = tolerance / SAFETY / 4
    width = choose_half_width(
        problem, confine=projected_step, relative=0.0, absolute=part / 2, paths=4 * 8192
    )
    found = resolve_exact(
        problem, rule=options.rule, tolerance=(0.0, 2 * part), half_width=width, seconds=effort.seconds
    )
    reached = replace(of_recursion(problem, found, options), seconds=time.perf_counter() - start)
    steps.append(_told("exact", reached, tolerance, ""))
    return reached


def _chain(problem: Problem, tolerance: float, options: Options, effort: Effort, steps: list[str]) -> Reached:
    """The chain with a control variate, as many paths as its pilot says."""
    reduced = replace(options, reduce=("control",), gradient=False)
    pilot = reach("chain", problem, replace(reduced, paths=max(_PILOT, 4 * len(problem.data))))
    reached, why = pilot, ""
    if pilot.total > tolerance:
        paths = pilot.details["paths"]
        needed = 1.1 * paths * (pilot.interval / tolerance) ** 2
        allowed = max(paths * effort.seconds / max(pilot.seconds, 1e-9), paths)
        why = "" if needed <= allowed else "the time allowed"
        reached = reach("chain", problem, replace(reduced, paths=math.ceil(min(needed, allowed))))
    steps.append(_told("chain", reached, tolerance, why))
    return reached


def _told(method: str, reached: Reached, tolerance: float, stopped: str) -> str:
    if reached.total <= tolerance:
        return f"{method}: stated error {reached.total:.1g} meets the tolerance {tolerance:g}"
    return f"{method}: stated error {reached.total:.1g} misses the tolerance {tolerance:g}" + (
        f" ({stopped})" if stopped else ""
    )


_WAYS = {"pde": _pde, "exact": _exact, "chain": _chain}
