"""Second derivatives, Newton's method, the Hamiltonian, and admissible sets by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES, PlainNetwork, problem

import kolmo
from kolmo.control import Balls, Box, Objective, lbfgs, leading, newton, optimality
from kolmo.control.hamiltonian import shares
from kolmo.control.newton import _Path
from kolmo.errors import InputError, NonFiniteError
from kolmo.loss import LeastSquares
from kolmo.pde import BackwardKolmogorov, ExactRecursion, Explicit, Implicit
from kolmo.pde.mesh import DEFAULT_CELLS
from kolmo.penalty import DepthSmoothness, StepPenalty, WeightDecay

PENALTIES = (WeightDecay(1e-2), StepPenalty(), DepthSmoothness(1e-3))


def equation_of(dim: int = 2, name: str = "dropout", depth: int = 3, **keys: Any) -> BackwardKolmogorov:
    keys = {"cells": 14, "half_width": 3.0} | keys
    return BackwardKolmogorov(problem(dim, NOISES[name], depth=depth), **keys)


def objective_of(equation: BackwardKolmogorov, penalties: Any = PENALTIES) -> Objective:
    return Objective(equation.problem.network, equation.expected_loss, penalties, equation.curvature)


def smooth(depth: int, seed: int = 0, cells: int = 16, width: int = 4) -> BackwardKolmogorov:
    """A small problem without the kinks of clipping and of changing substeps."""
    network = kolmo.ResidualNetwork(2, width, depth, seed=seed)
    given_problem = kolmo.Problem(kolmo.data.moons(60), network, kolmo.noise.BernoulliDropout(0.8))
    fixed = Explicit(substeps=max(1, 24 // depth))
    return BackwardKolmogorov(given_problem, cells=cells, half_width=4.0, limit=False, propagator=fixed)


# ------------------------------------------------------------------ the second-order adjoint


@pytest.mark.parametrize("backend", ["box", "skfem"])
@pytest.mark.parametrize("name", ["dropout", "hidden", "depth", "injection", "shake", "none"])
@pytest.mark.parametrize("dim", [1, 2])
def test_products_are_derivatives_of_the_gradient(dim: int, name: str, backend: str) -> None:
    """Central differences of the exact gradient, of clipped marches too; J and its gradient as they were."""
    equation = equation_of(dim, name, backend=backend)
    objective = objective_of(equation, ())
    theta, v = objective.theta, np.random.default_rng(0).standard_normal(len(objective.theta))
    value, gradient = objective.value_and_gradient(theta)
    found = equation.curvature()
    assert found.value == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(found.gradient, gradient, rtol=0, atol=1e-13 * np.abs(gradient).max())
    e = 1e-5
    ends = [objective.value_and_gradient(theta + s * e * v)[1] for s in (1, -1)]
    objective.theta = theta
    product = found.product(v)
    assert np.linalg.norm(product - (ends[0] - ends[1]) / (2 * e)) < 2e-8 * np.linalg.norm(product)


def test_three_dimensions_and_a_block_of_ones_own() -> None:
    """By automatic jets as well as by closed forms."""
    equation = equation_of(3, cells=6)
    plain = PlainNetwork(equation.problem.network)  # type: ignore[arg-type]
    other = BackwardKolmogorov(equation.problem.with_network(plain), cells=6, half_width=3.0)
    v = np.random.default_rng(1).standard_normal(equation.curvature().size)
    one, two = equation.curvature().product(v), other.curvature().product(v)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-10 * np.abs(one).max())


@given(seed=st.integers(0, 10**6))
def test_the_hessian_is_symmetric(seed: int) -> None:
    """To 1e-10, penalties included; and linear."""
    objective = objective_of(equation_of(cells=10))
    product = objective.hessian(objective.theta)
    v, w = np.random.default_rng(seed).standard_normal((2, len(objective.theta)))
    Hv, Hw = product(v), product(w)
    scale = np.linalg.norm(v) * np.linalg.norm(Hw)
    assert abs(w @ Hv - v @ Hw) < 1e-10 * scale
    np.testing.assert_allclose(product(2 * v - w), 2 * Hv - Hw, rtol=0, atol=1e-12 * np.abs(Hv).max())


@pytest.mark.parametrize("order", [1, 2])
def test_taylor_remainders_of_third_order(order: int) -> None:
    """|J(theta + e v) - J - e g.v - e^2/2 v.Hv| falls like e^3."""
    given_problem = problem(2, NOISES["dropout"], depth=3)
    fixed = Explicit(substeps=3)
    equation = BackwardKolmogorov(
        given_problem, cells=14, half_width=3.0, order=order, limit=False, propagator=fixed
    )
    objective = objective_of(equation)
    theta = objective.theta
    v = np.random.default_rng(2).standard_normal(len(theta))
    v /= np.linalg.norm(v)
    value, gradient = objective.value_and_gradient(theta)
    bend = v @ objective.hessian(theta)(v)
    steps = np.array([0.08, 0.04, 0.02, 0.01])
    rest = [
        abs(objective.value(theta + e * v) - value - e * gradient @ v - 0.5 * e * e * bend) for e in steps
    ]
    assert np.polyfit(np.log(steps), np.log(rest), 1)[0] > 2.85


def test_what_has_no_second_derivative() -> None:
    """Implicit steps, a wrong direction, an objective that was not told: one line each."""
    with pytest.raises(InputError, match="propagator='explicit'"):
        equation_of(propagator=Implicit()).curvature()
    with pytest.raises(InputError, match=r"direction: shape \(3,\)"):
        equation_of(cells=8).curvature().product(np.zeros(3))
    equation = equation_of(cells=8)
    objective = Objective(equation.problem.network, equation.expected_loss)
    with pytest.raises(InputError, match=r"need `second`, such as equation\.curvature"):
        newton(objective, objective.theta)


# ------------------------------------------------------------------ derivatives by the data


@pytest.mark.parametrize("dim", [1, 2])
def test_gradients_by_the_data_points(dim: int) -> None:
    """Those of the exact recursion's values, by differences; the steepest ascent raises the loss."""
    given_problem = problem(dim, NOISES["dropout"], depth=10, samples=12)
    equation = BackwardKolmogorov(given_problem, cells=48 if dim == 2 else 200, half_width=3.0, limit=False)
    found = equation.point_gradients()
    data = given_problem.data
    labels = data.labels.numpy()

    def values(moved: torch.Tensor) -> np.ndarray:
        other = kolmo.Problem(
            kolmo.data.Dataset(moved, data.labels),
            given_problem.network,
            given_problem.noise,
            given_problem.loss,
        )
        exact = ExactRecursion(other, cells=60, half_width=4.0, limit=False)
        return exact.values()[np.arange(len(labels)), labels] / len(labels)

    for i in range(dim):
        step = torch.zeros(dim, dtype=torch.float64)
        step[i] = 1e-4
        slope = (values(data.points + step) - values(data.points - step)) / 2e-4
        assert np.abs(found[:, i] - slope).max() < 0.03 * np.abs(slope).max()


