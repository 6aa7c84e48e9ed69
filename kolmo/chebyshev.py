r"""Runge-Kutta-Chebyshev of second order, for y' = F(y) whose Jacobian has real eigenvalues <= 0, some large.

Gradient flows are of that kind near a minimum. The fast directions of an overparametrised network are
thousands of times as fast as its slow ones, and explicit Euler, which is gradient descent, may never step
further than 2 / rho, rho the Jacobian's spectral radius. Here s evaluations allow for a step of
0.65 s^2 / rho, s / 3 times as far as Euler for the same work. Steps follow an estimate of the local error,
the number of stages follows rho, and rho is found by power iterations on differences of F.

Source: Sommeijer, Shampine, Verwer, RKC: an explicit solver for parabolic PDEs, J. Comput. Appl. Math. 88
(1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from kolmo.checkpoint import State
from kolmo.errors import InputError, NonFiniteError

Field = Callable[[Tensor], Tensor]

#: most stages of a step; accepted steps between two estimates of rho
_MOST_STAGES, _KEPT = 250, 25
#: the next step against the one that the error would just allow, and how much longer or shorter at most
_SAFETY, _SHORTER, _LONGER = 0.8, 0.1, 5.0
#: power iterations: relative change to stop at, and how many at most; rho may be larger than found by _MARGIN
_SETTLED, _ITERATIONS, _MARGIN = 0.01, 50, 1.2


@lru_cache(maxsize=512)
def coefficients(stages: int) -> tuple[float, tuple[tuple[float, float, float, float], ...]]:
    """mu~_1, and (mu, nu, mu~, gamma~) of stages 2..s, in the paper's notation, with its damping 2/13."""
    w0 = 1 + 2 / 13 / stages**2
    # Chebyshev polynomials at w0 and their derivatives
    T, first, second = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        second.append(4 * first[-1] + 2 * w0 * second[-1] - second[-2])
        first.append(2 * T[-1] + 2 * w0 * first[-1] - first[-2])
        T.append(2 * w0 * T[-1] - T[-2])
    w1 = first[stages] / second[stages]
    b = [second[j] / first[j] ** 2 for j in range(2, stages + 1)]
    b = [b[0], b[0], *b]
    later = []
    for j in range(2, stages + 1):
        slope, before = 2 * b[j] * w1 / b[j - 1], 1 - b[j - 1] * T[j - 1]
        later.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], slope, -before * slope))
    return b[1] * w1, tuple(later)


def step(field: Field, y: Tensor, slope: Tensor, length: float, stages: int) -> Tensor:
    """y(t + length) from y(t) and slope = F(y(t)), with s >= 2 stages: s - 1 more evaluations."""
    first, later = coefficients(stages)
    before, now = y, torch.add(y, slope, alpha=first * length)
    for mu, nu, mu_tilde, gamma_tilde in later:
        following = torch.add(mu * now, field(now), alpha=mu_tilde * length)
        following.add_(y, alpha=1 - mu - nu).add_(before, alpha=nu).add_(slope, alpha=gamma_tilde * length)
        before, now = now, following
    return now


def stages_for(reach: float) -> int:
    """The fewest stages (at least 2) that are stable for a step of length * rho = reach, with a margin."""
    return max(2, 1 + math.isqrt(math.ceil(1 + 1.54 * _MARGIN * reach)))


