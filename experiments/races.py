r"""A method on its way from given weights, and what it has spent so far.

The unit is a *solve*: one march through all layers, back or forth. A value is one, a value with its gradient
two (the equation and its adjoint), a Hessian made two more (their stages are kept), and a product with it
four: the tangent and its adjoint, each of which applies the generator and its change. Successive
approximations march layer by layer: a layer's own value and gradient is the L-th part of four. With l of L
layers a march is l / L of a solve.

Every method is stopped alike, by the first gradient that is small enough or by the solves it may spend; what
it would stop at by itself comes into it only where that is sooner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kolmo.control import Objective, Sweep, lbfgs, successive_approximations
from kolmo.errors import InfeasibleError, InputError, MissingBackendError
from kolmo.experiments.descents import SUCCESSIVE, CountedSteps
from kolmo.experiments.drivers import DRIVERS, Options
from kolmo.network import ResidualNetwork
from kolmo.noise import LinearNoise
from kolmo.pde import BackwardKolmogorov
from kolmo.penalty import Penalty
from kolmo.problem import Problem
from kolmo.refinement import refined

CONTINUATION = "continuation"
#: everything that can run, in the order of tables
RACERS = (*list(DRIVERS)[:2], SUCCESSIVE, CONTINUATION, *list(DRIVERS)[2:])
#: a continuation's first stages have these parts of the layers; what gradients fall to before the next stage
_SHARES, _EARLY = (4, 2), 1e-2

Make = Callable[[Problem], BackwardKolmogorov]


class Stopped(Exception):
    """Not an error: the method is where it should end, or has spent what it may."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Traced(Objective):
    """An objective that counts solves, notes every gradient it is asked for, and stops whoever asks.

    tolerance: on the gradient's norm. budget: solves. share: of a solve that a march through its layers is.
    rows: (solves, seconds, value, norm of the gradient) of every value_and_gradient; seconds of the
    processor, from the first check on, which all that is asked for begins with: libraries are loaded by then.
    best: where the value was least, or the gradient small enough. spent: solves that are not its own.
    """

    def __init__(
        self,
        equation: BackwardKolmogorov,
        penalties: Sequence[Penalty],
        tolerance: float = 0.0,
        budget: float = np.inf,
        share: float = 1.0,
    ) -> None:
        super().__init__(equation.problem.network, equation.expected_loss, penalties, equation.curvature)
        self.tolerance, self.budget, self.share = tolerance, budget, share
        self.rows: list[tuple[float, float, float, float]] = []
        self.best, self._least = self.theta, np.inf
        self.spent, self._values = 0.0, 0
        self._begun: float | None = None

    @property
    def solves(self) -> float:
        gradients = self.evaluations - self._values
        own = self._values + 2 * gradients + 2 * self.curvatures + 4 * self.products
        return self.spent + self.share * own

    @property
    def seconds(self) -> float:
        return 0.0 if self._begun is None else time.process_time() - self._begun

    def value(self, theta: np.ndarray) -> float:
        self.check()
        self._values += 1
        return super().value(theta)

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        self.check()
        value, gradient = super().value_and_gradient(theta)
        self.note(theta, value, float(np.linalg.norm(gradient)))
        return value, gradient

    def hessian(self, theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        self.check()
        product = super().hessian(theta)

        def checked(v: np.ndarray) -> np.ndarray:
            self.check()
            return product(v)

        return checked

    def note(self, theta: np.ndarray, value: float, norm: float) -> None:
        """One row more. Raises Stopped at a gradient that is small enough."""
        self.rows.append((self.solves, self.seconds, value, norm))
        if value < self._least or norm <= self.tolerance:
            self.best, self._least = np.array(theta), value
        if norm <= self.tolerance:
            raise Stopped("reached")

    def check(self) -> None:
        """Raises Stopped where no solves are left."""
        if self._begun is None:
            self._begun = time.process_time()
        if self.solves >= self.budget:
            raise Stopped("solves spent")


@dataclass(frozen=True)
class Race:
    """How one method went.

    status: 'reached' the tolerance; 'solves spent'; 'ended' where the method itself gave up; 'refused', by
    weights that the equation has no value for; otherwise why it did not run. value, gradient: where it ended,
    the latter relative to the start's. evaluations, curvatures, products: as `Objective` counts them, of
    successive approximations whole solutions. solves, seconds: in all. rows (n, 4): solves, seconds, value
    and relative gradient after every evaluation. theta: where it ended.
    """

    status: str
    value: float
    gradient: float
    evaluations: int
    curvatures: int
    products: int
    solves: float
    seconds: float
    rows: np.ndarray
    theta: np.ndarray

    @property
    def ran(self) -> bool:
        return len(self.rows) > 0

    @classmethod
    def absent(cls, why: str) -> Race:
        """Of a method that did not run."""
        return cls(why, np.nan, np.nan, 0, 0, 0, 0.0, 0.0, np.empty((0, 4)), np.empty(0))


def race(
    method: str,
    make: Make,
    problem: Problem,
    penalties: Sequence[Penalty],
    *,
    reached: float,
    budget: float = np.inf,
    iterations: int = 2000,
) -> Race:
    """One of RACERS from the problem's weights, in place, to a gradient of `reached` times its first.

    make: the equation of a problem; its propagator is `CountedSteps`. budget: solves. iterations: at most.
    """
    equation = make(problem)
    plain = Objective(problem.network, equation.expected_loss, penalties)
    start = plain.theta
    first = float(np.linalg.norm(plain.value_and_gradient(start)[1]))
    traced = Traced(equation, penalties, reached * first, budget)
    try:
        if method == SUCCESSIVE:
            _layerwise(traced, equation, iterations)
        elif method == CONTINUATION:
            _through_depths(traced, make, problem, iterations)
        else:
            traced.best = DRIVERS[method](traced, start, Options(traced.tolerance, iterations))
        status = "ended"
    except Stopped as stop:
        status = stop.status
    except InfeasibleError:
        status = "refused"
    except InputError as error:
        return Race.absent("not installed" if isinstance(error, MissingBackendError) else str(error))
    solves, seconds = traced.solves, traced.seconds
    value, gradient = plain.value_and_gradient(traced.best)
    rows = np.array(traced.rows).reshape(-1, 4) / [1, 1, 1, first]
    counts = traced.evaluations, traced.curvatures, traced.products
    norm = float(np.linalg.norm(gradient)) / first
    return Race(status, value, norm, *counts, solves, seconds, rows, traced.best)


def _layerwise(traced: Traced, equation: BackwardKolmogorov, iterations: int) -> None:
    """Successive approximations, which take the equation; a row for each sweep."""
    depth, steps = equation.problem.network.depth, equation.propagator
    assert isinstance(steps, CountedSteps)
    traced.value_and_gradient(traced.theta)
    before = steps.layers

    def swept(sweep: Sweep) -> None:
        whole = sweep.solves
        traced.evaluations = whole
        traced.spent = 4 * ((steps.layers - before) / depth - whole)
        traced.note(sweep.theta, sweep.value, sweep.residual)
        traced.check()

    found = successive_approximations(
        equation, traced.penalties, iterations=iterations, tolerance=traced.tolerance, callback=swept
    )
    traced.best = found.theta


def _through_depths(traced: Traced, make: Make, problem: Problem, iterations: int) -> None:
    """L-BFGS with every fourth layer of the start, prolonged to half of the layers, then to all.

    Rows are of the last stage; what the others took is counted. Source: `kolmo.control.continuation`.
    """
    traced.check()
    stage, share = shallow(problem, _SHARES[0]), _SHARES[0]
    for following in (*_SHARES[1:], 1):
        objective = Traced(make(stage), traced.penalties, budget=traced.budget, share=1 / share)
        objective.spent, start = traced.spent, objective.theta
        try:
            first = float(np.linalg.norm(objective.value_and_gradient(start)[1]))
            lbfgs(objective, start, iterations=iterations, tolerance=_EARLY * first)
        finally:
            traced.spent = objective.solves
        stage, share = refined(stage, share // following), following
    start = torch.nn.utils.parameters_to_vector(stage.network.parameters()).detach().numpy()
    traced.best = lbfgs(traced, start, iterations=iterations, tolerance=traced.tolerance).theta


def shallow(problem: Problem, factor: int) -> Problem:
    """The inverse of `refined`: every `factor`-th layer, and the noise whose h C is the same.

    Raises InputError where layers do not divide or the noise has no strength.
    """
    network, noise = problem.network, problem.noise
    if not isinstance(network, ResidualNetwork) or network.depth % factor:
        raise InputError(f"network: {network.depth} layers, not a ResidualNetwork of {factor} times as many")
    if not isinstance(noise, LinearNoise) or noise.strength is None:
        raise InputError(f"noise {noise.kind!r}: it has no strength that could shrink with the layers")
    growth = 1 if noise.diffusive else factor
    kept = range(0, network.depth, factor)
    values = [noise.strength_of(noise.law(k, network.depth).variance / growth) for k in kept]
    keys = {**noise.settings(), noise.strength: values if len(set(values)) > 1 else values[0]}
    W, b, V = (w.detach()[::factor].clone() for w in (network.W, network.b, network.V))
    few = ResidualNetwork.from_weights(W, b, V, network.horizon, network.activation.name)
    return Problem(problem.data, few, type(noise)(**keys), problem.loss)