# ------------------------------------------------------------------ Newton


def test_newton_solves_a_quadratic_in_its_first_steps() -> None:
    """With weight decay alone one Newton step ends at 0; components held at the box stay there."""

    class Quadratic:
        matrix = np.diag([1.0, 4.0, 9.0, 2.0])

        def product(self, direction: np.ndarray) -> np.ndarray:
            return self.matrix @ direction

    network = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64))]
    )
    centre = torch.tensor([0.2, -0.1, 3.0, -5.0], dtype=torch.float64)

    def value() -> torch.Tensor:
        offset = network[0] - centre
        return 0.5 * offset @ torch.from_numpy(Quadratic.matrix) @ offset

    objective = Objective(network, value, (), Quadratic)  # type: ignore[arg-type]
    found = newton(objective, objective.theta, Box(1.0), tolerance=1e-12)
    assert found.status == "stationary" and found.iterations <= 6
    np.testing.assert_allclose(found.theta, [0.2, -0.1, 1.0, -1.0], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_newton_and_lbfgs_reach_stationary_points(seed: int) -> None:
    """Gradients of 1e-5 of the first one, by few Newton steps; neither ends above its start."""
    equation = smooth(2, seed)
    objective = objective_of(equation, (WeightDecay(1e-2), StepPenalty()))
    theta = objective.theta
    value, gradient = objective.value_and_gradient(theta)
    tolerance = 1e-5 * float(np.linalg.norm(gradient))
    second = newton(objective, theta, tolerance=tolerance, iterations=100)
    first = lbfgs(objective, theta, tolerance=tolerance, iterations=2000)
    assert first.status == second.status == "stationary"
    assert max(first.value, second.value) < value
    assert second.iterations < first.iterations / 2
    objective.theta = second.theta
    at = optimality(equation, (WeightDecay(1e-2), StepPenalty()), eigenvalues=3)
    assert at.verdict == "stationary" and at.eigenvalues is not None and at.eigenvalues[0] > 0


@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99))
def test_shorter_steps_are_free(seed: int, share: float) -> None:
    """In a smaller region the path asks for no product, and ends where one that was walked anew does."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((12, 12))
    matrix = matrix + matrix.T + 2 * np.eye(12)  # indefinite mostly
    gradient, free, asked = rng.standard_normal(12), rng.random(12) < 0.8, []

    def product(v: np.ndarray) -> np.ndarray:
        asked.append(v)
        return matrix @ v

    path, fresh = (_Path(product, gradient, free, 1e-8, 12) for _ in range(2))
    step, bent = path.step(2.0)
    before = len(asked)
    shorter, short_bent = path.step(share * 2.0)
    assert len(asked) == before
    np.testing.assert_array_equal(shorter, fresh.step(share * 2.0)[0])
    for s, Hs, radius in ((step, bent, 2.0), (shorter, short_bent, share * 2.0)):
        np.testing.assert_allclose(Hs, matrix @ s, atol=1e-9)
        assert np.linalg.norm(s) <= radius * (1 + 1e-9) and not s[~free].any()
        assert gradient @ s + 0.5 * s @ Hs < 0


class _Vector(torch.nn.ParameterList):
    """Weights alone, as a network, with the functions of them that tests minimise."""

    def __init__(self, values: list[float]) -> None:
        super().__init__([torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))])

    def objective(self, function: Any) -> Objective:
        def second() -> Any:
            class Dense:
                matrix = torch.autograd.functional.hessian(function, self[0].detach()).numpy()

                def product(self, direction: np.ndarray) -> np.ndarray:
                    return self.matrix @ direction

            return Dense()

        return Objective(self, lambda: function(self[0]), (), second)  # type: ignore[arg-type]


def test_where_values_are_rounded_gradients_decide() -> None:
    """Beside 1e6 no step of less than 1e-5 changes the value; the gradient falls to 1e-12 all the same."""
    vector = _Vector([0.7, -0.4, 0.2])
    objective = vector.objective(lambda w: 1e6 + (w**4 / 4 + w**2 / 2 + w).sum())
    found = newton(objective, objective.theta, tolerance=1e-12)
    assert found.status == "stationary" and found.iterations < 20
    np.testing.assert_allclose(found.theta**3 + found.theta + 1, 0, atol=1e-12)


def test_no_system_is_solved_further_than_asked() -> None:
    """A quadratic of 40 curvatures from 1 to 1e3: fewer products to a gradient of 1e-2 than to 1e-10."""
    scales = torch.logspace(0, 3, 40, dtype=torch.float64)
    products = []
    for tolerance in (1e-2, 1e-10):
        objective = _Vector([1.0] * 40).objective(lambda w: 0.5 * (scales * w**2).sum() - w.sum())
        found = newton(objective, objective.theta, tolerance=tolerance, radius=100.0)
        assert found.status == "stationary"
        products.append(objective.products)
    assert products[0] < 0.7 * products[1]


@pytest.mark.parametrize("method", [newton, lbfgs])
def test_the_hard_case_is_survived(method: Any) -> None:
    """No penalty and large steps: never above the start, never a non-finite number, refusals are counted."""
    equation = equation_of(cells=12)
    objective = Objective(equation.problem.network, equation.expected_loss, (), equation.curvature)
    theta = objective.theta
    start = objective.value(theta)
    more = {"radius": 50.0} if method is newton else {"initial_step": 50.0}
    found = method(objective, theta, iterations=12, tolerance=0.0, **more)
    assert np.isfinite(found.theta).all() and np.isfinite(found.value) and found.value <= start
    assert sum(found.refused.values()) > 0
    np.testing.assert_array_equal(objective.theta, found.theta)


def test_leading_eigenpairs() -> None:
    """Lanczos' are those of the dense Hessian, held weights left out."""
    equation = smooth(2, width=2)
    objective = objective_of(equation)
    theta = objective.theta
    product = objective.hessian(theta)
    dense = np.stack([product(e) for e in np.eye(len(theta))])
    free = np.arange(len(theta)) % 5 != 0
    values, vectors = leading(objective, theta, 3, free)
    exact = np.linalg.eigvalsh(dense[np.ix_(free, free)])
    np.testing.assert_allclose(values, exact[np.argsort(-np.abs(exact))[:3]], rtol=1e-8)
    assert not vectors[~free].any()
    np.testing.assert_allclose((dense @ vectors)[free], (vectors * values)[free], atol=1e-7 * abs(values[0]))


