r"""Deep noisy networks are controls of the Kolmogorov equation: trained weights tend to its optimum theta(t).

Optima: for each noise of `depth_optima` and more and more layers, the weights that L-BFGS on the chain's
exact recursion ends with, and under Gaussian factors Adam on fresh noise too, against the control that is
optimal for the limit: of the backward Kolmogorov equation by finite elements (two meshes, extrapolated), or
of the ODE. The distance is O(h). Masks whose rate grows so that h (1-p)/p stays tend elsewhere: the equation
has their mean and covariance, and not their law.

Training itself has a limit too: `depth_flow`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kolmo.checkpoint import Checkpoint, Memo
from kolmo.config import Config
from kolmo.experiments import depth_flow, depth_optima
from kolmo.experiments.claims import Claim
from kolmo.experiments.depth_flow import Flow, FlowPlan
from kolmo.experiments.depth_optima import CASES, LIMITS, Case, Trainings, extrapolated
from kolmo.experiments.progress import Progress, Silent
from kolmo.experiments.smooth_controls import Minimum, apart, at_depth, steepness
from kolmo.pde.backend import resolve as resolve_backend

#: what the largest jump times L of the deepest network and of half of it may differ by, relative
SAME = 0.05


@dataclass(frozen=True)
class Plan:
    """Sizes, and what orders may be off by.

    depths: of the networks, each a divisor of `layers`, which the limits' controls have. injected: those of
    Gaussian injection, whose recursion is slow. grid: of the recursion. meshes: of the equation; the last two
    are extrapolated. seeds, steps, paths, rate: of stochastic training. flow: see `depth_flow`.
    """

    depths: tuple[int, ...]
    injected: tuple[int, ...]
    layers: int
    grid: int
    meshes: tuple[int, ...]
    seeds: int
    steps: int
    paths: int
    rate: float
    flow: FlowPlan
    within: float


FULL = Plan(
    depths=(5, 10, 20, 40, 80), injected=(5, 10, 20, 40), layers=80, grid=80, meshes=(60, 80, 120),
    seeds=4, steps=4000, paths=4, rate=0.01,
    flow=FlowPlan(depths=(5, 10, 20, 40), layers=40, grid=40, meshes=(60, 80), steps=100, every=10),
    within=0.15,
)  # fmt: skip
QUICK = Plan(
    depths=(5, 10, 20), injected=(), layers=20, grid=48, meshes=(60, 80),
    seeds=2, steps=1000, paths=4, rate=0.02,
    flow=FlowPlan(depths=(5, 10, 20), layers=20, grid=32, meshes=(48, 64), steps=25, every=5),
    within=0.25,
)  # fmt: skip


class DepthLimit:
    """Trained controls minima[case][depth], stochastic[depth][seed], limits[name] (layers, n), and the flow.

    config: its seed, which draws points, initial weights and noise, and its backend.
    """

    name = "depth_limit"
    summary = "weights trained under noise tend to the Kolmogorov equation's optimal control as layers grow"
    shipped = "default"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.plan = config, QUICK if quick else FULL
        self.cases = [case for case in CASES if case.quick or not quick]
        self.minima: dict[str, dict[int, Minimum]] = {}
        self.limits: dict[str, np.ndarray] = {}
        self.stochastic: dict[int, list[np.ndarray]] = {}
        self.flow: Flow | None = None
        self.memo = Memo()

    def depths(self, case: Case) -> tuple[int, ...]:
        """The numbers of layers that a noise is trained with."""
        return self.plan.injected if case.name == "injection" else self.plan.depths

    def run(self, progress: Progress | None = None) -> None:
        """All that is not done yet. Raises KolmoError where an equation refuses weights."""
        progress, plan = progress or Silent(), self.plan
        trainings = Trainings(self.config.run.seed, plan.grid, resolve_backend(self.config.run.backend))
        names = sorted({case.limit for case in self.cases})
        networks = sum(len(self.depths(case)) for case in self.cases)
        progress.start("optima", 1 + networks + len(names) + len(plan.depths) * plan.seeds)
        start = self._kept("start", partial(depth_optima.start, trainings)).theta
        progress.advance(f"{len(start)} layers without noise")
        for case in self.cases:
            for depth in self.depths(case):
                train = partial(trainings.chain, at_depth(start, depth), case.law, case.share)
                found = self._kept(f"{case.name}-{depth}", train)
                self.minima.setdefault(case.name, {})[depth] = found
                progress.advance(f"{case.title}, {depth} layers: {found.value:.5f}")
        for name in names:
            self.limits[name] = self._limit(trainings, name, at_depth(start, plan.layers))
            progress.advance(f"the limit, {name}")
        for depth in plan.depths:
            for seed in range(len(self.stochastic.setdefault(depth, [])), plan.seeds):
                sampling = plan.steps, plan.paths, plan.rate, seed
                adam = partial(trainings.stochastic, at_depth(start, depth), *sampling)
                self.stochastic[depth].append(self.memo.remember(f"stochastic-{depth}-{seed}", adam))
                progress.advance(f"stochastic training, {depth} layers")
        self.flow = depth_flow.run(plan.flow, trainings, self.memo, progress)

    @property
    def finished(self) -> bool:
        return self.flow is not None

    def _kept(self, key: str, train: Callable[[Checkpoint], Minimum]) -> Minimum:
        return Minimum(**self.memo.remember(key, lambda checkpoint: asdict(train(checkpoint))))

    def _limit(self, trainings: Trainings, name: str, theta: np.ndarray) -> np.ndarray:
        """A limit's optimal control; an equation's mesh after mesh, the last two extrapolated."""
        if name not in LIMITS:
            return self._kept(f"limit-{name}", partial(trainings.ode, theta)).theta
        found = [theta]
        for cells in self.plan.meshes:
            train = partial(trainings.limit, found[-1], LIMITS[name], cells)
            found.append(self._kept(f"limit-{name}-{cells}", train).theta)
        return extrapolated(found[-2:], self.plan.meshes[-2:])

    # what they show

    def distances(self, case: Case) -> dict[int, float]:
        """Of trained weights to the limit's control, relative, in L2(0, T), by depth."""
        limit = self.limits.get(case.limit)
        if limit is None:
            return {}
        return {depth: apart(m.theta, limit) for depth, m in self.minima.get(case.name, {}).items()}

    def sampled(self) -> dict[int, tuple[float, float]]:
        """The same of stochastic training: mean and standard deviation over seeds, by depth."""
        found = {}
        for depth, controls in self.stochastic.items():
            values = [apart(theta, self.limits[CASES[0].limit]) for theta in controls]
            found[depth] = float(np.mean(values)), float(np.std(values, ddof=1))
        return found

    def claims(self) -> list[Claim]:
        """Of a finished study: orders in h, where masks end instead, smoothness in depth, and the flow."""
        if self.flow is None:
            return []
        first, within = CASES[0], self.plan.within
        orders = {c: order(self.distances(c), c.last) for c in self.cases}
        orders[replace(first, title=f"{first.title}, by stochastic training")] = order(_means(self.sampled()))
        claims = []
        for case, found in orders.items():
            depths = f"the last {case.last} depths" if case.last else "all depths"
            text = f"{case.title}: distance to the limit's control, order in h over {depths}"
            holds, expected = abs(found - 1) <= within, f"1.0 +- {within:g}"
            if not case.converges:
                least = 0.5 * order(self.distances(first), case.last)
                holds, expected = found < least, f"< {least:.2f}, half of that of the factors"
            claims.append(Claim(text, found, expected, holds))
        minima = [m for found in self.minima.values() for m in found.values()]
        ended = sum(m.status == "stationary" for m in minima)
        claims.append(Claim("networks trained until stationary", ended, len(minima), ended == len(minima)))
        jumps = [steepness(m.theta) for m in self.minima[first.name].values()]
        ratio = jumps[-1] / jumps[-2]
        text = f"{first.title}: L x largest jump, deepest network over half as deep"
        claims.append(Claim(text, ratio, f"1.0 +- {SAME:g}", abs(ratio - 1) <= SAME))
        return claims + self.flow.claims(within)

    def results(self) -> dict[str, Any]:
        """Controls, distances and orders for results.json."""
        cases = {}
        for case in self.cases:
            found, minima = self.distances(case), self.minima.get(case.name, {})
            cases[case.name] = {
                "distances": found,
                "order": order(found, case.last) if len(found) > 1 else None,
                "minima": {depth: {**asdict(m), "theta": m.theta.tolist()} for depth, m in minima.items()},
            }
        content: dict[str, Any] = {"plan": asdict(self.plan), "cases": cases}
        content["limits"] = {name: theta.tolist() for name, theta in self.limits.items()}
        content["stochastic"] = self.sampled() if self.finished else None
        content["flow"] = None if self.flow is None else self.flow.results()
        return {"depth_limit": content}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Distances over the depth by noise; those along the flow."""
        depths = self.plan.depths
        rows: list[list[object]] = []

        def add(title: str, found: dict[int, float], last: int | None = 0) -> None:
            shown = [f"{found[depth]:.4f}" if depth in found else "" for depth in depths]
            fitted = last is not None and len(found) > 1
            rows.append([title, *shown, f"{order(found, last or 0):.2f}" if fitted else ""])

        for case in self.cases:
            add(case.title, self.distances(case), case.last)
            if case is CASES[0] and self.finished:
                add("... by stochastic training", _means(self.sampled()))
                spreads = {depth: spread for depth, (_, spread) in self.sampled().items()}
                add("... its std over seeds", spreads, None)
        columns = ["noise", *(f"L = {depth}" for depth in depths), "order in h"]
        title = "distance to the limit's control, relative, L2(0, T) (masks: order of the last two depths)"
        tables = [(title, columns, rows)]
        return tables if self.flow is None else [*tables, self.flow.table()]


def order(distances: dict[int, float], last: int = 0) -> float:
    """Least-squares slope in h = T / L of distances by depth, of so many of the deepest (0: all)."""
    depths, found = np.log(list(distances.items()))[-last:].T
    return -float(np.polyfit(depths, found, 1)[0])


def _means(sampled: dict[int, tuple[float, float]]) -> dict[int, float]:
    return {depth: mean for depth, (mean, _) in sampled.items()}
