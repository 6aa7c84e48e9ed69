r"""Affine residual networks: linear-quadratic control, with every optimum in closed form.

    minimise  E 1/2 |x_1(T) - y|^2 + decay int_0^T |theta(t)|^2 dt,    dX = (A X + B theta) dt + s dW,

y = -1 or 1 the label, averaged over the data (MATHEMATICS section 5). Noise adds a number that no control
changes, and the mean of the last x_1 is affine in theta, for weights that are constant on layers as well:

    mean x_1(T) = r . x(0) + sum_k c_k . theta_k,

so objectives are quadratic, minimised by one linear solve. Three problems are of interest, and differ in c:
the limit in continuous time, whose optimum is Riccati's; the modified equation of a given order, which is
what the finite elements discretise; and the chain, the network itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import expm
from torch import Tensor

from kolmo.data import Dataset
from kolmo.loss import LeastSquares
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise import GaussianInjection
from kolmo.problem import Problem


class Affine(LayeredNetwork):
    """f = A x + B theta_k, A (d, d) and B (d, m) fixed, per unit of time; theta (L, m), zero at first."""

    def __init__(self, A: np.ndarray, B: np.ndarray, depth: int, horizon: float = 1.0) -> None:
        super().__init__(len(A), depth, horizon)
        self._A = torch.tensor(A, dtype=torch.float64)
        self._B = torch.tensor(B, dtype=torch.float64)
        self.theta = torch.nn.Parameter(torch.zeros(depth, self._B.shape[1], dtype=torch.float64))

    def block(self, layer: int, x: Tensor) -> Tensor:
        return x @ self._A.T + self._B @ self.theta[layer]

    def jet(self, x: Tensor, layers: slice = slice(None)) -> Jet:
        value = (x @ self._A.T)[None] + (self.theta[layers] @ self._B.T)[:, None]
        return _AffineJet(self._A, value, range(self.depth)[layers], self.depth)


class _AffineJet(Jet):
    """grad f = A, hess f = 0."""

    def __init__(self, A: Tensor, value: Tensor, layers: range, depth: int) -> None:
        self._A, self.value, self.layers, self.depth = A, value, layers, depth

    def directional(self, direction: Tensor) -> Tensor:
        return direction @ self._A.T

    def jacobian(self) -> Tensor:
        return self._A.expand(*self.value.shape, self.value.shape[-1])

    def second(self, matrix: Tensor) -> Tensor:
        return torch.zeros_like(self.value)


@dataclass(frozen=True)
class Quadratic:
    """value + slope . theta + 1/2 theta . matrix theta, theta (L m,) as an `Objective` has it."""

    slope: np.ndarray
    matrix: np.ndarray

    @property
    def minimiser(self) -> np.ndarray:
        return np.asarray(np.linalg.solve(self.matrix, -self.slope))

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix @ theta + self.slope)

    def gap(self, theta: np.ndarray) -> float:
        """What theta costs more than the minimiser, units of the loss; no difference of values is taken."""
        away = theta - self.minimiser
        return float(0.5 * away @ self.matrix @ away)


@dataclass(frozen=True)
class AffineSystem:
    """A linear-quadratic problem.

    A (d, d), B (d, m): per unit of time. points (M, d), labels (M,) 0 or 1. decay: loss per time and squared
    weight. std: of the noise, length per root of time. horizon: time.
    """

    A: np.ndarray
    B: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    decay: float
    std: float = 0.1
    horizon: float = 1.0

    def problem(self, depth: int) -> Problem:
        """The same as a training problem, all weights zero."""
        data = Dataset(torch.tensor(self.points), torch.tensor(self.labels))
        network = Affine(self.A, self.B, depth, self.horizon)
        return Problem(data, network, GaussianInjection(self.std), LeastSquares())

    def modified(self, depth: int, order: int) -> Quadratic:
        """The objective, less a number, of the modified equation of order 1 or 2; layers are exponentials.

        Order 2 has the drift (1 - h/2 A) (A x + B theta).
        """
        d, m = self.B.shape
        h = self.horizon / depth
        factor = np.eye(d) - 0.5 * h * self.A if order == 2 else np.eye(d)
        drift = factor @ np.hstack([self.A, self.B])
        layer = expm(h * np.vstack([drift, np.zeros((m, d + m))]))
        return self._quadratic(layer[:d, :d], layer[:d, d:], depth)

    def chain(self, depth: int) -> Quadratic:
        """The objective, less a number, of the network itself."""
        h = self.horizon / depth
        return self._quadratic(np.eye(len(self.A)) + h * self.A, h * self.B, depth)

    def _quadratic(self, growth: np.ndarray, push: np.ndarray, depth: int) -> Quadratic:
        """Of means that a layer takes to growth x + push theta."""
        row, influence = np.eye(len(growth))[0], []
        for _ in range(depth):  # from the last layer to the first
            influence.append(row @ push)
            row = row @ growth
        c = np.concatenate(influence[::-1])
        ridge = 2 * self.decay * self.horizon / depth * np.eye(len(c))
        return Quadratic(c * self._miss(row), np.outer(c, c) + ridge)

    def _miss(self, row: np.ndarray) -> float:
        """The mean of x_1(T) - y without control, row = dx_1(T) / dx(0)."""
        return float((self.points @ row - (2 * self.labels - 1)).mean())

    def control(self, times: np.ndarray) -> np.ndarray:
        """The optimal theta (n, m) of continuous time: -B^T p / (2 decay), p' = -A^T p the mean costate."""
        row = np.array([expm(self.A * (self.horizon - t))[0] for t in times])
        weight = _gramian(self.A, self.B, self.horizon)[0, 0]
        miss = self._miss(expm(self.A * self.horizon)[0]) / (1 + weight / (2 * self.decay))
        return np.asarray(-miss / (2 * self.decay) * row @ self.B)

    def midpoints(self, depth: int) -> np.ndarray:
        """The optimal control of continuous time at the middle of each layer, as one vector (L m,)."""
        return self.control(self.horizon * (np.arange(depth) + 0.5) / depth).ravel()

    def hamiltonian(self) -> float:
        """Pontryagin's H along the optimum of continuous time, the same at all times; loss per time."""
        A, B, T = self.A, self.B, self.horizon
        last = self.control(np.array([T]))[0]
        # u and rho at time T: a parabola and Gaussians about the points' means
        weight = _gramian(A, B, T)
        growth = expm(A * T)
        pushed = -weight[:, 0] * self._miss(growth[0]) / (2 * self.decay + weight[0, 0])
        means = self.points @ growth.T + pushed
        misses = means[:, 0] - (2 * self.labels - 1)
        drift = means @ A.T + B @ last
        spread = self.std**2 * _gramian(A, np.eye(len(A)), T)
        carried = (misses * drift[:, 0]).mean() + (A @ spread)[0, 0]
        return float(carried + 0.5 * self.std**2 + self.decay * last @ last)


def _gramian(A: np.ndarray, B: np.ndarray, horizon: float) -> np.ndarray:
    """int_0^T e^{At} B B^T e^{A^T t} dt, by one exponential (Van Loan, IEEE Trans. AC 23, 1978)."""
    d = len(A)
    both = expm(horizon * np.block([[-A, B @ B.T], [np.zeros((d, d)), A.T]]))
    return np.asarray(both[d:, d:].T @ both[:d, d:])