# ------------------------------------------------------------------ Pontryagin


def test_the_hamiltonians_gradient_is_the_objectives() -> None:
    """dH_k/dtheta_k with u and rho held is the gradient over h, to 1e-8."""
    equation = smooth(3)
    network: Any = equation.problem.network
    penalties, h = (WeightDecay(1e-2), StepPenalty()), network.step
    objective = objective_of(equation, penalties)
    theta = objective.theta
    gradient = objective.value_and_gradient(theta)[1]
    solved = equation.solve()
    rng = np.random.default_rng(3)
    for k in range(3):
        v = {name: np.zeros(p.shape) for name, p in network.named_parameters()}
        for part in v.values():
            part[k] = rng.standard_normal(part[k].shape)
        flat = np.concatenate([part.ravel() for part in v.values()])
        ends = []
        for e in (1e-5, -1e-5):
            objective.theta = theta + e * flat
            b, a = (c.detach().numpy() for c in vars(equation.coefficients()).values())
            steps, u = equation.steps(b, a, h)[k], solved.value[k + 1]
            for _ in range(steps.count):
                u = steps.backward(u)
            running = sum(float(shares(p, network)[k]) for p in penalties)
            ends.append((np.vdot(solved.density[k], u - solved.value[k + 1]) + running) / h)
        objective.theta = theta
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(gradient @ flat / h, rel=1e-8, abs=1e-8 * np.linalg.norm(gradient) / h)


