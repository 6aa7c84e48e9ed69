"""Time stepping of one layer against the matrix exponential, its transpose and its derivative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import fitted_order, smooth_coefficients
from scipy.linalg import expm

from kolmo.errors import InfeasibleError, InputError, StiffnessError
from kolmo.pde import Explicit, Implicit, Propagator, make_space
from kolmo.pde.propagator import ExplicitSteps
from kolmo.pde.space import Space, Steps

CELLS = {1: 16, 2: 6, 3: 3}
STEP = 0.4
SCHEMES = [Explicit(0), Explicit(1), Explicit(), Explicit(3), Implicit()]
SCHEME_NAMES = ["explicit-0", "explicit-1", "explicit-2", "explicit-3", "implicit"]


def space_of(dim: int, backend: str = "skfem") -> Space:
    return make_space(backend, dim, CELLS[dim], 2.0)


def dense(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """M and K of the smooth coefficients as dense matrices."""
    one = np.eye(len(space.lumped_mass))
    return space.mass(one), space.generator(*smooth_coefficients(space)).apply(one)


def corrected_inverse(space: Space, corrections: int) -> np.ndarray:
    """M_k^-1 = sum_{j<=k} (I - Ml^-1 M)^j Ml^-1 as a dense matrix."""
    M, lumped = space.mass(np.eye(len(space.lumped_mass))), space.lumped_mass
    defect = np.eye(len(M)) - M / lumped[:, None]
    return sum(np.linalg.matrix_power(defect, j) for j in range(corrections + 1)) / lumped


def on_layer(propagator: Propagator, space: Space) -> Steps:
    return propagator.on_layer(space, space.generator(*smooth_coefficients(space)), STEP, 0)


def advance(steps: Steps, u: np.ndarray) -> np.ndarray:
    for _ in range(steps.count):
        u = steps.backward(u)
    return u


def terminal(space: Space) -> np.ndarray:
    x = space.coefficient_points
    return np.stack([np.sin(x.sum(axis=1)), np.cos(2 * x[:, 0])], axis=1)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("corrections", [0, 1, 2, 3])
def test_explicit_is_fourth_order(backend: str, dim: int, corrections: int) -> None:
    """Error against exp(dt M_k^-1 K): O(dt^4)."""
    space = space_of(dim, backend)
    _, K = dense(space)
    u = terminal(space)
    exact = expm(STEP * corrected_inverse(space, corrections) @ K) @ u
    counts = [4, 8, 16, 32]
    errors = []
    for n in counts:
        steps = on_layer(Explicit(corrections=corrections, substeps=n), space)
        assert steps.count == n
        errors.append(np.abs(advance(steps, u) - exact).max())
    assert -fitted_order(counts, errors) == pytest.approx(Explicit.order, abs=0.25)
    assert Explicit.order == 4


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_implicit_is_second_order(backend: str, dim: int) -> None:
    """Error against exp(dt M^-1 K): O(dt^2)."""
    space = space_of(dim, backend)
    M, K = dense(space)
    u = terminal(space)
    exact = expm(STEP * np.linalg.solve(M, K)) @ u
    counts = [2, 4, 8, 16]
    errors = [np.abs(advance(on_layer(Implicit(substeps=n), space), u) - exact).max() for n in counts]
    assert -fitted_order(counts, errors) == pytest.approx(Implicit.order, abs=0.15)
    assert Implicit.order == 2


def test_explicit_is_the_taylor_polynomial(backend: str) -> None:
    """One substep is I + A + A^2/2 + A^3/6 + A^4/24, A = dt M_k^-1 K."""
    space = space_of(2, backend)
    A = STEP * corrected_inverse(space, 2) @ dense(space)[1]
    u = terminal(space)
    expected, term = u.copy(), u
    for j in (1, 2, 3, 4):
        term = A @ term / j
        expected = expected + term
    assert np.abs(on_layer(Explicit(substeps=1), space).backward(u) - expected).max() < 1e-13


@pytest.mark.parametrize("corrections", [0, 1, 2, 3])
def test_the_cubic_polynomial(backend: str, corrections: int) -> None:
    """Degree 3 leaves A^4/24 out, which `defect` is; of third order."""
    space = space_of(2, backend)
    generator = corrected_inverse(space, corrections) @ dense(space)[1]
    u, errors, counts = terminal(space), [], [4, 8, 16, 32]
    for n in counts:
        steps = on_layer(Explicit(corrections, substeps=n, degree=3), space)
        A = STEP / n * generator
        expected = u + A @ (u + A @ (u + A @ u / 3) / 2)
        assert np.abs(steps.backward(u) - expected).max() < 1e-13
        close = A @ A @ A @ A @ u / 24
        assert np.abs(steps.defect(u) - close).max() < 1e-12 * max(1.0, np.abs(close).max())
        errors.append(np.abs(advance(steps, u) - expm(STEP * generator) @ u).max())
    assert -fitted_order(counts, errors) == pytest.approx(3, abs=0.25)


def test_which_degree_is_taken() -> None:
    """Three where substeps are short enough for it to be stable, four else and with fixed substeps."""
    space = space_of(2)
    generator = space.generator(*smooth_coefficients(space))
    degrees = {}
    for share in (0.1, 0.59, 0.61, 0.99, 1.01, 1.3):
        steps = Explicit().on_layer(space, generator, share * 1.2 / generator.rate(), 0)
        assert isinstance(steps, ExplicitSteps)
        degrees[share] = (steps.count, steps.degree)
    assert degrees == {0.1: (1, 3), 0.59: (1, 3), 0.61: (1, 4), 0.99: (1, 4), 1.01: (2, 3), 1.3: (2, 4)}
    for scheme, degree in ((Explicit(substeps=1), 4), (Explicit(degree=4), 4), (Explicit(2, None, 1, 3), 3)):
        found = scheme.on_layer(space, generator, 0.1 / generator.rate(), 0)
        assert isinstance(found, ExplicitSteps) and found.degree == degree


def test_implicit_is_trapezoid_then_bdf2(backend: str) -> None:
    """u* = trapezoid over gamma dt, then BDF2 through u, u*: both residuals vanish."""
    space = space_of(2, backend)
    M, K = dense(space)
    u, gamma = terminal(space), 2 - np.sqrt(2)
    half = gamma * STEP / 2
    middle = np.linalg.solve(M - half * K, (M + half * K) @ u)
    # BDF2 on the non-uniform grid 0, gamma, 1 in its textbook form
    alpha = (1 - gamma) / (2 - gamma) * STEP
    right = (middle - (1 - gamma) ** 2 * u) / (gamma * (2 - gamma))
    expected = np.linalg.solve(M - alpha * K, M @ right)
    assert np.abs(on_layer(Implicit(substeps=1), space).backward(u) - expected).max() < 1e-12


@pytest.mark.parametrize("propagator", SCHEMES, ids=SCHEME_NAMES)
def test_constants_and_mass_are_kept(propagator: Propagator, backend: str) -> None:
    """P 1 = 1, and 1^T P^T rho = 1^T rho."""
    space = space_of(2, backend)
    steps = on_layer(propagator, space)
    one = np.ones((len(space.lumped_mass), 1))
    rho = np.random.default_rng(0).uniform(size=one.shape)
    assert np.abs(steps.backward(one) - 1).max() < 1e-13
    assert abs(steps.forward(rho).sum() - rho.sum()) < 1e-13 * rho.sum()


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("propagator", SCHEMES, ids=SCHEME_NAMES)
@given(seed=st.integers(0, 10**6))
def test_forward_is_the_transpose_of_backward(
    propagator: Propagator, backend: str, dim: int, seed: int
) -> None:
    """<rho, P u> = <P^T rho, u> to 1e-13 of the norms; `adjoint` returns the same P^T rho."""
    space = space_of(dim, backend)
    steps = on_layer(propagator, space)
    rho, u = np.random.default_rng(seed).standard_normal((2, len(space.lumped_mass), 2))
    after, before = steps.backward(u), steps.forward(rho)
    scale = np.linalg.norm(rho) * np.linalg.norm(after) + np.linalg.norm(before) * np.linalg.norm(u)
    assert abs(np.vdot(rho, after) - np.vdot(before, u)) < 1e-13 * scale
    assert np.abs(steps.adjoint(rho, u)[0] - before).max() < 1e-13 * np.abs(before).max()


@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
@pytest.mark.parametrize(
    "propagator", [Explicit(0, substeps=1), Explicit(substeps=2), Explicit(3, substeps=1), Implicit(2)],
    ids=["explicit-0", "explicit-2", "explicit-3", "implicit"],
)  # fmt: skip
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_cotangent_passes_a_taylor_test(
    propagator: Propagator, backend: str, dim: int, diagonal: bool
) -> None:
    """g(e) = sum_c rho_c . P(b + e db, a + e da) u_c: first-order remainder falls as e^2."""
    space = space_of(dim, backend)
    drift, diffusion = smooth_coefficients(space)
    rng = np.random.default_rng(2)
    rho, u = rng.standard_normal((2, len(drift), 2))
    if diagonal:
        diffusion = np.einsum("qii->qi", diffusion).copy()
    d_drift, d_diffusion = rng.standard_normal(drift.shape), 0.1 * rng.standard_normal(diffusion.shape)
    if not diagonal:
        d_diffusion = d_diffusion + d_diffusion.transpose(0, 2, 1)

    def at(size: float) -> Steps:
        generator = space.generator(drift + size * d_drift, diffusion + size * d_diffusion)
        return propagator.on_layer(space, generator, STEP, 0)

    by_drift, by_diffusion = space.pullback(at(0).adjoint(rho, u)[1], diagonal)
    slope = np.vdot(by_drift, d_drift) + np.vdot(by_diffusion, d_diffusion)
    start = np.vdot(rho, at(0).backward(u))
    sizes = 0.004 * 0.5 ** np.arange(6)
    change = np.array([np.vdot(rho, at(e).backward(u)) - start for e in sizes])
    assert fitted_order(sizes, np.abs(change)) == pytest.approx(1, abs=0.1)
    assert fitted_order(sizes, np.abs(change - sizes * slope)) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_corrected_mass_is_of_order_2k_plus_2(corrections: int) -> None:
    r"""M_k^-1 M g = g + O(h^{2k+2}) in the interior, seen through the propagator.

    Shear flow b = (g(y), 0), a = 0, takes u = x to x + t g(y) without error in time (the second
    power of the generator vanishes), and K x = M b exactly: the step is x + t M_k^-1 M g.
    """
    cells, errors = [32, 48, 64], []
    for n in cells:
        space = make_space("skfem", 2, n, 2.0)
        x, y = space.coefficient_points.T
        wave = np.sin(2 * y + 0.5)
        generator = space.generator(np.stack([wave, 0 * y], axis=1), np.zeros((len(x), 2)))
        steps = Explicit(corrections, substeps=1).on_layer(space, generator, 0.05, 0)
        centre = np.maximum(abs(x), abs(y)) <= 0.5  # 12 cells and more off the boundary
        error = steps.backward(x[:, None])[:, 0] - x - 0.05 * wave
        errors.append(np.abs(error[centre]).max() / 0.05)
    assert -fitted_order(cells, errors) == pytest.approx(2 * corrections + 2, abs=0.15)


@pytest.mark.parametrize("corrections", [0, 1, 2, 3])
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_explicit_is_stable_at_its_own_substep(corrections: int, strength: float) -> None:
    """Constant diffusion: K = K^T <= 0 and M_k^-1 > 0, so the step's eigenvalues are real and in [0, 1]."""
    space = space_of(2)
    a = strength * np.array([[1.0, 0.4], [0.4, 0.5]])
    diffusion = np.broadcast_to(a, (len(space.lumped_mass), 2, 2)).copy()
    steps = Explicit(corrections).on_layer(
        space, space.generator(np.zeros(diffusion.shape[:2]), diffusion), 0.5, 0
    )
    eigenvalues = np.linalg.eigvals(steps.backward(np.eye(len(diffusion))))
    assert np.abs(eigenvalues.imag).max() < 1e-7
    assert eigenvalues.real.min() > -1e-9 and eigenvalues.real.max() < 1 + 1e-9


def test_stiffness_error_above_the_cap() -> None:
    """The substeps needed grow with diffusion; above the cap the layer is refused and named."""
    space = space_of(2)
    counts = []
    for strength in (0.05, 0.5, 2.0):
        generator = space.generator(*smooth_coefficients(space, diffusion=strength))
        counts.append(Explicit().on_layer(space, generator, 1.0, 0).count)
    assert counts[0] < counts[1] < counts[2] <= 64
    generator = space.generator(*smooth_coefficients(space, diffusion=2.0))
    Explicit(cap=counts[2]).on_layer(space, generator, 1.0, 7)
    with pytest.raises(StiffnessError, match=rf"layer 7: .* {counts[2]} substeps.*; take smaller") as caught:
        Explicit(cap=counts[2] - 1).on_layer(space, generator, 1.0, 7)
    assert caught.value.layer == 7 and isinstance(caught.value, InfeasibleError)


@pytest.mark.parametrize("make", [
    lambda: Explicit(4), lambda: Explicit(-1), lambda: Explicit(degree=2), lambda: Implicit(0),
    lambda: Implicit(1.5),
])  # fmt: skip
def test_bad_options_raise(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
