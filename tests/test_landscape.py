"""Directions, planes and sharpness of loss landscapes against what is known of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PlainNetwork
from torch import Tensor

import kolmo
from kolmo.control import Objective, taylor_test
from kolmo.errors import InfeasibleError, InputError
from kolmo.experiments.landscape import (
    InPlane,
    Plane,
    Surface,
    filters,
    lengths,
    minima,
    normalised,
    random_directions,
)
from kolmo.experiments.sharpness import (
    NoiselessCurvature,
    Ratio,
    average_increase,
    deflated_trace,
    filtered_trace,
    noiseless_loss,
    noiseless_losses,
    noiseless_sharpness,
)
from kolmo.experiments.two_objectives import SUBSTEPS, Steady
from kolmo.pde import BackwardKolmogorov, Explicit


def problem(activation: str = "tanh", seed: int = 0, noise: Any = None) -> kolmo.Problem:
    network = kolmo.ResidualNetwork(2, 4, 3, activation=activation, seed=seed)
    return kolmo.Problem(kolmo.data.moons(20, seed=seed), network, noise or kolmo.noise.NoNoise())


def weights(network: torch.nn.Module) -> np.ndarray:
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy().copy()


def rescaled(network: kolmo.ResidualNetwork, seed: int = 0) -> kolmo.ResidualNetwork:
    """(c W, c b, V / c), a factor for every unit: the same function where sigma(c x) = c sigma(x)."""
    c = torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 5, (network.depth, network.width)))
    found = copy.deepcopy(network)
    with torch.no_grad():
        found.W.mul_(c[:, :, None])
        found.b.mul_(c)
        found.V.div_(c[:, None, :])
    return found


# ------------------------------------------------------------------ directions


def test_filters_are_what_units_receive_with_and_what_they_give() -> None:
    """Two a unit, of 3 and 2 weights: a row of W with its bias, and a column of V."""
    network = problem().network
    assert isinstance(network, kolmo.ResidualNetwork)
    of, units = filters(network), network.depth * network.width
    assert np.bincount(of).tolist() == [3] * units + [2] * units
    for unit in (0, 5, units - 1):
        layer, row = divmod(unit, network.width)
        marked = copy.deepcopy(network)
        torch.nn.utils.vector_to_parameters(torch.from_numpy((of == unit) * 1.0), marked.parameters())
        assert marked.W.nonzero()[:, :2].unique(dim=0).tolist() == [[layer, row]]
        assert marked.b.nonzero().tolist() == [[layer, row]] and not marked.V.any()
        torch.nn.utils.vector_to_parameters(torch.from_numpy((of == units + unit) * 1.0), marked.parameters())
        assert marked.V.nonzero()[:, [0, 2]].unique(dim=0).tolist() == [[layer, row]]
        assert not marked.W.any() and not marked.b.any()


def test_filters_need_units() -> None:
    with pytest.raises(InputError, match="block V sigma"):
        filters(PlainNetwork(problem().network))  # type: ignore[arg-type]


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_filters_of_a_direction_are_as_long_as_those_of_the_weights(seed: int, scale: float) -> None:
    """Whatever the direction's own length, filters of zeros included; and it points where it did."""
    network = problem().network
    of, rng = filters(network), np.random.default_rng(seed)
    theta, drawn = rng.standard_normal((2, len(of)))
    theta[of == 3] = 0
    found = normalised(scale * drawn, theta, of)
    np.testing.assert_allclose(lengths(found, of), lengths(theta, of), rtol=1e-12)
    assert (found * drawn >= 0).all() and not found[of == 3].any()
    assert not normalised(np.zeros_like(drawn), theta, of).any()


def test_a_rescaled_network_has_the_same_landscape() -> None:
    """With relu, along filter-normalised directions, to rounding; along others it has not."""
    one = problem("relu")
    assert isinstance(one.network, kolmo.ResidualNetwork)
    two = one.with_network(rescaled(one.network))
    of, losses = filters(one.network), []
    raw = []
    for given_problem in (one, two):
        theta = weights(given_problem.network)
        moves = random_directions(theta, of, 5, seed=1)
        losses.append(noiseless_losses(given_problem, theta + 0.7 * moves))
        drawn = np.random.default_rng(1).standard_normal(moves.shape)
        raw.append(noiseless_losses(given_problem, theta + 0.1 * drawn))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)
    assert np.abs(raw[0] / raw[1] - 1).min() > 1e-3


