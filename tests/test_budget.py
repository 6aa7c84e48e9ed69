"""The error budget: effectivity of each term against closed forms, finer meshes, wider boxes, the chain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import (
    affine_network,
    chain_loss,
    cluster,
    load_case,
    perturbed_mesh,
    points,
    problem,
    sde_loss,
    trained_size,
)
from test_closed_forms import BOXES, CELLS, injection

import kolmo
from kolmo import noise
from kolmo.chain import Chain
from kolmo.errors import InputError, ResolutionError
from kolmo.loss import LeastSquares, Logistic
from kolmo.network import ResidualNetwork
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, Propagator, resolve_exact, space_on
from kolmo.pde.mesh import box_mesh
from kolmo.pde.model_error import ModelProbes, model_error
from kolmo.pde.recovery import Recovery
from kolmo.pde.residual import Residuals, linear_march, residuals
from kolmo.pde.resolution import Effort, resolve_value


def found(given: kolmo.Problem, **options: Any) -> Residuals:
    return residuals(linear_march(BackwardKolmogorov(given, limit=False, **{"backend": "skfem", **options})))


def probes(given: kolmo.Problem, **options: Any) -> ModelProbes:
    marched = linear_march(BackwardKolmogorov(given, limit=False, **{"backend": "skfem", **options}))
    return model_error(marched, residuals(marched))


def dropout(dim: int) -> kolmo.Problem:
    """An affine block under dropout: diffusion that varies with x, closed moments."""
    return kolmo.Problem(
        cluster(dim, BOXES[dim][1]), affine_network(dim, 4), noise.BernoulliDropout(0.8), LeastSquares()
    )


# ------------------------------------------------------------------ recovery


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_recovery_is_exact_on_quintic_polynomials(dim: int, backend: str) -> None:
    """b . grad u + 1/2 a : hess u of a polynomial of degree 5 in each variable, and u between nodes."""
    space = space_on(backend, box_mesh(dim, 8, 1.5))
    x, rng = space.coefficient_points, np.random.default_rng(0)
    powers = [np.polynomial.Polynomial(rng.standard_normal(6)) for _ in range(dim)]

    def product(at: np.ndarray, orders: tuple[int, ...]) -> np.ndarray:
        factors = [
            (p.deriv(k) if k else p)(at[:, i]) for i, (p, k) in enumerate(zip(powers, orders, strict=True))
        ]
        return np.prod(factors, axis=0)

    unit = np.eye(dim, dtype=int)
    b, root = rng.standard_normal((len(x), dim)), rng.standard_normal((len(x), dim, dim))
    a = root @ root.transpose(0, 2, 1)
    expected = sum(b[:, i] * product(x, tuple(unit[i])) for i in range(dim))
    for i in range(dim):
        for j in range(dim):
            expected = expected + 0.5 * a[:, i, j] * product(x, tuple(unit[i] + unit[j]))
    recovery = Recovery(space)
    nodal = np.stack([product(x, (0,) * dim), np.ones(len(x))], axis=1)
    assert recovery.generator(nodal, b, a) == pytest.approx(
        np.stack([expected, 0 * expected], axis=1), abs=1e-8
    )
    inside = rng.uniform(-1.5, 1.5, (7, dim))
    assert recovery.at(nodal, inside)[:, 0] == pytest.approx(product(inside, (0,) * dim), abs=1e-9)


def test_recovery_needs_a_uniform_grid() -> None:
    with pytest.raises(InputError, match="uniform tensor grid"):
        Recovery(space_on("skfem", perturbed_mesh(2, 8, 1.0)))
    with pytest.raises(InputError, match="more than 5 cells"):
        Recovery(space_on("skfem", box_mesh(2, 5, 1.0)))


# ------------------------------------------------------------------ mesh


@pytest.mark.parametrize("make", [injection, dropout], ids=["injection", "dropout"])
@pytest.mark.parametrize("propagator", [Explicit(), Implicit(8)], ids=["explicit", "implicit"])
@pytest.mark.parametrize("dim", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_mesh_term_on_closed_forms(dim: int, propagator: Propagator, make: Any) -> None:
    """Effectivity between 1/2 and 2 on every mesh, within 10% on the finest; the corrected J is better."""
    given = make(dim)
    exact = sde_loss(given, 2)
    for cells in CELLS[dim]:
        terms = found(given, cells=cells, half_width=BOXES[dim][0], propagator=propagator)
        effectivity = (terms.mesh + terms.time + terms.domain) / (exact - terms.value)
        assert 0.5 < effectivity < 2, (cells, effectivity)
    assert effectivity == pytest.approx(1, abs=0.1)
    assert abs(terms.corrected + terms.domain - exact) < 0.1 * abs(terms.value - exact)


def test_the_mesh_term_knows_its_layers_and_the_data() -> None:
    """It is the sum of its layers and of the interpolation at the data."""
    terms = found(injection(2), cells=26, half_width=4.0)
    assert terms.mesh == pytest.approx(terms.layers.sum() + terms.interpolation, rel=1e-12)
    assert terms.size >= abs(terms.layers.sum())


CASES = {
    "p1-interval-dropout": (64, 128, 256), "p2-moons-dropout": (64, 96), "p2-xor-depth": (96, 120),
    "p2-blobs-gaussdrop": (48, 64, 96), "p2-moons-hidden": (120, 144), "p2-circles-gaussian": (144, 160),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mesh_term_on_the_shared_cases(name: str) -> None:
    """Stated mesh error over the true one, between 1/2 and 2 once the mesh resolves the case.

    The truth is the corrected value on a mesh finer by half (its own error is that of the fourth order).
    """
    given, _ = load_case(name)
    half_width = resolve_value(given, backend="skfem").half_width
    for cells in CASES[name]:
        stated = resolve_value(given, cells=cells, half_width=half_width, backend="skfem")
        reference = found(given, cells=round(1.5 * CASES[name][-1]), half_width=half_width).corrected
        effectivity = stated.mesh_error / abs(reference - stated.value)
        assert 0.5 < effectivity < 2.5, (name, cells, effectivity)


# ------------------------------------------------------------------ time


@pytest.mark.parametrize("make", [injection, dropout], ids=["injection", "dropout"])
@pytest.mark.parametrize(("scheme", "counts"), [(Implicit, (1, 2, 4)), (Explicit, (6, 8, 12))])
def test_time_term_on_a_fixed_mesh(scheme: Any, counts: tuple[int, ...], make: Any) -> None:
    """Effectivity of the time term between 1/2 and 2 against many substeps on the same mesh."""
    given = make(1)
    reference = found(given, cells=24, half_width=5.0, propagator=scheme(substeps=64)).value
    for count in counts:
        terms = found(given, cells=24, half_width=5.0, propagator=scheme(substeps=count))
        effectivity = terms.time / (reference - terms.value)
        assert 0.5 < effectivity < 2, (count, effectivity)
    assert effectivity == pytest.approx(1, abs=0.25)


# ------------------------------------------------------------------ domain


@pytest.mark.parametrize("half_width", [1.6, 1.8, 2.0, 2.2])
def test_domain_term_against_a_wide_box(half_width: float) -> None:
    """Where the taper costs J up to 5%, the weighted residual says so; the chain's coupled paths do not."""
    given = problem(1, noise.BernoulliDropout(0.7), depth=4)
    wide = found(given, cells=640, half_width=5.0)
    terms = found(given, cells=256, half_width=half_width)
    missing = wide.corrected - terms.corrected
    assert abs(missing) > 1e-3
    assert 0.5 < terms.domain / missing < 2


