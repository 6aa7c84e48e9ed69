"""Finite-element spaces: identities of the generator matrix K, mass and interpolation, d = 1, 2, 3."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import interior, perturbed_mesh, random_coefficients, smooth_coefficients, volumes
from scipy.spatial import cKDTree

from kolmo.errors import InputError, NonFiniteError
from kolmo.pde import box_mesh, make_space, space_on
from kolmo.pde.mesh import Mesh
from kolmo.pde.space import Space

DIMS = (1, 2, 3)
CELLS = {1: 9, 2: 6, 3: 3}
HALF_WIDTH = 1.7


def mesh(dim: int, kind: str) -> Mesh:
    if kind == "kuhn":
        return box_mesh(dim, CELLS[dim], HALF_WIDTH)
    return perturbed_mesh(dim, CELLS[dim], HALF_WIDTH)


@cache
def cached(backend: str, dim: int, kind: str) -> Space:
    return space_on(backend, mesh(dim, kind))


@pytest.fixture(params=DIMS, ids=lambda d: f"{d}d", scope="session")
def dim(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=["kuhn", "perturbed"], scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def space(backend: str, dim: int, kind: str) -> Space:
    return cached(backend, dim, kind)


def relative(difference: np.ndarray, scale: np.ndarray) -> float:
    return float(np.abs(difference).max() / np.abs(scale).max())


def dense(space: Space, drift: np.ndarray, diffusion: np.ndarray) -> np.ndarray:
    """K by applying the generator to the unit vectors."""
    return space.generator(drift, diffusion).apply(np.eye(len(drift)))


# ------------------------------------------------------------------ the generator


def test_generator_equals_library_forms_and_quadrature(space: Space) -> None:
    """T (b, a) is the matrix that the library assembles from the weak form."""
    drift, diffusion = random_coefficients(space)
    expected = space.assemble(drift, diffusion).toarray()
    assert relative(dense(space, drift, diffusion) - expected, expected) < 1e-12
    matrix = space.generator(drift, diffusion).matrix.toarray()
    assert relative(matrix - expected, expected) < 1e-12


def test_diagonal_diffusion_is_a_full_one(space: Space) -> None:
    """The (Q, d) form of a gives the K of its diagonal matrices."""
    drift, diffusion = random_coefficients(space)
    diagonal = np.einsum("qii->qi", diffusion)
    full = diagonal[:, :, None] * np.eye(space.dim)
    expected = dense(space, drift, full)
    assert relative(dense(space, drift, diagonal) - expected, expected) < 1e-13


def test_generator_is_linear_in_the_coefficients(space: Space) -> None:
    """K(b + 2 c, a + 2 e) = K(b, a) + 2 K(c, e)."""
    (b, a), (c, e) = random_coefficients(space, 1), random_coefficients(space, 2)
    together = dense(space, b + 2 * c, a + 2 * e)
    assert relative(together - dense(space, b, a) - 2 * dense(space, c, e), together) < 1e-13


@pytest.mark.usefixtures("dolfinx")
def test_backends_agree_node_by_node(dim: int, kind: str) -> None:
    """With nodes matched by their coordinates both backends have the same K and M."""
    ours, theirs = cached("skfem", dim, kind), cached("dolfinx", dim, kind)
    distance, match = cKDTree(ours.coefficient_points).query(theirs.coefficient_points)
    assert distance.max() < 1e-14 and len(np.unique(match)) == len(match) == len(ours.coefficient_points)
    drift, diffusion = random_coefficients(ours)
    K = dense(ours, drift, diffusion)[np.ix_(match, match)]
    assert relative(dense(theirs, drift[match], diffusion[match]) - K, K) < 1e-12
    M = ours.mass(np.eye(len(match)))[np.ix_(match, match)]
    assert relative(theirs.mass(np.eye(len(match))) - M, M) < 1e-12


def test_constants_are_in_the_kernel(space: Space) -> None:
    """K 1 = 0 for any coefficients, up to the boundary: mass of the density is conserved."""
    drift, diffusion = random_coefficients(space)
    K = dense(space, drift, diffusion)
    assert np.abs(K.sum(axis=1)).max() < 1e-14 * np.abs(K).sum(axis=1).max()


def test_diffusion_does_not_act_on_affine_functions(space: Space) -> None:
    """K x_i = M b_i at interior nodes for any a; at all nodes once a n = 0 on the boundary."""
    drift, diffusion = random_coefficients(space)
    inside = interior(space)
    expected = space.mass(drift)
    result = space.generator(drift, diffusion).apply(space.coefficient_points)
    assert inside.any()
    assert relative((result - expected)[inside], expected) < 1e-12
    drift, diffusion = smooth_coefficients(space)
    expected = space.mass(drift)
    result = space.generator(drift, diffusion).apply(space.coefficient_points)
    assert relative(result - expected, expected) < 1e-12


def test_diffusion_is_exact_on_quadratics(backend: str, dim: int) -> None:
    """1/2 a : hess (x_i x_j) = a_ij: (K x_i x_j)_r = Ml_r a_ij for constant a, translation-invariant mesh."""
    space = cached(backend, dim, "kuhn")
    root = np.random.default_rng(3).standard_normal((dim, dim))
    a = root @ root.T
    x, inside = space.coefficient_points, interior(space)
    generator = space.generator(np.zeros_like(x), np.broadcast_to(a, (len(x), dim, dim)).copy())
    for i in range(dim):
        for j in range(dim):
            result = generator.apply((x[:, i] * x[:, j])[:, None])[:, 0]
            expected = space.lumped_mass * a[i, j]
            assert np.abs(result - expected)[inside].max() < 1e-12 * np.abs(a).max() * space.lumped_mass.max()


def test_constant_diffusion_is_symmetric_and_negative(space: Space) -> None:
    """Constant a, b = 0: K = K^T, 1^T K = 0, and -u^T K u = 1/2 int grad u . a grad u >= 0."""
    root = np.random.default_rng(4).standard_normal((space.dim, space.dim))
    x = space.coefficient_points
    a = root @ root.T + np.eye(space.dim)
    K = dense(space, np.zeros_like(x), np.broadcast_to(a, (len(x), *a.shape)).copy())
    scale = np.abs(K).max()
    assert np.abs(K - K.T).max() < 1e-13 * scale
    assert np.abs(K.sum(axis=0)).max() < 1e-13 * scale * len(x)
    eigenvalues = np.linalg.eigvalsh(0.5 * (K + K.T))
    assert eigenvalues[-1] < 1e-12 * scale and eigenvalues[-2] < -1e-6 * scale
    energy = -np.einsum("qi,qi->i", x, K @ x)  # u = x_i: 1/2 a_ii |box|
    assert np.allclose(energy, 0.5 * np.diag(a) * (2 * space.half_width) ** space.dim, rtol=1e-12)


@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
@given(seed=st.integers(0, 10**6))
def test_pullback_is_the_transpose_of_the_generator(
    backend: str, dim: int, kind: str, diagonal: bool, seed: int
) -> None:
    """sum_c p_c^T K(b, a) u_c = <b, pullback_b> + <a, pullback_a> of its sensitivity."""
    space = cached(backend, dim, kind)
    drift, diffusion = random_coefficients(space, seed)
    if diagonal:
        diffusion = np.einsum("qii->qi", diffusion).copy()
    rng = np.random.default_rng(seed + 1)
    p, u = rng.standard_normal((2, len(drift), 3))
    generator = space.generator(drift, diffusion)
    d_drift, d_diffusion = space.pullback(generator.sensitivity(p, u), diagonal)
    assert d_drift.shape == drift.shape and d_diffusion.shape == diffusion.shape
    paired = np.vdot(d_drift, drift) + np.vdot(d_diffusion, diffusion)
    applied = generator.apply(u)
    assert abs(np.vdot(p, applied) - paired) < 1e-12 * np.linalg.norm(p) * np.linalg.norm(applied)
    assert abs(np.vdot(p, applied) - np.vdot(generator.transpose(p), u)) < 1e-12 * np.linalg.norm(
        p
    ) * np.linalg.norm(applied)


def test_rate_bounds_the_spectrum(space: Space) -> None:
    """rate = max_r sum_s |K_rs| / Ml_r is at least the spectral radius of Ml^-1 K."""
    generator = space.generator(*random_coefficients(space))
    K = generator.apply(np.eye(len(space.lumped_mass)))
    scaled = K / space.lumped_mass[:, None]
    assert generator.rate() == pytest.approx(np.abs(scaled).sum(axis=1).max(), rel=1e-13)
    assert np.abs(np.linalg.eigvals(scaled)).max() <= generator.rate() * (1 + 1e-12)


def test_shifted_solver_and_its_transpose(space: Space) -> None:
    """(M - alpha K) x = y and (M - alpha K)^T x = y are solved."""
    generator = space.generator(*smooth_coefficients(space))
    y = np.random.default_rng(0).standard_normal((len(space.lumped_mass), 2))
    solver = generator.shifted(0.1)
    x, z = solver.solve(y), solver.solve_transpose(y)
    assert relative(space.mass(x) - 0.1 * generator.apply(x) - y, y) < 1e-12
    assert relative(space.mass(z) - 0.1 * generator.transpose(z) - y, y) < 1e-12


@pytest.mark.parametrize("which", ["drift", "diffusion"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coefficients_that_are_not_finite_are_named(space: Space, which: str, value: float) -> None:
    drift, diffusion = random_coefficients(space)
    (drift if which == "drift" else diffusion)[3] = value
    with pytest.raises(NonFiniteError, match=which):
        space.generator(drift, diffusion)


# ------------------------------------------------------------------ mass


def test_mass_integrates_products_of_affine_functions(space: Space) -> None:
    """1^T M 1 = (2R)^d, 1^T M x_i = 0, x_i^T M x_j = delta_ij (2R)^d R^2 / 3; Ml = M 1."""
    x, R, dim = space.coefficient_points, space.half_width, space.dim
    one = np.ones((len(x), 1))
    volume = (2 * R) ** dim
    functions = np.hstack([one, x])
    expected = volume * np.diag([1.0] + [R * R / 3] * dim)
    assert np.abs(functions.T @ space.mass(functions) - expected).max() < 1e-12 * volume
    assert relative(space.mass(one)[:, 0] - space.lumped_mass, space.lumped_mass) < 1e-13
    assert space.lumped_mass.min() > 0


def test_mass_defect(space: Space) -> None:
    """(I - Ml^-1 M) u; it annihilates constants, and affine functions inside a symmetric patch."""
    u = np.random.default_rng(1).standard_normal((len(space.lumped_mass), 3))
    expected = u - space.mass(u) / space.lumped_mass[:, None]
    assert relative(space.mass_defect(u) - expected, u) < 1e-14
    assert np.abs(space.mass_defect(np.ones_like(u))).max() < 1e-14


def test_mass_defect_kills_affine_functions_on_symmetric_patches(backend: str, dim: int) -> None:
    """On the Kuhn mesh sum_s M_rs (x_s - x_r) = 0 at interior nodes."""
    space = cached(backend, dim, "kuhn")
    defect = space.mass_defect(space.coefficient_points)
    assert np.abs(defect[interior(space)]).max() < 1e-14
    assert np.abs(defect[~interior(space)]).max() > 1e-3  # and not at the boundary: the test can fail


# ------------------------------------------------------------------ interpolation


@given(
    st.data(),
)
def test_interpolation_reproduces_affine_functions(
    backend: str, dim: int, kind: str, data: st.DataObject
) -> None:
    """Rows are non-negative, sum to 1, have d + 1 entries at most, and reproduce x."""
    space = cached(backend, dim, kind)
    coordinate = st.floats(-HALF_WIDTH, HALF_WIDTH, allow_nan=False)
    where = data.draw(st.lists(st.tuples(*[coordinate] * dim), min_size=1, max_size=8))
    x = np.array(where).reshape(-1, dim)
    weights = space.interpolation(x)
    assert weights.shape == (len(x), len(space.coefficient_points))
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-12
    assert weights.data.min() > -1e-12
    assert ((np.abs(weights.toarray()) > 1e-12).sum(axis=1) <= dim + 1).all()
    assert np.abs(weights @ space.coefficient_points - x).max() < 1e-12


def test_interpolation_at_nodes_is_the_identity(space: Space) -> None:
    values = space.interpolation(space.coefficient_points).toarray()
    assert np.abs(values - np.eye(len(values))).max() < 1e-12


@pytest.mark.parametrize("value", [HALF_WIDTH * 1.01, -HALF_WIDTH - 1e-9, np.inf])
def test_points_outside_the_box_raise(space: Space, value: float) -> None:
    x = np.zeros((2, space.dim))
    x[1, -1] = value
    with pytest.raises(InputError, match="outside the box"):
        space.interpolation(x)


# ------------------------------------------------------------------ meshes


@given(dim=st.sampled_from(DIMS), cells=st.integers(2, 5), half_width=st.floats(1e-3, 1e3))
def test_volumes_fill_the_box(dim: int, cells: int, half_width: float) -> None:
    """d! n^d simplices of equal volume that sum to (2R)^d."""
    box = box_mesh(dim, cells, half_width)
    size = np.abs(volumes(box))
    assert box.dim == dim and box.half_width == pytest.approx(half_width)
    assert len(size) == {1: 1, 2: 2, 3: 6}[dim] * cells**dim and len(box.points) == (cells + 1) ** dim
    assert size.sum() == pytest.approx((2 * half_width) ** dim, rel=1e-12)
    assert np.ptp(size) < 1e-9 * size.max()


def test_perturbed_mesh_is_a_mesh(dim: int) -> None:
    """Moving interior vertices keeps orientation and the total volume (the zoo's own check)."""
    moved, box = mesh(dim, "perturbed"), mesh(dim, "kuhn")
    assert np.abs(moved.points - box.points).max() > 0.01
    assert (volumes(moved) * volumes(box) > 0).all()
    assert np.abs(volumes(moved)).sum() == pytest.approx((2 * HALF_WIDTH) ** dim, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 4, 1.0), "dim"), ((4, 4, 1.0), "dim"), ((2, 1, 1.0), "cells"), ((2, 0, 1.0), "cells"),
        ((2, -3, 1.0), "cells"), ((2, 2.5, 1.0), "cells"), ((2, 4, 0.0), "half_width"),
        ((2, 4, -1.0), "half_width"), ((2, 4, np.nan), "half_width"), ((2, 4, np.inf), "half_width"),
    ],
)  # fmt: skip
def test_bad_boxes_raise(arguments: tuple, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: ") as caught:
        box_mesh(*arguments)
    assert "\n" not in str(caught.value)


def test_bad_meshes_raise() -> None:
    box = box_mesh(2, 2, 1.0)
    for points, cells in [
        (box.points[:, 0], box.cells),
        (np.hstack([box.points, box.points]), box.cells),
        (box.points, box.cells[:, :2]),
        (box.points, box.cells + 1),
        (box.points, box.cells - 1),
        (box.points + 0.5, box.cells),
    ]:
        with pytest.raises(InputError, match=r"^mesh: "):
            Mesh(points, cells)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_flat_cell_raises() -> None:
    """A simplex without volume has no gradient."""
    box = box_mesh(2, 2, 1.0)
    flat = box.cells.copy()
    flat[0] = [0, 1, 2]  # three vertices on one side
    with pytest.raises(InputError, match="cell 0 has no volume"):
        space_on("skfem", Mesh(box.points, flat))


def test_make_space_is_the_kuhn_mesh(backend: str) -> None:
    space = make_space(backend, 2, 4, 1.5)
    assert space.backend == backend and space.dim == 2 and space.half_width == 1.5
    assert {tuple(p) for p in space.coefficient_points} == {tuple(p) for p in box_mesh(2, 4, 1.5).points}
