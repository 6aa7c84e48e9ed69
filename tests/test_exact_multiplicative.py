"""The compiled layers of the exact recursion against the general ones, and which problems they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import problem
from torch import Tensor

import kolmo
from kolmo import noise
from kolmo.errors import InputError, NonFiniteError
from kolmo.loss import LeastSquares, Logistic, Loss
from kolmo.network import Jet, ScaledJet
from kolmo.noise.base import GAUSS, LinearNoise, Noise, Outcomes
from kolmo.noise.law import Law, TwoPoint
from kolmo.noise.structure import Diagonal, RankOne, Structure
from kolmo.pde import ExactRecursion
from kolmo.pde.exact_jumps import jumps
from kolmo.pde.exact_layers import Layers, Stage
from kolmo.pde.exact_multiplicative import MultiplicativeLayers
from kolmo.pde.recursion_collocation import elimination, solve, solve_transposed

#: every noise that multiplies the block
PLAIN: dict[str, Noise] = {
    "none": noise.NoNoise(),
    "dropout": noise.BernoulliDropout(0.8),
    "dropout-line": noise.BernoulliDropout({"first": 1.0, "last": 0.6}),
    "gaussian": noise.GaussianDropout(0.4),
    "gaussian-list": noise.GaussianDropout([0.0, 0.5, 0.5, 0.2]),
    "uniform": noise.UniformNoise(0.5),
    "depth": noise.StochasticDepth(0.8),
    "test-time-depth": noise.StochasticDepth({"last": 0.5}, scaling="test_time"),
}


class Scaled(LinearNoise):
    """Of a user's own: a biased mean, a law of its own, one number for all components."""

    def mean(self, jet: Jet) -> Jet:
        return ScaledJet(jet, torch.full((len(jet.layers),), 0.7, dtype=torch.float64))

    def law(self, layer: int, depth: int) -> Law:
        return TwoPoint(0.3, 1 + layer)

    def spread(self, jet: Jet) -> Structure:
        return RankOne(0.5 * jet.value)


def evaluated(recursion: ExactRecursion, layers: Layers) -> tuple[float, list[Tensor], np.ndarray]:
    """J, its gradient, and u_0 at the data by these layers."""
    network = recursion.problem.network
    stages: list[Stage] = []
    value, data = recursion._value(network, stages, layers)
    return value, recursion._gradient(network, stages, layers), data


def agree(recursion: ExactRecursion) -> None:
    """Both ways to the same numbers."""
    network = recursion.problem.network
    compiled = recursion._layers(network, True)
    assert isinstance(compiled, MultiplicativeLayers)
    found, expected = evaluated(recursion, compiled), evaluated(recursion, recursion._general(network))
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-11, atol=1e-13)
    for one, two in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-10 * float(two.abs().max()))


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_general_way_to_the_same_numbers(dim: int, name: str, limit: bool) -> None:
    """Value and gradient by every weight agree to rounding, with paths that end at the box's faces."""
    given = problem(dim, PLAIN[name], depth=4, samples=12, width=5, std=0.8)
    cells = {1: 37, 2: 17, 3: 9}[dim]
    for half_width in (3.0, 1.0):  # beyond the latter there are data and departure points
        agree(ExactRecursion(given, cells=cells, half_width=half_width, limit=limit, gauss=3))


@pytest.mark.parametrize("own", [LeastSquares(), Logistic(30.0)])
@pytest.mark.parametrize("depth", [1, 2])
def test_losses_and_shallow_networks(own: Loss, depth: int) -> None:
    """Any loss behind the last layer, which may be the first as well; margins beyond torch's threshold."""
    for dim in (1, 2, 3):
        given = problem(dim, PLAIN["dropout"], depth=depth, width=3)
        given.loss = own
        agree(ExactRecursion(given, cells=12, half_width=3.0))


