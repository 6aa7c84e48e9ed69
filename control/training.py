r"""Training by control: L-BFGS through the backward Kolmogorov equation, or through the chain's exact
recursion, mesh by mesh.

Coarse meshes give a warm start. At every change of mesh and at the end the result is audited:
the box against coupled paths, J against the chain. A failed audit means a finer mesh or a
wider box and more iterations; a result that cannot be audited is not returned. With a checkpoint a
training that was interrupted goes on after the last step that was kept, bitwise as if it never had been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from torch import Tensor

from kolmo.checkpoint import Checkpoint, State
from kolmo.control.admissible import Admissible
from kolmo.control.auditing import Audit, audit
from kolmo.control.lbfgs import Iterate, Result, lbfgs
from kolmo.control.objective import Objective
from kolmo.errors import InfeasibleError, InputError
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import choose_half_width
from kolmo.pde.exact import ExactRecursion, exact_half_width
from kolmo.pde.resolution import MOST_CELLS
from kolmo.penalty import Penalty
from kolmo.problem import Problem
from kolmo.text import nearest
from kolmo.validity import check_step

ESTIMATORS = ("pde", "exact")

#: finer or wider repetitions after a failed audit, and how much wider a box
REPETITIONS, WIDER = 3, 1.25


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
    """How the training went: the last optimiser's result, its mesh, what it cost, and the errors of J at
    its end by source, as far as the audit came."""

    result: Result
    cells: int
    half_width: float
    iterations: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    audits: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)


@dataclass
class _Course:
    """Where a training stands between the steps of its optimiser.

    plan: (cells, iterations) of every mesh to come, the present one first. half_width: of the present box;
    None: to be chosen. least: half width that the next box has at least, after one that paths left.
    spent: evaluations on the meshes before. repetitions: after failed audits.
    """

    plan: list[tuple[int, int]]
    half_width: float | None = None
    least: float = 0.0
    spent: int = 0
    repetitions: int = 0

    def state(self, total: Training, seconds: float, optimiser: State) -> State:
        return {"course": vars(self), "total": asdict(total), "seconds": seconds, "optimiser": optimiser}


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
    admissible: Admissible | None = None,
    seed: int = 0,
    callback: Callable[[Progress], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """Train the problem's network in place.

    cells: of each mesh or grid, coarse to fine. iterations: at most, on each. estimator: of J, 'pde' (the
    modified equation of this order) or 'exact' (the chain's recursion, no modelling error).
    checkpoint: what an interrupted training with the same arguments left, and where this one leaves its
    state. Raises InfeasibleError where no mesh accepts the start, and AuditError where the end does not
    agree with the chain on the finest mesh.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator: {estimator!r} is unknown{nearest(estimator, ESTIMATORS)}")
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    total = Training(Result(np.empty(0), np.inf, np.inf, 0, 0, "not started"), 0, 0.0)
    course = _Course(list(zip(cells, iterations, strict=True)))
    start, optimiser = time.perf_counter(), None
    kept = checkpoint.load()
    if kept is not None:
        start, optimiser = start - kept["seconds"], kept["optimiser"]
        total = Training(**{**kept["total"], "result": Result(**kept["total"]["result"])})
        course = _Course(**kept["course"])
    while course.plan:
        n, steps = course.plan[0]
        equation: BackwardKolmogorov | ExactRecursion
        if course.half_width is None:
            choose = choose_half_width if estimator == "pde" else exact_half_width
            course.half_width = max(choose(problem), course.least)
        if estimator == "pde":
            equation = BackwardKolmogorov(
                problem, cells=n, order=order, backend=backend, half_width=course.half_width
            )
            nodes = len(equation.space.coefficient_points)
        else:
            equation = ExactRecursion(problem, cells=n, half_width=course.half_width)
            nodes = len(equation.spline.nodes)
        objective = Objective(problem.network, _guarded(problem, equation), penalties)
        cost = nodes * problem.network.depth

        def note(step: Iterate, n: int = n, cost: int = cost) -> None:
            seconds = time.perf_counter() - start
            if callback is not None:
                evaluations = course.spent + step.evaluations * cost
                callback(Progress(n, step.value, evaluations, seconds, step.theta))
            checkpoint.offer(lambda: course.state(total, seconds, step.state()))

        try:
            result = lbfgs(
                objective,
                objective.theta,
                admissible,
                iterations=steps,
                tolerance=tolerance,
                callback=note,
                resume=optimiser,
            )
        except InfeasibleError as error:
            outcome = Audit(f"start refused ({error})", error)
        else:
            course.spent += result.evaluations * cost
            _add(total, result, n, course.half_width, course.spent)
            outcome = audit(problem, equation, seed)
        total.audits.append(f"{n} cells: {outcome.reason or 'passed'}")
        total.errors = outcome.errors
        if outcome.failure is not None and not outcome.finer:
            course.least = WIDER * course.half_width
        course.plan.pop(0)
        course.half_width, optimiser = None, None
        if outcome.failure is not None and not course.plan:
            finer = round(1.5 * n) if outcome.finer else n
            if course.repetitions == REPETITIONS or finer > MOST_CELLS[problem.network.dim]:
                raise outcome.failure
            course.repetitions += 1
            course.plan.append((finer, max(10, steps // 2)))
    total.seconds = time.perf_counter() - start
    return total


def _guarded(problem: Problem, equation: BackwardKolmogorov | ExactRecursion) -> Callable[[], Tensor]:
    """J by the estimator; the equation's only where a modified equation can describe the layers."""
    if isinstance(equation, ExactRecursion):
        return equation.expected_loss

    def value() -> Tensor:
        check_step(problem)
        return equation.expected_loss()

    return value


def _add(total: Training, result: Result, cells: int, half_width: float, evaluations: int) -> None:
    total.result, total.cells, total.half_width = result, cells, half_width
    total.iterations += result.iterations
    total.evaluations = evaluations
    for reason, count in result.refused.items():
        total.refused[reason] = total.refused.get(reason, 0) + count