def test_the_box_grows_until_the_taper_is_harmless() -> None:
    given = problem(1, noise.BernoulliDropout(0.7), depth=4)
    chosen = resolve_value(given, backend="skfem")
    wide = found(given, cells=640, half_width=5.0)
    assert chosen.domain_error <= 5e-5 + 1e-3 * chosen.value
    assert abs(chosen.residuals.corrected - wide.corrected) <= 2e-3


@pytest.mark.parametrize("std", [0.4, 0.8])
def test_exit_probability_of_brownian_motion(std: float) -> None:
    """P(max |x + std W| >= r over [0, T]) by the series of the absorbed process, r where the taper begins,
    up to what happens within a substep."""
    zeros = torch.zeros(8, 2, 1, dtype=torch.float64)
    network = ResidualNetwork.from_weights(zeros, zeros[..., 0], zeros.transpose(1, 2))
    given = kolmo.Problem(cluster(1, 0.3), network, noise.GaussianInjection(std))
    r = 0.8 * 1.6
    x = given.data.points.numpy()[:, 0]
    odd = np.arange(1, 200, 2)[:, None]
    decay = np.exp(-(odd**2) * np.pi**2 * std**2 / (8 * r**2))
    stay = (4 / (odd * np.pi) * np.sin(odd * np.pi * (x + r) / (2 * r)) * decay).sum(axis=0)
    terms = found(given, cells=200, half_width=1.6, propagator=Explicit(cap=10**4))
    assert terms.exit_probability == pytest.approx(1 - stay.mean(), rel=0.12)


