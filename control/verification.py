"""Taylor tests: is this the gradient of that value?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kolmo.control.objective import Objective


@dataclass(frozen=True)
class TaylorRates:
    """Observed orders of the remainders and the remainders themselves, one per step size.

    order0: of |J(theta + e d) - J|, 1 for a continuous gradient; order1: of
    |J(theta + e d) - J - e J'd|, 2 where the gradient is the derivative of the value.
    """

    order0: float
    order1: float
    steps: tuple[float, ...]
    remainders0: tuple[float, ...]
    remainders1: tuple[float, ...]


def taylor_test(
    objective: Objective,
    theta: np.ndarray,
    direction: np.ndarray | None = None,
    steps: Sequence[float] = (4e-3, 2e-3, 1e-3, 5e-4),
    seed: int = 0,
) -> TaylorRates:
    """Rates of the Taylor remainders of order 0 and 1 at theta along a direction.

    direction: by default Gaussian with unit norm, from `seed`. steps: decreasing lengths. The rate is
    the slope of a least-squares line through the logarithms.
    """
    theta = np.asarray(theta, dtype=np.float64)
    if direction is None:
        direction = np.random.default_rng(seed).standard_normal(theta.shape)
        direction /= np.linalg.norm(direction)
    value, gradient = objective.value_and_gradient(theta)
    slope = float(gradient @ direction)
    values = [objective.value(theta + e * direction) for e in steps]
    objective.theta = theta
    zero = [abs(v - value) for v in values]
    one = [abs(v - value - e * slope) for v, e in zip(values, steps, strict=True)]
    return TaylorRates(_rate(steps, zero), _rate(steps, one), tuple(steps), tuple(zero), tuple(one))


def _rate(steps: Sequence[float], remainders: Sequence[float]) -> float:
    floor = np.finfo(float).tiny
    return float(np.polyfit(np.log(steps), np.log(np.maximum(remainders, floor)), 1)[0])
