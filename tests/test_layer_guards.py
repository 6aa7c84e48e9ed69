"""Guards on layers: steps that fold, Peclet and Courant numbers, condition; counted by the optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from problems import cluster, points, problem, trained_size
from torch import Tensor

import kolmo
from kolmo import noise
from kolmo.control import Objective, lbfgs
from kolmo.control.training import _guarded, train
from kolmo.errors import ConditionError, InfeasibleError, PecletError, ResolutionError, StepError
from kolmo.loss import Logistic, Loss
from kolmo.network import ResidualNetwork
from kolmo.pde import BackwardKolmogorov, Implicit, make_space
from kolmo.pde.guards import layer_numbers
from kolmo.pde.resolution import resolve_value
from kolmo.validity import NORM_LIMIT, check_step, step_numbers


def one_dimensional(slopes: list[float]) -> kolmo.Problem:
    """f_k(x) = slope_k L x, so that h f' = slope_k in every layer."""
    depth = len(slopes)
    W = torch.ones(depth, 1, 1, dtype=torch.float64)
    V = depth * torch.tensor(slopes, dtype=torch.float64).reshape(depth, 1, 1)
    network = ResidualNetwork.from_weights(W, torch.zeros(depth, 1), V, activation="identity")
    return kolmo.Problem(cluster(1, 0.5), network, noise.NoNoise(), Logistic())


# ------------------------------------------------------------------ steps


def test_step_numbers_of_linear_layers() -> None:
    numbers = step_numbers(one_dimensional([0.1, -0.4, 0.3]))
    assert numbers.norm.tolist() == pytest.approx([0.1, 0.4, 0.3])
    assert numbers.determinant.tolist() == pytest.approx([1.1, 0.6, 1.3])


@pytest.mark.parametrize(("slope", "words"), [(-1.2, "folds space"), (NORM_LIMIT + 0.5, "h |grad f| = 2.5")])
def test_a_step_that_folds_is_refused(slope: float, words: str) -> None:
    """The layer is named, in one line, with a remedy; neighbours up to the limit pass."""
    check_step(one_dimensional([0.1, -0.9, 0.9]))
    with pytest.raises(StepError, match="layer 1: ") as caught:
        check_step(one_dimensional([0.1, slope, 0.2]))
    assert words in str(caught.value) and "more layers" in str(caught.value)
    assert caught.value.layer == 1 and isinstance(caught.value, InfeasibleError)
    with pytest.raises(StepError, match="layer 1"):
        resolve_value(one_dimensional([0.1, slope, 0.2]), backend="skfem")


def test_the_optimiser_backtracks_and_counts() -> None:
    """A first step far too long folds space: refused, counted, and a shorter one is taken."""
    given = problem(1, noise.BernoulliDropout(0.9), depth=4)
    equation = BackwardKolmogorov(given, cells=48, backend="skfem", half_width=3.0)
    objective = Objective(given.network, _guarded(given, equation))
    start = objective.value(objective.theta)
    result = lbfgs(objective, objective.theta, iterations=3, initial_step=1e3)
    assert result.refused.get("StepError", 0) > 0
    assert result.iterations == 3 and result.value < start


# ------------------------------------------------------------------ Peclet and Courant numbers


class Ripples(Loss):
    """A loss that alternates from node to node of a mesh of this spacing."""

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing

    def __call__(self, features: Tensor, labels: Tensor | int) -> Tensor:
        return 1 + torch.cos(math.pi * features[..., 0] / self.spacing)

    def predict(self, features: Tensor) -> Tensor:
        return (features[..., 0] > 0).long()


def test_what_alternates_from_node_to_node_is_refused() -> None:
    """Within its bounds, so that no other guard fires; the layer and the Peclet number are named."""
    network = trained_size(1, 6)
    given = kolmo.Problem(points(1), network, noise.NoNoise(), Ripples(6.0 / 64))
    options = {"backend": "skfem", "half_width": 3.0}
    with pytest.raises(
        PecletError, match=r"layer \d: .* scale of the mesh, and at a mesh Peclet number of inf"
    ):
        BackwardKolmogorov(given, cells=64, **options).expected_loss()  # type: ignore[arg-type]
    with pytest.raises(ResolutionError, match="does not resolve"):
        resolve_value(given, cells=64, backend="skfem", half_width=3.0)


def test_roughness_is_of_second_order_where_smooth() -> None:
    found = []
    for cells in (32, 64):
        space = make_space("skfem", 2, cells, 1.0)
        found.append(space.roughness(np.sin(space.coefficient_points.sum(axis=1))[:, None]))
    assert found[0] / found[1] == pytest.approx(4, rel=0.1) and found[0] < 0.01
    noise_alone = np.random.default_rng(0).standard_normal((65**2, 1))
    assert make_space("skfem", 2, 64, 1.0).roughness(noise_alone) > 0.5


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_numbers_of_constant_coefficients(full: bool) -> None:
    """Peclet |b| dx / a; the Courant number proportional to the step; no diffusion: infinite."""
    space = make_space("skfem", 2, 20, 1.0)
    count = len(space.coefficient_points)
    b = np.tile([0.3, 0.4], (2, count, 1))
    a = np.full((2, count, 2), 0.05)
    a[1] = 0
    spread = a[..., None] * np.eye(2) if full else a
    found = layer_numbers(space, b, spread, 0.1)
    assert found.peclet[0] == pytest.approx(0.5 * 0.1 / 0.05) and math.isinf(found.peclet[1])
    assert (found.courant > 0).all() and found.courant[0] > found.courant[1]
    assert layer_numbers(space, b, spread, 0.2).courant == pytest.approx(2 * found.courant)
    assert layer_numbers(space, 0 * b, spread, 0.1).peclet.tolist() == [0, 0]


# ------------------------------------------------------------------ condition


def test_a_singular_implicit_step_is_refused() -> None:
    """Diffusion of the wrong sign makes M - alpha K singular at one step length, and fine at half of it."""
    space = make_space("skfem", 1, 24, 1.0)
    b = np.zeros((25, 1))
    generator = space.generator(b, np.full((25, 1), -0.02))
    M, K = (
        np.stack([f(e[:, None])[:, 0] for e in np.eye(25)], axis=1) for f in (space.mass, generator.apply)
    )
    largest = float(np.real(scipy.linalg.eigvals(K, M)).max())
    critical = 1 / (largest * (1 - math.sqrt(0.5)))  # alpha = (2 - sqrt 2) dt / 2
    with pytest.raises(ConditionError, match="layer 3: the implicit step's matrix has a condition number"):
        Implicit(substeps=1).on_layer(space, generator, critical, 3)
    assert Implicit(substeps=1).on_layer(space, generator, critical / 2, 3).count == 1
    sound = space.generator(b + 0.5, np.full((25, 1), 0.02))
    assert Implicit(substeps=1).on_layer(space, sound, 0.1, 0).count == 1


# ------------------------------------------------------------------ the end of a training


def test_a_training_states_its_errors() -> None:
    """Mesh, time and domain, also when nobody asked; the refusals are counted in its log."""
    given = problem(1, noise.BernoulliDropout(0.9), depth=6)
    outcome = train(given, cells=(32, 64), iterations=(5, 5), backend="skfem")
    assert set(outcome.errors) == {"mesh", "time", "domain"} and outcome.errors["mesh"] > 0
    exact = train(given, cells=(32,), iterations=(3,), estimator="exact")
    assert set(exact.errors) == {"mesh", "domain"}
    assert isinstance(outcome.refused, dict)
