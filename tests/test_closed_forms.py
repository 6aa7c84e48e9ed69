"""J of the Kolmogorov equation and of the chain against closed forms: affine blocks, quadratic loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import (
    DEPTH,
    NOISES,
    affine_network,
    chain_loss,
    cluster,
    fitted_order,
    load_case,
    problem,
    sde_loss,
)

import kolmo
from kolmo import noise
from kolmo.loss import LeastSquares
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, Propagator

#: dimension -> (half width, radius of the data, noise): the taper, from 0.8 R on, is 6 deviations away
BOXES = {1: (5.0, 0.8, 0.5), 2: (4.0, 0.6, 0.4), 3: (2.5, 0.3, 0.25)}
CELLS = {1: [16, 32, 64, 128], 2: [12, 18, 26, 40], 3: [8, 12, 16]}


def injection(dim: int, depth: int = 4) -> kolmo.Problem:
    """An Ornstein-Uhlenbeck process, its drift piecewise constant in time."""
    _, radius, std = BOXES[dim]
    return kolmo.Problem(
        cluster(dim, radius), affine_network(dim, depth), noise.GaussianInjection(std), LeastSquares()
    )


def pde_loss(given: kolmo.Problem, **options: object) -> float:
    with torch.no_grad():
        return float(BackwardKolmogorov(given, limit=False, **options).expected_loss())  # type: ignore[arg-type]


# ------------------------------------------------------------------ Ornstein-Uhlenbeck


@pytest.mark.parametrize("propagator", [Explicit(), Implicit(8)], ids=["explicit", "implicit"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dim", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_ornstein_uhlenbeck_second_order_in_the_mesh(dim: int, order: int, propagator: Propagator) -> None:
    """|J_pde - J of the modified equation by its moments| = O((R/n)^2)."""
    given = injection(dim)
    exact = sde_loss(given, order)
    half_width = BOXES[dim][0]
    errors = [
        abs(
            pde_loss(
                given, cells=n, order=order, half_width=half_width, propagator=propagator, backend="skfem"
            )
            - exact
        )
        for n in CELLS[dim]
    ]
    assert -fitted_order(CELLS[dim], errors) == pytest.approx(2, abs=0.25)
    assert errors[-1] < 0.05 * exact


def test_orders_differ_as_their_equations_do() -> None:
    """Order 1 and 2 have different exact J, further apart than the finest mesh error above."""
    given = injection(1)
    exact = [sde_loss(given, order) for order in (1, 2)]
    found = [pde_loss(given, cells=128, order=order, half_width=5.0, backend="skfem") for order in (1, 2)]
    assert found[1] - found[0] == pytest.approx(exact[1] - exact[0], rel=0.02)
    assert abs(exact[1] - exact[0]) > 0.01 * exact[1]


def test_backends_agree_on_the_closed_form(backend: str) -> None:
    given = injection(2)
    found = pde_loss(given, cells=40, half_width=4.0, backend=backend)
    assert found == pytest.approx(sde_loss(given, 2), rel=0.02)


# ------------------------------------------------------------------ linear dropout


def dropout(dim: int, depth: int, keep: float = 0.7) -> kolmo.Problem:
    """Dropout on an affine block: a geometric Brownian motion in the modified equation.

    The points are multiples of 1/100, nodes of the finest meshes: no interpolation error there.
    """
    cloud = cluster(dim, BOXES[dim][1])
    return kolmo.Problem(
        kolmo.Dataset((100 * cloud.points).round() / 100, cloud.labels),
        affine_network(dim, depth),
        noise.BernoulliDropout(keep),
        LeastSquares(),
    )


def at_fixed_diffusion(depth: int, kappa: float = 0.15) -> kolmo.Problem:
    """Dropout whose diffusion stays as the depth grows: h (1 - p) / p = kappa."""
    return dropout(1, depth, keep=1 / depth / (1 / depth + kappa))


@pytest.mark.parametrize("dim", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_linear_dropout_second_order_in_the_mesh(dim: int) -> None:
    """|J_pde - J of the modified equation by its moments| = O((R/n)^2), diffusion quadratic in x."""
    given = dropout(dim, 4, keep=0.4)
    exact = sde_loss(given, 2)
    half_width = BOXES[dim][0]
    options = {"half_width": half_width, "propagator": Implicit(16), "backend": "skfem"}
    errors = [abs(pde_loss(given, cells=n, **options) - exact) for n in CELLS[dim]]
    assert -fitted_order(CELLS[dim], errors) == pytest.approx(2, abs=0.25)
    assert errors[-1] < 0.05 * exact


# ------------------------------------------------------------------ modelling error in the depth


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("make", [injection, dropout], ids=["injection", "dropout"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_modified_equation_has_its_weak_order(
    dim: int, make: Callable[..., kolmo.Problem], order: int
) -> None:
    """|J_sde - J_chain| = O(h^order) at fixed s or p: both sides by their moments, no mesh."""
    depths = [8, 16, 32, 64]
    errors = [abs(sde_loss(make(dim, n), order) - chain_loss(make(dim, n))) for n in depths]
    assert -fitted_order(depths, errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("make", "order", "expected"),
    [(lambda n: dropout(1, n), 1, 1), (lambda n: dropout(1, n), 2, 2), (at_fixed_diffusion, 1, 1)],
    ids=["fixed-keep-order-1", "fixed-keep-order-2", "fixed-diffusion-order-1"],
)
def test_dropout_of_a_linear_block_in_the_depth(
    make: Callable[[int], kolmo.Problem], order: int, expected: int
) -> None:
    """|J_pde - J_chain| = O(h^order) on meshes so fine that the modelling error is all there is."""
    depths = [3, 6, 12, 24]
    errors = []
    for depth in depths:
        given = make(depth)
        options = {
            "order": order,
            "half_width": 4.0,
            "propagator": Implicit(-(-384 // depth)),
            "backend": "skfem",
        }
        coarse, fine = (pde_loss(given, cells=n, **options) for n in (800, 1600))
        errors.append(abs(fine + (fine - coarse) / 3 - chain_loss(given)))  # Richardson in the mesh
        assert abs(fine - coarse) < errors[-1]
    assert -fitted_order(depths, errors) == pytest.approx(expected, abs=0.2)


def test_order_two_at_fixed_diffusion_is_one() -> None:
    """At h (1-p)/p = kappa the noise is not small in h, depends on x, and no second order survives.

    One step of an affine block: E X'^2 differs from exp(h L) x^2 by h^2/2 (4 kappa A + kappa^2 A^2) f^2.
    """
    depths = [16, 32, 64, 128]
    errors = [abs(sde_loss(at_fixed_diffusion(n), 2) - chain_loss(at_fixed_diffusion(n))) for n in depths]
    assert -fitted_order(depths, errors) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", [n for n in NOISES if "list" not in n and "injections" not in n])
def test_modified_equation_has_its_weak_order_for_every_noise(name: str, order: int) -> None:
    """|J_sde - J_chain| = O(h^order) with the noise's strengths fixed, schedules of any depth included."""

    def error(depth: int) -> float:
        given = kolmo.Problem(cluster(2, 0.6), affine_network(2, depth), NOISES[name], LeastSquares())
        return abs(sde_loss(given, order) - chain_loss(given))

    depths = [64, 128, 256]
    assert -fitted_order(depths, [error(n) for n in depths]) == pytest.approx(order, abs=0.2)


