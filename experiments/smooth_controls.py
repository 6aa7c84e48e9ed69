r"""Controls theta(t) compared over depths, and minimised over in the metric of their penalties.

The weights of L layers are a step function on [0, T]. With weight decay and depth smoothness,

    penalty(theta) = 1/2 <theta, M theta>,      M = 2 decay h I + 2 smoothness / h D^T D,

D the differences in depth, for every weight. In the variables eta = R theta, M = R^T R, that part of the
objective is |eta|^2 / 2 whatever the depth: for 80 layers L-BFGS takes as many iterations as for 5, where in
theta their number grows with L.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.checkpoint import Checkpoint
from kolmo.control import Box, Objective, lbfgs
from kolmo.network import ResidualNetwork
from kolmo.penalty import DepthSmoothness, WeightDecay
from kolmo.problem import Problem


@dataclass(frozen=True)
class Metric:
    """Coefficients of `WeightDecay` and `DepthSmoothness`, both > 0."""

    decay: float
    smoothness: float

    @property
    def penalties(self) -> tuple[WeightDecay, DepthSmoothness]:
        return WeightDecay(self.decay), DepthSmoothness(self.smoothness)

    def root(self, depth: int, step: float) -> np.ndarray:
        """R (L, L), upper triangular."""
        D = np.diff(np.eye(depth), axis=0)
        M = 2 * self.decay * step * np.eye(depth) + 2 * self.smoothness / step * D.T @ D
        return np.asarray(np.linalg.cholesky(M).T)


class SmoothObjective(Objective):
    """J + penalties as a function of eta = R theta."""

    def __init__(self, network: ResidualNetwork, estimator: Callable[[], Tensor], metric: Metric) -> None:
        super().__init__(network, estimator, metric.penalties)
        self._root = metric.root(network.depth, network.step)
        self._inverse = np.linalg.inv(self._root)

    def eta(self, theta: np.ndarray) -> np.ndarray:
        """R theta, weights in the order of the network's parameters."""
        return self._in_depth(self._root, theta)

    def weights(self, eta: np.ndarray) -> np.ndarray:
        """theta of eta."""
        return self._in_depth(self._inverse, eta)

    def value_and_gradient(self, eta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = super().value_and_gradient(self.weights(eta))
        return value, self._in_depth(self._inverse.T, gradient)

    def _in_depth(self, matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """A matrix (L, L) applied to every weight over depth; parameters have the layers first."""
        parts, first = [], 0
        for parameter in self.network.parameters():
            part = vector[first : first + parameter.numel()].reshape(self.network.depth, -1)
            parts.append((matrix @ part).ravel())
            first += parameter.numel()
        return np.concatenate(parts)


@dataclass(frozen=True)
class Minimum:
    """A control that L-BFGS ended with: theta (L, weights of a layer), objective, and how it ended."""

    theta: np.ndarray
    value: float
    iterations: int
    status: str


def minimise(
    problem: Problem,
    estimator: Callable[[], Tensor],
    metric: Metric,
    checkpoint: Checkpoint,
    *,
    tolerance: float,
    iterations: int = 300,
) -> Minimum:
    """The minimum of J + penalties that L-BFGS finds from the problem's weights, which it replaces.

    tolerance: of the gradient by eta, Euclidean. Raises InfeasibleError where the start is refused.
    """
    network = problem.network
    assert isinstance(network, ResidualNetwork)
    objective = SmoothObjective(network, estimator, metric)
    result = lbfgs(
        objective,
        objective.eta(objective.theta),
        Box(math.inf),
        iterations=iterations,
        tolerance=tolerance,
        memory=30,
        callback=lambda step: checkpoint.offer(step.state),
        resume=checkpoint.load(),
    )
    objective.theta = objective.weights(result.theta)
    return Minimum(layers_of(network), result.value, result.iterations, result.status)


# step functions of the depth


def layers_of(network: ResidualNetwork) -> np.ndarray:
    """The weights (W, b, V) of every layer as a row (L, m (2 d + 1))."""
    parts = [p.detach().numpy().reshape(network.depth, -1) for p in (network.W, network.b, network.V)]
    return np.concatenate(parts, axis=1)


def network_of(theta: np.ndarray, dim: int, horizon: float = 1.0) -> ResidualNetwork:
    """The network with such rows."""
    depth, count = theta.shape
    width = count // (2 * dim + 1)
    W, b, V = np.split(theta, [width * dim, width * (dim + 1)], axis=1)
    shaped = W.reshape(depth, width, dim), b, V.reshape(depth, dim, width)
    weights = [torch.from_numpy(part) for part in shaped]
    return ResidualNetwork.from_weights(weights[0], weights[1], weights[2], horizon)


def at_depth(theta: np.ndarray, depth: int) -> np.ndarray:
    """A step function with `depth` steps: repeated, or averaged; one number of steps divides the other."""
    if depth >= len(theta):
        return theta.repeat(depth // len(theta), axis=0)
    return np.asarray(theta.reshape(depth, len(theta) // depth, -1).mean(axis=1))


def apart(theta: np.ndarray, limit: np.ndarray) -> float:
    """|theta - P limit| / |limit| in L2(0, T), P the mean over each of theta's layers."""
    difference = theta - at_depth(limit, len(theta))
    return float(np.sqrt(np.square(difference).sum(axis=1).mean() / np.square(limit).sum(axis=1).mean()))


def steepness(theta: np.ndarray) -> float:
    """L max_k |theta_{k+1} - theta_k|, the Lipschitz constant in depth where T = 1."""
    return float(len(theta) * np.linalg.norm(np.diff(theta, axis=0), axis=1).max())
