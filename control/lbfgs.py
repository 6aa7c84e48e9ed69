r"""Projected L-BFGS with backtracking: quasi-Newton steps in a box that survive refusals.

The value of a trial point may be refused (InfeasibleError: the mesh cannot resolve these
weights, or the maximum principle is violated); such a point counts as outside the admissible
set and the step is cut to a quarter. Every accepted step satisfies Armijo's condition, so the
result is never worse than the start.

A descent can be interrupted and resumed after any accepted step: what follows is bitwise the same.

Source: Nocedal, Wright, Numerical Optimization, 2006, algorithms 7.4, 7.5; Bertsekas, SIAM J.
Control Optim. 20 (1982), for the projection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kolmo.checkpoint import State
from kolmo.control.admissible import Admissible, Box
from kolmo.control.objective import Objective
from kolmo.errors import InfeasibleError

_ARMIJO = 1e-4
_BACKTRACKS = 30


@dataclass
class Iterate:
    """What a callback sees after each accepted step.

    refused: counts infeasible trials so far. state: makes all that `resume` needs to go on from here.
    """

    iteration: int
    theta: np.ndarray
    value: float
    residual: float
    evaluations: int
    refused: int
    state: Callable[[], State]


@dataclass
class Result:
    """Where the optimiser ended.

    status: 'stationary' (residual below the tolerance), 'stalled' (no step descends any
    more), or 'iteration limit'. refused: reasons and numbers of infeasible trial points.
    """

    theta: np.ndarray
    value: float
    residual: float
    iterations: int
    evaluations: int
    status: str
    refused: dict[str, int] = field(default_factory=dict)


@dataclass
class _Descent:
    """Where a descent stands: all that its next step depends on, and its counters."""

    theta: np.ndarray
    value: float
    gradient: np.ndarray
    pairs: deque[tuple[np.ndarray, np.ndarray]]
    iteration: int = 0
    evaluations: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def state(self) -> State:
        return {**vars(self), "pairs": np.array(self.pairs)}

    @classmethod
    def resumed(cls, state: State, memory: int) -> _Descent:
        pairs = ((s.copy(), y.copy()) for s, y in state["pairs"])
        return cls(**{**state, "pairs": deque(pairs, maxlen=memory)})


def lbfgs(
    objective: Objective,
    theta: np.ndarray,
    admissible: Admissible | None = None,
    *,
    iterations: int = 200,
    tolerance: float = 1e-6,
    memory: int = 20,
    initial_step: float | None = None,
    callback: Callable[[Iterate], None] | None = None,
    resume: State = None,
) -> Result:
    """Minimise the objective over the admissible set, from theta (projected onto it).

    tolerance: on the Euclidean norm of theta - P(theta - gradient). initial_step: length of
    the first trial step in units of the gradient (default 1 / |gradient|). resume: the state of an
    `Iterate`, to go on from there in place of theta. Raises InfeasibleError only where the start
    itself is refused.
    """
    admissible = Box() if admissible is None else admissible
    if resume is not None:
        at = _Descent.resumed(resume, memory)
        before = objective.evaluations - at.evaluations
    else:
        theta = admissible.project(np.asarray(theta, dtype=np.float64))
        before = objective.evaluations
        at = _Descent(theta, *objective.value_and_gradient(theta), deque(maxlen=memory))
        at.evaluations = objective.evaluations - before
    status = "iteration limit"
    residual = float(np.linalg.norm(admissible.residual(at.theta, at.gradient)))
    while at.iteration < iterations:
        if residual <= tolerance:
            status = "stationary"
            break
        free = ~admissible.blocked(at.theta, at.gradient)
        direction = _direction(np.where(free, at.gradient, 0.0), at.pairs)
        direction[~free] = 0.0
        first = 1.0 if at.pairs else (initial_step or 1 / max(1.0, float(np.linalg.norm(at.gradient))))
        trial = _search(objective, admissible, at, direction, first)
        at.evaluations = objective.evaluations - before
        if trial is None and at.pairs:
            at.pairs.clear()  # the model may be to blame: once more along the gradient
            continue
        if trial is None:
            status = "stalled"
            break
        s, y = trial[0] - at.theta, trial[2] - at.gradient
        if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
            at.pairs.append((s, y))
        at.theta, at.value, at.gradient = trial
        at.iteration += 1
        residual = float(np.linalg.norm(admissible.residual(at.theta, at.gradient)))
        if callback is not None:
            refused = sum(at.refused.values())
            callback(Iterate(at.iteration, at.theta, at.value, residual, at.evaluations, refused, at.state))
    objective.theta = at.theta
    return Result(at.theta, at.value, residual, at.iteration, at.evaluations, status, at.refused)


def _direction(gradient: np.ndarray, pairs: deque[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """-H gradient by the two-loop recursion."""
    q = -gradient
    weights = []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (s @ y)
        weights.append(alpha)
        q = q - alpha * y
    if pairs:
        s, y = pairs[-1]
        q = q * ((s @ y) / (y @ y))
    for (s, y), alpha in zip(pairs, reversed(weights), strict=True):
        q = q + (alpha - (y @ q) / (s @ y)) * s
    return q if q @ gradient < 0 else -gradient


def _search(
    objective: Objective,
    admissible: Admissible,
    at: _Descent,
    direction: np.ndarray,
    length: float,
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """The first point on the projected arc with sufficient decrease, or None."""
    for _ in range(_BACKTRACKS):
        trial = admissible.project(at.theta + length * direction)
        expected = float(at.gradient @ (trial - at.theta))
        if expected >= 0 or not np.any(trial != at.theta):
            return None
        try:
            new_value, new_gradient = objective.value_and_gradient(trial)
        except InfeasibleError as error:
            reason = type(error).__name__
            at.refused[reason] = at.refused.get(reason, 0) + 1
            length *= 0.25
            continue
        if new_value <= at.value + _ARMIJO * expected:
            return trial, new_value, new_gradient
        # minimiser of the parabola through both values and the slope, kept in [0.1, 0.5]
        length *= min(0.5, max(0.1, -expected / (2 * (new_value - at.value - expected))))
    return None
