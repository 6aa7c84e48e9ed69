r"""Projected trust-region Newton-Krylov: second-order steps in a box that survive refusals.

Components on the boundary whose descent points outward are held; on the others the model

    m(s) = g . s + 1/2 s . H s,   |s| <= radius,

is minimised by conjugate gradients that stop at the trust region's edge or along a direction of negative
curvature (Steihaug, SIAM J. Numer. Anal. 20, 1983), the step is projected, and the ratio of what the
objective loses to what the model promised decides on it and on the radius. Products H v are exact; no matrix
is formed. A refused trial point (InfeasibleError) counts as outside of the trust region. The result is not
worse than the start by more than rounding.

Products are what a step costs. A smaller region is walked along the same conjugate directions, so a step that
was refused is shortened without new ones; and no system is solved further than the tolerance asks for.

Source: Lin, More, SIAM J. Optim. 9 (1999), for the projection; Nocedal, Wright, Numerical Optimization, 2006,
chapter 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kolmo.control.admissible import Admissible, Box
from kolmo.control.lbfgs import Result
from kolmo.control.objective import Objective
from kolmo.errors import InfeasibleError, InputError

#: ratios below which a step is refused, below which the radius shrinks, above which it may grow
_ACCEPT, _POOR, _GOOD = 0.1, 0.25, 0.75
#: radius, relative to the weights, below which no step is left
_LEAST = 1e-14
#: what a Newton system leaves of the gradient at most, and of the tolerance at least
_EARLY, _ENOUGH = 0.1, 0.3
#: units of the value's last digit that two evaluations may differ by
_ROUNDING = 16


@dataclass
class NewtonStep:
    """What a callback sees after each accepted step."""

    iteration: int
    theta: np.ndarray
    value: float
    residual: float
    radius: float
    evaluations: int
    products: int


def newton(
    objective: Objective,
    theta: np.ndarray,
    admissible: Admissible | None = None,
    *,
    iterations: int = 50,
    tolerance: float = 1e-6,
    radius: float = 1.0,
    inner: int = 50,
    callback: Callable[[NewtonStep], None] | None = None,
) -> Result:
    """Minimise the objective over the admissible set, from theta (projected onto it).

    tolerance: on the Euclidean norm of theta - P(theta - gradient). radius: of the first trust region, in
    units of the weights. inner: conjugate gradient steps of one Newton step, at most.
    Raises InputError where the objective has no second derivative or the radius is not positive, and
    InfeasibleError only where the start itself is refused.
    """
    admissible = Box() if admissible is None else admissible
    if not radius > 0:
        raise InputError(f"radius: {radius!r} is not positive")
    theta = admissible.project(np.asarray(theta, dtype=np.float64))
    before, products = objective.evaluations, objective.products
    value, gradient = objective.value_and_gradient(theta)
    refused: dict[str, int] = {}
    status, iteration = "iteration limit", 0
    residual = first = float(np.linalg.norm(admissible.residual(theta, gradient)))
    path: _Path | None = None
    while iteration < iterations:
        if residual <= tolerance:
            status = "stationary"
            break
        if radius <= _LEAST * max(1.0, float(np.linalg.norm(theta))):
            status = "stalled"
            break
        if path is None:
            free = ~admissible.blocked(theta, gradient)
            enough = max(min(_EARLY, np.sqrt(residual / first)), _ENOUGH * tolerance / residual)
            path = _Path(objective.hessian(theta), gradient, free, float(enough), inner)
        step, bent = path.step(radius)
        trial = admissible.project(theta + step)
        taken = trial - theta
        if not np.array_equal(trial, theta + step):
            bent = path.hessian(taken)
        promised = -float(gradient @ taken + 0.5 * taken @ bent)
        length = float(np.linalg.norm(taken))
        if promised <= 0:  # the projection has spoiled the step
            radius = 0.25 * min(radius, float(np.linalg.norm(step)))
            continue
        try:
            new_value, new_gradient = objective.value_and_gradient(trial)
        except InfeasibleError as error:
            reason = type(error).__name__
            refused[reason] = refused.get(reason, 0) + 1
            radius = 0.25 * length
            continue
        new_residual = float(np.linalg.norm(admissible.residual(trial, new_gradient)))
        rounding = _ROUNDING * np.finfo(float).eps * abs(value)
        if promised > rounding / _ACCEPT:
            ratio = (value - new_value) / promised
        else:  # values say nothing any more, gradients do
            ratio = 1.0 if new_residual < residual and new_value <= value + rounding else 0.0
        if ratio < _POOR:
            radius = 0.25 * length
        elif ratio > _GOOD and length > 0.8 * radius:
            radius *= 2
        if ratio <= _ACCEPT:
            continue
        theta, value, gradient, residual, path = trial, new_value, new_gradient, new_residual, None
        iteration += 1
        if callback is not None:
            spent = objective.evaluations - before, objective.products - products
            callback(NewtonStep(iteration, theta, value, residual, radius, *spent))
    objective.theta = theta
    return Result(theta, value, residual, iteration, objective.evaluations - before, status, refused)


class _Path:
    """Steihaug's path from one point: about the minimiser of the model over free components, in any radius.

    Products with the conjugate directions are kept: a smaller radius asks for none that a larger one had.
    enough: what is left of the gradient where the path ends, relative. most: its products.
    """

    def __init__(
        self,
        hessian: Callable[[np.ndarray], np.ndarray],
        gradient: np.ndarray,
        free: np.ndarray,
        enough: float,
        most: int,
    ) -> None:
        self.hessian = hessian
        self._gradient, self._free, self._enough, self._most = gradient, free, enough, most
        self._products: list[np.ndarray] = []

    def step(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """s with |s| <= radius, and H s."""
        step = np.zeros_like(self._gradient)
        bent = np.zeros_like(step)
        residual = np.where(self._free, self._gradient, 0.0)
        enough = self._enough * np.linalg.norm(residual)
        direction = -residual
        for number in range(self._most):
            if number == len(self._products):
                self._products.append(self.hessian(direction))
            product = self._products[number]
            bend, squared = float(direction @ product), float(residual @ residual)
            inside = bend > 0 and np.linalg.norm(step + squared / bend * direction) < radius
            length = squared / bend if inside else _to_edge(step, direction, radius)
            step, bent = step + length * direction, bent + length * product
            residual = residual + np.where(self._free, length * product, 0.0)
            if not inside or np.linalg.norm(residual) <= enough:
                break
            direction = -residual + float(residual @ residual) / squared * direction
        return step, bent


def _to_edge(step: np.ndarray, direction: np.ndarray, radius: float) -> float:
    """t >= 0 with |step + t direction| = radius."""
    a, b = float(direction @ direction), float(step @ direction)
    c = float(step @ step) - radius**2
    return (-b + np.sqrt(max(b * b - a * c, 0.0))) / a
