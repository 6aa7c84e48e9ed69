r"""A smooth field in depth, the network of it at any depth, and the equations that it gives, by scipy.

f(x, t) = V(t) tanh(W(t) x + b(t)),     every weight c_0 + c_1 cos(pi t) + c_2 sin(pi t),     0 <= t <= 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp

from kolmo.architectures import TwoLayer
from kolmo.errors import InfeasibleError

#: of the solutions, far below the errors of networks; the fast part of a modified equation costs many steps
TOLERANCE, TOLERANCE_FAST = 1e-13, 1e-11

Weights = tuple[np.ndarray, np.ndarray, np.ndarray]
#: f(x, t) of x (Q, d): shape (Q, d)
VectorField = Callable[[np.ndarray, float], np.ndarray]


class SmoothField:
    """f of x (Q, d) at t in [0, 1].

    W (3, m, d), b (3, m), V (3, d, m): the c_0, c_1, c_2 of each.
    """

    def __init__(self, W: np.ndarray, b: np.ndarray, V: np.ndarray) -> None:
        self._shape = W.shape[1:]
        # in one array, as integrators ask for them many thousand times
        self._terms = np.concatenate([terms.reshape(3, -1) for terms in (W, b, V)], axis=1)

    @classmethod
    def random(cls, dim: int, units: int, seed: int | list[int], offset: bool = True) -> SmoothField:
        """Weights of size 1 in W and 1/m^(1/2) in V that move by a fifth; without offset f(0, t) = 0."""
        rng = np.random.default_rng(seed)

        def terms(base: np.ndarray) -> np.ndarray:
            size = np.abs(base).mean() / 5
            return np.stack([base, *rng.uniform(-size, size, (2, *base.shape))])

        W, b = terms(rng.standard_normal((units, dim))), terms(rng.uniform(-0.5, 0.5, units))
        return cls(W, b * offset, terms(rng.standard_normal((dim, units)) / np.sqrt(units)))

    @classmethod
    def through(cls, curve: Callable[[float], Weights]) -> SmoothField:
        """The field whose weights are the curve's at t = 0, 1/2 and 1."""
        first, middle, last = (curve(t) for t in (0.0, 0.5, 1.0))
        terms = []
        for w, m, e in zip(first, middle, last, strict=True):
            mean = (w + e) / 2
            terms.append(np.stack([mean, (w - e) / 2, m - mean]))
        return cls(*terms)

    def weights(self, t: float) -> Weights:
        """W (m, d), b (m,), V (d, m)."""
        return self._combined(1.0, math.cos(math.pi * t), math.sin(math.pi * t))

    def _combined(self, *factors: float) -> Weights:
        units, dim = self._shape
        theta, size = np.array(factors) @ self._terms, units * dim
        W, b, V = theta[:size], theta[size : size + units], theta[size + units :]
        return W.reshape(units, dim), b, V.reshape(dim, units)

    def __call__(self, x: np.ndarray, t: float) -> np.ndarray:
        W, b, V = self.weights(t)
        return np.asarray(np.tanh(x @ W.T + b) @ V.T)

    def along(self, x: np.ndarray, t: float, velocity: np.ndarray) -> np.ndarray:
        """d/dt f(x(t), t) for x' = velocity (Q, d), in closed form."""
        W, b, V = self.weights(t)
        dW, db, dV = self._combined(0.0, -math.pi * math.sin(math.pi * t), math.pi * math.cos(math.pi * t))
        z = np.tanh(x @ W.T + b)
        inner = velocity @ W.T + x @ dW.T + db
        return np.asarray(z @ dV.T + ((1 - z**2) * inner) @ V.T)

    def block(self, t: float, factor: float = 1.0) -> TwoLayer:
        """factor f(., t) as a block."""
        W, b, V = (torch.from_numpy(w) for w in self.weights(t))
        return TwoLayer(W, b, factor * V)

    def blocks(self, depth: int, place: float, factor: float = 1.0) -> list[TwoLayer]:
        """One for each layer, theta_k = theta((k + place) / depth): 0 at its beginning, 1/2 at its middle."""
        return [self.block((k + place) / depth, factor) for k in range(depth)]


def flow(field: VectorField, points: np.ndarray, end: float = 1.0) -> np.ndarray:
    """x(end) of x' = field(x, t) from x(0) = points (Q, d), to TOLERANCE.

    Raises InfeasibleError where the solution does not reach the end.
    """

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        return field(y.reshape(points.shape), t).ravel()

    return _solved(slope, points.ravel(), end, TOLERANCE).reshape(points.shape)


def _solved(
    slope: Callable[[float, np.ndarray], np.ndarray], y: np.ndarray, end: float, within: float
) -> np.ndarray:
    found = solve_ivp(slope, (0.0, end), y, method="DOP853", rtol=within, atol=within)
    if not found.success:
        raise InfeasibleError(f"reference solution: {found.message}")
    return np.asarray(found.y[:, -1])


@dataclass(frozen=True)
class TwoStep:
    """k(t) = middle + swing cos(pi t) of a two-step network."""

    middle: float
    swing: float = 0.0

    def __call__(self, t: float) -> float:
        return self.middle + self.swing * math.cos(math.pi * t)

    def slope(self, t: float) -> float:
        """k'(t)."""
        return -math.pi * self.swing * math.sin(math.pi * t)

    def __str__(self) -> str:
        return f"{self.middle:.3g}" if not self.swing else f"{self(0):.3g} to {self(1):.3g}"

    def head_start(self, field: SmoothField, points: np.ndarray, step: float) -> np.ndarray:
        """Where the smooth part of the network starts, to O(h^2): x_0 + h k/(1+k)^2 f(x_0, 0), shape (Q, d).

        The first increment is f, by x_{-1} = x_0, and not the limit's f/(1+k). What is over, f k/(1+k), dies
        out by a factor -k in every layer, and its sum h (1 - k + k^2 - ...) f k/(1+k) stays. It lies along f:
        where f does not depend on t, the network is ahead of the limit by the time h k/(1+k).
        """
        k = self(0.0)
        return points + step * k / (1 + k) ** 2 * field(points, 0.0)

    def limit(self, field: SmoothField, points: np.ndarray) -> np.ndarray:
        """x(1) of (1 + k) x' = f, shape (Q, d)."""
        return flow(lambda x, t: field(x, t) / (1 + self(t)), points)

    def modified(self, field: SmoothField, points: np.ndarray, step: float) -> np.ndarray:
        """x(1) of (1 + k) x' + (1 - k) h/2 x'' = f on its smooth branch, for |k| < 1, shape (Q, d).

        From the head start, with the velocity that has no fast part, to O(h^2):
        x' = f/(1+k) - (1-k)/(1+k) h/2 d/dt [f/(1+k)]. A velocity off by O(h) would put x off by O(h^2).
        """
        size, start = points.size, self.head_start(field, points, step)
        k, value = self(0.0), field(start, 0.0)
        velocity = value / (1 + k)
        second = (field.along(start, 0.0, velocity) - self.slope(0.0) * velocity) / (1 + k)
        velocity = velocity - (1 - k) / (1 + k) * step / 2 * second

        def slope(t: float, y: np.ndarray) -> np.ndarray:
            x, v = y[:size].reshape(points.shape), y[size:]
            k = self(t)
            return np.concatenate([v, (field(x, t).ravel() - (1 + k) * v) / ((1 - k) * step / 2)])

        begin = np.concatenate([start.ravel(), velocity.ravel()])
        return _solved(slope, begin, 1.0, TOLERANCE_FAST)[:size].reshape(points.shape)