# ------------------------------------------------------------------ the chain

WITH_INJECTION = {
    f"{name} and injection": noise.Composition([model, noise.GaussianInjection(0.4)])
    for name, model in NOISES.items()
    if not isinstance(model, noise.Composition)
}


@pytest.mark.parametrize(
    ("dim", "model"),
    [
        *(pytest.param(d, m, id=f"{d}-{n}") for n, m in NOISES.items() for d in (1, 2, 3)),
        *(pytest.param(2, m, id=f"2-{n}") for n, m in WITH_INJECTION.items()),
        *(pytest.param(5, NOISES[n], id=f"5-{n}") for n in ("dropout", "injection", "shake", "dropconnect")),
    ],
)
def test_chain_agrees_with_its_moments(dim: int, model: noise.Noise) -> None:
    """|estimate - J| <= 5 standard errors for every noise, and with injection added to it."""
    given = kolmo.Problem(cluster(dim, 0.8), affine_network(dim, DEPTH), model, LeastSquares())
    estimate = kolmo.Chain(given, seed=3).estimate(60_000)
    exact = chain_loss(given)
    assert abs(estimate.value - exact) <= 5 * estimate.standard_error + 1e-13
    assert estimate.paths == 60_000
    if model in (NOISES["none"], NOISES["dropout-1"], NOISES["injection-0"]):
        assert estimate.standard_error < 1e-13
    else:
        assert 0 < estimate.standard_error < 0.02 * exact