@pytest.mark.parametrize(("dim", "cells"), [(1, 20_000), (2, 130)])
def test_parts_of_a_large_grid(dim: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes in several parts: the same numbers, bitwise so on one thread or three."""
    given = problem(dim, noise.BernoulliDropout(0.8), depth=3)
    recursion = ExactRecursion(given, cells=cells, half_width=3.0)
    assert len(recursion._grid.nodes) > 1
    agree(recursion)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(evaluated(recursion, recursion._layers(given.network, True)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("general", [False, True])
def test_limited_values_do_not_hang_on_rounding(general: bool) -> None:
    """Dropped components leave points on faces of cells, which do not fall to this side or that by chance."""
    given = problem(2, noise.BernoulliDropout(0.8), depth=10, std=0.6)
    values, gradients = [], []
    for last in range(4):
        recursion = ExactRecursion(given, cells=23, half_width=2.7 * (1 + last * 1e-15))
        network = given.network
        layers = recursion._general(network) if general else recursion._layers(network, True)
        value, gradient, _ = evaluated(recursion, layers)
        values.append(value)
        gradients.append(torch.cat([g.flatten() for g in gradient]))
    assert max(values) - min(values) < 1e-12 * values[0]
    spread = torch.stack(gradients).std(dim=0)
    assert float(spread.norm()) < 1e-10 * float(gradients[0].norm())


def test_a_value_between_two_gradients() -> None:
    """A loss that waits for its backward pass keeps its own numbers, and can be differentiated twice."""
    given = problem(2, noise.BernoulliDropout(0.8), depth=3)
    weights = list(given.network.parameters())
    recursion = ExactRecursion(given, cells=12, half_width=3.0)
    alone = torch.autograd.grad(recursion.expected_loss(), weights)
    waiting = recursion.expected_loss()
    with torch.no_grad():
        recursion.expected_loss(
            kolmo.ResidualNetwork.from_weights(*(1.5 * w for w in given.network.parameters()))
        )
    for _ in range(2):
        again = torch.autograd.grad(waiting, weights, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


def test_only_the_weights_that_are_trained() -> None:
    """Weights that are held fixed have no derivative, the others the same as before."""
    given = problem(2, noise.BernoulliDropout(0.8), depth=3)
    recursion = ExactRecursion(given, cells=12, half_width=3.0)
    recursion.expected_loss().backward()
    whole = {name: p.grad for name, p in given.network.named_parameters()}
    given.network.zero_grad()
    given.network.b.requires_grad_(False)  # type: ignore[union-attr]
    recursion.expected_loss().backward()
    assert given.network.b.grad is None
    for name in ("W", "V"):
        assert torch.equal(getattr(given.network, name).grad, whole[name])


# ------------------------------------------------------------------ which problems


def test_a_noise_of_ones_own() -> None:
    """Multiples of the block are recognised whoever wrote them."""
    agree(ExactRecursion(problem(2, Scaled(), depth=4), cells=12, half_width=3.0))


class Clipped(noise.BernoulliDropout):
    """Its spread is no multiple of the block."""

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value.clamp(max=0.1))


class Advected(noise.BernoulliDropout):
    """A spread along (grad f) f."""

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value + 0.1 * jet.advection())


class Own(noise.BernoulliDropout):
    """Outcomes of its own."""

    def outcomes(self, network: Any, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        o = super().outcomes(network, layer, x, gauss)
        return Outcomes(2 * o.base, o.factor, o.table, o.weights)


class Silent(noise.NoNoise):
    """No noise, but increments of its own."""

    def outcomes(self, network: Any, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        o = super().outcomes(network, layer, x, gauss)
        return Outcomes(0.5 * o.base, o.factor, o.table, o.weights)


class Bent(kolmo.ResidualNetwork):
    """A block of its own."""

    def block(self, layer: int, x: Tensor) -> Tensor:
        return super().block(layer, x).sin()


@pytest.mark.parametrize(
    "other",
    [
        Clipped(0.8), Advected(0.8), Own(0.8), Silent(), noise.HiddenDropout(0.8),
        noise.GaussianInjection(0.1),
        noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.1)]),
    ],
    ids=lambda n: type(n).__name__,
)  # fmt: skip
def test_what_takes_the_general_way(other: Noise) -> None:
    """Whatever is not a multiple of the block, or has outcomes of its own."""
    assert jumps(problem(2, depth=2).network, other, 3) is None


def test_networks_of_ones_own_take_the_general_way() -> None:
    """A block that is derived from the two-layer one, another activation, a noise given by an instance."""
    plain = noise.BernoulliDropout(0.8)
    assert jumps(Bent(2, 4, 3), plain, 3) is None
    assert jumps(kolmo.ResidualNetwork(2, 4, 3, activation="sin"), plain, 3) is None
    assert jumps(kolmo.ResidualNetwork(2, 4, 3).float(), plain, 3) is None
    network = kolmo.ResidualNetwork(2, 4, 3)
    assert jumps(network, plain, 3) is not None
    plain.outcomes = Own(0.8).outcomes  # type: ignore[method-assign]
    assert jumps(network, plain, 3) is None


def test_gaussian_increments_take_the_general_way() -> None:
    """The rule 'gauss' knows nothing of factors."""
    given = problem(2, noise.BernoulliDropout(0.8), depth=3)
    recursion = ExactRecursion(given, cells=12, half_width=3.0, rule="gauss")
    assert not isinstance(recursion._layers(given.network, True), MultiplicativeLayers)


# ------------------------------------------------------------------ refusals


def test_weights_that_are_not_finite_are_named() -> None:
    """As in the general way: the layer, not a number."""
    given = problem(2, noise.BernoulliDropout(0.8), depth=4)
    for value in (np.nan, np.inf):
        for layer in (3, 1, 0):
            network = kolmo.ResidualNetwork.from_weights(*given.network.parameters())
            with torch.no_grad():
                network.V[layer, 0, 0] = value
            with pytest.raises(NonFiniteError, match=f"^layer {layer}:"):
                ExactRecursion(given, cells=12, half_width=3.0).expected_loss(network)


def test_a_schedule_of_the_wrong_length_is_refused() -> None:
    """The noise's own refusal, not another one."""
    given = problem(2, noise.GaussianDropout([0.1, 0.2]), depth=2)
    recursion = ExactRecursion(given, cells=8, half_width=3.0)
    with pytest.raises(InputError, match="2 values, the network has 3 layers"):
        recursion.expected_loss(problem(2, depth=3).network)


# ------------------------------------------------------------------ collocation


@pytest.mark.parametrize("cells", [4, 5, 6, 23])
def test_collocation_along_an_axis(cells: int) -> None:
    """The rows [1 4 1]/6 give the values back, third derivatives are continuous at the second nodes."""
    values = np.random.default_rng(0).standard_normal((cells + 1, 70))
    found = np.empty((35, cells + 3, 2))
    solve(values, elimination(cells), found)
    c = found.transpose(1, 0, 2).reshape(cells + 3, -1)
    np.testing.assert_allclose((c[:-2] + 4 * c[1:-1] + c[2:]) / 6, values, rtol=0, atol=1e-12)
    jump = np.array([1, -4, 6, -4, 1])
    for part in (c[:5], c[-5:]):
        np.testing.assert_allclose(jump @ part, 0, atol=1e-11)
    cotangent = np.random.default_rng(1).standard_normal(c.shape)
    back = np.empty((35, cells + 1, 2))
    solve_transposed(cotangent, elimination(cells), back)
    left, right = np.vdot(c, cotangent), np.vdot(values, back.transpose(1, 0, 2).reshape(values.shape))
    assert left == pytest.approx(right, rel=1e-12)
