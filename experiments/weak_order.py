r"""The weak orders of the modified equations, without sampling noise.

For every noise, depth L (h = 1/L) and order q the modelling error in the expected loss,

    e_q(L) = |J_modified,q(L) - J_exact(L)| = O(h^q),         q = 1, 2,

J_exact by the chain's own backward recursion (`ExactRecursion`), J_modified by the backward Kolmogorov
equation on meshes extrapolated to spacing zero. The weights are one smooth curve read at the layers'
midpoints, theta_k = theta((k + 1/2) h): chain and equation hold the same L values, so where in its layer
the curve is read moves both alike.

The noise's strength is fixed in L: the diffusion h C vanishes as L grows, and with D = 0 all that the noise
does is O(h). Rates scaled so that h C stays fixed are not used: a mask then acts with a probability O(h) by a
jump that does not shrink, a layer's third moment is O(h) and no longer O(h^3), the chain tends to a jump
process and neither equation to the chain; with Gaussian factors both orders fall to 1.

Each value has its numerical error estimated (grid or mesh, Gauss rule, box); a point whose modelling error is
not at least SHARE times as large does not enter a fit. In 1-D stochastic depth coincides in law with dropout,
and DropConnect with hidden dropout: these four, and shake-shake, are run in 2-D.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from kolmo import noise
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.data import Dataset
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress, Silent
from kolmo.experiments.weak_numbers import FULL, SMALL, Value, exact_value, modified_value
from kolmo.loss import Logistic
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.problem import Problem

ORDERS = (1, 2)
#: a point enters a fit where its modelling error is SHARE times its numerical one; a fit needs LEAST points
SHARE, LEAST = 5.0, 4
#: what a fitted slope may be off by, by order: in full, and for --quick
WITHIN, WITHIN_QUICK = {1: 0.15, 2: 0.25}, {1: 0.25, 2: 0.4}

#: keep probability of every mask; factors get a mask's variance (1-p)/p. Injection: length per root of time
KEEP, STD = 0.7, 0.75
_VARIANCE = (1 - KEEP) / KEEP
_BOTH = noise.Composition([noise.BernoulliDropout(KEEP), noise.GaussianInjection(STD)])


@dataclass(frozen=True)
class Case:
    """One noise in one dimension; `quick`: also in the small version."""

    name: str
    dim: int
    noise: Noise
    quick: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.dim}-D"


CASES = (
    Case("Gaussian injection", 1, noise.GaussianInjection(STD), quick=True),
    Case("dropout", 1, noise.BernoulliDropout(KEEP), quick=True),
    Case("hidden dropout", 1, noise.HiddenDropout(KEEP)),
    Case("depth, test-time", 1, noise.StochasticDepth(KEEP, scaling="test_time"), quick=True),
    Case("depth, linear decay", 1, noise.StochasticDepth({"last": 0.5})),
    Case("Gaussian dropout", 1, noise.GaussianDropout(math.sqrt(_VARIANCE))),
    Case("uniform noise", 1, noise.UniformNoise(math.sqrt(3 * _VARIANCE))),
    Case("shake-shake", 1, noise.ShakeShake(), quick=True),
    Case("dropout + injection", 1, _BOTH),
    Case("dropout", 2, noise.BernoulliDropout(KEEP)),
    Case("stochastic depth", 2, noise.StochasticDepth(KEEP)),
    Case("hidden dropout", 2, noise.HiddenDropout(KEEP)),
    Case("DropConnect", 2, noise.DropConnect(KEEP)),
    Case("shake-shake", 2, noise.ShakeShake()),
)


#: three points of each class; hidden units (DropConnect has 2^(d m) outcomes); about |V W|: h |grad f| < 0.3
_POINTS = {
    1: [[-1.25], [-0.75], [-0.25], [0.25], [0.5], [1.0]],
    2: [[-0.75, 0.25], [-0.5, -0.5], [-0.25, 0.5], [0.25, -0.25], [0.5, 0.5], [0.75, -0.25]],
}
_WIDTH = {1: 4, 2: 2}
_GAIN = {1: 1.2, 2: 0.8}


class Curve:
    """Smooth weights theta(t) = (W, b, V) on [0, 1], to be read at any depth.

    Every weight is c_0 + c_1 cos(pi t) + c_2 sin(pi t), c_1 and c_2 drawn by the seed, up to 0.1 in W (0.05
    in b, a tenth of the gain in V). V W stays near _GAIN times the identity and b near 0: points move apart,
    as in a trained network, and their errors do not cancel by chance, which would hide the orders.
    """

    def __init__(self, dim: int, seed: int) -> None:
        width, rng = _WIDTH[dim], np.random.default_rng([seed, dim])
        angles = np.pi * (np.arange(width) + 0.5) / width
        rows = np.ones((width, 1)) if dim == 1 else np.stack([np.cos(angles), np.sin(angles)], axis=1)
        # in 1-D units of unequal weight, or the two branches of shake-shake would hardly differ
        share = np.linspace(1.5, 0.5, width)[:, None] if dim == 1 else 1.0
        gain = _GAIN[dim] * dim / width

        def terms(base: np.ndarray, size: float = 0.1) -> np.ndarray:
            return np.stack([base, *rng.uniform(-size, size, (2, *base.shape))])

        self._terms = terms(rows), terms(np.zeros(width), 0.05), gain * share * terms(rows)

    def __call__(self, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W (m, d), b (m,), V (d, m) at t in [0, 1]."""
        waves = np.array([1.0, math.cos(math.pi * t), math.sin(math.pi * t)])
        W, b, V = (np.tensordot(waves, terms, 1) for terms in self._terms)
        return W, b, V.T

    def network(self, depth: int) -> ResidualNetwork:
        """The network with theta_k = theta((k + 1/2) / depth)."""
        layers = zip(*(self((k + 0.5) / depth) for k in range(depth)), strict=True)
        W, b, V = (torch.from_numpy(np.stack(w)) for w in layers)
        return ResidualNetwork.from_weights(W, b, V)