def test_verdicts_and_refusals() -> None:
    """A start is 'stalled'; a box around it holds weights; penalties that are no sums over layers."""
    equation = smooth(2, width=2)
    at = optimality(equation, (WeightDecay(1e-2),), eigenvalues=0)
    assert at.verdict == "stalled" and at.on_boundary == 0 and at.eigenvalues is None
    assert at.hamiltonian.shape == at.residual.shape == (2,)
    objective = objective_of(equation, ())
    tight = Box(0.5 * float(np.abs(objective.theta).max()))
    found = newton(objective, objective.theta, tight, tolerance=1e-7, iterations=60)
    assert found.status == "stationary"
    held = optimality(equation, (), tight, eigenvalues=2)
    assert held.verdict == "on the boundary of the admissible set" and held.on_boundary > 0
    assert held.eigenvalues is not None and len(held.eigenvalues) == 2
    with pytest.raises(InputError, match="DepthSmoothness: it has no `by_layer`"):
        optimality(equation, (DepthSmoothness(1.0),))
    with pytest.raises(InputError, match="eigenvalues: 10000"):
        optimality(equation, (), eigenvalues=10_000)


def test_a_problem_alone_has_its_default_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    """`optimality(problem)`: all that it returns, the same as of that equation."""
    monkeypatch.setitem(DEFAULT_CELLS, 2, 12)
    given_problem = problem(2, NOISES["dropout"], depth=3)
    at, same = optimality(given_problem), optimality(BackwardKolmogorov(given_problem))
    assert at.hamiltonian.shape == at.residual.shape == (3,) and at.eigenvalues is not None
    for name in ("hamiltonian", "residual", "norm", "eigenvalues"):
        np.testing.assert_array_equal(getattr(at, name), getattr(same, name))
    with pytest.raises(InputError, match="eigenvalues: 10000"):
        optimality(given_problem, eigenvalues=10_000)


