r"""Closed forms: affine blocks and a quadratic loss, for every noise.

A layer of a noisy network with an affine block is a random affine map. With z = (1, x) and independent
centred numbers e_j of variance 1,

    X' = X + h F z + sum_j e_j N_j z,

so that the second moments S = E[z z^T] follow the linear recursion S' = G S G^T + sum_j N_j S N_j^T with
G = 1 + h F. A noise is its matrices N_j: nothing here is taken from `kolmo.noise` or `kolmo.modified`.
The modified equation dX = b dt + a^{1/2} dW with b = B z and a = sum_j M_j z z^T M_j^T has
S' = B S + S B^T + sum_j M_j S M_j^T in time. Source: MATHEMATICS sections 1, 2 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import expm

from kolmo import noise
from kolmo.data import Dataset
from kolmo.loss import LeastSquares
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.problem import Problem

#: layers of the cases below, some of which have a strength for each
DEPTH = 4


@dataclass(frozen=True)
class Block:
    """One layer's f(x) = V Z z with z = (1, x); h the step."""

    number: int
    h: float
    V: np.ndarray
    Z: np.ndarray

    @property
    def field(self) -> np.ndarray:
        """F with f = F z, shape (d, d + 1)."""
        return self.V @ self.Z


@dataclass(frozen=True)
class Case:
    """A noise, its matrices N_j in one layer, and those that scale with sqrt(h) rather than h.

    ratio: m = ratio f.
    """

    noise: Noise
    units: Callable[[Block], list[np.ndarray]]
    injected: Callable[[Block], list[np.ndarray]] = lambda block: []
    ratio: Callable[[Block], float] = lambda block: 1.0


def _each_output(variance: float) -> Callable[[Block], list[np.ndarray]]:
    """One number for each component of f."""
    return lambda b: [math.sqrt(variance) * b.h * np.outer(e, e) @ b.field for e in np.eye(len(b.V))]


def _each_hidden(variance: float) -> Callable[[Block], list[np.ndarray]]:
    """One number for each hidden unit."""
    return lambda b: [math.sqrt(variance) * b.h * np.outer(v, z) for v, z in zip(b.V.T, b.Z, strict=True)]


def _each_weight(variance: float) -> Callable[[Block], list[np.ndarray]]:
    """One number for each output weight."""
    return lambda b: [
        math.sqrt(variance) * b.h * b.V[i, j] * np.outer(e, z)
        for i, e in enumerate(np.eye(len(b.V)))
        for j, z in enumerate(b.Z)
    ]


def _whole(
    variance: Callable[[float], float], kept: Callable[[int], float]
) -> Callable[[Block], list[np.ndarray]]:
    """One number for the whole block, its variance a function of the layer's probability."""
    return lambda b: [math.sqrt(variance(kept(b.number))) * b.h * b.field]


def _branches(b: Block) -> list[np.ndarray]:
    """f1 - f2, uniform on an interval of length 1: variance 1/12."""
    half = len(b.Z) // 2
    difference = 2 * (b.V[:, :half] @ b.Z[:half] - b.V[:, half:] @ b.Z[half:])
    return [b.h * difference / math.sqrt(12)]


def _injection(std: float) -> Callable[[Block], list[np.ndarray]]:
    """sqrt(h) s xi, whatever x is."""
    return lambda b: [math.sqrt(b.h) * std * np.outer(e, np.eye(len(b.V) + 1)[0]) for e in np.eye(len(b.V))]


def _nothing(b: Block) -> list[np.ndarray]:
    return []


def _odds(p: float) -> float:
    """The variance of eta / p, eta ~ B(p)."""
    return (1 - p) / p


def _decay(layer: int) -> float:
    """The linear decay of stochastic depth to 1/2 in the last of DEPTH layers."""
    return 1 - (layer + 1) / DEPTH * 0.5


def injection_case(std: float) -> Case:
    """Gaussian injection of a strength: an Ornstein-Uhlenbeck process."""
    return Case(noise.GaussianInjection(std), _nothing, _injection(std))


