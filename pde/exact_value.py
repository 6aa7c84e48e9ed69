r"""J by the exact recursion with an estimate of its interpolation error: refined, or refused.

Grids grow by 3/2. The estimate wants two changes in a row to be small, the older one at the
slowest rate that is trusted (order 7/2; the recursion is of fourth order once it resolves):

    max(|J_n - J_{2n/3}|, |J_{2n/3} - J_{4n/9}| / r) / (r - 1),    r = 1.5^{7/2}.

J is that of the free splines: limited ones change from grid to grid by less than they are off. What the
limiter still changes on the last grid counts as error too.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from kolmo.device import device_of
from kolmo.errors import InputError, MaximumPrincipleError, ModelError, ResolutionError
from kolmo.noise.law import GAUSS
from kolmo.pde.exact import ExactRecursion, exact_half_width
from kolmo.pde.mesh import check_dim
from kolmo.problem import Problem

#: first and last grid by dimension
FIRST = {1: 64, 2: 43, 3: 36}
MOST = {1: 16384, 2: 1280, 3: 192}
#: interpolation and quadrature error aimed at: relative to J, and a floor in units of the loss
AIM = (3e-3, 1e-6)
#: error of the Gaussian rule that is still answered: relative and absolute
RULE_LIMIT = (5e-3, 1e-4)
#: outcomes of a layer beyond which grids are compared by the Gaussian rule and only the last is exact
_MANY = 128
_RATE = 1.5**3.5


@dataclass(frozen=True)
class ExactValue:
    """J by the recursion.

    grid_error: interpolation; quadrature_error: of the Gauss rule for continuous noise; rule_error: of
    Gaussian increments in place of the noise's own (|estimate| + 2 standard errors, 0 without). All are
    absolute, in units of the loss.
    """

    value: float
    grid_error: float
    quadrature_error: float
    rule_error: float
    cells: int
    outcomes: int
    seconds: float
    recursion: ExactRecursion

    @property
    def error(self) -> float:
        """The sum of the three."""
        return self.grid_error + self.quadrature_error + self.rule_error

    def gradient(self) -> dict[str, torch.Tensor]:
        """dJ/dtheta by parameter name."""
        parameters = dict(self.recursion.problem.network.named_parameters())
        loss = self.recursion.expected_loss()
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def resolve_exact(
    problem: Problem,
    *,
    cells: int | None = None,
    rule: str = "outcomes",
    tolerance: tuple[float, float] = AIM,
    half_width: float | None = None,
    seconds: float = math.inf,
) -> ExactValue:
    """J by the exact recursion on a grid that resolves it.

    cells: this grid, its error still estimated; by default refined. rule: see `ExactRecursion`.
    tolerance: on the grid's error, relative to J and absolute. seconds: after which no finer grid is begun.
    Raises ResolutionError where the tolerance is not met, ModelError where the Gaussian rule is not valid,
    InputError where outcomes are too many.
    """
    start = time.perf_counter()
    dim = problem.network.dim
    check_dim(dim)
    if cells is not None and not 10 <= cells <= MOST[dim]:
        raise InputError(f"cells: {cells!r} is not an integer from 10 to {MOST[dim]} in {dim}-D")
    half_width = exact_half_width(problem) if half_width is None else half_width
    first = problem.data.points[:1]
    outcomes = ExactRecursion(problem, cells=10, half_width=half_width, rule=rule)._outcomes(
        problem.network, 0, first
    )
    # many outcomes cost as much as they are: the grid is judged by the same recursion with Gaussian ones
    proxy = "gauss" if len(outcomes.weights) > _MANY and _discrete(problem) else rule
    gauss, quadrature = _quadrature(problem, proxy, half_width, tolerance)

    def value(n: int, by: str, limit: bool = False) -> float:
        recursion = ExactRecursion(problem, cells=n, half_width=half_width, rule=by, gauss=gauss, limit=limit)
        try:
            with torch.no_grad():
                return float(recursion.expected_loss())
        except MaximumPrincipleError:
            return math.nan  # of a grid so coarse there is no value

    n = FIRST[dim] if cells is None else max(4, round(cells / 1.5**2))
    sequence = [value(n, proxy)]
    why = "smaller weights"
    while True:
        began = time.perf_counter()
        n = round(1.5 * n) if cells is None or len(sequence) < 2 else cells
        sequence.append(value(n, proxy))
        estimate = _estimate(sequence)
        allowed = tolerance[0] * abs(sequence[-1]) + tolerance[1]
        if estimate <= allowed:
            estimate = max(estimate, abs(value(n, proxy, limit=True) - sequence[-1]))
        if len(sequence) > 2 and (estimate <= allowed or cells is not None):
            break
        if 1.5 * n > MOST[dim] and cells is None:
            break
        now = time.perf_counter()
        if now - start + 1.5 ** (dim + 0.5) * (now - began) > seconds:
            why = "more time"
            break
    if not estimate <= allowed:
        raise ResolutionError(
            f"the grid of the exact recursion does not resolve the network's features: on {n} cells a "
            f"direction J = {sequence[-1]:.3g} with an interpolation error of about {estimate:.1g}, more "
            f"than {allowed:.1g}; take {'more cells' if cells is not None else why}, or the "
            "chain estimator"
        )
    recursion = ExactRecursion(problem, cells=n, half_width=half_width, rule=rule, gauss=gauss, limit=False)
    result = sequence[-1] if proxy == rule else value(n, rule)
    rule_error = _rule_error(recursion, result) if rule == "gauss" else 0.0
    count = len(recursion._outcomes(problem.network, 0, first).weights)
    seconds = time.perf_counter() - start
    return ExactValue(result, estimate, quadrature, rule_error, n, count, seconds, recursion)


def grid_change(recursion: ExactRecursion, value: float) -> float:
    """The error of J = `value` by a recursion on its grid, from one coarser solve.

    Both grids are taken without the limiter, which hides what a grid does not resolve; infinite where
    the coarser one has no value.
    """

    def free(cells: int) -> float:
        other = ExactRecursion(
            recursion.problem,
            cells=cells,
            half_width=recursion.spline.half_width,
            rule=recursion.rule,
            gauss=recursion.gauss,
            limit=False,
        )
        try:
            with torch.no_grad():
                return float(other.expected_loss())
        except MaximumPrincipleError:
            return math.inf

    fine, coarse = free(recursion.spline.cells), free(max(4, round(recursion.spline.cells / 1.5)))
    return max(abs(fine - value), abs(fine - coarse) / (_RATE - 1)) if math.isfinite(fine) else math.inf


def _estimate(sequence: list[float]) -> float:
    if len(sequence) < 3:
        return math.inf
    last, older = abs(sequence[-1] - sequence[-2]), abs(sequence[-2] - sequence[-3])
    estimate = max(last, older / _RATE) / (_RATE - 1)
    return estimate if math.isfinite(estimate) else math.inf


def _discrete(problem: Problem) -> bool:
    """Whether a layer's outcomes are all there are, not a Gauss rule."""
    first = problem.data.points[:1].to(device_of(problem.network))
    counts = {len(problem.noise.outcomes(problem.network, 0, first, g).weights) for g in (3, 4)}
    return len(counts) == 1


