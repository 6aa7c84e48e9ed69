r"""A lesson: one network trained through the equation, and all that the page draws of it.

`train` gives a `Lesson`; `Lesson.at(rate)` solves the equation for its weights under another strength of the
noise, once, and keeps what is drawn as `Frames`: about eleven times, at each of them

    u_y(x, t), rho_y(x, t) on the nodes, and the line where u_0 = u_1, the decision at time t;

the chain's own paths from every data point beside the noiseless ones, and where the penalty

    R = (1/2M) sum_i sum_k tr( Sigma_k(x_k^i) hess u_{k+1}(x_{k+1}^i) )

acts: its terms shared out to the nodes around x_k^i (`kolmo.explicit`). Nothing here knows of a page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import contourpy
import numpy as np
import torch
from torch import Tensor

from kolmo import control, plotting
from kolmo.chain import Chain, Estimate
from kolmo.control.auditing import FLOOR, RELATIVE
from kolmo.explicit import Expansion, expansion
from kolmo.explore.settings import Settings
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import choose_half_width
from kolmo.penalty import StepPenalty, WeightDecay
from kolmo.problem import Problem

#: times that are drawn, at most
TIMES = 11
#: paths of the chain that are drawn, in all, and that its J is estimated from
DRAWN, PATHS = 2000, 50_000
#: admissible set of the weights, as in the default configuration
_RADIUS = 5.0
#: a box is at least so much wider than the noiseless features
_MARGIN = 1.02


class StoppedError(Exception):
    """The visitor stopped a training."""


@dataclass(frozen=True)
class Step:
    """One accepted step of a training: its number, the most there can be, the objective."""

    number: int
    most: int
    objective: float


@dataclass(frozen=True)
class Frames:
    """What is drawn of a network under one strength of noise; K times, n nodes a direction, S copies.

    layers, times (K,): from 0 to L and to T. axis (n,): nodes along either direction. value (K, n, n, 2):
    u_y, loss, cut off at the range of Phi; density (K, n, n, 2): rho_y per area, mean over 2 cells; indices:
    time, x1, x2, class. paths (L + 1, S, M, 2): features of the noisy chain; noiseless (L + 1, M, 2).
    contributions (L, M): the terms of R; penalty (n, n): R per area, mean over 2 cells. pde, chain: J by the
    equation and by Monte Carlo. loss: J_0, without noise.
    """

    rate: float
    layers: np.ndarray
    times: np.ndarray
    axis: np.ndarray
    value: np.ndarray
    density: np.ndarray
    paths: np.ndarray
    noiseless: np.ndarray
    contributions: np.ndarray
    penalty: np.ndarray
    pde: float
    chain: Estimate
    loss: float

    @property
    def regulariser(self) -> float:
        """R, loss."""
        return float(self.contributions.sum())

    @property
    def agrees(self) -> bool:
        """Whether J by the equation and by the chain differ by no more than an audit of a training allows."""
        allowed = max(3 * self.chain.standard_error, RELATIVE * self.chain.value) + FLOOR
        return abs(self.pde - self.chain.value) <= allowed

    def boundary(self, frame: int) -> list[np.ndarray]:
        """The lines u_0 = u_1 at one of the times, each (points, 2): on either side one label costs less."""
        difference = self.value[frame, :, :, 0] - self.value[frame, :, :, 1]
        lines = contourpy.contour_generator(self.axis, self.axis, difference.T).lines(0.0)
        return [np.asarray(line) for line in lines]


@dataclass
class Lesson:
    """A trained network. history: objective after every step. cells: of the mesh that its audit accepted."""

    settings: Settings
    problem: Problem
    history: list[float]
    cells: int
    half_width: float
    audits: list[str]
    seconds: float
    _known: dict[float, Frames] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def known(self) -> dict[float, Frames]:
        """The strengths of noise looked at so far, in order."""
        return dict(sorted(self._known.items()))

    def at(self, rate: float) -> Frames:
        """The same weights under noise of this strength; quick where it was asked for before.

        Raises InfeasibleError where the mesh does not resolve the equation.
        """
        with self._lock:
            if rate not in self._known:
                self._known[rate] = frames(self, rate)
            return self._known[rate]

    def undecided(self) -> list[int]:
        """Of each class the data point whose labels' expected losses differ least: noise matters there."""
        found, labels = self.at(self.settings.rate), self.problem.data.labels.numpy()
        points = self.problem.data.points.numpy()
        nearest = [_nearest(found.axis, points[:, i]) for i in (0, 1)]
        gap = np.abs(np.diff(found.value[0], axis=-1)[..., 0])[tuple(nearest)]
        return [int(np.argmin(np.where(labels == label, gap, np.inf))) for label in (0, 1)]


