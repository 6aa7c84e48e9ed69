"""Horizon, classifier head and noise strengths as controls beside the weights; Gauss-Newton."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kolmo
from kolmo import case
from kolmo.chain import Chain
from kolmo.control import GaussNewton, Interval, Joint, Objective, lbfgs, newton
from kolmo.control.admissible import Box
from kolmo.errors import InfeasibleError, InputError
from kolmo.loss import LeastSquares, LogisticHead
from kolmo.pde import BackwardKolmogorov, ExactRecursion, Explicit
from kolmo.penalty import DepthSmoothness, StepPenalty, WeightDecay

PENALTIES = (WeightDecay(1e-2), DepthSmoothness(1e-2), StepPenalty(threshold=0.2))
#: horizon, strengths, head's weight and bias stand last
MORE = 1 + 4 + 2 + 1


def control(*values: float) -> Tensor:
    number = torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)
    return number.requires_grad_()


def everything(noise: kolmo.noise.Noise | None = None, scale: float = 2.0) -> kolmo.Problem:
    """A problem in which all that can be a control is one."""
    network = kolmo.ResidualNetwork(2, 4, 4, horizon=control(1.3))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(scale)
    if noise is None:
        noise = kolmo.noise.Controlled(kolmo.noise.BernoulliDropout(0.8), control(0.8, 0.7, 0.9, 0.8))
    head = LogisticHead(control(2.0, -1.0), control(0.3))
    return kolmo.Problem(kolmo.data.moons(60), network, noise, head)


def objective_of(problem: kolmo.Problem, penalties: Any = PENALTIES, **keys: Any) -> Objective:
    keys = {"cells": 16, "half_width": 4.0, "limit": False, "propagator": Explicit(substeps=6)} | keys
    equation = BackwardKolmogorov(problem, **keys)
    more = problem.controls
    second = partial(equation.curvature, more=more)
    return Objective(problem.network, equation.expected_loss, penalties, second, more)


def differences(objective: Objective, theta: np.ndarray, index: range, e: float = 1e-5) -> np.ndarray:
    """Central differences of the value by single controls."""
    found = []
    for i in index:
        step = np.zeros_like(theta)
        step[i] = e
        found.append((objective.value(theta + step) - objective.value(theta - step)) / (2 * e))
    objective.theta = theta
    return np.array(found)


# ------------------------------------------------------------------ exact derivatives


@pytest.mark.parametrize("backend", ["box", "skfem"])
@pytest.mark.parametrize("limit", [False, True])
def test_gradients_by_all_controls_are_derivatives_of_the_value(limit: bool, backend: str) -> None:
    """Also where the clip gives mass of the density to the bounds of Phi, which move with the head."""
    problem = everything(scale=6.0)
    objective = objective_of(problem, PENALTIES[:2], limit=limit, backend=backend, cells=10)
    theta = objective.theta
    _, gradient = objective.value_and_gradient(theta)
    last = objective.estimator.__self__.last  # type: ignore[attr-defined]
    assert (last.clipped > 0) == limit
    index = range(len(theta) - MORE, len(theta))
    expected = differences(objective, theta, index, 1e-6 if limit else 1e-5)  # not across a kink
    assert np.abs(expected).min() > 1e-6  # every control acts
    # differences of rounded values: eps |J| / e
    np.testing.assert_allclose(gradient[-MORE:], expected, rtol=1e-6, atol=1e-8)


def test_a_checkpointed_march_has_the_same_gradient() -> None:
    problem = everything()
    plain = objective_of(problem).value_and_gradient
    theta = objective_of(problem).theta
    nodes = 17 * 17 * 2 * 8
    tight = objective_of(problem, budget=60.0 * nodes).value_and_gradient
    for one, other in zip(plain(theta), tight(theta), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["gaussian_injection", "bernoulli_dropout", "none"])
def test_products_by_all_controls_are_derivatives_of_the_gradient(name: str) -> None:
    """The horizon enters drift, diffusion and their corrections, differently for each noise."""
    noise: kolmo.noise.Noise = kolmo.noise.NoNoise()
    if name != "none":
        kind = kolmo.noise.KINDS[name]
        noise = kolmo.noise.Controlled(kind(0.6), control(0.6, 0.7, 0.65, 0.6))  # type: ignore[call-arg]
    objective = objective_of(everything(noise))
    theta = objective.theta
    v = np.random.default_rng(0).standard_normal(len(theta))
    e = 1e-4
    ends = [objective.value_and_gradient(theta + s * e * v)[1] for s in (1, -1)]
    product = objective.hessian(theta)
    found = product(v)
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * e), atol=1e-6 * np.abs(found).max())
    w = np.random.default_rng(1).standard_normal(len(theta))
    assert w @ found == pytest.approx(v @ product(w), rel=1e-10)


def test_the_chains_pathwise_gradient_agrees() -> None:
    """By horizon and head: two discretisations of one thing, five standard errors and the time step apart."""
    problem = everything(kolmo.noise.BernoulliDropout(0.8), scale=1.0)
    more = problem.controls
    equation = BackwardKolmogorov(problem, cells=64)
    ours = torch.cat([g.reshape(-1) for g in torch.autograd.grad(equation.expected_loss(), more)])
    chain, batches = Chain(problem, seed=1), []
    for first in range(20):
        loss = chain.plain(problem.network, chain.stream(50, 50 * first)).mean()
        batches.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, more)]))
    table = torch.stack(batches)
    error = table.std(dim=0) / np.sqrt(len(table))
    assert bool(((table.mean(dim=0) - ours).abs() < 5 * error + 2e-3 * ours.abs().max()).all())


# ------------------------------------------------------------------ joint optimisation


def test_all_controls_are_optimised_at_once_in_their_sets() -> None:
    """To less than the weights alone can reach; what a bound holds is held."""
    problem = everything(scale=1.0)
    weights = sum(p.numel() for p in problem.network.parameters())
    penalties = (WeightDecay(1e-2), StepPenalty())
    alone = objective_of(problem, penalties)
    rest = alone.theta[weights:]
    fixed = Joint((Box(), weights), (Interval(rest, rest), MORE))
    held = lbfgs(alone, alone.theta, fixed, iterations=60)
    np.testing.assert_array_equal(held.theta[weights:], rest)
    sets = Joint(
        (Box(), weights), (Interval(0.5, 2.0), 1), (Interval(0.5, 0.95), 4), (Interval([-3, -3, -1], 3), 3)
    )
    free = objective_of(problem, penalties)
    found = lbfgs(free, held.theta, sets, iterations=200, tolerance=1e-5)
    assert found.value < held.value - 1e-3
    np.testing.assert_array_equal(found.theta, sets.project(found.theta))
    # on its own data a network is best with the least noise
    np.testing.assert_allclose(found.theta[weights + 1 : weights + 5], 0.95)
    assert problem.network.horizon == found.theta[weights]
    assert sets.blocked(found.theta, free.value_and_gradient(found.theta)[1])[weights + 1 : weights + 5].all()


def test_a_head_along_the_first_axis_is_the_logistic_loss() -> None:
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2
    head = LogisticHead([4.0, 0.0])
    torch.testing.assert_close(head(x, labels), kolmo.loss.Logistic(4.0)(x, labels))
    assert torch.equal(head.predict(x), (x[:, 0] > 0).long())


def test_a_head_is_written_and_read(tmp_path: Path) -> None:
    network = kolmo.ResidualNetwork(2, 3, 2, horizon=control(0.7))
    problem = kolmo.Problem(
        kolmo.data.moons(10), network, loss=LogisticHead(control(1.5, 0.5), control(-0.25))
    )
    case.save(problem, tmp_path)
    back = case.load(tmp_path)
    assert isinstance(back.loss, LogisticHead)
    assert back.loss.weight.tolist() == [1.5, 0.5] and float(back.loss.bias) == -0.25
    assert back.network.horizon == 0.7 and back.controls == ()


# ------------------------------------------------------------------ refusals


def test_what_cannot_be_a_control_is_said() -> None:
    with pytest.raises(InputError, match=r"loss.weight: 3 values, the features have 2"):
        kolmo.Problem(kolmo.data.moons(10), kolmo.ResidualNetwork(2, 3, 2), loss=LogisticHead([1, 2, 3]))
    for weight, bias in (("a", 0.0), ([[1.0]], 0.0), ([1.0, float("nan")], 0.0), ([1.0, 2.0], [1.0])):
        with pytest.raises(InputError, match=r"loss\.(weight|bias)"):
            LogisticHead(weight, bias)
    with pytest.raises(InputError, match=r"network.horizon: .* not a float64 tensor"):
        kolmo.ResidualNetwork(2, 3, 2, horizon=torch.tensor([1.0, 2.0]))
    with pytest.raises(InputError, match=r"interval: .* is not below"):
        Interval(1.0, 0.0)
    with pytest.raises(InputError, match=r"sets of 3 controls, the vector has 2"):
        Joint((Box(), 3)).project(np.zeros(2))
    with pytest.raises(InputError, match=r"gauss-newton: .* other controls"):
        GaussNewton(everything())


def test_a_horizon_that_left_its_range_is_refused_as_infeasible() -> None:
    problem = everything()
    objective = objective_of(problem)
    theta = objective.theta
    theta[-MORE] = -0.1
    with pytest.raises(InfeasibleError, match=r"network.horizon: the control has come to -0.1"):
        objective.value(theta)


def test_an_estimator_without_the_derivative_is_not_taken_for_zero() -> None:
    problem = everything(kolmo.noise.BernoulliDropout(0.8))
    recursion = ExactRecursion(problem, cells=16)
    objective = Objective(problem.network, recursion.expected_loss, more=problem.controls)
    with pytest.raises(InputError, match=r"no derivative by control 3 of 6, shape \(\)"):
        objective.value_and_gradient(objective.theta)


def test_second_derivatives_by_a_head_are_not_given_where_the_clip_cuts() -> None:
    problem = everything(scale=6.0)
    objective = objective_of(problem, limit=True, cells=10)
    with pytest.raises(InputError, match=r"the clip moves with the loss's controls; take limit=False"):
        objective.hessian(objective.theta)


# ------------------------------------------------------------------ Gauss-Newton


def small(noise: kolmo.noise.Noise) -> kolmo.Problem:
    return kolmo.Problem(kolmo.data.moons(12), kolmo.ResidualNetwork(2, 3, 3), noise)


@pytest.mark.parametrize("noise", [kolmo.noise.NoNoise(), kolmo.noise.BernoulliDropout(0.8)])
def test_gauss_newton_is_the_matrix_of_its_definition(noise: kolmo.noise.Noise) -> None:
    """Against the dense Jacobian of all paths; symmetric and without negative eigenvalues."""
    problem = small(noise)
    matrix = GaussNewton(problem, paths=2, seed=3)
    size = len(torch.nn.utils.parameters_to_vector(problem.network.parameters()))
    G = np.stack([matrix.product(e) for e in np.eye(size)])
    parameters = list(problem.network.parameters())
    stream = Chain(problem, seed=3).stream(2, 0)
    x = problem.data.points.repeat(2, 1)
    for layer in range(problem.network.depth):
        x = x + noise.sample(problem.network, layer, x, stream.layer(layer))
    expected = np.zeros((size, size))
    for n, label in enumerate(problem.data.labels.repeat(2)):
        rows = [torch.autograd.grad(x[n, i], parameters, retain_graph=True) for i in range(2)]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).numpy()
        point, y = x[n].detach(), int(label)
        bend = torch.autograd.functional.hessian(lambda z, y=y: problem.loss(z, y), point).numpy()
        expected += jacobian.T @ bend @ jacobian / len(x)
    np.testing.assert_allclose(G, expected, atol=1e-13)
    assert np.linalg.eigvalsh(G)[0] > -1e-14


def test_gauss_newton_is_the_hessian_where_nothing_is_left_to_fit() -> None:
    """Least squares with residual 0: what Gauss-Newton leaves out is a multiple of the residual."""
    points = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [1.0, -1.0]], dtype=torch.float64)
    network = kolmo.ResidualNetwork(2, 3, 2)
    with torch.no_grad():
        network.V.zero_()  # the network is the identity
    problem = kolmo.Problem(
        kolmo.data.Dataset(points, torch.tensor([1, 0, 1])), network, kolmo.noise.NoNoise(), LeastSquares()
    )
    matrix = GaussNewton(problem, paths=1)
    parameters = list(network.parameters())
    loss = problem.loss(network(points), problem.data.labels).mean()
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    v = torch.randn(len(slope), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(slope @ v, parameters)])
    np.testing.assert_allclose(matrix.product(v.numpy()), exact.numpy(), atol=1e-14)


def test_newton_with_gauss_newtons_matrix_descends_to_the_same_value() -> None:
    """Linearly: with a loss that is not fitted the matrix is not the Hessian."""
    problem = kolmo.Problem(
        kolmo.data.moons(40), kolmo.ResidualNetwork(2, 3, 3), kolmo.noise.BernoulliDropout(0.8)
    )
    fixed = Explicit(substeps=6)
    equation = BackwardKolmogorov(problem, cells=12, half_width=4.0, limit=False, propagator=fixed)
    penalties = (WeightDecay(0.3), StepPenalty())
    results = []
    for second in (partial(GaussNewton, problem), equation.curvature):
        objective = Objective(problem.network, equation.expected_loss, penalties, second)
        start = torch.nn.utils.parameters_to_vector(kolmo.ResidualNetwork(2, 3, 3).parameters())
        results.append(newton(objective, start.detach().numpy(), iterations=25))
    assert results[0].value == pytest.approx(results[1].value, rel=1e-3)
    slope = np.linalg.norm(objective.value_and_gradient(start.detach().numpy())[1])
    assert results[0].residual < 1e-2 * slope
