r"""Little noise and none: the equation becomes u_t + b . grad u = 0, transport along characteristics.

Nothing is added to stabilise the scheme and no user has to choose: without diffusion it is still of second
order in J and at the nodes, its adjoint still exact, and it tends to itself as the noise goes to zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import affine_network, cluster, fitted_order, problem, sde_loss, trained_size
from scipy.integrate import solve_ivp
from torch import Tensor

import kolmo
from kolmo import noise
from kolmo.control import Objective, taylor_test
from kolmo.loss import LeastSquares, Logistic
from kolmo.modified import modified_equation
from kolmo.network import ResidualNetwork
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, Propagator

HALF_WIDTH = 3.0
CELLS = {1: [64, 96, 144, 216], 2: [48, 64, 96, 128]}
#: points of the data: so many that J does not depend on where they lie between nodes
SAMPLES = 400
LITTLE = [1 - 1e-6, 0.999, 0.99]
SCHEMES = pytest.mark.parametrize(
    "propagator",
    [
        pytest.param(Explicit(), id="explicit"),
        pytest.param(Implicit(8), id="implicit", marks=pytest.mark.slow),
    ],
)


def noiseless(dim: int) -> kolmo.Problem:
    """A network of trained size without noise, the data well inside the box."""
    return kolmo.Problem(cluster(dim, 0.8, SAMPLES), trained_size(dim, 8), noise.NoNoise(), Logistic())


def rotation(turns: float, depth: int) -> kolmo.Problem:
    """f(x) = 2 pi turns (-x_2, x_1): each layer turns the plane; the data stay in their disc."""
    spin = 2 * math.pi * turns * torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double().expand(depth, 2, 2)
    W = torch.eye(2).double().expand(depth, 2, 2)
    network = ResidualNetwork.from_weights(W, torch.zeros(depth, 2), spin, activation="identity")
    return kolmo.Problem(cluster(2, 0.8, SAMPLES), network, noise.NoNoise(), Logistic(2.0))


def characteristics(given: kolmo.Problem, x: Tensor, order: int) -> Tensor:
    """X(T) for x' = b(x, theta_k) on every layer from x (N, d), by an adaptive Runge-Kutta of order 8."""
    network = given.network
    for layer in range(network.depth):

        def field(_: float, y: np.ndarray, layer: int = layer) -> np.ndarray:
            at = torch.from_numpy(y.reshape(-1, network.dim))
            drift = modified_equation(network, given.noise, at, order, slice(layer, layer + 1)).drift
            return np.asarray(drift[0].detach().numpy()).ravel()

        end = solve_ivp(field, (0, network.step), x.numpy().ravel(), "DOP853", rtol=1e-11, atol=1e-12).y[
            :, -1
        ]
        x = torch.from_numpy(np.ascontiguousarray(end.reshape(x.shape)))
    return x


def equation(
    given: kolmo.Problem, cells: int, propagator: Propagator | str, **keys: Any
) -> BackwardKolmogorov:
    options: dict[str, Any] = {"half_width": HALF_WIDTH, "backend": "skfem", "limit": False, **keys}
    return BackwardKolmogorov(given, cells=cells, propagator=propagator, **options)


@torch.no_grad()
def errors(given: kolmo.Problem, cells: int, propagator: Propagator, order: int) -> tuple[float, float]:
    """Of J, and of u(., 0) in the mean square over nodes whose characteristics stay off the taper."""
    solved = equation(given, cells, propagator, order=order)
    value = float(solved.expected_loss())
    assert solved.last is not None
    ends = characteristics(given, given.data.points, order)
    nodes = solved.space.coefficient_points
    centre = np.abs(nodes).max(axis=1) <= 0.35 * HALF_WIDTH
    far = characteristics(given, torch.from_numpy(nodes[centre]), order)
    assert far.abs().max() < 0.7 * HALF_WIDTH
    u = np.stack([given.loss(far, label).numpy() for label in (0, 1)], axis=1)
    exact = float(given.loss(ends, given.data.labels).mean())
    return abs(value - exact), float(np.sqrt(np.mean((solved.last.initial[centre] - u) ** 2)))


# ------------------------------------------------------------------ order


@SCHEMES
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dim", [1, 2])
def test_second_order_along_characteristics(dim: int, order: int, propagator: Propagator) -> None:
    """Without noise |J - J_exact| and |u(., 0) - Phi(X(T))| are O((R/n)^2), weights constant on layers."""
    found = np.array([errors(noiseless(dim), n, propagator, order) for n in CELLS[dim]])
    for column in found.T:
        assert -fitted_order(CELLS[dim], column) >= 1.9
    assert found[-1, 0] < 1e-3


@SCHEMES
@pytest.mark.parametrize("order", [1, 2])
def test_second_order_under_a_rotation(order: int, propagator: Propagator) -> None:
    """An eighth of a turn: X(T) = exp(A) x at order 1; at order 2 the layers' steps widen the circle."""
    given = rotation(0.125, depth=8)
    angle, widening = math.pi / 4, math.exp((math.pi / 4) ** 2 / 16 if order == 2 else 0.0)
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    expected = widening * given.data.points @ torch.tensor(turn).double().T
    torch.testing.assert_close(characteristics(given, given.data.points, order), expected)
    found = np.array([errors(given, n, propagator, order) for n in CELLS[2]])
    for column in found.T:
        assert -fitted_order(CELLS[2], column) >= 1.9


