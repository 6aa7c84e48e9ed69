r"""Projected trust-region Newton-Krylov: second-order steps in a box that survive refusals.

Components on the boundary whose descent points outward are held; on the others the model

    m(s) = g . s + 1/2 s . H s,   |s| <= radius,

is minimised by conjugate gradients that stop at the trust region's edge or along a direction of negative
curvature (Steihaug, SIAM J. Numer. Anal. 20, 1983), the step is projected, and the ratio of what the
objective loses to what the model promised decides on it and on the radius. Products H v are exact; no matrix
is formed. A refused trial point (InfeasibleError) counts as outside of the trust region. The result is never
worse than the start.

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
_ACCEPT, _POOR, _GOOD = 1e-4, 0.25, 0.75
#: radius, relative to the weights, below which no step is left
_LEAST = 1e-14


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
    residual = float(np.linalg.norm(admissible.residual(theta, gradient)))
    hessian: Callable[[np.ndarray], np.ndarray] | None = None
    while iteration < iterations:
        if residual <= tolerance:
            status = "stationary"
            break
        if radius <= _LEAST * max(1.0, float(np.linalg.norm(theta))):
            status = "stalled"
            break
        if hessian is None:
            hessian = objective.hessian(theta)
        free = ~admissible.blocked(theta, gradient)
        step = _steihaug(hessian, gradient, free, radius, inner)
        trial = admissible.project(theta + step)
        taken = trial - theta
        promised = -float(gradient @ taken + 0.5 * taken @ hessian(taken))
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
        # both differences are rounded: where nothing more than that is promised, the gradient decides
        rounding = 4 * np.finfo(float).eps * max(abs(value), 1.0)
        ratio = (value - new_value + rounding) / (promised + rounding)
        if ratio < _POOR:
            radius = 0.25 * length
        elif ratio > _GOOD and length > 0.8 * radius:
            radius *= 2
        if ratio <= _ACCEPT or new_value > value:
            if promised <= rounding:
                status = "stalled"
                break
            continue
        theta, value, gradient, hessian = trial, new_value, new_gradient, None
        iteration += 1
        residual = float(np.linalg.norm(admissible.residual(theta, gradient)))
        if callback is not None:
            spent = objective.evaluations - before, objective.products - products
            callback(NewtonStep(iteration, theta, value, residual, radius, *spent))
    objective.theta = theta
    return Result(theta, value, residual, iteration, objective.evaluations - before, status, refused)


def _steihaug(
    hessian: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    free: np.ndarray,
    radius: float,
    most: int,
) -> np.ndarray:
    """About the minimiser of the model over free components within the radius."""
    step = np.zeros_like(gradient)
    residual = np.where(free, gradient, 0.0)
    norm = float(np.linalg.norm(residual))
    enough = min(0.5, np.sqrt(norm)) * norm  # superlinear
    direction = -residual
    for _ in range(most):
        curved = np.where(free, hessian(direction), 0.0)
        bend = float(direction @ curved)
        if bend <= 0:
            return step + _to_edge(step, direction, radius) * direction
        squared = float(residual @ residual)
        length = squared / bend
        if np.linalg.norm(step + length * direction) >= radius:
            return step + _to_edge(step, direction, radius) * direction
        step = step + length * direction
        residual = residual + length * curved
        if np.linalg.norm(residual) <= enough:
            break
        direction = -residual + float(residual @ residual) / squared * direction
    return step


def _to_edge(step: np.ndarray, direction: np.ndarray, radius: float) -> float:
    """t >= 0 with |step + t direction| = radius."""
    a, b = float(direction @ direction), float(step @ direction)
    c = float(step @ step) - radius**2
    return (-b + np.sqrt(max(b * b - a * c, 0.0))) / a