def test_rescaling_changes_raw_sharpness_alone() -> None:
    """Dinh et al.'s objection: the same function, other eigenvalues and trace; the rest is as it was."""
    one = problem("relu")
    assert isinstance(one.network, kolmo.ResidualNetwork)
    two = one.with_network(rescaled(one.network))
    found = [noiseless_sharpness(p, weights(p.network), (0.1, 0.5), 20, seed=2) for p in (one, two)]
    for name in ("loss", "filtered", "increase", "sampling"):
        first, second = (getattr(f, name) for f in found)
        np.testing.assert_allclose(first, second, rtol=1e-9)
    for name in ("largest", "trace"):
        assert abs(getattr(found[0], name) / getattr(found[1], name) - 1) > 0.2


# ------------------------------------------------------------------ sharpness


def test_many_losses_at_once() -> None:
    """As one by one, over more than a block; the network's own weights stay."""
    given_problem = problem()
    theta = weights(given_problem.network)
    thetas = theta + 0.3 * np.random.default_rng(0).standard_normal((300, len(theta)))
    found = noiseless_losses(given_problem, thetas)
    assert (weights(given_problem.network) == theta).all()
    for index in (0, 17, 299):
        moved = copy.deepcopy(given_problem.network)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(thetas[index]), moved.parameters())
        alone = float(noiseless_loss(given_problem.with_network(moved)).detach())
        assert found[index] == pytest.approx(alone, rel=1e-13)


def test_the_noiseless_hessian() -> None:
    """Against differences of the gradient; symmetric; one product as by the matrix."""
    given_problem = problem()
    objective = Objective(given_problem.network, lambda: noiseless_loss(given_problem))
    theta, curvature = objective.theta, NoiselessCurvature(given_problem)
    H, e = curvature.matrix(), 1e-5
    np.testing.assert_allclose(H, H.T, rtol=0, atol=1e-14)
    v = np.random.default_rng(3).standard_normal(len(theta))
    np.testing.assert_allclose(curvature.product(v), H @ v, rtol=0, atol=1e-13)
    ends = [objective.value_and_gradient(theta + s * e * v)[1] for s in (1, -1)]
    np.testing.assert_allclose(H @ v, (ends[0] - ends[1]) / (2 * e), rtol=0, atol=1e-8)


def quadratic(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Any]:
    """Symmetric H, g, and x -> 1/2 x . H x + g . x for rows x (N, P)."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((size, size))
    H, g = A + A.T, rng.standard_normal(size)
    return H, g, lambda x: 0.5 * np.einsum("ni,ij,nj->n", x, H, x) + x @ g


def test_the_increase_of_a_quadratic() -> None:
    """r^2 / 2 times the mean of d . H d, exactly: its slope, wherever it is looked at, does not count."""
    network = problem().network
    theta = weights(network)
    H, _, loss = quadratic(len(theta))
    moves = random_directions(theta, filters(network), 7, seed=0)
    found, error = average_increase(loss, theta, moves, (0.1, 2.0))
    bends = np.einsum("ni,ij,nj->n", moves, H, moves)
    np.testing.assert_allclose(found, [0.5 * r**2 * bends.mean() for r in (0.1, 2.0)], rtol=1e-9)
    np.testing.assert_allclose(
        error, [0.5 * r**2 * bends.std(ddof=1) / 7**0.5 for r in (0.1, 2.0)], rtol=1e-9
    )


def test_the_filter_normalised_trace_is_a_mean_over_directions() -> None:
    """Of d . H d, within 4 standard errors of 4000 directions; blocks between filters cancel."""
    network = problem().network
    theta = weights(network)
    H, _, _ = quadratic(len(theta), seed=1)
    moves = random_directions(theta, filters(network), 4000, seed=3)
    bends = np.einsum("ni,ij,nj->n", moves, H, moves)
    off = bends.mean() - filtered_trace(np.diag(H), theta, network)
    assert abs(off) < 4 * bends.std(ddof=1) / len(bends) ** 0.5


def test_the_deflated_trace() -> None:
    """Without error where the leading eigenpairs are all there is; else within 4 of its standard errors."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    values = np.array([5.0, -3.0, 1.0, *[0.0] * 27])
    H = vectors @ np.diag(values) @ vectors.T
    found, error = deflated_trace(lambda v: H @ v, values[:3], vectors[:, :3], 5, seed=1)
    assert found == pytest.approx(3.0, abs=1e-12) and error < 1e-12
    values[3:] = rng.uniform(-0.5, 0.5, 27)
    H = vectors @ np.diag(values) @ vectors.T
    found, error = deflated_trace(lambda v: H @ v, values[:3], vectors[:, :3], 200, seed=1)
    assert 0 < error < 0.2 and abs(found - values.sum()) < 4 * error
    plain = deflated_trace(lambda v: H @ v, values[:0], vectors[:, :0], 200, seed=1)
    assert error < 0.5 * plain[1]