@dataclass(frozen=True)
class Point:
    """One noise at one depth: J of the chain, and of the modified equations by order."""

    depth: int
    exact: Value
    modified: dict[int, Value]

    def error(self, order: int) -> float:
        """|J_modified - J_exact|."""
        return abs(self.modified[order].value - self.exact.value)

    def numerical(self, order: int) -> float:
        """Estimated numerical error of that difference."""
        return self.modified[order].error + self.exact.error

    def counts(self, order: int) -> bool:
        """Whether the modelling error stands out of the numerical one."""
        return self.error(order) >= SHARE * self.numerical(order)

    def shown(self, order: int) -> str:
        """The error for a table, in brackets where it does not count."""
        return f"{self.error(order):.1e}" if self.counts(order) else f"({self.error(order):.1e})"


def _point(kept: State) -> Point:
    modified = {int(order): Value(**value) for order, value in kept["modified"].items()}
    return Point(kept["depth"], Value(**kept["exact"]), modified)


class WeakOrder:
    """Modelling errors over depth, points[case.title], and their fitted orders.

    config: its seed, which draws the weights, and its backend; data, network and noises are the experiment's.
    """

    name = "weak_order"
    summary = "weak orders 1 and 2 of the modified equations for every noise, without sampling noise"
    shipped = "default"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.numerics = config, SMALL if quick else FULL
        self.within = WITHIN_QUICK if quick else WITHIN
        self.cases = [case for case in CASES if case.quick or not quick]
        self.points: dict[str, list[Point]] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """Every noise at every depth that is not done yet. Raises KolmoError where a number is refused."""
        progress = progress or Silent()
        progress.start("weak orders", sum(len(self.numerics[case.dim].depths) for case in self.cases))
        for case in self.cases:
            found = self.points.setdefault(case.title, [])
            for depth in self.numerics[case.dim].depths[len(found) :]:
                key = f"{CASES.index(case)}-{depth}"
                found.append(_point(self.memo.remember(key, partial(self._measured, case, depth))))
                errors = " and ".join(f"{found[-1].error(order):.1e}" for order in ORDERS)
                progress.advance(f"{case.title}, {depth} layers: {errors}")

    @property
    def finished(self) -> bool:
        return all(self._complete(case) for case in self.cases)

    def _complete(self, case: Case) -> bool:
        return len(self.points.get(case.title, [])) == len(self.numerics[case.dim].depths)

    def problem(self, case: Case, depth: int) -> Problem:
        """The curve's network at this depth on six points, and a loss that is smooth on the scale of 1/2."""
        points = torch.tensor(_POINTS[case.dim], dtype=torch.float64)
        data = Dataset(points, torch.arange(len(points)) >= len(points) // 2)
        return Problem(data, Curve(case.dim, self.config.run.seed).network(depth), case.noise, Logistic(2.0))

    def _measured(self, case: Case, depth: int, checkpoint: Checkpoint) -> State:
        """A point, as a memo keeps it: the orders as texts."""
        point = asdict(self.measure(case, depth))
        return {**point, "modified": {str(order): value for order, value in point["modified"].items()}}

    def measure(self, case: Case, depth: int) -> Point:
        """J by the chain and by both modified equations."""
        problem, numerics = self.problem(case, depth), self.numerics[case.dim]
        backend = resolve_backend(self.config.run.backend)
        with torch.no_grad():
            modified = {order: modified_value(problem, numerics, order, backend) for order in ORDERS}
            return Point(depth, exact_value(problem, numerics), modified)

    def slope(self, case: Case, order: int) -> tuple[float, list[int]]:
        """Least-squares slope of log e over log h, nan with too few points, and the depths left out of it."""
        points = self.points.get(case.title, [])
        kept, left = [p for p in points if p.counts(order)], [p.depth for p in points if not p.counts(order)]
        if len(kept) < LEAST:
            return math.nan, left
        depths, errors = [p.depth for p in kept], [p.error(order) for p in kept]
        return -float(np.polyfit(np.log(depths), np.log(errors), 1)[0]), left

    def slope_text(self, case: Case, order: int) -> str:
        """The slope for a table."""
        slope = self.slope(case, order)[0]
        return f"{slope:.2f}" if math.isfinite(slope) else "-"

    def claims(self) -> list[Claim]:
        """The fitted slopes of every noise whose depths are all done."""
        claims = []
        for case in filter(self._complete, self.cases):
            for order in ORDERS:
                slope, left = self.slope(case, order)
                note = f" (without L = {', '.join(map(str, left))}: numerical error)" if left else ""
                holds = abs(slope - order) <= self.within[order]
                text = f"{case.title}: weak order {order}{note}"
                claims.append(Claim(text, slope, f"{order:.1f} +- {self.within[order]:g}", holds))
        return claims

    def results(self) -> dict[str, Any]:
        """Values, errors and slopes of every noise for results.json."""
        rows = []
        for case in self.cases:
            points = self.points.get(case.title, [])
            row: dict[str, Any] = {"name": case.name, "dim": case.dim, "depths": [p.depth for p in points]}
            row["noise"] = {"kind": case.noise.kind, **case.noise.settings()}
            row["exact"] = [asdict(p.exact) for p in points]
            for order in ORDERS:
                slope, left = self.slope(case, order)
                row[f"order_{order}"] = {
                    "values": [asdict(p.modified[order]) for p in points],
                    "errors": [p.error(order) for p in points],
                    "numerical_errors": [p.numerical(order) for p in points],
                    "slope": slope if math.isfinite(slope) else None,
                    "left_out": left,
                }
            rows.append(row)
        return {"weak_order": rows}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """One table for each order: errors by depth, slope, and the largest numerical error of a row."""
        depths = sorted({depth for numerics in self.numerics.values() for depth in numerics.depths})
        columns, tables = ["noise", *(f"L = {d}" for d in depths), "slope", "numerical"], []
        for order in ORDERS:
            rows: list[list[object]] = []
            for case in self.cases:
                if points := {p.depth: p for p in self.points.get(case.title, [])}:
                    errors = [points[d].shown(order) if d in points else "" for d in depths]
                    numerical = max(p.numerical(order) for p in points.values())
                    rows.append([case.title, *errors, self.slope_text(case, order), f"{numerical:.0e}"])
            title = f"order {order}: |J_modified - J_exact|, slope in h (in brackets: not fitted)"
            tables.append((title, columns, rows))
        return tables
