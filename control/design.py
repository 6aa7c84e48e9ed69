r"""Choosing the strengths of a noise by descent on a validation loss.

    min_z V(theta*(s)),   s = M z,   theta*(s) = argmin_theta J(theta, s) + penalties(theta)

over an interval of z. The columns of M say what a schedule may be: a strength for each layer (the identity),
a line over depth, one constant. Every evaluation trains again, from the weights of the best schedule so far,
by L-BFGS and then Newton's method until the slope is small; saddles are left downhill. V's gradient follows
from the implicit function theorem (`bilevel`), and projected BFGS takes the outer steps. Strengths at which
training does not end in a strict minimum count as outside of the admissible set. The result is never worse
than the start.

V is known only to what training and linear systems leave, and where a branch of minima ends it jumps: a step
that promises less than `resolution` is not taken, and few are tried along one direction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.control.admissible import Admissible, Box, Interval
from kolmo.control.bilevel import Hypergradient, Inner, SaddleError
from kolmo.control.lbfgs import Iterate, lbfgs
from kolmo.control.newton import newton
from kolmo.errors import ConditionError, InfeasibleError, InputError
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.penalty import Penalty

#: iterations of one training by L-BFGS and by Newton's method, and the latter's first radius
_LBFGS, _NEWTON, _RADIUS = 500, 20, 0.1
#: gradients that L-BFGS remembers: condition numbers are some 10^4
_MEMORY = 100
#: points that an equation may refuse along one training by L-BFGS
_REFUSED = 60
#: saddles that one training may leave, by a radius downhill
_SADDLES = 5
#: conjugate gradients of one linear system
_SYSTEM = 400
#: trials along one direction, and Armijo's constant
_TRIALS, _ARMIJO = 4, 1e-4
#: longest outer step, in units of the first one
_REACH = 3.0


@dataclass(frozen=True)
class Evaluation:
    """A schedule that was accepted.

    controls: z (p,). value, gradient: V and dV/dz at the weights theta that training led to. slope: of the
    inner objective there; excess: what V is above its value at the minimum for that, to first order.
    """

    controls: np.ndarray
    value: float
    gradient: np.ndarray
    theta: np.ndarray
    slope: float
    excess: float


@dataclass(frozen=True)
class Design:
    """The best schedule, and how it was found.

    strengths (L,): M z of `best`, the last one of `accepted`, whose first is the start. trials: after every
    training the solves so far and V there. residual: |z - P(z - dV/dz)|. status: 'stationary' (the residual
    is below the tolerance), 'resolved' (no step promises what would be noticed), 'stalled' or 'iteration
    limit'. refused: reasons and numbers of trials that were refused. evaluations, curvatures, products: of
    the inner objective, as it counts them; `solves` is their sum.
    """

    strengths: np.ndarray
    accepted: list[Evaluation]
    trials: list[tuple[int, float]]
    residual: float
    status: str
    refused: dict[str, int]
    evaluations: int
    curvatures: int
    products: int
    seconds: float

    @property
    def best(self) -> Evaluation:
        """What the network and the noise were left at."""
        return self.accepted[-1]

    @property
    def solves(self) -> int:
        """Values with gradients, second derivatives made, and products with them."""
        return self.evaluations + self.curvatures + self.products


def design(
    equation: BackwardKolmogorov,
    validation: Callable[[], Tensor],
    penalties: Sequence[Penalty] = (),
    *,
    start: np.ndarray,
    admissible: Interval,
    modes: np.ndarray | None = None,
    weights: Admissible | None = None,
    iterations: int = 10,
    tolerance: float = 1e-3,
    resolution: float = 1e-4,
    slope: float = 1e-5,
    accuracy: float = 1e-3,
    first: float = 0.1,
) -> Design:
    """Minimise a validation loss over the strengths of a noise, from `start` and the present weights.

    equation: of a problem whose noise is `Controlled`, smooth in the weights (limit=False, fixed substeps).
    Its strengths and weights are left at the best point.
    validation: V > 0 as a torch scalar of the network's present weights.
    start, admissible: of the controls z (p,). modes: M (L, p), by default the identity.
    weights: admissible ones, in whose inside training has to end; by default `Box()`.
    iterations, tolerance: of the outer descent, the latter on |z - P(z - dV/dz)|. resolution: decrease of V,
    relative, that a step must promise. slope: of the inner objective, at most, at what counts as its minimum.
    accuracy: relative residual of the linear systems. first: length of the first outer step, in units of z.
    Raises InputError on another noise or shapes that do not match; InfeasibleError where the start is
    refused, a ConditionError where training from there does not end in a strict minimum.
    """
    begun = time.perf_counter()
    inner, z = Inner(equation, penalties), np.array(start, dtype=np.float64)
    layers = len(inner.strengths)
    modes = np.eye(layers) if modes is None else np.asarray(modes, dtype=np.float64)
    if z.ndim != 1 or modes.shape != (layers, len(z)):
        raise InputError(
            f"modes: shape {modes.shape} for a start of shape {z.shape}, expected ({layers}, p) and (p,)"
        )
    trainer = _Trainer(inner, validation, modes, Box() if weights is None else weights, slope, accuracy)
    outer = _Outer(trainer, admissible, resolution, first)
    status = outer.descend(admissible.project(z), iterations, tolerance)
    best = outer.accepted[-1]
    trainer.take(best.controls, best.theta)
    return Design(
        strengths=modes @ best.controls,
        accepted=outer.accepted,
        trials=trainer.trials,
        residual=outer.residual,
        status=status,
        refused=outer.refused,
        evaluations=inner.evaluations,
        curvatures=inner.curvatures,
        products=inner.products,
        seconds=time.perf_counter() - begun,
    )


def at_the_edge(at: Iterate) -> None:
    """A callback of `lbfgs`: ends trainings that creep along the edge of what an equation answers for.

    Raises ConditionError.
    """
    if at.refused > _REFUSED:
        raise ConditionError(
            f"design: {at.refused} points were refused along one training, the equation ends there: take "
            "finer cells, a larger weight decay, or other strengths"
        )


class _Trainer:
    """z -> V(theta*(M z)) and its gradient, with the weights."""

    def __init__(
        self,
        inner: Inner,
        validation: Callable[[], Tensor],
        modes: np.ndarray,
        weights: Admissible,
        slope: float,
        accuracy: float,
    ) -> None:
        self._inner, self._validation, self._modes, self._weights = inner, validation, modes, weights
        self._slope, self._accuracy = slope, accuracy
        self.present = inner.theta
        self.trials: list[tuple[int, float]] = []

    def take(self, controls: np.ndarray, theta: np.ndarray) -> None:
        """Strengths and weights from now on."""
        with torch.no_grad():
            self._inner.strengths.copy_(torch.from_numpy(self._modes @ controls))
        self._inner.theta = theta

    def evaluate(self, controls: np.ndarray, start: np.ndarray, below: float) -> Evaluation | None:
        """Train from the weights `start`; None where V ends above a number. Raises InfeasibleError."""
        self.take(controls, start)
        for _ in range(_SADDLES):
            theta = self._minimum(start)
            with torch.no_grad():
                value = float(self._validation())
            self.trials.append((self._solves, value))
            if not value < below:
                return None
            try:
                found = self._inner.hypergradient(self._validation, self._accuracy, _SYSTEM)
            except SaddleError as saddle:
                sides = [theta + side * _RADIUS * saddle.direction for side in (1, -1)]
                start = min(sides, key=self._inner.value)
            else:
                self.trials[-1] = self._solves, value
                return self._evaluation(controls, theta, found)
        raise ConditionError(
            f"design: training ends at saddles, {_SADDLES} of them; take a larger weight decay"
        )

    def _evaluation(self, controls: np.ndarray, theta: np.ndarray, found: Hypergradient) -> Evaluation:
        gradient = self._modes.T @ found.gradient
        return Evaluation(controls, found.value, gradient, theta, found.slope, found.excess)

    @property
    def _solves(self) -> int:
        return self._inner.evaluations + self._inner.curvatures + self._inner.products

    def _minimum(self, start: np.ndarray) -> np.ndarray:
        """Weights of small slope, inside of the admissible ones."""
        enough = self._slope
        reached = lbfgs(
            self._inner,
            start,
            self._weights,
            iterations=_LBFGS,
            tolerance=enough,
            memory=_MEMORY,
            callback=at_the_edge,
        )
        if reached.residual > enough:
            theta = reached.theta
            reached = newton(
                self._inner, theta, self._weights, iterations=_NEWTON, tolerance=enough, radius=_RADIUS
            )
        gradient = self._inner.value_and_gradient(reached.theta)[1]
        slope = float(np.linalg.norm(gradient))
        if slope > enough:
            held = bool(self._weights.blocked(reached.theta, gradient).any())
            where = "on the boundary of the admissible weights" if held else reached.status
            raise ConditionError(
                f"design: training ends {where}, with a slope of {slope:.1g} ({enough:.1g} is a minimum): no "
                "derivative by the strengths there; take finer cells, a larger weight decay, other strengths"
            )
        return reached.theta


class _Outer:
    """Projected BFGS on V; residual: |z - P(z - dV/dz)| of the last one accepted."""

    def __init__(self, trainer: _Trainer, admissible: Interval, resolution: float, first: float) -> None:
        self._trainer, self._admissible = trainer, admissible
        self._resolution, self._first = resolution, first
        self._inverse: np.ndarray | None = None
        self.accepted: list[Evaluation] = []
        self.refused: dict[str, int] = {}
        self._resolved = False

    @property
    def residual(self) -> float:
        at = self.accepted[-1]
        return float(np.linalg.norm(self._admissible.residual(at.controls, at.gradient)))

    def descend(self, controls: np.ndarray, iterations: int, tolerance: float) -> str:
        """How it ended, see `Design`. Raises InfeasibleError where the start is refused."""
        begin = self._trainer.evaluate(controls, self._trainer.present, np.inf)
        assert begin is not None  # every number is below infinity
        self.accepted.append(begin)
        for _ in range(iterations):
            if self.residual <= tolerance:
                return "stationary"
            found = self._search()
            if found is None and self._inverse is not None:
                self._inverse = None  # the model may be to blame: once more along the gradient
                found = self._search()
            if found is None:
                return "resolved" if self._resolved else "stalled"
            self._learn(found)
            self.accepted.append(found)
        return "stationary" if self.residual <= tolerance else "iteration limit"

    def _direction(self, at: Evaluation) -> np.ndarray:
        """A step that descends, of components that are not held, no longer than the reach."""
        free = ~self._admissible.blocked(at.controls, at.gradient)
        gradient = np.where(free, at.gradient, 0.0)
        steepest = -self._first / float(np.linalg.norm(gradient)) * gradient
        if self._inverse is None:
            return steepest
        step = np.where(free, -self._inverse @ gradient, 0.0)
        if step @ gradient >= 0:
            return steepest
        return step * min(1.0, _REACH * self._first / float(np.linalg.norm(step)))

    def _search(self) -> Evaluation | None:
        """The first trial on the projected arc with sufficient decrease, or None."""
        at, length = self.accepted[-1], 1.0
        direction = self._direction(at)
        for _ in range(_TRIALS):
            trial = self._admissible.project(at.controls + length * direction)
            expected = float(at.gradient @ (trial - at.controls))
            self._resolved = -expected <= self._resolution * abs(at.value)
            if self._resolved:
                return None
            try:
                found = self._trainer.evaluate(trial, at.theta, at.value + _ARMIJO * expected)
            except InfeasibleError as error:
                reason = type(error).__name__
                self.refused[reason] = self.refused.get(reason, 0) + 1
                found, length = None, 0.5 * length
            else:
                length *= 0.5
            if found is not None:
                return found
        return None

    def _learn(self, found: Evaluation) -> None:
        """BFGS's update of the inverse Hessian."""
        at = self.accepted[-1]
        s, y = found.controls - at.controls, found.gradient - at.gradient
        bend = float(s @ y)
        if bend <= 1e-10 * float(np.linalg.norm(s) * np.linalg.norm(y)):
            return
        before = bend / float(y @ y) * np.eye(len(s)) if self._inverse is None else self._inverse
        left = np.eye(len(s)) - np.outer(s, y) / bend
        self._inverse = left @ before @ left.T + np.outer(s, s) / bend