# ------------------------------------------------------------------ sets and penalties


@given(seed=st.integers(0, 10**6), radius=st.floats(0.1, 3))
def test_balls_project_to_the_nearest_point(seed: int, radius: float) -> None:
    """Idempotent, nonexpansive, layer by layer."""
    network = kolmo.ResidualNetwork(2, 3, 4)
    balls = Balls(network, radius)
    size = sum(p.numel() for p in network.parameters())
    x, y = np.random.default_rng(seed).standard_normal((2, size))
    inside = balls.project(x)
    assert (balls.norms(inside) <= radius * (1 + 1e-12)).all()
    np.testing.assert_allclose(balls.project(inside), inside, rtol=1e-12)
    assert np.linalg.norm(inside - balls.project(y)) <= np.linalg.norm(x - y) * (1 + 1e-12)
    layers = np.concatenate([np.repeat(np.arange(4), p.numel() // 4) for p in network.parameters()])
    for k in range(4):
        norm = np.linalg.norm(x[layers == k])
        expected = x[layers == k] * min(1.0, radius / norm)
        np.testing.assert_allclose(inside[layers == k], expected, rtol=1e-12)


def test_lbfgs_in_balls() -> None:
    """The result is admissible and stationary there; a layer on its sphere is found."""
    equation = smooth(3)
    objective = objective_of(equation, ())
    balls = Balls(equation.problem.network, 1.0)
    found = lbfgs(objective, objective.theta, balls, tolerance=1e-5, iterations=800)
    assert (balls.norms(found.theta) <= 1 + 1e-9).all() and (balls.norms(found.theta) > 1 - 1e-6).any()
    assert found.residual < 1e-3


@pytest.mark.parametrize("radius", [0, -1, float("nan")])
def test_bad_radii(radius: float) -> None:
    network = kolmo.ResidualNetwork(2, 3, 4)
    for make in (lambda: Box(radius), lambda: Balls(network, radius)):
        with pytest.raises(InputError, match="radius"):
            make()


def test_smoothness_in_depth() -> None:
    """The H1 seminorm of weights sampled from a function of t, to first order."""
    values = []
    for depth in (20, 40, 80):
        network = kolmo.ResidualNetwork(1, 1, depth)
        t = torch.arange(depth, dtype=torch.float64) / depth
        with torch.no_grad():
            for p in network.parameters():
                p.zero_()
            network.b.copy_(torch.sin(3 * t)[:, None])
        values.append(float(DepthSmoothness(2.0)(network).detach()))
    exact = 2 * 9 * (0.5 + np.sin(6) / 12)
    errors = np.abs(np.array(values) - exact)
    assert (errors[1:] < 0.6 * errors[:-1]).all()
    assert float(DepthSmoothness(1.0)(kolmo.ResidualNetwork(2, 3, 1)).detach()) == 0
    with pytest.raises(InputError, match=r"penalty\.depth_smoothness: -1"):
        DepthSmoothness(-1)


def test_a_product_that_is_not_finite_is_refused() -> None:
    objective = objective_of(equation_of(cells=8), ())
    product = objective.hessian(objective.theta)
    with pytest.raises(NonFiniteError):
        product(np.full(len(objective.theta), np.inf))


def test_least_squares_too() -> None:
    """Another terminal loss: the curvature does not know which."""
    given_problem = kolmo.Problem(
        kolmo.data.moons(40),
        kolmo.ResidualNetwork(2, 4, 3),
        kolmo.noise.BernoulliDropout(0.9),
        LeastSquares(),
    )
    equation = BackwardKolmogorov(given_problem, cells=12, half_width=3.0)
    product = objective_of(equation).hessian(objective_of(equation).theta)
    v, w = np.random.default_rng(5).standard_normal((2, equation.curvature().size))
    assert w @ product(v) == pytest.approx(v @ product(w), rel=1e-9)