def train(
    settings: Settings,
    report: Callable[[Step], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> Lesson:
    """Train a network by control of the equation and look at it under its own noise.

    report: called after every step. stop: asked after every step whether to raise StoppedError.
    Raises InfeasibleError or AuditError where the end cannot be trusted.
    """
    start, problem = time.perf_counter(), settings.problem()
    history: list[float] = []

    def note(step: control.training.Progress) -> None:
        history.append(step.objective)
        report(Step(len(history), settings.iterations, step.objective))
        if stop():
            raise StoppedError

    found = control.train(
        problem,
        (WeightDecay(settings.weight_decay), StepPenalty()),
        cells=(settings.cells,),
        iterations=(settings.iterations,),
        admissible=control.Box(_RADIUS),
        seed=settings.seed,
        callback=note,
    )
    lesson = Lesson(settings, problem, history, found.cells, found.half_width, found.audits, 0.0)
    lesson.at(settings.rate)
    lesson.seconds = time.perf_counter() - start
    return lesson


@torch.no_grad()
def frames(lesson: Lesson, rate: float) -> Frames:
    """Solve for a lesson's weights under noise of this strength. Raises InfeasibleError."""
    network, data = lesson.problem.network, lesson.problem.data
    problem = Problem(data, network, lesson.settings.noise_at(rate), lesson.problem.loss)
    found = expansion(problem)
    # the noiseless features too lie inside, where their terms of R are shared out
    farthest = _MARGIN * float(found.features.abs().max())
    half_width = max(lesson.half_width, choose_half_width(problem), farthest)
    # without the clip that training needs: the clip's transpose takes mass from the density
    equation = BackwardKolmogorov(problem, cells=lesson.cells, half_width=half_width, limit=False)
    solution = equation.solve()
    nodal = _shared_out(equation, found)
    layers = np.unique(np.rint(np.linspace(0, network.depth, TIMES)).astype(int))
    mass = solution.lumped_mass[:, None]
    # (Q, ...) with the times and classes behind the nodes
    value = np.clip(solution.value[layers], equation.terminal.min(), equation.terminal.max())
    fields = np.stack([value, solution.density[layers] / mass]).transpose(2, 1, 3, 0)
    axes, grid = plotting.node_grid(solution.points, fields)
    _, penalty = plotting.node_grid(solution.points, nodal / solution.lumped_mass)
    grid = np.moveaxis(grid, 2, 0)
    chain = Chain(problem, seed=lesson.settings.seed)
    return Frames(
        rate=rate,
        layers=layers,
        times=solution.times[layers],
        axis=axes[0],
        value=grid[..., 0],
        density=np.moveaxis(plotting.smooth(np.moveaxis(grid[..., 1], 0, 2), 2), 2, 0),
        paths=_paths(chain, -(-DRAWN // len(data))).numpy(),
        noiseless=found.features.numpy(),
        contributions=found.contributions.numpy(),
        penalty=plotting.smooth(penalty, 2),
        pde=float(solution.duality[0]),
        chain=chain.estimate(max(PATHS, 2 * len(data))),
        loss=float(found.loss),
    )


def _shared_out(equation: BackwardKolmogorov, found: Expansion) -> np.ndarray:
    """R's terms as nodal masses (Q,), each given to the nodes of the cell that its x_k is in."""
    total = np.zeros(len(equation.space.coefficient_points))
    for x, terms in zip(found.features[:-1].numpy(), found.contributions.numpy(), strict=True):
        total += equation.space.interpolation(x).T @ terms
    return total


def _paths(chain: Chain, copies: int) -> Tensor:
    """Features of the noisy chain from every data point, shape (L + 1, copies, M, d)."""
    problem, stream = chain.problem, chain.stream(copies, 0)
    x = problem.data.points.repeat(copies, 1)
    features = [x]
    for layer in range(problem.network.depth):
        x = x + problem.noise.sample(problem.network, layer, x, stream.layer(layer))
        features.append(x)
    return torch.stack(features).reshape(len(features), copies, *problem.data.points.shape)


def _nearest(axis: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Numbers of the nodes nearest to x (M,)."""
    return np.clip(np.rint((x - axis[0]) / (axis[1] - axis[0])), 0, len(axis) - 1).astype(int)