def _quadrature(
    problem: Problem, rule: str, half_width: float, tolerance: tuple[float, float]
) -> tuple[int, float]:
    """Points of the Gauss rule and its error, judged on the first grid against two points more."""
    if rule == "outcomes" and _discrete(problem):
        return GAUSS, 0.0
    dim = problem.network.dim

    def value(gauss: int) -> float:
        recursion = ExactRecursion(problem, cells=FIRST[dim], half_width=half_width, rule=rule, gauss=gauss)
        with torch.no_grad():
            return float(recursion.expected_loss())

    gauss, before = 3, value(3)
    while True:
        after = value(gauss + 2)
        change = abs(after - before)
        if change <= 0.1 * (tolerance[0] * abs(after) + tolerance[1]) or gauss >= 9:
            return gauss + 2, change
        gauss, before = gauss + 2, after


def _rule_error(recursion: ExactRecursion, value: float) -> float:
    defect, spread = recursion.gauss_error()
    error = abs(defect) + 2 * spread
    if error > RULE_LIMIT[0] * abs(value) + RULE_LIMIT[1]:
        raise ModelError(
            f"rule: Gaussian increments are off by {defect:.2g} +- {2 * spread:.1g} in J = {value:.3g}, they "
            "do not describe this noise; take the chain estimator"
        )
    return error
