r"""Methods of optimal control side by side: all minimise one objective from the same weights, counted.

A *solve* is what a method pays with: a value and gradient (the equation and its adjoint), a second derivative
made, or a product with it. Successive approximations minimise layer by layer: a layer's own value and
gradient is the L-th part of a solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize

from kolmo.control import Objective, Sweep, lbfgs, newton, successive_approximations
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.pde.space import Generator, Space, Steps
from kolmo.penalty import Penalty

#: gradient's norm at which methods stop, units of the loss
TOLERANCE = 1e-9
#: the same of successive approximations, whose last digits are dear: errors fall by a factor each sweep
_LAYERWISE = 1e-7
_ITERATIONS = 500


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
        theta, evaluations = METHODS[method](objective, start), objective.evaluations
    counts = evaluations, objective.curvatures, objective.products
    return Descent(np.asarray(theta), *counts, [0.0, *solves], gaps, clock() - begun)


def _lbfgs(objective: Objective, start: np.ndarray) -> np.ndarray:
    return lbfgs(objective, start, iterations=_ITERATIONS, tolerance=TOLERANCE).theta


def _newton(objective: Objective, start: np.ndarray) -> np.ndarray:
    return newton(objective, start, tolerance=TOLERANCE, radius=10.0).theta


def _scipy_lbfgs(objective: Objective, start: np.ndarray) -> np.ndarray:
    options = {"gtol": 0.1 * TOLERANCE, "ftol": 0.0, "maxiter": _ITERATIONS}  # of the largest component
    found: OptimizeResult = minimize(
        objective.value_and_gradient, start, jac=True, method="L-BFGS-B", options=options
    )
    return np.asarray(found.x)


def _scipy_krylov(objective: Objective, start: np.ndarray) -> np.ndarray:
    made: dict[bytes, Callable[[np.ndarray], np.ndarray]] = {}

    def product(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        key = theta.tobytes()
        if key not in made:
            made.clear()
            made[key] = objective.hessian(theta)
        return made[key](v)

    options = {"gtol": TOLERANCE, "initial_trust_radius": 10.0, "max_trust_radius": 100.0}
    found: OptimizeResult = minimize(
        objective.value_and_gradient, start, jac=True, hessp=product, method="trust-krylov", options=options
    )
    return np.asarray(found.x)


def _torch_lbfgs(objective: Objective, start: np.ndarray) -> np.ndarray:
    theta = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.LBFGS(
        [theta],
        max_iter=_ITERATIONS,
        tolerance_grad=0.1 * TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, gradient = objective.value_and_gradient(theta.detach().numpy().copy())
        theta.grad = torch.from_numpy(gradient)
        return value

    optimiser.step(closure)
    return theta.detach().numpy()


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
#: what minimises an objective from given weights, by the name that tables show
METHODS: dict[str, Callable[[Objective, np.ndarray], np.ndarray]] = {
    "L-BFGS": _lbfgs,
    "Newton-Krylov": _newton,
    "scipy L-BFGS-B": _scipy_lbfgs,
    "scipy trust-krylov": _scipy_krylov,
    "torch LBFGS": _torch_lbfgs,
}
