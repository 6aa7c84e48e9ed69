r"""Stochastic depth in LM-ResNet on a nonlinear field: the expected loss of the network, four ways.

J of the network itself as the sum over all 2^L masks, without sampling; by masks drawn at random, which is
how a network is trained; by paths of the modified equation of `architectures_noise`; and, with x''
eliminated, by the backward Kolmogorov equation, with finite elements:

    u_t + b . grad u + 1/2 a : hess u = 0,   b = F - (1-k)/(1+k) h/2 dF/dt,   a = h q F F^T,   F = f/(1+k),

which `kolmo.modified` gives at order 2 for the equivalent ResNet: blocks F, L (1+k)/(1-k) layers, masks of
variance q (1+k)/(1-k). Order 1 leaves out the term with dF/dt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import noise
from kolmo.architectures import LMResNet
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.data import Dataset
from kolmo.experiments.architectures_field import SmoothField, VectorField
from kolmo.experiments.architectures_part import Table, fitted_order, order_claim
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress
from kolmo.experiments.weak_numbers import FULL, Numerics, Value, modified_value
from kolmo.experiments.weak_order import Curve
from kolmo.loss import Logistic
from kolmo.network import ResidualNetwork
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.problem import Problem
from kolmo.stream import mix

DEPTHS, DEPTHS_QUICK = (4, 8, 16), (4, 8, 12)
#: k = 1/3: the equivalent ResNet has twice the layers and masks of twice the variance
K, RATIO = 1 / 3, 2
KEEP = 0.8
VARIANCE = (1 - KEEP) / KEEP
#: where the smooth part of the features starts: nodes of all meshes, three of each class
STARTS = (-1.25, -0.75, -0.25, 0.25, 0.5, 1.0)
LOSS = Logistic(2.0)
#: paths of the modified equation, a tenth of the masks drawn; its steps in a layer
PATHS, PATHS_QUICK = 20_000, 5_000
SUBSTEPS = 16
#: standard errors that one mean in 20 is off by, and one in 16,000
NORMAL, RARELY = 1.96, 4.0
#: what orders may be off by; the modified equation's distance in units of order 1's, at the deepest network
WITHIN, SHARE = 0.3, 1 / 2
#: of Kolmogorov's equation; the smallest difference that is looked at is 2e-4, in the small version 3e-4
NUMERICS, NUMERICS_QUICK = FULL[1], Numerics(6.0, (48, 96, 192, 384), (), 1e-5, ())


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Expected:
    """J of one depth: exact; by masks drawn; by the modified equation; by Kolmogorov's, orders 1 and 2."""

    exact: float
    sampled: Estimate
    second: Estimate
    kolmogorov: tuple[Value, Value]

    @property
    def away(self) -> float:
        """|J - exact| of the modified equation."""
        return abs(self.second.value - self.exact)

    def off(self, order: int) -> float:
        """|J - exact| of Kolmogorov's equation."""
        return abs(self.kolmogorov[order - 1].value - self.exact)


