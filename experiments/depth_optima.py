r"""What `depth_limit` trains: two moons under noises that depend on the number of layers, and their limits.

factors      f (1 + s xi), h s^2 = kappa fixed        dX = f dt + kappa^{1/2} diag(f) dW
injection    sqrt(h) s xi                             dX = f dt + s dW
fixed        masks that keep with p fixed             dX = f dt: the noise is gone
masks        h (1-p)/p = kappa fixed                  jumps of size kappa f_i at the rate 1/kappa

The blocks are V tanh(W x + b) with 4 hidden units. Weight decay and smoothness in depth make the limits
problems in H1(0, T). All trainings start from one control, what 5 layers learn without noise from tied
random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from kolmo import data, noise, training
from kolmo.checkpoint import Checkpoint
from kolmo.errors import DomainError
from kolmo.experiments.smooth_controls import Metric, Minimum, at_depth, layers_of, minimise, network_of
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.pde import BackwardKolmogorov, ExactRecursion
from kolmo.pde.domain import audit_domain, projected_step
from kolmo.problem import Problem

#: noise of a layer of length h
Law = Callable[[float], Noise]

#: diffusion of factors and masks (time); standard deviation of the injection; keep probability of fixed masks
KAPPA, STD, KEEP = 0.05, 0.3, 0.95
#: points and their standard deviation around the moons; hidden units; layers of the common start
POINTS, SPREAD, WIDTH, FEW = 100, 0.15, 4, 5
#: of all boxes; trained networks are audited
HALF_WIDTH = 3.0
METRIC = Metric(decay=1e-2, smoothness=1e-3)
#: of the gradient in the penalties' metric
TOLERANCE = 1e-6


def factors(h: float) -> Noise:
    """f (1 + s xi) with h s^2 = KAPPA."""
    return noise.GaussianDropout(math.sqrt(KAPPA / h))


def injection(h: float) -> Noise:
    """sqrt(h) STD xi."""
    return noise.GaussianInjection(STD)


def masks(h: float) -> Noise:
    """Masks with h (1-p)/p = KAPPA."""
    return noise.BernoulliDropout(h / (h + KAPPA))


def fixed(h: float) -> Noise:
    """Masks that keep with KEEP."""
    return noise.BernoulliDropout(KEEP)


def none(h: float) -> Noise:
    """No noise."""
    return noise.NoNoise()


@dataclass(frozen=True)
class Case:
    """A noise and the limit, of LIMITS or the ODE, that trained weights are compared with.

    share: cells of the recursion's grid over the plan's. last: how many of the deepest networks the order is
    claimed of (0: all). converges: whether weights tend to that limit's control. quick: also in the small
    version.
    """

    name: str
    title: str
    law: Law
    limit: str
    share: float = 1.0
    last: int = 0
    converges: bool = True
    quick: bool = False


CASES = (
    Case("factors", "Gaussian factors, h s^2 fixed", factors, "factors", quick=True),
    # its recursion is slow, and every layer smooths
    Case("injection", "Gaussian injection", injection, "injection", share=0.6),
    # with the noise goes what smooths u, and the optimum moves far: the order is seen late
    Case("fixed", "masks, p fixed", fixed, "ODE", share=2.0, last=2),
    Case("masks", "masks, h (1-p)/p fixed", masks, "factors", last=2, converges=False),
)
#: limits that are equations with a diffusion, by the noise that has it at any depth
LIMITS: dict[str, Law] = {"factors": factors, "injection": injection}


class Trainings:
    """Trainings on one set of points.

    seed: draws points, initial weights and noise. grid: cells of the recursion. backend: of the equation.
    """

    def __init__(self, seed: int, grid: int, backend: str) -> None:
        self.seed, self.grid, self.backend = seed, grid, backend
        self.points = data.moons(POINTS, noise=SPREAD, seed=seed)

    @property
    def tied(self) -> np.ndarray:
        """One layer of random weights (1, n)."""
        return layers_of(ResidualNetwork(self.points.dim, WIDTH, 1, seed=self.seed))

    def problem(self, theta: np.ndarray, law: Law) -> Problem:
        """The points, a network with the weights theta (L, n), and the noise of its depth."""
        return Problem(self.points, network_of(theta, self.points.dim), law(1 / len(theta)))

    def recursion(self, problem: Problem, share: float = 1.0) -> ExactRecursion:
        """J of the chain, no sampling; share: of the grid's cells."""
        cells = round(share * self.grid)
        return ExactRecursion(problem, cells=cells, half_width=HALF_WIDTH, limit=False)

    def equation(self, problem: Problem, cells: int) -> BackwardKolmogorov:
        """J of the equation of order 1: coefficients that hold no L but in theta."""
        return BackwardKolmogorov(
            problem, cells=cells, half_width=HALF_WIDTH, order=1, backend=self.backend, limit=False
        )

    def chain(self, theta: np.ndarray, law: Law, share: float, checkpoint: Checkpoint) -> Minimum:
        """The network's optimum from theta. Raises DomainError where its paths leave the box."""
        problem = self.problem(theta, law)
        found = self._minimise(problem, self.recursion(problem, share).expected_loss, checkpoint)
        audit = audit_domain(problem, HALF_WIDTH, confine=projected_step)
        if not audit.holds:
            raise DomainError(f"{len(theta)} layers: paths leave the box, bias {audit.bias:.1e} in J")
        return found

    def limit(self, theta: np.ndarray, law: Law, cells: int, checkpoint: Checkpoint) -> Minimum:
        """The equation's optimum from theta on one mesh."""
        problem = self.problem(theta, law)
        return self._minimise(problem, self.equation(problem, cells).expected_loss, checkpoint)

    def ode(self, theta: np.ndarray, checkpoint: Checkpoint) -> Minimum:
        """The optimum of the noiseless limit from theta, by steps of order 4."""
        problem = self.problem(theta, none)

        def loss() -> Tensor:
            return problem.loss(transported(problem.network, self.points.points), self.points.labels).mean()

        return self._minimise(problem, loss, checkpoint)

    def stochastic(
        self, theta: np.ndarray, steps: int, paths: int, rate: float, seed: int, checkpoint: Checkpoint
    ) -> np.ndarray:
        """Weights after Adam on fresh factors, from theta; seed: of the noise, besides the points'."""
        problem = self.problem(theta, factors)
        training.train(
            problem,
            METRIC.penalties,
            steps=steps,
            paths=paths,
            learning_rate=rate,
            seed=1000 * self.seed + seed,
            checkpoint=checkpoint,
        )
        assert isinstance(problem.network, ResidualNetwork)
        return layers_of(problem.network)

    def _minimise(self, problem: Problem, estimator: Callable[[], Tensor], checkpoint: Checkpoint) -> Minimum:
        return minimise(problem, estimator, METRIC, checkpoint, tolerance=TOLERANCE)


def start(trainings: Trainings, checkpoint: Checkpoint) -> Minimum:
    """What FEW layers learn without noise from tied weights."""
    return trainings.chain(at_depth(trainings.tied, FEW), none, 1.0, checkpoint)


def extrapolated(controls: Sequence[np.ndarray], cells: Sequence[int]) -> np.ndarray:
    """Two meshes' controls to spacing zero, their error taken for proportional to the spacing's square."""
    coarse, fine = controls
    return np.asarray(fine + (fine - coarse) / ((cells[1] / cells[0]) ** 2 - 1))


def transported(network: LayeredNetwork, x: Tensor) -> Tensor:
    """Features at T of dx/dt = f(x, theta(t)), one Runge-Kutta step of order 4 in each layer."""
    h = network.step
    for k in range(network.depth):
        block = partial(network.block, k)
        k1 = block(x)
        k2 = block(x + 0.5 * h * k1)
        k3 = block(x + 0.5 * h * k2)
        k4 = block(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