# ------------------------------------------------------------------ model


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dim", [1, 2])
def test_model_term_on_closed_forms(order: int, dim: int) -> None:
    """J of the chain minus J of its modified equation, both by moments, against the one-step defect."""
    for given in (injection(dim), dropout(dim)):
        missing = chain_loss(given) - sde_loss(given, order)
        cells = {1: 200, 2: 48}[dim]
        probed = probes(given, cells=cells, half_width=BOXES[dim][0], order=order)
        assert probed.defect is not None
        assert 0.5 < probed.defect / missing < 2
        assert probed.estimate == abs(probed.defect)
        assert probed.orders == pytest.approx(sde_loss(given, 2) - sde_loss(given, 1), rel=0.05, abs=1e-5)


def test_model_probes_shrink_with_the_step() -> None:
    """Depth doubled at fixed rates: the order difference halves, halving and defect fall to a quarter."""
    coarse, fine = (
        probes(
            kolmo.Problem(
                cluster(1, 0.8), affine_network(1, depth), noise.BernoulliDropout(0.8), LeastSquares()
            ),
            cells=200,
            half_width=5.0,
        )
        for depth in (8, 16)
    )
    assert coarse.orders and fine.orders and coarse.halving and fine.halving and coarse.defect and fine.defect
    assert coarse.orders / fine.orders == pytest.approx(2, abs=0.3)
    assert coarse.halving / fine.halving == pytest.approx(4, abs=0.8)
    assert coarse.defect / fine.defect == pytest.approx(4, abs=0.8)


def test_without_outcomes_the_model_term_is_a_bound() -> None:
    """Sixteen hidden units have too many masks: the larger of order difference and halving is stated."""
    given = problem(1, noise.HiddenDropout(0.8), width=16, depth=6)
    probed = probes(given, cells=64, half_width=3.0)
    assert probed.defect is None and probed.orders is not None and probed.halving is not None
    assert probed.estimate == max(abs(probed.orders), abs(probed.halving)) > 0


def test_a_block_of_one_derivative_has_the_defect_only() -> None:
    given = problem(1, noise.BernoulliDropout(0.8), activation="relu")
    probed = probes(given, cells=64, half_width=3.0, order=1)
    assert probed.orders is None and probed.halving is None and probed.defect


# ------------------------------------------------------------------ faults