#: every kind of noise
CASES: dict[str, Case] = {
    "none": Case(noise.NoNoise(), _nothing),
    "bernoulli_dropout": Case(noise.BernoulliDropout(0.7), _each_output(_odds(0.7))),
    "hidden_dropout": Case(noise.HiddenDropout(0.7), _each_hidden(_odds(0.7))),
    "dropconnect": Case(noise.DropConnect(0.7), _each_weight(_odds(0.7))),
    "stochastic_depth": Case(noise.StochasticDepth({"last": 0.5}), _whole(_odds, _decay)),
    "stochastic_depth, test-time": Case(
        noise.StochasticDepth(0.7, scaling="test_time"),
        _whole(lambda p: p * (1 - p), lambda layer: 0.7),
        ratio=lambda block: 0.7,
    ),
    "stochastic_depth, per batch": Case(
        noise.StochasticDepth(0.6, per="batch"), _whole(_odds, lambda layer: 0.6)
    ),
    "gaussian_dropout": Case(noise.GaussianDropout(0.5), _each_output(0.25)),
    "uniform_noise": Case(noise.UniformNoise(0.9), _each_output(0.27)),
    "gaussian_injection": injection_case(0.4),
    "shake_shake": Case(noise.ShakeShake(), _branches),
    "composition": Case(
        noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.3)]),
        _each_output(_odds(0.8)),
        _injection(0.3),
    ),
}


def affine_problem(dim: int, model: Noise, depth: int = DEPTH, radius: float = 0.6) -> Problem:
    """A contraction towards a moving point, time-dependent through smooth functions; six data points.

    They are multiples of 1/50, so that meshes can have them for nodes and interpolate nothing.
    """
    rng = np.random.default_rng(5)
    base, tilt, shift = (rng.uniform(-1, 1, shape) for shape in ((dim, dim), (dim, dim), dim))
    W = rng.standard_normal((2 * (dim // 2 + 1), dim))
    times = (np.arange(depth) + 0.5) / depth
    A = [-0.8 * np.eye(dim) + 0.3 * (base + math.sin(2 * t) * tilt) for t in times]
    V = np.stack([a @ np.linalg.pinv(W) for a in A])
    b = np.stack([np.linalg.pinv(v) @ (0.3 * shift * (1 + t)) for v, t in zip(V, times, strict=True)])
    tensors = [torch.from_numpy(w) for w in (np.stack([W] * depth), b, V)]
    network = ResidualNetwork.from_weights(tensors[0], tensors[1], tensors[2], activation="identity")
    points = torch.from_numpy((50 * rng.uniform(-radius, radius, (6, dim))).round() / 50)
    return Problem(Dataset(points, torch.arange(6) % 2), network, model, LeastSquares())


def blocks(problem: Problem) -> list[Block]:
    """The layers of an affine problem."""
    network = problem.network
    assert isinstance(network, ResidualNetwork) and network.activation.name == "identity"
    W, b, V = (w.detach().numpy() for w in (network.W, network.b, network.V))
    return [Block(k, network.step, V[k], np.hstack([b[k][:, None], W[k]])) for k in range(network.depth)]


def chain_loss(case: Case, problem: Problem) -> float:
    """J of the chain, to rounding."""
    S = _start(problem)
    for block in blocks(problem):
        G = _lifted(block.h * case.ratio(block) * block.field) + np.eye(S.shape[1])
        units = [_lifted(N) for N in case.units(block) + case.injected(block)]
        S = G @ S @ G.T + sum(N @ S @ N.T for N in units)
    return _loss(S, problem)


def modified_loss(case: Case, problem: Problem, order: int) -> float:
    """J of the modified equation of an order, to rounding."""
    S = _start(problem)
    size = S.shape[1]
    for block in blocks(problem):
        drift, roots = modified_fields(case, block, order)
        B, one = _lifted(drift), np.eye(size)
        generator = np.kron(B, one) + np.kron(one, B)
        for M in roots:
            generator += np.kron(_lifted(M), _lifted(M))
        S = (S.reshape(len(S), -1) @ expm(block.h * generator).T).reshape(S.shape)
    return _loss(S, problem)


def modified_fields(case: Case, block: Block, order: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """B and the M_j of one layer's modified equation: b = B z, a = sum_j M_j z (M_j z)^T."""
    h, F = block.h, case.ratio(block) * block.field
    correction = np.eye(len(F)) - (0.5 * h * F[:, 1:] if order == 2 else 0.0)
    roots = [N / math.sqrt(h) for N in case.units(block)]
    return correction @ F, roots + [correction @ N / math.sqrt(h) for N in case.injected(block)]


def _lifted(matrix: np.ndarray) -> np.ndarray:
    """A map of z to R^d as one of z to itself that leaves the 1 alone."""
    return np.vstack([np.zeros(matrix.shape[1]), matrix])


def _start(problem: Problem) -> np.ndarray:
    z = np.hstack([np.ones((len(problem.data), 1)), problem.data.points.numpy()])
    return z[:, :, None] * z[:, None, :]


def _loss(S: np.ndarray, problem: Problem) -> float:
    """1/M sum_i 1/2 E (x_1 - t_i)^2."""
    target = 2.0 * problem.data.labels.numpy() - 1
    return float(np.mean(0.5 * (S[:, 1, 1] - 2 * target * S[:, 0, 1] + target**2)))