class Chebyshev:
    """An integration from y at time 0; `advance` takes it on.

    field: F, on vectors of float64; where it raises NonFiniteError a step is refused. tolerance: on every
    step's local error, as the root mean square over components, in their units. time, y and slope = F(y):
    where it stands. length: of the next step to try. radius: rho as last found. evaluations, steps and
    refused steps are counted. Raises InputError on a bad tolerance, NonFiniteError where F is not finite
    at y.
    """

    def __init__(self, field: Field, y: Tensor, tolerance: float) -> None:
        if not 0 < tolerance < math.inf:
            raise InputError(f"tolerance: {tolerance!r} is not a positive number")
        self._field, self.tolerance = field, float(tolerance)
        self.evaluations = self.steps = self.refused = self._age = 0
        self.time, self.length, self.radius = 0.0, math.inf, 1.0
        self.y, self.slope = y, self._evaluate(y)
        if not bool(torch.isfinite(self.slope).all()):
            raise NonFiniteError("the field is not finite at the start")
        self._direction = self.slope

    def state(self) -> State:
        """All that the next step depends on, for `resumed`."""
        kept = {key: value for key, value in vars(self).items() if key != "_field"}
        return {key: v.numpy() if isinstance(v, Tensor) else v for key, v in kept.items()}

    @classmethod
    def resumed(cls, field: Field, state: State) -> Chebyshev:
        """The integration that `state` was taken from, to the bit."""
        found = cls.__new__(cls)
        found._field = field
        for key, value in state.items():
            setattr(found, key, value if isinstance(value, (int, float)) else torch.from_numpy(value))
        return found

    def advance(self, until: float) -> Tensor:
        """y at the time `until`. Raises NonFiniteError where no step, however short, meets the tolerance."""
        while self.time < until:
            if self._age % _KEPT == 0:
                self._estimate_radius()
            left = until - self.time
            wanted = min(self.length, _longest(self.radius))
            # rather two equal steps than a long one and a tiny one
            length = left if wanted >= left else min(wanted, left / 2)
            if self.time + length == self.time:
                raise NonFiniteError(f"time {self.time:.4g}: steps become too short, y may be unbounded")
            y, slope, size = self._try(length)
            if not size <= 1:
                self._refuse(length, size)
                continue
            longer = length * min(_LONGER, _SAFETY * max(size, 1e-9) ** (-1 / 3))
            # a step that was cut to end in time says nothing against long ones
            self.length = longer if length == wanted else max(wanted, longer)
            self.time = until if length == left else self.time + length
            self.y, self.slope = y, slope
            self.steps += 1
            self._age += 1
        return self.y

    def _try(self, length: float) -> tuple[Tensor, Tensor, float]:
        """y and slope after a step, and its error over the tolerance, infinite where F refuses a point."""
        try:
            y = step(self._evaluate, self.y, self.slope, length, stages_for(length * self.radius))
            slope = self._evaluate(y)
        except NonFiniteError:
            return self.y, self.slope, math.inf
        error = 0.8 * (self.y - y) + 0.4 * length * (self.slope + slope)
        return y, slope, float(error.square().mean().sqrt()) / self.tolerance

    def _refuse(self, length: float, size: float) -> None:
        """Shorten the next step, with a fresh rho."""
        shorter = _SAFETY * size ** (-1 / 3) if math.isfinite(size) else 0.0
        self.length = length * max(_SHORTER, shorter)
        self.refused += 1
        self._age = 0

    def _evaluate(self, y: Tensor) -> Tensor:
        self.evaluations += 1
        return self._field(y)

    def _estimate_radius(self) -> None:
        """rho at y, by power iterations from where the last ones ended."""
        size, found = 1e-7 * max(float(self.y.norm()), 1.0), 0.0
        direction = self._direction
        for _ in range(_ITERATIONS):
            norm = float(direction.norm())
            if not norm > 0:
                break
            moved = self._evaluate(torch.add(self.y, direction, alpha=size / norm))
            direction = (moved - self.slope) / size
            before, found = found, float(direction.norm())
            if abs(found - before) <= _SETTLED * found:
                break
        self._direction = direction
        # without any curvature any step is stable
        self.radius = found if found > 0 else self.radius
        if not self.length < math.inf:
            self.length = 1 / self.radius


def _longest(radius: float) -> float:
    """The longest step that the most stages take."""
    return ((_MOST_STAGES - 1) ** 2 - 2) / (1.54 * _MARGIN * radius)
