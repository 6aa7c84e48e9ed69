r"""How sharp a loss is at given weights: in raw numbers, and in ones that a rescaling of units leaves alone.

    largest     the leading eigenvalue of the Hessian H of the loss
    trace       tr H
    filtered    sum_f |theta_f|^2 tr(H_ff) / n_f over filters f of n_f weights: the mean of d . H d over
                filter-normalised directions d (see `landscape`)
    increase    the mean of [l(theta + r d) + l(theta - r d)] / 2 - l(theta) over the same at a radius r;
                r^2 / 2 times `filtered` as r tends to 0

The first two change where a network is written down with other weights, as much as one likes (Dinh, Pascanu,
Bengio, Bengio, 1703.04933); the last two do not where only the scales of units and biases are changed. Both
signs of a direction are taken: weights that are stationary for another objective have a slope, which is no
sharpness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from kolmo.experiments.landscape import filters, lengths, random_directions
from kolmo.network import LayeredNetwork
from kolmo.problem import Problem

#: weights evaluated at once
_BLOCK = 256


class NoiselessCurvature:
    """The Hessian of the noiseless network's loss at its present weights, by automatic differentiation."""

    def __init__(self, problem: Problem) -> None:
        self._parameters = list(problem.network.parameters())
        loss = noiseless_loss(problem)
        slope = torch.autograd.grad(loss, self._parameters, create_graph=True)
        self._slope = torch.cat([s.reshape(-1) for s in slope])

    def product(self, direction: np.ndarray) -> np.ndarray:
        """H v for a vector v of weights (P,)."""
        return self._products(torch.as_tensor(direction, dtype=torch.float64)[None])[0]

    def matrix(self) -> np.ndarray:
        """H (P, P)."""
        rows = torch.eye(len(self._slope), dtype=torch.float64).split(_BLOCK)
        return np.concatenate([self._products(block) for block in rows])

    def _products(self, directions: Tensor) -> np.ndarray:
        """H v for each row v of (n, P)."""
        parts = torch.autograd.grad(
            self._slope, self._parameters, directions, retain_graph=True, is_grads_batched=True
        )
        return np.asarray(torch.cat([p.reshape(len(directions), -1) for p in parts], dim=1).numpy())


def noiseless_loss(problem: Problem) -> Tensor:
    """Mean loss of the network with its noise off, a scalar: no equation, no mesh."""
    return problem.loss(problem.network(problem.data.points), problem.data.labels).mean()


@torch.no_grad()
def noiseless_losses(problem: Problem, thetas: np.ndarray) -> np.ndarray:
    """The same for many vectors of weights (N, P) at once: shape (N,)."""
    network, data = problem.network, problem.data
    parameters = dict(network.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def one(theta: Tensor) -> Tensor:
        parts = zip(parameters.items(), theta.split(sizes), strict=True)
        weights = {name: part.reshape(p.shape) for (name, p), part in parts}
        last = torch.func.functional_call(network, weights, (data.points,))
        return problem.loss(last, data.labels).mean()

    blocks = torch.as_tensor(thetas, dtype=torch.float64).split(_BLOCK)
    return np.concatenate([torch.func.vmap(one)(block).numpy() for block in blocks])


@dataclass(frozen=True)
class Sharpness:
    """Of a loss at one theta: its value and what the module describes; increase (R,) at each radius.

    sampling (R,): standard error of the increase by the directions drawn.
    """

    loss: float
    largest: float
    trace: float
    filtered: float
    increase: np.ndarray
    sampling: np.ndarray


def noiseless_sharpness(
    problem: Problem, theta: np.ndarray, radii: tuple[float, ...], directions: int, seed: int | list[int]
) -> Sharpness:
    """Of the noiseless network's loss at theta; the network's weights are theta after."""
    torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), problem.network.parameters())
    H = NoiselessCurvature(problem).matrix()
    loss = float(noiseless_loss(problem).detach())
    moves = random_directions(theta, filters(problem.network), directions, seed)

    def mean(weights: np.ndarray) -> np.ndarray:
        return noiseless_losses(problem, weights)

    increase, sampling = average_increase(mean, theta, moves, radii)
    return Sharpness(
        loss,
        largest=float(np.linalg.eigvalsh(H)[-1]),
        trace=float(np.trace(H)),
        filtered=filtered_trace(np.diag(H), theta, problem.network),
        increase=increase,
        sampling=sampling,
    )


def filtered_trace(diagonal: np.ndarray, theta: np.ndarray, network: LayeredNetwork) -> float:
    """sum_f |theta_f|^2 tr(H_ff) / n_f from the Hessian's diagonal (P,)."""
    of = filters(network)
    return float((lengths(theta, of) ** 2 * np.bincount(of, diagonal) / np.bincount(of)).sum())


def average_increase(
    losses: Callable[[np.ndarray], np.ndarray],
    theta: np.ndarray,
    directions: np.ndarray,
    radii: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Mean symmetric increase of a loss at each radius (R,), and its standard error.

    losses: of many weights (N, P) -> (N,). directions (n, P).
    """
    middle, means, errors = losses(theta[None])[0], [], []
    for r in radii:
        both = losses(np.concatenate([theta + r * directions, theta - r * directions]))
        rise = 0.5 * (both[: len(directions)] + both[len(directions) :]) - middle
        means.append(rise.mean())
        errors.append(rise.std(ddof=1) / math.sqrt(len(rise)))
    return np.array(means), np.array(errors)


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of paired ratios and its interval, by Student's t on their logarithms."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: np.ndarray, confidence: float = 0.95) -> Ratio:
        """Of at least two ratios (n,); nan where one is not positive: losses need not be convex."""
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.where(np.asarray(ratios) > 0, np.log(ratios), np.nan)
        quantile = float(stdtrit(len(logs) - 1, 0.5 + 0.5 * confidence))
        half = quantile * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        middle = float(logs.mean())
        return cls(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def deflated_trace(
    product: Callable[[np.ndarray], np.ndarray],
    values: np.ndarray,
    vectors: np.ndarray,
    probes: int,
    seed: int,
) -> tuple[float, float]:
    """tr H and its standard error, from leading eigenpairs and random signs on their complement.

    values (k,), vectors (P, k). Source: Hutchinson, Commun. Stat. 19 (1990); Meyer, Musco, Musco, Woodruff,
    2010.09649, for the deflation.
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (probes, len(vectors)))
    found = []
    for z in signs:
        z = z - vectors @ (vectors.T @ z)
        found.append(float(z @ product(z)))
    error = float(np.std(found, ddof=1)) / math.sqrt(probes)
    return float(values.sum() + np.mean(found)), error