def test_ratios() -> None:
    """Of the inverse: the inverse. Two pairs: Student's quantile with one degree of freedom, 12.7062."""
    ratios = np.array([0.5, 0.7, 0.4])
    found, inverse = Ratio.of(ratios), Ratio.of(1 / ratios)
    assert found.mean == pytest.approx(float(np.prod(ratios)) ** (1 / 3))
    np.testing.assert_allclose(
        [inverse.mean, inverse.low, inverse.high], [1 / x for x in (found.mean, found.high, found.low)]
    )
    two = Ratio.of(np.exp([0.1, 0.3]))
    np.testing.assert_allclose(
        np.log([two.low, two.high]), [0.2 - 12.7062 * 0.1, 0.2 + 12.7062 * 0.1], rtol=1e-5
    )
    assert Ratio.of(ratios, 0.5).high < found.high
    assert np.isnan(Ratio.of(np.array([0.5, -0.1])).mean)


# ------------------------------------------------------------------ planes


class _Second:
    """The Hessian of a torch scalar by its parameters."""

    def __init__(self, scalar: Tensor, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        slope = torch.autograd.grad(scalar, parameters, create_graph=True)
        self._slope = torch.cat([s.reshape(-1) for s in slope])

    def product(self, direction: np.ndarray) -> np.ndarray:
        along = self._slope @ torch.from_numpy(direction)
        parts = torch.autograd.grad(along, self._parameters, retain_graph=True)
        return np.asarray(torch.cat([p.reshape(-1) for p in parts]).numpy())


def wells() -> tuple[Objective, Plane]:
    """(W^2 - 1)^2 + W / 10 + (b - V)^2 + V^2 and the plane of W and b: two minima, a saddle between them."""
    network = kolmo.ResidualNetwork(1, 1, 1)

    def value() -> Tensor:
        W, b, V = (p.reshape(()) for p in (network.W, network.b, network.V))
        return (W**2 - 1) ** 2 + W / 10 + (b - V) ** 2 + V**2

    parameters: list[Tensor] = list(network.parameters())
    objective = Objective(network, value, second=lambda: _Second(value(), parameters))
    axes = np.array([[1.0, 0, 0], [0, 2.0, 0]])
    return objective, Plane(np.array([0.05, 0.3, 0.2]), axes, np.linspace(-2, 2, 17), np.linspace(-1, 1, 9))


def test_minima_of_a_plane() -> None:
    """Both, and where they are: 4 W^3 - 4 W + 1/10 = 0, b = V; the lower one first, with its Hessian."""
    objective, plane = wells()
    surface = plane.surface(objective.value)
    assert not surface.refused and surface.values.shape == (17, 9)
    found, lost = minima(objective, plane, surface)
    roots = sorted(np.roots([4, 0, -4, 0.1]).real)
    assert len(found) == 2 and lost == 0
    for minimum, W in zip(found, (roots[0], roots[2]), strict=True):
        np.testing.assert_allclose(plane.at(*minimum.at), [W, 0.2, 0.2], atol=1e-9)
        assert minimum.value == pytest.approx((W**2 - 1) ** 2 + W / 10 + 0.04)
        np.testing.assert_allclose(minimum.bends, sorted([12 * W**2 - 4, 8]), rtol=1e-6)
        assert minimum.slope <= 1e-9


def test_a_minimum_off_the_grid_is_lost_and_counted() -> None:
    """A surface of another function has its lowest point where the objective has no minimum nearby."""
    objective, plane = wells()
    far = replace(plane, second=np.linspace(0.5, 1.5, 9))
    surface = far.surface(lambda theta: float((theta[0] + 1) ** 2 + (theta[1] - 2) ** 2))
    found, lost = minima(objective, far, surface)
    assert found == [] and lost == 1


def test_lowest_points_of_a_grid() -> None:
    """Not on the border, not beside a refused point."""
    values = np.full((7, 7), 5.0) + np.add.outer(np.arange(7), np.arange(7)) / 100
    values[3, 3] = values[1, 5] = values[0, 0] = 1.0
    assert Surface(values, {}).lowest() == [(1, 5), (3, 3)]
    values[2, 4] = np.nan
    assert Surface(values, {}).lowest() == []


def test_refused_weights_are_nan_and_counted() -> None:
    def value(theta: np.ndarray) -> float:
        if theta[0] > 1:
            raise InfeasibleError("no")
        return float(theta.sum())

    plane = Plane(np.zeros(2), np.eye(2), np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0]))
    found = plane.surface(value)
    assert found.refused == {"InfeasibleError": 2}
    np.testing.assert_array_equal(found.values, [[0, 4], [1, 5], [np.nan, np.nan]])


