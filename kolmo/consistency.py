r"""One step of the chain against one step of its modified equation, at the chain's own states.

Over a layer, the SDE's moments are, to the order that decides its weak order,

    E[X(h) - x]   = h b + h^2/2 [ (grad b) b + 1/2 a : hess b ] + O(h^3),
    Cov[X(h) - x] = h a + h^2/2 [ (grad b) D + D (grad b)^T ] + O(h^3),

and the chain's are sampled: its own increments, nothing that the modified equation is made of. A
wrong sign, factor or covariance shows here however little the noise matters to J. Derivatives of
b are automatic. Source: Kloeden, Platen, 1992, section 5.5 (Ito-Taylor expansions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kolmo.modified import modified_equation
from kolmo.problem import Problem
from kolmo.stream import Stream, mix


@dataclass(frozen=True)
class OneStep:
    """Regression of the chain's moments on the equation's, all 1 where they agree.

    drift: of E[X(h) - x]. correction: of h m - h b on the second-order terms (order 2 only, nan where
    they are negligible). covariance: of Cov[X(h) - x] (nan without noise). tolerance: what h |grad f|
    and sampling may move them by.
    """

    drift: float
    correction: float
    covariance: float
    tolerance: tuple[float, float, float]

    @property
    def faults(self) -> list[str]:
        """What is beyond its tolerance, in words."""
        found = []
        named = zip(("drift", "correction", "covariance"), self.tolerance, strict=True)
        for name, allowed in named:
            value = getattr(self, name)
            if abs(value - 1) > allowed:  # false for nan
                found.append(
                    f"one step: the chain's {name} is {value:.3g} times the equation's, "
                    f"1 +- {allowed:.2g} expected"
                )
        return found


def one_step(
    problem: Problem, order: int = 2, *, points: int = 64, samples: int = 2048, layers: int = 8, seed: int = 3
) -> OneStep:
    """Compare moments at the states of `points` paths before each of about `layers` layers."""
    network, noise, h = problem.network, problem.noise, problem.network.step
    chosen = sorted(
        {round(k) for k in torch.linspace(0, network.depth - 1, min(layers, network.depth)).tolist()}
    )
    index = torch.linspace(0, len(problem.data) - 1, points).round().long()
    x = problem.data.points[index]
    sums = _Sums()
    with torch.no_grad():
        for layer in range(network.depth):
            if layer in chosen:
                _compare(problem, order, layer, x, samples, seed, sums)
            draws = Stream(mix(seed), 0, len(x), len(x)).layer(layer)
            x = x + noise.sample(network, layer, x, draws)
    return sums.result(h * sums.slope, order)


class _Sums:
    """Products for the three regressions, and their sampling variance."""

    def __init__(self) -> None:
        self.drift, self.correction, self.covariance = ([0.0, 0.0, 0.0] for _ in range(3))
        self.slope = 0.0

    @staticmethod
    def add(sums: list[float], measured: Tensor, expected: Tensor, variance: Tensor) -> None:
        """One regression's share: variance is that of measured, entry by entry."""
        sums[0] += float((measured * expected).sum())
        sums[1] += float(expected.square().sum())
        sums[2] += float((variance * expected.square()).sum())

    def result(self, step_slope: float, order: int) -> OneStep:
        values, allowed = [], []
        # terms left out, relative to those kept: of second order in s = h |grad f|, of first where the
        # quotient itself is of second order or the equation is; several times what is seen on
        # trained networks (benchmarks/one_step.py)
        s = step_slope
        left_out = (0.05 + 0.25 * s**2, 0.25 + 0.5 * s, 0.05 + (0.5 * s if order == 1 else 0.25 * s**2))
        for sums, most in zip((self.drift, self.correction, self.covariance), left_out, strict=True):
            if sums[1] <= 0 or 5 * sums[2] ** 0.5 > 0.5 * sums[1]:
                values.append(float("nan"))  # nothing there, or less than its sampling error
                allowed.append(most)
            else:
                values.append(sums[0] / sums[1])
                allowed.append(most + 5 * sums[2] ** 0.5 / sums[1])
        return OneStep(values[0], values[1], values[2], (allowed[0], allowed[1], allowed[2]))


def _compare(
    problem: Problem, order: int, layer: int, x: Tensor, samples: int, seed: int, sums: _Sums
) -> None:
    network, noise, h = problem.network, problem.noise, problem.network.step
    only = slice(layer, layer + 1)
    count, dim = x.shape
    # antithetic pairs: the fluctuation all but cancels in the mean, which small corrections need
    draws = Stream(mix(seed, 1), 0, count * samples, count, antithetic=True).layer(layer)
    jumps = noise.sample(network, layer, x.repeat(samples, 1), draws).reshape(samples // 2, 2, count, dim)
    pairs = jumps.mean(dim=1)
    mean = pairs.mean(dim=0)
    centred = jumps - mean
    products = (centred[..., :, None] * centred[..., None, :]).mean(dim=1)
    covariance = products.mean(dim=0)

    def drift(z: Tensor) -> Tensor:
        return modified_equation(network, noise, z, order, only).drift[0]

    def diffusion(z: Tensor) -> Tensor:
        a = modified_equation(network, noise, z, order, only).diffusion[0]
        return torch.diag_embed(a) if a.ndim == 2 else a

    b, a = drift(x), diffusion(x)
    slope, second = _derivatives(drift, x, b, a)
    terms = 0.5 * h * h * (slope @ b[..., None])[..., 0] + 0.25 * h * h * second
    D = noise.diffusion(network.jet(x, only))
    expected = h * a
    if D is not None:
        D = D[0].expand(count, dim, dim)
        expected = expected + 0.5 * h * h * (slope @ D + D @ slope.transpose(-1, -2))
    spread = pairs.var(dim=0) / len(pairs)
    sums.slope = max(sums.slope, float(torch.linalg.matrix_norm(slope, 2).quantile(0.95)))
    sums.add(sums.drift, mean, h * b + (terms if order == 2 else 0.0), spread)
    if order == 2:
        sums.add(sums.correction, mean - h * b, terms, spread)
    sums.add(sums.covariance, covariance, expected, products.var(dim=0) / len(products))


def _derivatives(drift: Callable[[Tensor], Tensor], x: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """grad b (Q, d, d) and a : hess b (Q, d) at points x (Q, d), by forward-mode differentiation."""
    dim = x.shape[1]
    basis = torch.eye(dim).to(x)

    def along(i: int, z: Tensor) -> Tensor:
        return torch.func.jvp(drift, (z,), (basis[i].expand_as(z),))[1]

    slope = torch.stack([along(i, x) for i in range(dim)], dim=-1)
    second = torch.zeros_like(b)
    for i in range(dim):
        for j in range(dim):
            bend = torch.func.jvp(lambda z, i=i: along(i, z), (x,), (basis[j].expand_as(x),))[1]
            second = second + a[:, i, j, None] * bend
    return slope, second
