r"""One training problem with its noise and without: both objectives, and training to their optima.

Both are J + the same penalties: J with noise by the Kolmogorov equation on one mesh, J without by the network
itself, which is exact. Penalties are weight decay and a soft bound on h |V W|: without it the noiseless
optimum would be where no modified equation holds. The bound is softer than the main job's, so that methods
converge fast; it flattens both landscapes.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.chain import Chain
from kolmo.checkpoint import Checkpoint, State
from kolmo.config import Config
from kolmo.control import Objective, lbfgs, newton
from kolmo.control.admissible import Box
from kolmo.errors import StiffnessError
from kolmo.experiments.crosscheck import SAFETY
from kolmo.experiments.sharpness import NoiselessCurvature, noiseless_loss
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.pde.domain import audit_domain, choose_half_width
from kolmo.pde.model_error import model_error
from kolmo.pde.residual import linear_march, residuals
from kolmo.pde.space import Generator, Space, Steps
from kolmo.penalty import Penalty, StepPenalty, WeightDecay
from kolmo.validity import check_step

#: weight of the penalty on h |V W| above [check] largest_step
STEP_WEIGHT = 1.0
#: substeps of every layer whose weights do not need more
SUBSTEPS = 8
#: gradient's norm that Newton's method is to reach, units of the loss, and its steps at most
GRADIENT, STEPS = 1e-8, 40


class Steady(Explicit):
    """Explicit steps of one number, more only in layers that need more.

    Where substeps follow the weights, J jumps by the time error and minima of it are not stationary points.
    """

    def on_layer(self, space: Space, generator: Generator, step: float, layer: int) -> Steps:
        try:
            return Explicit(cap=SUBSTEPS, substeps=SUBSTEPS).on_layer(space, generator, step, layer)
        except StiffnessError:
            return super().on_layer(space, generator, step, layer)


@dataclass(frozen=True)
class Reached:
    """Where a training ended: weights (P,), the gradient's norm there, the optimiser's word for it."""

    theta: np.ndarray
    residual: float
    status: str


@dataclass(frozen=True)
class Spot:
    """J with noise at some weights, without penalties, by the equation and by the chain.

    standard_error: the chain's. numerical: what mesh, time, box and modified equation are estimated to be off
    by, summed.
    """

    name: str
    value: float
    chain: float
    standard_error: float
    numerical: float

    @property
    def allowed(self) -> float:
        """3 standard errors and twice the estimates."""
        return 3 * self.standard_error + SAFETY * self.numerical

    @property
    def agrees(self) -> bool:
        return abs(self.value - self.chain) <= self.allowed


class TwoObjectives:
    """The problem of one seed, which draws data and initial weights, and its objectives.

    start (P,): the initial weights. All methods that take weights leave the network with some of them.
    """

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = copy.deepcopy(config), seed
        self.config.run.seed = seed
        self.train, self.test = self.config.datasets()
        self.problem = self.config.problem(self.train)
        self.network = self.problem.network
        self.penalties: tuple[Penalty, ...] = (
            WeightDecay(config.penalty.weight_decay),
            StepPenalty(STEP_WEIGHT, config.check.largest_step),
        )
        self.admissible = Box(config.control.radius)
        self.start = self.plain().theta

    def plain(self) -> Objective:
        """J without noise + penalties."""
        return Objective(
            self.network,
            lambda: noiseless_loss(self.problem),
            self.penalties,
            lambda: NoiselessCurvature(self.problem),
        )

    def noisy(self, half_width: float, penalties: bool = True) -> Objective:
        """J with noise by the equation on a box (+ penalties); refused also where a layer folds space."""
        equation = self.equation(half_width)

        def value() -> Tensor:
            check_step(self.problem)
            return equation.expected_loss()

        return Objective(self.network, value, self.penalties if penalties else (), equation.curvature)

    def equation(self, half_width: float) -> BackwardKolmogorov:
        """On the finest mesh of [control], without the clip, which would put kinks into the landscape."""
        control = self.config.control
        return BackwardKolmogorov(
            self.problem,
            cells=control.meshes(self.train.dim)[-1],
            order=control.order,
            backend=resolve_backend(self.config.run.backend),
            half_width=half_width,
            propagator=Steady(),
            limit=False,
        )

    def descend(self, objective: Objective, polish: bool, checkpoint: Checkpoint) -> State:
        """From the initial weights by L-BFGS to [control] tolerance: a `Reached`, as a memo keeps it.

        polish: then by Newton's method to GRADIENT. Raises InfeasibleError where the initial weights are
        refused.
        """
        control = self.config.control
        found = lbfgs(
            objective,
            self.start,
            self.admissible,
            iterations=control.iterations[-1],
            tolerance=control.tolerance,
            callback=lambda step: checkpoint.offer(step.state),
            resume=checkpoint.load(),
        )
        if polish:
            found = newton(objective, found.theta, self.admissible, iterations=STEPS, tolerance=GRADIENT)
        return asdict(Reached(found.theta, found.residual, found.status))

    def set(self, theta: np.ndarray) -> None:
        """Give the network these weights (P,)."""
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), self.network.parameters())

    def half_width(self, theta: np.ndarray) -> float:
        """Of a box that holds the noisy network's paths at the initial weights and at these."""
        widths = []
        for weights in (self.start, theta):
            self.set(weights)
            widths.append(choose_half_width(self.problem))
        return max(widths)

    @torch.no_grad()
    def test_loss(self, theta: np.ndarray) -> float:
        """Of the network without noise on the test data."""
        self.set(theta)
        return float(self.problem.loss(self.network(self.test.points), self.test.labels).mean())

    def spot(self, name: str, theta: np.ndarray, half_width: float) -> Spot:
        """J at these weights on the landscape's mesh, its estimated errors, and the chain's J.

        Raises InfeasibleError where the equation refuses the weights.
        """
        self.set(theta)
        marched = linear_march(self.equation(half_width))
        found = residuals(marched)
        box = max(abs(found.domain), abs(audit_domain(self.problem, half_width).bias))
        off = abs(found.mesh) + abs(found.time) + box + model_error(marched, found).estimate
        paths = max(self.config.check.paths, 2 * len(self.train))
        chain = Chain(self.problem, seed=self.seed).estimate(paths)
        return Spot(name, marched.value, chain.value, chain.standard_error, off)