@pytest.mark.slow
def test_an_objective_in_a_plane() -> None:
    """By the equation: gradient of Taylor order 2, Hessian by differences of it, symmetric."""
    given_problem = problem(noise=kolmo.noise.BernoulliDropout(0.8))
    equation = BackwardKolmogorov(given_problem, cells=12, half_width=3.0, limit=False, propagator=Steady())
    whole = Objective(given_problem.network, equation.expected_loss, (), equation.curvature)
    theta = whole.theta
    axes = random_directions(theta, filters(given_problem.network), 2, seed=0)
    inside = InPlane(whole, Plane(theta, axes, np.zeros(1), np.zeros(1)))
    at = np.array([0.1, -0.2])
    assert taylor_test(inside, at, np.array([0.6, 0.8])).order1 > 1.9
    H = np.stack([inside.hessian(at)(e) for e in np.eye(2)])
    e = 1e-5
    rows = [
        (inside.value_and_gradient(at + s)[1] - inside.value_and_gradient(at - s)[1]) / (2 * e)
        for s in e * np.eye(2)
    ]
    np.testing.assert_allclose(H, rows, rtol=0, atol=1e-7 * np.abs(H).max())
    assert abs(H[0, 1] - H[1, 0]) < 1e-12 * np.abs(H).max()
    inside.theta = at
    np.testing.assert_allclose(whole.theta, theta + at @ axes, rtol=1e-15)


def test_steady_steps() -> None:
    """Of one number where the weights need fewer, and as many as needed where they need more."""
    given_problem = problem(noise=kolmo.noise.BernoulliDropout(0.8))
    counts = []
    for scale in (1.0, 12.0):
        with torch.no_grad():
            given_problem.network.V.mul_(scale)  # type: ignore[union-attr, operator]
        for propagator in (Steady(), Explicit()):
            equation = BackwardKolmogorov(given_problem, cells=12, half_width=3.0, propagator=propagator)
            found = equation.coefficients()
            drift, diffusion = found.drift.detach().numpy(), found.diffusion.detach().numpy()
            counts.append([s.count for s in equation.steps(drift, diffusion, given_problem.network.step)])
    mild, needed, wild, more = counts
    assert mild == [SUBSTEPS] * 3 and max(needed) < SUBSTEPS
    assert wild == [max(SUBSTEPS, n) for n in more] and max(wild) > SUBSTEPS
