"""Linear-quadratic control: every method against the optimum in closed form; successive approximations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from problems import NOISES, problem

import kolmo
from kolmo.control import Balls, Box, Objective, lbfgs, newton, optimality, successive_approximations
from kolmo.control.admissible import layer_of_weights
from kolmo.control.successive import Sweep, _Layer
from kolmo.errors import InputError
from kolmo.experiments.affine import AffineSystem
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.penalty import DepthSmoothness, StepPenalty, WeightDecay

DECAY = 0.3
POINTS = ((-0.3, 1), (0.2, 0), (0.4, 1))


def system() -> AffineSystem:
    """min E 1/2 |X_L - y|^2 + decay h sum theta_k^2, one feature."""
    points, labels = np.array([[p] for p, _ in POINTS]), np.array([y for _, y in POINTS])
    return AffineSystem(np.array([[0.7]]), np.array([[1.0]]), points, labels, DECAY)


def controlled(depth: int, order: int = 2, substeps: int = 2) -> tuple[BackwardKolmogorov, Objective]:
    """Its modified equation and objective."""
    given, fixed = system().problem(depth), Explicit(substeps=substeps)
    equation = BackwardKolmogorov(
        given, cells=100, half_width=3.0, order=order, limit=False, propagator=fixed
    )
    penalties = (WeightDecay(DECAY),)
    return equation, Objective(given.network, equation.expected_loss, penalties, equation.curvature)


# ------------------------------------------------------------------ linear-quadratic control


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("newton", 1),
        ("newton", 2),
        ("lbfgs", 1),
        ("lbfgs", 2),
        pytest.param("successive", 1, marks=pytest.mark.slow),
        pytest.param("successive", 2, marks=pytest.mark.slow),
    ],
)
def test_every_method_reaches_the_discrete_optimum(method: str, order: int) -> None:
    """To 1e-6, relative."""
    depth = 3 if method == "successive" else 8
    equation, objective = controlled(depth, order, substeps=32 // depth)
    if method == "newton":
        found = newton(objective, objective.theta, tolerance=1e-10, radius=10.0)
        assert found.iterations <= 2
    elif method == "lbfgs":
        found = lbfgs(objective, objective.theta, tolerance=1e-9)
    else:
        penalties = (WeightDecay(DECAY),)
        found = successive_approximations(equation, penalties, tolerance=1e-8, iterations=200)
    exact = system().modified(depth, order).minimiser
    assert np.linalg.norm(found.theta - exact) < 1e-6 * np.linalg.norm(exact)


def test_the_discrete_optimum_tends_to_riccatis() -> None:
    """Of first order in h: the modified equation is the chain's, whose steps are Euler's."""
    given = system()
    errors = [np.abs(given.modified(n, 2).minimiser - given.midpoints(n)).max() for n in (10, 20, 40)]
    assert np.polyfit(np.log([10, 20, 40]), np.log(errors), 1)[0] < -0.9


def test_the_hamiltonian_is_constant_along_an_optimum() -> None:
    """To first order in h."""
    spread = []
    for depth in (10, 20, 40):
        equation, objective = controlled(depth, substeps=80 // depth)
        found = newton(objective, objective.theta, tolerance=1e-7, radius=10.0)
        assert found.residual < 1e-6 and found.iterations <= 2
        at = optimality(equation, (WeightDecay(DECAY),))
        spread.append(np.ptp(at.hamiltonian) / np.abs(at.hamiltonian).mean())
    assert spread[-1] < 2e-3 and np.polyfit(np.log([10, 20, 40]), np.log(spread), 1)[0] < -0.9, spread


# ------------------------------------------------------------------ successive approximations


def smooth(depth: int, **keys: Any) -> BackwardKolmogorov:
    keys = {"limit": False, "propagator": Explicit(substeps=4), "cells": 14, "half_width": 3.5} | keys
    network = kolmo.ResidualNetwork(2, 4, depth)
    return BackwardKolmogorov(kolmo.Problem(kolmo.data.moons(40), network, NOISES["dropout"]), **keys)


@pytest.mark.parametrize("gamma", [1e-6, 0.5])
def test_a_layers_gradient(gamma: float) -> None:
    """At the present weights it is the objective's; elsewhere that of the augmented Hamiltonian."""
    equation, penalties = smooth(3), (WeightDecay(1e-2), StepPenalty())
    objective = Objective(equation.problem.network, equation.expected_loss, penalties)
    theta = objective.theta
    gradient, solved = objective.value_and_gradient(theta)[1], equation.solve()
    rng, layers = np.random.default_rng(0), layer_of_weights(equation.problem.network)
    for k in range(3):
        part = layers == k
        own = _Layer(equation, penalties, k, part, theta, solved.value[k + 1], solved.density[k], gamma)
        np.testing.assert_allclose(own.value_and_gradient(theta[part])[1], gradient[part], atol=1e-14)
        there, v = theta[part] + 0.1 * rng.standard_normal(part.sum()), rng.standard_normal(part.sum())
        ends = [own.value_and_gradient(there + e * v)[0] for e in (1e-5, -1e-5)]
        slope = own.value_and_gradient(there)[1] @ v
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)
        objective.theta = theta


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [1e-8, 10.0])
def test_sweeps_descend(gamma: float) -> None:
    """Every accepted sweep lowers the objective, whatever gamma is at first; the end is nearly stationary."""
    equation, penalties = smooth(3), (WeightDecay(1e-2), StepPenalty())
    objective = Objective(equation.problem.network, equation.expected_loss, penalties)
    values = [objective.value(objective.theta)]

    def note(sweep: Sweep) -> None:
        values.append(sweep.value)

    found = successive_approximations(equation, penalties, iterations=25, gamma=gamma, callback=note)
    assert (np.diff(values) < 0).all() and found.residual < 0.1
    assert found.value == values[-1] == objective.value(found.theta)


@pytest.mark.slow
def test_the_hard_case_is_survived() -> None:
    """No penalty, a box of large weights, no augmentation to speak of: never above the start."""
    given = problem(2, NOISES["dropout"], depth=3)
    equation = BackwardKolmogorov(given, cells=12, half_width=3.0)
    start = float(equation.expected_loss().detach())
    found = successive_approximations(equation, (), Box(20.0), iterations=3, gamma=1e-12)
    assert np.isfinite(found.theta).all() and found.value <= start


def test_bad_options() -> None:
    equation = smooth(2)
    with pytest.raises(InputError, match="gamma: 0 is not positive"):
        successive_approximations(equation, gamma=0)
    with pytest.raises(InputError, match="DepthSmoothness: it has no `by_layer`"):
        successive_approximations(equation, (DepthSmoothness(1.0),))
    with pytest.raises(InputError, match="admissible: Balls"):
        successive_approximations(equation, (), Balls(equation.problem.network, 1.0))  # type: ignore[arg-type]
