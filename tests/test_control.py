"""Optimisers on problems whose solution is known, and on one that fights back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kolmo import Problem, ResidualNetwork, data, noise
from kolmo.control import Box, Objective, audit, lbfgs, taylor_test, train
from kolmo.errors import AuditError, InfeasibleError, InputError, MaximumPrincipleError, NonFiniteError
from kolmo.network import LayeredNetwork
from kolmo.pde import BackwardKolmogorov
from kolmo.penalty import StepPenalty, WeightDecay


class _Vector(LayeredNetwork):
    """A 'network' that is only a vector of weights, to minimise functions of a vector."""

    def __init__(self, size: int) -> None:
        super().__init__(1, 1)
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def block(self, layer: int, x: Tensor) -> Tensor:
        return x * self.w.sum()


def _rosenbrock(w: Tensor) -> Tensor:
    return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()


def test_lbfgs_finds_the_minimum_of_rosenbrock() -> None:
    """An unconstrained minimum inside the box."""
    vector = _Vector(6)
    objective = Objective(vector, lambda: _rosenbrock(vector.w))
    result = lbfgs(objective, np.full(6, -1.0), Box(5.0), iterations=500, tolerance=1e-9)
    assert result.status == "stationary"
    np.testing.assert_allclose(result.theta, 1.0, atol=1e-7)


def test_lbfgs_stops_at_the_box() -> None:
    """min |w - 3|^2 with |w| <= 1 ends on the face, where the projected residual vanishes."""
    vector = _Vector(4)
    target = torch.tensor([3.0, -3.0, 0.5, 0.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 10.0, 100.0, 0.1], dtype=torch.float64)
    objective = Objective(vector, lambda: (scale * (vector.w - target).square()).sum())
    result = lbfgs(objective, np.zeros(4), Box(1.0), tolerance=1e-10)
    assert result.status == "stationary"
    np.testing.assert_allclose(result.theta, [1, -1, 0.5, 0.0], atol=1e-8)


def test_lbfgs_backtracks_from_refused_points() -> None:
    """A cliff at |w| = 2 that raises: the minimum before it is found, the refusals are counted."""
    vector = _Vector(2)

    def estimator() -> Tensor:
        if float(vector.w.detach().norm()) > 2:
            raise MaximumPrincipleError("layer 0: too far out; take smaller weights", 0)
        return (vector.w - 1).square().sum() - 0.3 * vector.w.sum()

    result = lbfgs(Objective(vector, estimator), np.array([-1.0, 0.5]), initial_step=50.0, tolerance=1e-8)
    assert result.refused["MaximumPrincipleError"] >= 1
    np.testing.assert_allclose(result.theta, 1.15, atol=1e-6)


def _small_problem() -> Problem:
    network = ResidualNetwork(2, 8, 6, seed=1)
    return Problem(data.moons(40, seed=3), network, noise.BernoulliDropout(0.8))


def test_a_line_search_into_huge_weights_is_rejected() -> None:
    """A first step a thousand gradients long on the real objective: refused, backtracked, still descends."""
    problem = _small_problem()
    equation = BackwardKolmogorov(problem, cells=20)
    objective = Objective(problem.network, equation.expected_loss, [WeightDecay(1e-2)])
    start = objective.theta
    before = objective.value(start)
    result = lbfgs(objective, start, Box(1e6), iterations=5, initial_step=1e4)
    assert sum(result.refused.values()) >= 1
    assert result.value < before
    assert np.isfinite(result.theta).all()
    bounds = equation.expected_loss()
    assert float(bounds.detach()) >= 0


def test_the_start_itself_may_be_refused() -> None:
    """Nothing to backtrack to: the reason reaches the caller."""
    problem = _small_problem()
    with torch.no_grad():
        problem.network.V *= 1e3
    equation = BackwardKolmogorov(problem, cells=16, half_width=3.0)
    objective = Objective(problem.network, equation.expected_loss)
    with pytest.raises(InfeasibleError, match="weights"):
        lbfgs(objective, objective.theta, Box(1e6))


def test_taylor_rates_of_the_whole_objective() -> None:
    """Equation and penalties together, at weights away from the start: rates 1 and 2."""
    problem = _small_problem()
    with torch.no_grad():
        problem.network.V *= 4
    equation = BackwardKolmogorov(problem, cells=24, limit=False)
    objective = Objective(problem.network, equation.expected_loss, [WeightDecay(), StepPenalty(10.0, 0.01)])
    rates = taylor_test(objective, objective.theta, seed=4)
    assert rates.order1 == pytest.approx(2.0, abs=0.05)
    assert rates.order0 == pytest.approx(1.0, abs=0.15)


def test_taylor_test_notices_a_wrong_gradient() -> None:
    """A gradient that is 1% off leaves a first-order remainder."""

    class Wrong(Objective):
        def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = super().value_and_gradient(theta)
            return value, 1.01 * gradient

    vector = _Vector(5)
    objective = Wrong(vector, lambda: _rosenbrock(vector.w))
    rates = taylor_test(objective, np.linspace(-1, 1, 5), steps=(1e-4, 5e-5, 2.5e-5, 1.25e-5))
    assert rates.order1 < 1.2


def test_objective_refuses_what_is_not_finite() -> None:
    """NaN is a refusal, wrong shapes are input errors."""
    vector = _Vector(2)
    objective = Objective(vector, lambda: (vector.w * float("nan")).sum())
    with pytest.raises(NonFiniteError):
        objective.value_and_gradient(np.ones(2))
    with pytest.raises(InputError, match="2 weights"):
        objective.value(np.ones(3))


def test_training_by_control_descends_and_is_audited() -> None:
    """A tiny problem mesh by mesh: the end is better than the start and agrees with the chain."""
    problem = _small_problem()
    penalties = [WeightDecay(1e-2), StepPenalty()]
    seen: list[float] = []
    outcome = train(
        problem,
        penalties,
        cells=[16, 32],
        iterations=[10, 5],
        callback=lambda step: seen.append(step.objective),
    )
    assert outcome.result.value < 0.8 * seen[0]
    assert outcome.audits[-1].endswith("passed")
    assert outcome.evaluations > 0
    assert seen == sorted(seen, reverse=True) or len(set(seen)) > 10


def test_any_torch_optimiser_trains_through_the_equation() -> None:
    """The README's promise: Adam on expected_loss()."""
    problem = _small_problem()
    equation = BackwardKolmogorov(problem, cells=20)
    optimiser = torch.optim.Adam(problem.network.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = equation.expected_loss()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_network_beyond_the_modified_equation_fails_the_audit() -> None:
    """Steps of h |V W| > 1: the equation and the chain part, the audit says so, training refuses."""
    problem = _small_problem()
    with torch.no_grad():
        problem.network.W *= 3
        problem.network.V *= 12
    equation = BackwardKolmogorov(problem, cells=48)
    outcome = audit(problem, equation)
    assert isinstance(outcome.failure, (AuditError, InfeasibleError))
    with pytest.raises((AuditError, InfeasibleError), match="take"):
        train(problem, cells=[16], iterations=[1], admissible=Box(1e3))
