r"""Training by control: L-BFGS through the backward Kolmogorov equation, or through the chain's exact
recursion, mesh by mesh.

Coarse meshes give a warm start. At every change of mesh and at the end the result is audited:
the box against coupled paths, J against the chain. A failed audit means a finer mesh or a
wider box and more iterations; a result that cannot be audited is not returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kolmo.chain import Chain
from kolmo.control.admissible import Box
from kolmo.control.lbfgs import Iterate, Result, lbfgs
from kolmo.control.objective import Objective
from kolmo.errors import AuditError, InfeasibleError, InputError, KolmoError
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import audit_domain, choose_half_width, projected_step
from kolmo.pde.exact import ExactRecursion, exact_half_width
from kolmo.pde.resolution import MOST_CELLS
from kolmo.penalty import Penalty
from kolmo.problem import Problem
from kolmo.text import nearest

ESTIMATORS = ("pde", "exact")

#: the audit allows max(3 standard errors, 5%) plus an absolute floor in units of the loss
AUDIT_RELATIVE, AUDIT_FLOOR, AUDIT_PATHS = 0.05, 2e-3, 100_000
#: finer or wider repetitions after a failed audit
REPETITIONS = 3


@dataclass(frozen=True)
class Progress:
    """One accepted step: objective so far, block evaluations at a point, seconds since the start."""

    cells: int
    objective: float
    evaluations: int
    seconds: float
    theta: np.ndarray


@dataclass
class Training:
    """How the training went: the last optimiser's result, its mesh, and what it cost."""

    result: Result
    cells: int
    half_width: float
    iterations: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    audits: list[str] = field(default_factory=list)


def train(
    problem: Problem,
    penalties: Sequence[Penalty] = (),
    *,
    cells: Sequence[int] = (40, 72),
    iterations: Sequence[int] = (80, 40),
    estimator: str = "pde",
    order: int = 2,
    backend: str = "auto",
    tolerance: float = 1e-5,
    admissible: Box | None = None,
    seed: int = 0,
    callback: Callable[[Progress], None] | None = None,
) -> Training:
    """Train the problem's network in place.

    cells: of each mesh or grid, coarse to fine. iterations: at most, on each. estimator: of J, 'pde' (the
    modified equation of this order) or 'exact' (the chain's recursion, no modelling error). Raises
    InfeasibleError where no mesh accepts the start, and AuditError where the end does not agree
    with the chain on the finest mesh.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator: {estimator!r} is unknown{nearest(estimator, ESTIMATORS)}")
    start, spent = time.perf_counter(), 0
    total = Training(Result(np.empty(0), np.inf, np.inf, 0, 0, "not started"), 0, 0.0)
    plan = list(zip(cells, iterations, strict=True))
    repetitions = 0
    while plan:
        n, steps = plan.pop(0)
        equation: BackwardKolmogorov | ExactRecursion
        if estimator == "pde":
            half_width = choose_half_width(problem)
            equation = BackwardKolmogorov(
                problem, cells=n, order=order, backend=backend, half_width=half_width
            )
            nodes = len(equation.space.coefficient_points)
        else:
            half_width = exact_half_width(problem)
            equation = ExactRecursion(problem, cells=n, half_width=half_width)
            nodes = len(equation.spline.nodes)
        objective = Objective(problem.network, equation.expected_loss, penalties)
        cost = nodes * problem.network.depth

        def note(step: Iterate, n: int = n, cost: int = cost, spent: int = spent) -> None:
            if callback is not None:
                seconds = time.perf_counter() - start
                callback(Progress(n, step.value, spent + step.evaluations * cost, seconds, step.theta))

        try:
            result = lbfgs(
                objective, objective.theta, admissible, iterations=steps, tolerance=tolerance, callback=note
            )
        except InfeasibleError as error:
            outcome = Audit(f"start refused ({error})", error)
        else:
            spent += result.evaluations * cost
            _add(total, result, n, half_width, spent)
            outcome = audit(problem, equation, seed)
        total.audits.append(f"{n} cells: {outcome.reason or 'passed'}")
        if outcome.failure is not None and not plan:
            finer = round(1.5 * n) if outcome.finer else n
            if repetitions == REPETITIONS or finer > MOST_CELLS[problem.network.dim]:
                raise outcome.failure
            repetitions += 1
            plan.append((finer, max(10, steps // 2)))
    total.seconds = time.perf_counter() - start
    return total


@dataclass(frozen=True)
class Audit:
    """The verdict on a trained network: why it failed, the error to raise, and whether a finer
    mesh may help (otherwise a wider box, which every round chooses anew)."""

    reason: str = ""
    failure: KolmoError | None = None
    finer: bool = True

    @classmethod
    def failed(cls, reason: str, finer: bool) -> Audit:
        """A failure with the remedy spelt out."""
        remedy = "take more layers, more weight decay or more cells"
        error = AuditError(f"training ended where the equation cannot be trusted: {reason}; {remedy}")
        return cls(reason, error, finer)


def audit(problem: Problem, equation: BackwardKolmogorov | ExactRecursion, seed: int = 0) -> Audit:
    """Is the equation's (or the recursion's) J to be trusted for the present weights?

    The box by coupled paths, then J against the chain: max(3 standard errors, 5% of J) plus a floor.
    """
    if isinstance(equation, ExactRecursion):
        box = audit_domain(problem, equation.spline.half_width, seed + 2, projected_step)
    else:
        box = audit_domain(problem, equation.space.half_width, seed + 2)
    if not box.holds:
        reason = f"the box of half width {box.half_width:.3g} biases J by {box.bias:.1g}: paths moved out"
        return Audit.failed(reason, finer=False)
    try:
        value = float(equation.expected_loss().detach())
    except InfeasibleError as error:
        return Audit(str(error), error)
    chain = Chain(problem, seed=seed + 3).estimate(max(AUDIT_PATHS, 2 * len(problem.data)))
    allowed = max(3 * chain.standard_error, AUDIT_RELATIVE * chain.value) + AUDIT_FLOOR
    if abs(value - chain.value) <= allowed:
        return Audit()
    reason = (
        f"J = {value:.4g} by the equation and {chain.value:.4g} +- {chain.standard_error:.1g} by the "
        f"chain differ by more than {allowed:.2g}"
    )
    return Audit.failed(reason, finer=True)


def _add(total: Training, result: Result, cells: int, half_width: float, evaluations: int) -> None:
    total.result, total.cells, total.half_width = result, cells, half_width
    total.iterations += result.iterations
    total.evaluations = evaluations
    for reason, count in result.refused.items():
        total.refused[reason] = total.refused.get(reason, 0) + count
