"""Strengths of a noise as controls: their derivatives, the joint Hessian, hypergradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import problem
from torch import Tensor

import kolmo
from kolmo import noise
from kolmo.control import Objective, hypergradient, newton
from kolmo.errors import ConditionError, InfeasibleError, InputError
from kolmo.noise import Controlled, LinearNoise
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.penalty import WeightDecay

START = [0.9, 0.7, 0.6]
KINDS: dict[str, LinearNoise] = {
    "dropout": noise.BernoulliDropout(START),
    "hidden": noise.HiddenDropout(START),
    "dropconnect": noise.DropConnect(START),
    "depth": noise.StochasticDepth(START),
    "depth-test-time": noise.StochasticDepth(START, scaling="test_time"),
    "gaussian": noise.GaussianDropout(START),
    "uniform": noise.UniformNoise(START),
    "injection": noise.GaussianInjection(START),
}


def controlled(kind: str, values: list[float] | None = None) -> Controlled:
    strengths = torch.tensor(START if values is None else values, dtype=torch.float64, requires_grad=True)
    return Controlled(KINDS[kind], strengths)


def equation_of(model: noise.Noise, **keys: Any) -> BackwardKolmogorov:
    keys = {"cells": 12, "half_width": 3.0, "limit": False, "propagator": Explicit(substeps=3)} | keys
    return BackwardKolmogorov(problem(2, model, depth=3), **keys)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_derivatives(kind: str, order: int) -> None:
    """J is that of the schedule; dJ/ds by central differences of it; dJ/dtheta is unchanged."""
    model = controlled(kind)
    equation, plain = equation_of(model, order=order), equation_of(KINDS[kind], order=order)
    loss, other = equation.expected_loss(), plain.expected_loss()
    assert float(loss.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
    found = torch.autograd.grad(loss, [model.strengths, *equation.problem.network.parameters()])
    expected = torch.autograd.grad(other, list(plain.problem.network.parameters()))
    for one, two in zip(found[1:], expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-14)
    for k in range(3):
        ends = []
        for e in (1e-4, -1e-4):
            values = list(START)
            values[k] += e
            keys = {**KINDS[kind].settings(), str(KINDS[kind].strength): values}
            ends.append(float(equation_of(type(KINDS[kind])(**keys), order=order).expected_loss().detach()))
        assert float(found[0][k]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-9)


def test_no_noise_has_a_derivative_too() -> None:
    """At keep 1 and strength 0 dJ/ds is finite: what a little noise would cost."""
    for kind, values in (("dropout", [1.0] * 3), ("gaussian", [0.0] * 3), ("injection", [0.0] * 3)):
        model = controlled(kind, values)
        (slope,) = torch.autograd.grad(equation_of(model).expected_loss(), [model.strengths])
        assert bool(torch.isfinite(slope).all())
        assert bool((slope != 0).all()) == (kind == "dropout")


def test_the_chain_and_the_recursion_see_the_same_strengths() -> None:
    given = problem(2, controlled("dropout"), depth=3)
    same = problem(2, KINDS["dropout"], depth=3)
    pairs = [kolmo.Chain(p, seed=1).estimate(4000).value for p in (given, same)]
    assert pairs[0] == pytest.approx(pairs[1], rel=1e-12)
    from kolmo.pde import ExactRecursion

    with torch.no_grad():
        one, two = (float(ExactRecursion(p, cells=12, half_width=3.0).expected_loss()) for p in (given, same))
    assert one == pytest.approx(two, rel=1e-12)


@pytest.mark.parametrize("kind", ["dropout", "depth-test-time", "injection"])
def test_the_joint_hessian(kind: str) -> None:
    """In (theta, s): by central differences of the joint gradient, and symmetric."""
    model = controlled(kind)
    equation = equation_of(model)
    weights = [*equation.problem.network.parameters(), model.strengths]
    flat = torch.nn.utils.parameters_to_vector(weights).detach().clone()

    def gradient(at: Tensor) -> np.ndarray:
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(at, weights)
        found = torch.autograd.grad(equation.expected_loss(), weights)
        return torch.cat([g.reshape(-1) for g in found]).numpy()

    curvature = equation.curvature(more=[model.strengths])
    v, w = np.random.default_rng(0).standard_normal((2, len(flat)))
    product = curvature.product(v)
    assert w @ product == pytest.approx(v @ curvature.product(w), rel=1e-9)
    ends = [gradient(flat + e * torch.from_numpy(v)) for e in (1e-5, -1e-5)]
    gradient(flat)
    assert np.linalg.norm(product - (ends[0] - ends[1]) / 2e-5) < 1e-7 * np.linalg.norm(product)


def inner(values: list[float], start: np.ndarray | None = None) -> tuple[BackwardKolmogorov, np.ndarray]:
    """A small training problem with these strengths, at its minimum."""
    strengths = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    network = kolmo.ResidualNetwork(2, 2, 2)
    model = Controlled(noise.BernoulliDropout(0.5), strengths)
    given = kolmo.Problem(kolmo.data.moons(30, seed=1), network, model)
    fixed = Explicit(substeps=3)
    equation = BackwardKolmogorov(given, cells=12, half_width=4.0, limit=False, propagator=fixed)
    objective = Objective(network, equation.expected_loss, (WeightDecay(5e-2),), equation.curvature)
    found = newton(objective, objective.theta if start is None else start, tolerance=1e-9, iterations=100)
    assert found.residual < 1e-7
    return equation, found.theta


def validation(equation: BackwardKolmogorov) -> BackwardKolmogorov:
    """The noiseless loss on other data."""
    given = equation.problem
    other = kolmo.Problem(kolmo.data.moons(30, seed=2), given.network, noise.NoNoise())
    fixed = Explicit(substeps=3)
    return BackwardKolmogorov(other, cells=12, half_width=4.0, limit=False, propagator=fixed)


def test_a_hypergradient_is_the_derivative_of_what_training_leads_to() -> None:
    """By training again at neighbouring strengths."""
    values = [0.8, 0.7]
    equation, theta = inner(values)
    found = hypergradient(equation, validation(equation).expected_loss, (WeightDecay(5e-2),))
    assert found.residual <= 1e-8 and found.slope < 1e-6 and found.products > 2
    for k in range(2):
        ends = []
        for e in (1e-3, -1e-3):
            moved = list(values)
            moved[k] += e
            again, _ = inner(moved, theta)
            ends.append(float(validation(again).expected_loss().detach()))
        assert found.gradient[k] == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-3, abs=1e-6)


def test_refusals() -> None:
    """Noises without a strength, shapes, values out of range, systems that are not solved."""
    with pytest.raises(InputError, match="'shake_shake': it has no strength"):
        Controlled(noise.ShakeShake(), torch.ones(3, dtype=torch.float64))
    with pytest.raises(InputError, match=r"strengths: torch.float32 of shape \(3,\)"):
        Controlled(noise.BernoulliDropout(0.8), torch.ones(3))
    with pytest.raises(InputError, match="2 values, the network has 3 layers"):
        equation_of(controlled("dropout", [0.8, 0.7])).expected_loss()
    with pytest.raises(InfeasibleError, match=r"strengths: noise\.keep: 1\.2 is not a probability"):
        equation_of(controlled("dropout", [0.8, 0.7, 1.2])).expected_loss()
    plain = equation_of(noise.BernoulliDropout(0.8))
    with pytest.raises(InputError, match="by the strengths of a Controlled one"):
        hypergradient(plain, plain.expected_loss)
    equation, _ = inner([0.8, 0.7])
    with pytest.raises(ConditionError, match="hypergradient: 1 iterations"):
        hypergradient(equation, validation(equation).expected_loss, (WeightDecay(5e-2),), iterations=1)