def test_standard_error_is_the_deviation_of_estimates() -> None:
    """Over 200 seeds the estimates scatter by their standard error: chi-square within 5 deviations."""
    given = kolmo.Problem(cluster(2, 0.8), affine_network(2, 5), noise.BernoulliDropout(0.5), LeastSquares())
    runs = [kolmo.Chain(given, seed=seed).estimate(600) for seed in range(200)]
    exact = chain_loss(given)
    scores = np.array([(r.value - exact) / r.standard_error for r in runs])
    assert abs(np.mean(scores**2) - 1) < 5 * np.sqrt(2 / len(scores))
    assert abs(np.mean(scores)) < 5 / np.sqrt(len(scores))
    covered = np.mean([r.interval[0] <= exact <= r.interval[1] for r in runs])
    assert abs(covered - 0.95) < 5 * np.sqrt(0.95 * 0.05 / len(runs))


@pytest.mark.parametrize(
    "name",
    [
        "p1-interval-dropout",
        "p2-moons-dropout",
        "p2-xor-depth",
        "p2-spirals-dropout",
        "p2-circles-gaussian",
        "p3-shells-dropout",
    ],
)
def test_chain_agrees_with_reference_values(name: str) -> None:
    """J of the example networks within 4 joint standard errors of their reference."""
    from kolmo.errors import InputError

    try:
        given, reference = load_case(name)
    except InputError as error:
        pytest.skip(f"{name}: {error}")
    estimate = kolmo.Chain(given).estimate(200_000)
    joint = np.hypot(estimate.standard_error, reference["standard_error"])
    assert abs(estimate.value - reference["J"]) <= 4 * joint
    with torch.no_grad():
        noiseless = given.loss(given.network(given.data.points), given.data.labels).mean()
    assert float(noiseless) == pytest.approx(reference["J_noiseless"], rel=1e-10)


def test_pde_agrees_with_the_reference_in_one_dimension(backend: str) -> None:
    """A trained network, no closed form: the Kolmogorov equation within 1% of the chain's reference."""
    given, reference = load_case("p1-interval-dropout")
    found = pde_loss(given, backend=backend, propagator="implicit")
    assert found == pytest.approx(reference["J"], rel=0.01)


# ------------------------------------------------------------------ time


@pytest.mark.parametrize("make", [Explicit, Implicit])
@pytest.mark.parametrize("dim", [1, 2])
def test_order_in_time_of_expected_loss(
    backend: str, dim: int, make: type[Explicit] | type[Implicit]
) -> None:
    """J on one mesh converges in the substep with the propagator's order."""
    given = problem(dim, noise.GaussianInjection(0.3), depth=2)
    counts = [2, 4, 8, 16] if make is Implicit or dim == 2 else [8, 16, 32]
    options = {"cells": {1: 48, 2: 12}[dim], "half_width": 3.5, "backend": backend}
    reference = pde_loss(given, propagator=make(substeps=128), **options)
    errors = [abs(pde_loss(given, propagator=make(substeps=n), **options) - reference) for n in counts]
    assert -fitted_order(counts, errors) == pytest.approx(make.order, abs=0.2)
