"""Training by kernels against training by torch: steps, penalties, states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import DEPTH, points, trained_size
from torch import Tensor

from kolmo import Problem, ResidualNetwork, noise, training
from kolmo.chain import Chain
from kolmo.compiled.penalty import add_penalty
from kolmo.compiled.reverse import Derivatives
from kolmo.compiled.training import CompiledSteps, has_steps
from kolmo.errors import NonFiniteError
from kolmo.network import LayeredNetwork
from kolmo.penalty import Penalty, StepPenalty, WeightDecay


class Cubes(WeightDecay):
    """A penalty of one's own, of the output weights alone."""

    def __call__(self, network: LayeredNetwork) -> Tensor:
        assert isinstance(network, ResidualNetwork)
        return self.coefficient * network.V.abs().pow(3).sum()


class Nothing(Penalty):
    """A penalty that no weight changes."""

    def __call__(self, network: LayeredNetwork) -> Tensor:
        return torch.tensor(0.25, dtype=torch.float64)


def problem(dim: int = 2, width: int = 7) -> Problem:
    return Problem(points(dim, 20), trained_size(dim, DEPTH, width), noise.BernoulliDropout(0.8))


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chain, "is_compiled", lambda self, network: False)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "penalty",
    [WeightDecay(0.3), StepPenalty(5.0, 0.05), StepPenalty(5.0, 100.0), Cubes(0.2), Nothing()],
    ids=["decay", "steps", "no steps", "own", "constant"],
)
def test_penalties_are_those_of_torch(penalty: Penalty, dim: int) -> None:
    """Value and gradient to 1e-12, added to what is there."""
    network = problem(dim).network
    assert isinstance(network, ResidualNetwork)
    parameters = [network.W, network.b, network.V]
    wanted = penalty(network)
    gradients: Any = [torch.zeros_like(p) for p in parameters]
    if wanted.requires_grad:
        found = torch.autograd.grad(wanted, parameters, allow_unused=True)
        gradients = [z if g is None else g for g, z in zip(found, gradients, strict=True)]
    into = Derivatives(*(np.ones(tuple(p.shape)) for p in parameters))
    value = add_penalty(penalty, network, Derivatives(*(p.detach().numpy() for p in parameters)), into)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-12, abs=0)
    for total, gradient in zip(into, gradients, strict=True):
        np.testing.assert_allclose(total - 1, gradient, rtol=1e-11, atol=1e-13)


def test_a_zero_network_has_no_step_penalty() -> None:
    """|V W| = 0, where the norm has no derivative: 0, as torch has it."""
    network = problem().network
    assert isinstance(network, ResidualNetwork)
    with torch.no_grad():
        network.V.zero_()
    weights = [p.detach().numpy() for p in (network.W, network.b, network.V)]
    into = Derivatives(*(np.zeros_like(w) for w in weights))
    assert add_penalty(StepPenalty(5.0, 0.0), network, Derivatives(*weights), into) == 0
    assert all((total == 0).all() for total in into)


@pytest.mark.parametrize("penalties", [(), (WeightDecay(), StepPenalty(1.0, 0.1)), (Cubes(0.01),)], ids=len)
def test_trainings_are_those_of_torch(
    penalties: tuple[Penalty, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same objectives and weights to rounding, over the whole decay of the learning rate."""
    ours, theirs = problem(), problem()
    told: list[list[float]] = [[], []]
    keys: dict[str, Any] = {"steps": 40, "paths": 3, "seed": 2}
    training.train(ours, penalties, callback=lambda step: told[0].append(step.objective), **keys)
    by_torch(monkeypatch)
    training.train(theirs, penalties, callback=lambda step: told[1].append(step.objective), **keys)
    assert told[0] == pytest.approx(told[1], rel=1e-11) and told[0][-1] < told[0][0]
    for p, q in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_the_learning_rate_is_torchs_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CosineAnnealingLR gives, step by step."""
    rates = []
    monkeypatch.setattr(CompiledSteps, "descend", lambda self, rate: rates.append(rate))
    training.train(problem(), steps=9, paths=1, learning_rate=0.3)
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 9)
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        schedule.step()
    assert len(rates) == 9


def test_moments_are_torchs() -> None:
    """Either kind of step goes on from the other's state, and tells the same."""
    given = problem()
    simulated = Chain(given, seed=1)
    stepper = training._steps(simulated, given.network, ())
    assert isinstance(stepper, CompiledSteps)
    for number in range(3):
        stepper.objective(simulated.stream(2, 2 * number))
        stepper.descend(0.01)
    other = problem()
    training.set_weights(other.network, training.weights_of(given.network))
    plain = training.TorchSteps(Chain(other, seed=1), other.network, ())
    plain.restore(stepper.moments())
    for kept, found in zip(stepper.moments(), plain.moments(), strict=True):
        assert kept.keys() == found.keys()
        assert all(np.array_equal(kept[k], found[k]) and kept[k].dtype == found[k].dtype for k in kept)
    again = training._steps(simulated, given.network, ())
    again.restore(plain.moments())
    for steps in (again, plain):
        steps.objective(simulated.stream(2, 6))
        steps.descend(0.01)
    for p, q in zip(given.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


def test_weights_that_kernels_do_not_train() -> None:
    """A fixed weight, one more parameter, another precision: torch."""
    for change in (
        lambda n: n.b.requires_grad_(False),
        lambda n: n.register_parameter("more", torch.nn.Parameter(torch.zeros(2))),
        lambda n: n.float(),
    ):
        network = problem().network
        assert isinstance(network, ResidualNetwork) and has_steps(network)
        change(network)
        assert not has_steps(network)
    given = problem()
    given.network.b.requires_grad_(False)
    before = given.network.b.detach().clone()
    training.train(given, steps=3)
    assert torch.equal(given.network.b, before)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    """Before the weights change."""
    given = problem()
    with torch.no_grad():
        given.network.b[0, 0] = math.inf
        given.network.b[1, 0] = math.nan
    before = [p.detach().clone() for p in given.network.parameters()]
    with pytest.raises(NonFiniteError, match="step 1"):
        training.train(given, steps=3)
    for p, q in zip(given.network.parameters(), before, strict=True):
        assert torch.equal(p.nan_to_num(), q.nan_to_num())
