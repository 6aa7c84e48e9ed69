r"""Methods of optimal control side by side: all minimise one objective from the same weights, counted.

A *solve* is what a method pays with: a value and gradient (the equation and its adjoint), a second derivative
made, or a product with it. Successive approximations minimise layer by layer: a layer's own value and
gradient is the L-th part of a solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kolmo.control import Objective, Sweep, successive_approximations
from kolmo.experiments.drivers import DRIVERS, Options
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.pde.space import Generator, Space, Steps
from kolmo.penalty import Penalty

#: gradient's norm at which methods stop, units of the loss
TOLERANCE = 1e-9
#: the same of successive approximations, whose last digits are dear: errors fall by a factor each sweep
_LAYERWISE = 1e-7
_ITERATIONS = 500
_OPTIONS = Options(TOLERANCE, _ITERATIONS, radius=10.0)


class CountedSteps(Explicit):
    """Explicit steps of a fixed number that count the layers they were made for."""

    def __init__(self, substeps: int) -> None:
        super().__init__(substeps=substeps)
        self.layers = 0

    def on_layer(self, space: Space, generator: Generator, step: float, layer: int) -> Steps:
        self.layers += 1
        return super().on_layer(space, generator, step, layer)


class Watched(Objective):
    """An objective that tells `note` of every weights it is asked for, and the solves so far."""

    note: Callable[[float, np.ndarray], None] = staticmethod(lambda solves, theta: None)

    @property
    def solves(self) -> float:
        return float(self.evaluations + self.curvatures + self.products)

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        found = super().value_and_gradient(theta)
        self.note(self.solves, theta)
        return found


@dataclass(frozen=True)
class Descent:
    """One method's way to the optimum.

    theta (L m,): where it ended. evaluations, curvatures, products: as `Objective` counts them, of successive
    approximations whole solutions. solves, gaps: after each evaluation or sweep the solves so far, and what
    the best weights so far cost more than the optimum, units of the loss. seconds: the clock's.
    """

    theta: np.ndarray
    evaluations: int
    curvatures: int
    products: int
    solves: list[float]
    gaps: list[float]
    seconds: float


def descend(
    method: str,
    equation: BackwardKolmogorov,
    penalties: Sequence[Penalty],
    start: np.ndarray,
    gap: Callable[[np.ndarray], float],
    clock: Callable[[], float],
) -> Descent:
    """Minimise by one of METHODS from start, in the equation's network; its propagator is `CountedSteps`.

    Raises InfeasibleError where the equation refuses weights that a foreign method asks for.
    """
    objective = Watched(equation.problem.network, equation.expected_loss, penalties, equation.curvature)
    solves, gaps = [], [gap(start)]

    def note(done: float, theta: np.ndarray) -> None:
        solves.append(done)
        gaps.append(min(gaps[-1], gap(theta)))

    objective.note = note
    begun = clock()
    if method == SUCCESSIVE:
        theta, evaluations = _successive(equation, penalties, start, note)
    else:
        theta, evaluations = DRIVERS[method](objective, start, _OPTIONS), objective.evaluations
    counts = evaluations, objective.curvatures, objective.products
    return Descent(np.asarray(theta), *counts, [0.0, *solves], gaps, clock() - begun)


def _successive(
    equation: BackwardKolmogorov,
    penalties: Sequence[Penalty],
    start: np.ndarray,
    note: Callable[[float, np.ndarray], None],
) -> tuple[np.ndarray, int]:
    """Where it ends, and its whole solutions."""
    network, steps = equation.problem.network, equation.propagator
    assert isinstance(steps, CountedSteps)
    Objective(network, equation.expected_loss).theta = start

    def swept(sweep: Sweep) -> None:
        note((steps.layers - before) / network.depth, sweep.theta)

    before = steps.layers
    found = successive_approximations(
        equation, penalties, iterations=_ITERATIONS, tolerance=_LAYERWISE, callback=swept
    )
    return found.theta, found.evaluations


SUCCESSIVE = "successive approx."
#: the drivers that are compared here
METHODS = ("L-BFGS", "Newton-Krylov", "scipy L-BFGS-B", "scipy trust-krylov", "torch LBFGS")