def test_a_wrong_generator_is_found_by_its_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor 2 in the assembled diffusion alone: the recovered residual knows the equation and says so."""
    given = problem(2, noise.BernoulliDropout(0.6))
    sound = found(given, cells=64, half_width=3.0)
    original = BackwardKolmogorov.steps

    def doubled(self: BackwardKolmogorov, drift: Any, diffusion: Any, step: float) -> Any:
        return original(self, drift, 2 * diffusion, step)

    monkeypatch.setattr(BackwardKolmogorov, "steps", doubled)
    wrong = found(given, cells=64, half_width=3.0)
    shift = sound.value - wrong.value
    assert abs(shift) > 3 * abs(sound.mesh)
    assert wrong.mesh - sound.mesh == pytest.approx(shift, rel=0.2)


# ------------------------------------------------------------------ refinement and effort


def folded(seed: int, steps: int) -> kolmo.Problem:
    """T = 3, L = 60, small h |V W|: every layer bends space a little, all of them fold it."""
    from kolmo import data, training

    network = ResidualNetwork(2, 8, 60, horizon=3.0, seed=seed)
    given = kolmo.Problem(data.xor(40, seed=seed), network, noise.BernoulliDropout(0.98), Logistic())
    training.train(given, steps=steps, paths=1, learning_rate=0.03, seed=seed)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 50, 80])
@pytest.mark.parametrize("seed", [2, 5])
def test_long_horizons_end_refined_or_refused(seed: int, steps: int) -> None:
    """Either J is right to its stated errors, or the mesh is named as what fails."""
    given = folded(seed, steps)
    stated = refusal = None
    try:
        stated = resolve_value(given, backend="skfem", effort=Effort(seconds=60.0))
    except ResolutionError as error:
        refusal = str(error)
    if stated is None:
        assert refusal is not None and "does not resolve" in refusal
        return
    truth = resolve_exact(given, tolerance=(1e-3, 1e-5))
    probed = model_error(stated.marched, stated.residuals)
    errors = stated.mesh_error + stated.time_error + stated.domain_error + probed.estimate
    assert abs(stated.value - truth.value) <= 2 * errors + truth.error


def test_a_clipped_march_that_looks_sound_is_refused() -> None:
    """After training a clipped march stays inside its bounds on 96 cells, passes every other guard, and is
    far off; what is reported is not its J."""
    given = folded(5, 150)
    chain = Chain(given).estimate(100_000)
    clipped = BackwardKolmogorov(given, cells=96, backend="skfem", propagator=Explicit(cap=1000))
    with torch.no_grad():
        value = float(clipped.expected_loss())
    assert clipped.last is not None and clipped.last.violation < 0.05
    assert abs(value - chain.value) > 0.3 * chain.value
    with pytest.raises(ResolutionError, match="does not resolve"):
        resolve_value(given, cells=96, backend="skfem")


def test_effort_ends_a_refinement_and_is_said() -> None:
    given = problem(2, noise.BernoulliDropout(0.8))
    hasty = resolve_value(given, backend="skfem", aim=(1e-9, 0.0), effort=Effort(seconds=0.0))
    assert "time allowed" in hasty.stopped and hasty.cells < 150
    small = resolve_value(given, backend="skfem", aim=(1e-9, 0.0), effort=Effort(memory=1e6))
    assert "memory allowed" in small.stopped
    assert resolve_value(given, backend="skfem", aim=(1.0, 0.0)).stopped == ""


def test_richardson_agrees_where_the_mesh_resolves() -> None:
    """The second-order extrapolation from the coarser mesh, beside the weighted residual."""
    given = injection(2)
    stated = resolve_value(given, cells=40, half_width=4.0, backend="skfem")
    assert stated.richardson == pytest.approx(stated.mesh_error, rel=0.3)
    assert math.isfinite(stated.richardson)


def test_trained_size_is_resolved_at_once() -> None:
    """A mild network needs no refinement, and the box no enlargement."""
    given = kolmo.Problem(points(2), trained_size(2), noise.BernoulliDropout(0.9), Logistic())
    assert resolve_value(given, backend="skfem").cells == 96