@pytest.mark.slow
@SCHEMES
@pytest.mark.parametrize("keep", LITTLE)
@pytest.mark.parametrize("dim", [1, 2])
def test_second_order_with_little_noise(dim: int, keep: float, propagator: Propagator) -> None:
    """Dropout on an affine block, J by its moments: the same order as keep -> 1."""
    given = kolmo.Problem(
        cluster(dim, 0.6, SAMPLES), affine_network(dim, 8), noise.BernoulliDropout(keep), LeastSquares()
    )
    found = []
    for n in CELLS[dim]:
        with torch.no_grad():
            found.append(abs(float(equation(given, n, propagator).expected_loss()) - sde_loss(given, 2)))
    assert -fitted_order(CELLS[dim], found) >= 1.9


# ------------------------------------------------------------------ stability


@pytest.mark.parametrize("propagator", ["explicit", "implicit"])
@pytest.mark.parametrize("dim", [1, 2])
def test_nothing_has_to_be_chosen(dim: int, propagator: str) -> None:
    """Default box, mesh and steps: the maximum principle holds to 0.5% without the clip."""
    given = problem(dim, noise.NoNoise())
    solved = BackwardKolmogorov(given, propagator=propagator, backend="skfem", limit=False)
    with torch.no_grad():
        value = float(solved.expected_loss())
    assert solved.last is not None and solved.last.violation < 5e-3
    with torch.no_grad():
        exact = float(given.loss(characteristics(given, given.data.points, 2), given.data.labels).mean())
    assert value == pytest.approx(exact, rel=0.01)


def turned(turns: float, cells: int, propagator: Propagator) -> tuple[float, float]:
    """A rotation without the clip: largest overshoot, and the error of u(., 0) in the disc of the data.

    turns: a multiple of 1/2.
    """
    solved = equation(rotation(turns, depth=round(16 * turns)), cells, propagator, order=1)
    solution = solved.solve()
    assert solved.last is not None and solved.last.clipped == 0
    ends = torch.from_numpy(solution.points) * (1.0 if float(turns).is_integer() else -1.0)
    u = np.stack([solved.problem.loss(ends, label).numpy() for label in (0, 1)], axis=1)
    disc = np.linalg.norm(solution.points, axis=1) < 0.4 * HALF_WIDTH
    return solved.last.violation, float(np.abs(solution.value[0] - u)[disc].max())


@SCHEMES
def test_half_a_turn_without_the_clip(propagator: Propagator) -> None:
    """u(x, 0) = Phi(-x); overshoots and errors fall with the mesh."""
    found = np.array([turned(0.5, n, propagator) for n in (36, 54, 81)])
    assert (np.diff(found, axis=0) < 0).all()
    assert found[-1, 0] < 2e-3 and found[-1, 1] < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("propagator", [Explicit(), Implicit(16)], ids=["explicit", "implicit"])
def test_many_turns_without_the_clip(propagator: Propagator) -> None:
    """The data stay in their disc for ever, and so should every value stay in its bounds."""
    found = np.array([turned(6, n, propagator) for n in (36, 54, 72)])
    assert found[:, 0].max() < 0.01
    assert (np.diff(found[:, 1]) < 0).all() and found[-1, 1] < 0.01


# ------------------------------------------------------------------ adjoint


@SCHEMES
@pytest.mark.parametrize("keep", [1.0, *LITTLE])
@pytest.mark.parametrize("dim", [1, 2])
def test_the_adjoint_is_exact(dim: int, keep: float, propagator: Propagator) -> None:
    """Taylor remainders of order 2, sum_y <u_y(t), rho_y(t)> = J at every t, mass kept."""
    model = noise.NoNoise() if keep == 1 else noise.BernoulliDropout(keep)
    solved = equation(problem(dim, model), {1: 64, 2: 24}[dim], propagator)
    objective = Objective(solved.problem.network, solved.expected_loss)
    rates = taylor_test(objective, objective.theta, steps=(1e-3, 5e-4, 2.5e-4))
    assert rates.order0 == pytest.approx(1, abs=0.05) and rates.order1 == pytest.approx(2, abs=0.05)
    solution = solved.solve()
    with torch.no_grad():
        value = float(solved.expected_loss())
    assert np.abs(solution.duality / value - 1).max() < 1e-12
    shares = np.bincount(solved.problem.data.labels.numpy()) / len(solved.problem.data)
    assert np.abs(solution.density.sum(axis=1) - shares).max() < 1e-12


# ------------------------------------------------------------------ keep -> 1


@SCHEMES
@pytest.mark.parametrize("dim", [1, 2])
def test_continuous_as_the_noise_goes_to_zero(dim: int, propagator: Propagator) -> None:
    """J(keep) - J(1) = O(1 - keep) on one mesh, gradients too, and keep = 1 is no noise at all."""
    cells = {1: 96, 2: 36}[dim]

    def found(model: noise.Noise) -> tuple[float, Tensor]:
        given = problem(dim, model)
        loss = equation(given, cells, propagator).expected_loss()
        gradient = torch.autograd.grad(loss, list(given.network.parameters()))
        return float(loss.detach()), torch.cat([g.ravel() for g in gradient])

    value, gradient = found(noise.NoNoise())
    alone, same = found(noise.BernoulliDropout(1.0))
    assert alone == pytest.approx(value, rel=1e-13) and torch.allclose(same, gradient, atol=1e-13)
    rates = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
    others = [found(noise.BernoulliDropout(1 - rate)) for rate in rates]
    assert fitted_order(rates, [abs(v - value) for v, _ in others]) == pytest.approx(1, abs=0.05)
    assert fitted_order(rates, [float((g - gradient).norm()) for _, g in others]) == pytest.approx(1, abs=0.1)
