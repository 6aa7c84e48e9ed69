r"""Training itself has a limit: the gradient flow of noisy networks against that of the Kolmogorov equation.

    dtheta_k/dtau = -L d/dtheta_k (J + decay h sum_k |theta_k|^2),       k = 0..L-1,

from tied weights, theta_k(0) the same for all k and L, under Gaussian factors with h s^2 fixed. J is that of
the chain, by its exact recursion, or that of the equation of order 1. Nothing asks for smoothness in depth:
as in 2309.01213 it is the start's, and training keeps it. At every training time the networks' weights tend
to the equation's as L grows, at order 1. Steps are explicit Euler's, the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.control import Objective
from kolmo.experiments.claims import Claim
from kolmo.experiments.depth_optima import METRIC, Trainings, extrapolated, factors
from kolmo.experiments.progress import Progress
from kolmo.experiments.smooth_controls import apart, at_depth, layers_of, steepness
from kolmo.network import ResidualNetwork
from kolmo.penalty import WeightDecay
from kolmo.problem import Problem


@dataclass(frozen=True)
class FlowPlan:
    """Sizes. depths: of the networks, each a divisor of `layers`, those of the equation's control.

    grid: of the recursion; meshes: two, of the equation. steps: of length `step`; weights are kept at every
    `every`-th.
    """

    depths: tuple[int, ...]
    layers: int
    grid: int
    meshes: tuple[int, int]
    steps: int
    every: int
    step: float = 0.2


@dataclass(frozen=True)
class Path:
    """One training: theta (T, L, n) at the times kept, objective (steps + 1,)."""

    theta: np.ndarray
    objective: np.ndarray


@dataclass(frozen=True)
class Flow:
    """times (T,) of training, paths of the networks by depth, and limit (T, L, n), the equation's."""

    times: np.ndarray
    paths: dict[int, Path]
    limit: np.ndarray

    def distances(self) -> np.ndarray:
        """Of every depth at every time but 0 to the equation, relative, in L2(0, T): (T - 1, D)."""
        rows = [
            [apart(path.theta[i], self.limit[i]) for path in self.paths.values()]
            for i in range(1, len(self.times))
        ]
        return np.array(rows)

    def slopes(self) -> np.ndarray:
        """Order in h at every time but 0."""
        return -np.polyfit(np.log(list(self.paths)), np.log(self.distances()).T, 1)[0]

    def claims(self, within: float) -> list[Claim]:
        """Order 1 at all times, descent, and smoothness that does not depend on the depth."""
        slopes = self.slopes()
        worst = float(slopes[np.abs(slopes - 1).argmax()])
        rise = max(float(np.diff(path.objective).max()) for path in self.paths.values())
        last = [steepness(path.theta[-1]) for path in self.paths.values()]
        ratio = last[-1] / last[-2]
        return [
            Claim(
                "flow: distance to the equation's flow, order in h, the worst of all times",
                worst, f"1.0 +- {within:g}", abs(worst - 1) <= within,
            ),
            Claim("flow: objectives fall with every step (largest rise)", rise, "< 0", rise < 0),
            Claim(
                "flow: L x largest jump at the end, deepest network over half as deep",
                ratio, "1.0 +- 0.1", abs(ratio - 1) <= 0.1,
            ),
        ]  # fmt: skip

    def table(self) -> tuple[str, list[str], list[list[object]]]:
        """Distances along training by depth."""
        distances, slopes = self.distances(), self.slopes()
        rows: list[list[object]] = [
            [f"{time:g}", *(f"{value:.4f}" for value in row), f"{slope:.2f}"]
            for time, row, slope in zip(self.times[1:], distances, slopes, strict=True)
        ]
        jumps = [f"{steepness(path.theta[-1]):.2f}" for path in self.paths.values()]
        rows.append(["L x jump", *jumps, f"{steepness(self.limit[-1]):.2f}"])
        columns = ["training time", *(f"L = {depth}" for depth in self.paths), "order in h"]
        title = "the flow from tied weights: distance to the equation's (last row: jumps, its own at the end)"
        return title, columns, rows

    def results(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "times": self.times.tolist(),
            "depths": list(self.paths),
            "distances": self.distances().tolist(),
            "slopes": self.slopes().tolist(),
            "objectives": {depth: path.objective.tolist() for depth, path in self.paths.items()},
            "jumps": {
                depth: [steepness(theta) for theta in path.theta] for depth, path in self.paths.items()
            },
        }


def run(plan: FlowPlan, trainings: Trainings, memo: Memo, progress: Progress) -> Flow:
    """The flow of every depth and of the equation. Raises KolmoError where weights are refused."""
    progress.start("gradient flow", len(plan.depths) + len(plan.meshes))

    def network_path(depth: int, checkpoint: Checkpoint) -> State:
        problem = trainings.problem(at_depth(trainings.tied, depth), factors)
        return _path(plan, problem, trainings.recursion(problem).expected_loss, checkpoint)

    def equation_path(cells: int, checkpoint: Checkpoint) -> State:
        problem = trainings.problem(at_depth(trainings.tied, plan.layers), factors)
        return _path(plan, problem, trainings.equation(problem, cells).expected_loss, checkpoint)

    paths = {}
    for depth in plan.depths:
        paths[depth] = Path(**memo.remember(f"flow-{depth}", partial(network_path, depth)))
        progress.advance(f"{depth} layers: {paths[depth].objective[-1]:.5f}")
    limits = []
    for cells in plan.meshes:
        limits.append(Path(**memo.remember(f"flow-equation-{cells}", partial(equation_path, cells))).theta)
        progress.advance(f"the equation on {cells} cells")
    times = plan.step * np.arange(0.0, plan.steps + 1, plan.every)
    return Flow(times, paths, extrapolated(limits, plan.meshes))


def _path(plan: FlowPlan, problem: Problem, estimator: Callable[[], Tensor], checkpoint: Checkpoint) -> State:
    """Euler's steps from the problem's weights."""
    network = problem.network
    assert isinstance(network, ResidualNetwork)
    objective = Objective(network, estimator, (WeightDecay(METRIC.decay),))
    kept = checkpoint.load()
    theta, values, shots = objective.theta, [], []
    if kept is not None:
        theta, values, shots = kept["theta"], kept["values"], kept["shots"]
    for number in range(len(values), plan.steps + 1):
        value, gradient = objective.value_and_gradient(theta)
        values.append(value)
        if number % plan.every == 0:
            shots.append(layers_of(network).copy())
        theta = theta - plan.step * network.depth * gradient
        checkpoint.offer(partial(dict, theta=theta, values=values, shots=shots))
    return asdict(Path(np.stack(shots), np.array(values)))