class Masked:
    """Multiplies the increment of block n by factors[:, n], one row for each point."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def __call__(self, increment: Tensor, number: int) -> Tensor:
        return increment * self.factors[:, number, None]


class Expectations:
    """found[L]; the experiment's fields and points, paths and masks by the seed."""

    name = "expected_loss"

    def __init__(self, seed: int, quick: bool, backend: str) -> None:
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.paths = PATHS_QUICK if quick else PATHS
        self.numerics = NUMERICS_QUICK if quick else NUMERICS
        self.field = SmoothField.through(Curve(1, seed))
        self.seed, self.backend = seed, backend
        self.steps = len(self.depths)
        self.found: dict[int, Expected] = {}

    def run(self, memo: Memo, progress: Progress) -> None:
        for depth in self.depths:
            kept = memo.remember(f"expected-{depth}", partial(self._measured, depth))
            pair = [Value(**value) for value in kept["kolmogorov"]]
            self.found[depth] = Expected(
                kept["exact"], Estimate(*kept["sampled"]), Estimate(*kept["second"]), (pair[0], pair[1])
            )
            away = " and ".join(f"{self.found[depth].off(order):.1e}" for order in (1, 2))
            progress.advance(f"expected loss, {depth} layers: {away}")

    def _measured(self, depth: int, checkpoint: Checkpoint) -> State:
        with torch.no_grad():
            backend, problem = resolve_backend(self.backend), self.equivalent(depth)
            kolmogorov = [vars(modified_value(problem, self.numerics, order, backend)) for order in (1, 2)]
            return {
                "exact": self.exact(depth), "sampled": self.sampled(depth), "second": self.second(depth),
                "kolmogorov": kolmogorov,
            }  # fmt: skip

    def points(self, depth: int) -> np.ndarray:
        """x_0 (6, 1) of the network, whose head start x_0 + h k/(1+k) F(x_0, 0) is STARTS."""
        goal = np.array(STARTS)[:, None]
        x = goal
        for _ in range(100):  # the map contracts by less than a tenth
            x = goal - K / (1 + K) / depth * self.field(x, 0.0)
        return x

    def network(self, depth: int, factors: Tensor) -> LMResNet:
        """Blocks f = (1 + k) F, k constant; factors (N, L) of the increments."""
        return LMResNet(self.field.blocks(depth, 0.0, 1 + K), 1 / depth, Masked(factors), K)

    def loss(self, features: Tensor, count: int) -> Tensor:
        """Mean over the points of Phi, features (6 count, 1), those of a point in a row: (count,)."""
        labels = torch.arange(len(STARTS)) >= len(STARTS) // 2
        return LOSS(features.reshape(len(STARTS), count, 1), labels[:, None]).mean(dim=0)

    def exact(self, depth: int) -> float:
        """J as the sum over all masks."""
        masks = (torch.arange(2**depth)[:, None] >> torch.arange(depth) & 1).double()
        kept = masks.sum(dim=1)
        weights = KEEP**kept * (1 - KEEP) ** (depth - kept)
        return float(self._through(depth, masks / KEEP) @ weights)

    def sampled(self, depth: int) -> tuple[float, float]:
        """Mean and standard error of J by masks drawn, the same for all points, ten for each path."""
        draw = torch.Generator().manual_seed(mix(self.seed, 0, depth))
        masks = (torch.rand(10 * self.paths, depth, generator=draw, dtype=torch.float64) < KEEP).double()
        return _estimate(self._through(depth, masks / KEEP))

    def _through(self, depth: int, factors: Tensor) -> Tensor:
        """The network's loss under every row of factors (N, L), mean over the points: (N,)."""
        count = len(factors)
        network = self.network(depth, factors.repeat(len(STARTS), 1))
        points = torch.from_numpy(self.points(depth)).repeat_interleave(count, dim=0)
        with torch.no_grad():
            return self.loss(network(points), count)

    def second(self, depth: int, substeps: int = SUBSTEPS) -> tuple[float, float]:
        """Mean and standard error of J by paths of the modified equation, in antithetic pairs."""
        rng, pairs = np.random.default_rng([self.seed, 21, depth]), self.paths // 2
        start = np.array(STARTS)[:, None]
        value = self.field(start, 0.0)
        slow = value - (1 - K) / (1 + K) / (2 * depth) * self.field.along(start, 0.0, value)

        def normal() -> np.ndarray:
            # one Brownian motion for all points, as masks are the same for all of them
            drawn = rng.standard_normal((pairs, 1))
            return np.tile(np.concatenate([drawn, -drawn]), (len(STARTS), 1))

        scheme = Langevin(lambda x, t: (1 + K) * self.field(x, t), K, 1 / depth, VARIANCE, substeps)
        x, v = (np.repeat(z, 2 * pairs, axis=0) for z in (start, slow))
        end = scheme.run(x, v, normal)
        losses = self.loss(torch.from_numpy(end), 2 * pairs)
        return _estimate(losses.reshape(2, pairs).mean(dim=0))

    def equivalent(self, depth: int) -> Problem:
        """The ResNet with the same modified equation: blocks F, RATIO times the layers and the variance."""
        layers = depth * RATIO
        weights = zip(*(self.field.weights(k / layers) for k in range(layers)), strict=True)
        W, b, V = (torch.from_numpy(np.stack(w)) for w in weights)
        network = ResidualNetwork.from_weights(W, b, V)
        points = torch.tensor(STARTS, dtype=torch.float64)[:, None]
        data = Dataset(points, torch.arange(len(STARTS)) >= len(STARTS) // 2)
        return Problem(data, network, noise.StochasticDepth(1 / (1 + RATIO * VARIANCE)), LOSS)

    @property
    def finished(self) -> bool:
        return len(self.found) == len(self.depths)

    def claims(self) -> list[Claim]:
        if not self.finished:
            return []
        claims, title = [], "stochastic depth, nonlinear:"
        for depth, found in self.found.items():
            gap, most = abs(found.sampled.value - found.exact), RARELY * found.sampled.error
            text = f"{title} L = {depth}, masks drawn against all masks"
            claims.append(Claim(text, gap, f"<= {most:.1e} ({RARELY:g} errors)", gap <= most))
        last = self.found[self.depths[-1]]
        gap, most = last.away + NORMAL * last.second.error, SHARE * last.off(1)
        text = f"{title} L = {self.depths[-1]}, modified equation, with its 95% interval"
        claims.append(Claim(text, gap, f"<= {most:.1e} (half of order 1's)", gap <= most))
        paths = [found.away for found in self.found.values()]
        claims.append(order_claim(f"{title} modified equation", fitted_order(self.depths, paths), 2, WITHIN))
        for order in (1, 2):
            slope = fitted_order(self.depths, [found.off(order) for found in self.found.values()])
            claims.append(order_claim(f"{title} Kolmogorov's of order {order}", slope, order, WITHIN))
        return claims

    def results(self) -> list[dict[str, Any]]:
        return [
            {
                "depth": depth, "exact": found.exact, "sampled": vars(found.sampled),
                "modified": vars(found.second), "kolmogorov": [vars(value) for value in found.kolmogorov],
            }
            for depth, found in self.found.items()
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        lines: list[list[object]] = []
        for depth, found in self.found.items():
            pairs = [f"{e.value:.5f} +- {NORMAL * e.error:.0e}" for e in (found.sampled, found.second)]
            kolmogorov = [f"{value.value:.5f}" for value in reversed(found.kolmogorov)]
            lines.append([depth, f"{found.exact:.5f}", *pairs, *kolmogorov])
        columns = ["L", "all masks", "masks drawn", "modified, paths", "Kolmogorov, order 2", "order 1"]
        title = f"stochastic depth in LM-ResNet, k = 1/3, keep {KEEP:g}: expected loss"
        return [(title, columns, lines)]


def _estimate(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


class Langevin:
    """Paths of (1 + k) X' dt + (1 - k) h/2 dX' = f(X, t) dt + (h q)^{1/2} f(X, t) dB on [0, 1].

    One scalar Brownian motion a path. In each of `substeps` steps to a layer: X moves half a step by X', then
    X' by its linear equation with X held, exactly, then X the other half; of weak order 2 in the step.
    """

    def __init__(self, field: VectorField, k: float, step: float, variance: float, substeps: int) -> None:
        self.field, self.count, self.substep = field, round(substeps / step), step / substeps
        inertia, self.rate = (1 - k) * step / 2, 1 + k
        self.decay = math.exp(-self.rate / inertia * self.substep)
        self.deviation = math.sqrt(step * variance * (1 - self.decay**2) / (2 * self.rate * inertia))

    def run(self, x: np.ndarray, v: np.ndarray, normal: Callable[[], np.ndarray]) -> np.ndarray:
        """X(1) from X(0) = x and X'(0) = v, (N, d); normal() gives N(0, 1) numbers (N, 1)."""
        for n in range(self.count):
            x = x + self.substep / 2 * v
            force = self.field(x, (n + 0.5) * self.substep)
            rest = force / self.rate
            v = rest + self.decay * (v - rest) + self.deviation * force * normal()
            x = x + self.substep / 2 * v
        return x
