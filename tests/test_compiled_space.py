"""The compiled paths against the plain ones: spaces, substeps, jets, the taper, J and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES, perturbed_mesh, problem, random_coefficients

import kolmo
from kolmo.errors import InputError, MissingBackendError, NonFiniteError
from kolmo.modified import Coefficients
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, backend, make_space, space_on
from kolmo.pde.boundary import Taper, profile
from kolmo.pde.box_space import BoxSpace, BoxSteps
from kolmo.pde.csr import clip, overshoot, roughness
from kolmo.pde.propagator import ExplicitSteps
from kolmo.pde.space import Space

CELLS = {1: 9, 2: 6, 3: 4}


@pytest.fixture(params=CELLS, ids=lambda d: f"{d}d", scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[Space, Space]:
    """The same mesh by scikit-fem and by the stencil."""
    return tuple(make_space(name, request.param, CELLS[request.param], 1.7) for name in ("skfem", "box"))


def close(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-13 * np.abs(left).max())


def coefficients(space: Space, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    drift, diffusion = random_coefficients(space)
    return drift, np.einsum("qii->qi", diffusion).copy() if diagonal else diffusion


# ------------------------------------------------------------------ the box


def test_masses_and_interpolation(pair: tuple[Space, Space]) -> None:
    """Lumped and consistent mass, roughness, and P1 functions at points, corners and faces among them."""
    plain, box = pair
    rng = np.random.default_rng(0)
    u = rng.standard_normal((len(plain.lumped_mass), 3))
    close(plain.lumped_mass, box.lumped_mass)
    close(plain.mass(u), box.mass(u))
    close(plain.mass_defect(u), box.mass_defect(u))
    assert box.roughness(u) == pytest.approx(Space.roughness(plain, u), rel=1e-12)
    assert plain.roughness(u) == pytest.approx(Space.roughness(plain, u), rel=1e-12)
    x = rng.uniform(-1.7, 1.7, (40, plain.dim))
    x[0], x[1], x[2:6, 0] = 1.7, -1.7, 1.7
    x[6] = plain.coefficient_points[3]
    close(plain.interpolation(x).toarray(), box.interpolation(x).toarray())
    x[7, 0] = 1.71
    with pytest.raises(InputError, match="outside the box"):
        box.interpolation(x)


@pytest.mark.parametrize("cells", [2, 3, 17])
def test_lines_of_the_plane(cells: int) -> None:
    """Both classes on meshes of boundary mostly and on one that is not: mass, roughness, K, its transpose."""
    plain, box = (make_space(name, 2, cells, 1.7) for name in ("skfem", "box"))
    u = np.random.default_rng(cells).standard_normal((len(plain.lumped_mass), 2))
    close(plain.mass_defect(u), box.mass_defect(u))
    for columns in (u, 3 + np.asfortranarray(u)):
        assert box.roughness(columns) == pytest.approx(Space.roughness(plain, columns), rel=1e-12)
    A, B = (space.generator(*coefficients(plain, True)) for space in (plain, box))
    close(A.apply(u), B.apply(u))
    close(A.transpose(u), B.transpose(u))


@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
def test_generators_and_their_transposes(pair: tuple[Space, Space], diagonal: bool) -> None:
    """K, its products with any number of columns, its rate, and derivatives by drift and diffusion."""
    plain, box = pair
    b, a = coefficients(plain, diagonal)
    A, B = plain.generator(b, a), box.generator(b, a)
    close(A.matrix.toarray(), B.matrix(B.entries).toarray())
    assert A.rate() == pytest.approx(B.rate(), rel=1e-13)
    rng = np.random.default_rng(1)
    for columns in (1, 2, 5):
        p, u = rng.standard_normal((2, len(b), columns))
        close(A.apply(u), B.apply(u))
        close(A.transpose(p), B.transpose(p))
        left, right = (s.pullback(g.sensitivity(p, u), diagonal) for s, g in ((plain, A), (box, B)))
        close(left[0], right[0])
        close(left[1], right[1])


@pytest.mark.parametrize(
    "scheme",
    [*(Explicit(k, substeps=2) for k in range(4)), Explicit(substeps=2, degree=3), Implicit()],
    ids=["lumped", "one", "two", "three", "cubic", "implicit"],
)
def test_substeps(pair: tuple[Space, Space], scheme: Explicit | Implicit) -> None:
    """Every scheme's step, its transpose and its derivative, with a record of the stages and without."""
    plain, box = pair
    b, a = coefficients(plain, True)
    steps = [scheme.on_layer(s, s.generator(b, a), 0.02, 0) for s in (plain, box)]
    rng = np.random.default_rng(2)
    for columns in (1, 2, 3):
        u, rho = rng.standard_normal((2, len(b), columns))
        close(steps[0].backward(u), steps[1].backward(u))
        close(steps[0].forward(rho), steps[1].forward(rho))
    u, rho = rng.standard_normal((2, len(b), 2))
    found = []
    for space, one in zip(pair, steps, strict=True):
        after, record = one.record(u)
        for made in (u, record):
            density, cotangent = one.adjoint(rho, made)
            found.append((after, density, *space.pullback(cotangent, True)))
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            close(left, right)


@pytest.mark.parametrize("mesh", ["kuhn", "perturbed"])
def test_compiled_sparse_substeps_are_the_generic_ones(mesh: str) -> None:
    """On any mesh."""
    space = make_space("skfem", 2, 6, 1.7) if mesh == "kuhn" else space_on("skfem", perturbed_mesh(2, 6, 1.7))
    generator = space.generator(*coefficients(space, False))
    u, rho = np.random.default_rng(3).standard_normal((2, len(space.lumped_mass), 2))
    for corrections, degree in ((0, 4), (1, 3), (2, 3), (2, 4), (3, 4)):
        generic = ExplicitSteps(space, generator, 0.01, 1, corrections, degree)
        compiled = generator.explicit(0.01, 1, corrections, degree)
        assert type(compiled) is not ExplicitSteps
        close(generic.backward(u), compiled.backward(u))
        close(generic.forward(rho), compiled.forward(rho))
        for left, right in zip(generic.adjoint(rho, u), compiled.adjoint(rho, u), strict=True):
            close(left, right)


def test_the_box_names_what_is_not_finite() -> None:
    """A nan in one coefficient is found, whatever the comparison of rates makes of it."""
    space = make_space("box", 2, 4, 1.0)
    b, a = coefficients(space, True)
    b[7, 1] = np.nan
    with pytest.raises(NonFiniteError, match="drift is not finite at"):
        space.generator(b, a)


def test_which_backend_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box by itself, on one process; a mesh of one's own by another backend."""
    assert backend.resolve("auto") == "box"
    assert isinstance(make_space("auto", 2, 4, 1.0), BoxSpace)
    with pytest.raises(InputError, match="a mesh of its own"):
        space_on("box", perturbed_mesh(2, 4, 1.0))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(backend, "_missing", lambda: None)
    assert backend.resolve("auto") == "dolfinx"
    monkeypatch.setattr(backend, "_missing", lambda: "it is not installed")
    assert backend.resolve("auto") == "box" and space_on("auto", perturbed_mesh(1, 4, 1.0)).backend == "skfem"
    with pytest.raises(MissingBackendError, match="--backend box"):
        backend.resolve("dolfinx")


def test_bounds_and_roughness_of_columns() -> None:
    """Of either memory order; a nan or an infinity anywhere is beyond all bounds."""
    u, lower, upper = (
        np.random.default_rng(4).standard_normal((50, 2)),
        np.array([-1, -9.0]),
        np.array([9.0, 1]),
    )
    beyond = max(-1 - u[:, 0].min(), u[:, 1].max() - 1)
    assert beyond > 0
    for layout in (u, np.asfortranarray(u)):
        assert overshoot(layout, lower, upper) == beyond
        assert overshoot(layout, lower - 9, upper + 9) == 0
        out, kept = np.empty_like(layout), np.empty_like(layout, dtype=bool)
        assert clip(layout, lower, upper, out, kept) == (~kept).sum() > 0
        np.testing.assert_array_equal(out, np.clip(u, lower, upper))
        np.testing.assert_array_equal(kept, (u >= lower) & (u <= upper))
    for bad in (np.nan, np.inf, -np.inf):
        u[10, 1] = bad
        assert overshoot(u, lower, upper) == np.inf
    assert roughness(np.ones(50), np.ones((50, 1)), np.zeros((50, 1))) == 0


# ------------------------------------------------------------------ the field and the taper


@pytest.mark.parametrize("dim", [1, 2, 3])
@given(seed=st.integers(0, 10**6), size=st.floats(0.1, 30))
def test_the_compiled_field(dim: int, seed: int, size: float) -> None:
    """f, (grad f) f and their gradient by the weights, saturated units and several blocks of points too."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    W, b, V = size * normal(3, 5, dim), normal(3, 5), normal(3, dim, 5)
    network = kolmo.ResidualNetwork.from_weights(W, b, V)
    x, cotangents = normal(300, dim), normal(2, 3, 300, dim)
    found = []
    for jet in (network.jet(x), network.nodal_jet(x)):
        both = torch.stack([jet.value, jet.advection()])
        found.append([both.detach(), *torch.autograd.grad((both * cotangents).sum(), network.parameters())])
    for plain, compiled in zip(*found, strict=True):
        close(plain.numpy(), compiled.numpy())


def test_a_field_that_is_not_finite_stays_so() -> None:
    """A nan weight is not turned into a number."""
    network = kolmo.ResidualNetwork(2, 4, 2)
    with torch.no_grad():
        network.b[1, 2] = float("nan")
        jet = network.nodal_jet(torch.zeros(5, 2, dtype=torch.float64))
    assert torch.isfinite(jet.value[0]).all() and torch.isnan(jet.value[1]).all()
    assert torch.isnan(jet.advection()[1]).all()


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_the_tapers_derivative(full: bool) -> None:
    """Against torch's own derivative of the formula."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, (30, 2))
    b = torch.from_numpy(rng.standard_normal((3, 30, 2))).requires_grad_()
    a = torch.from_numpy(rng.standard_normal((3, 30, 2, 2) if full else (3, 30, 2))).requires_grad_()
    points = torch.from_numpy(x)
    chi = profile(points, 2.0)
    drift = torch.where(b * points > 0, chi * b, b)
    damping = 2 * 0.1 * chi * (1 - chi) * drift.abs()
    if full:
        diffusion = chi[:, :, None] * chi[:, None, :] * a + torch.diag_embed(damping)
    else:
        diffusion = chi * chi * a + damping
    found = Taper(x, 2.0, 0.1)(Coefficients(b, a))
    close(drift.detach().numpy(), found.drift.detach().numpy())
    close(diffusion.detach().numpy(), found.diffusion.detach().numpy())
    pulls = torch.from_numpy(rng.standard_normal(drift.shape)), torch.from_numpy(rng.standard_normal(a.shape))
    plain = torch.autograd.grad((drift * pulls[0]).sum() + (diffusion * pulls[1]).sum(), (b, a))
    ours = torch.autograd.grad((found.drift * pulls[0]).sum() + (found.diffusion * pulls[1]).sum(), (b, a))
    for left, right in zip(plain, ours, strict=True):
        close(left.numpy(), right.numpy())


# ------------------------------------------------------------------ together


def test_layers_are_made_as_they_are_marched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last first, each just before its substeps: what it is made of is in cache then."""
    events: list[str] = []
    for owner, name in ((BoxSpace, "generator"), (BoxSteps, "_taylor")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, p=plain, n=name: (events.append(n), p(*a))[1])
    equation = BackwardKolmogorov(problem(2, depth=3), cells=12, half_width=3.0)
    for gradient in (False, True):
        events.clear()
        with torch.set_grad_enabled(gradient):
            equation.expected_loss()
        first = [k for k, event in enumerate(events) if event == "generator"]
        assert len(first) == 3 and events[-1] == "_taylor"
        assert all(events[k - 1] == "_taylor" for k in first[1:])


@pytest.mark.parametrize("name", ["dropout", "hidden", "depth", "injection"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_one_loss_and_gradient_on_every_backend(dim: int, name: str) -> None:
    """J and dJ/dtheta by the box are scikit-fem's to 1e-12; clipped or not."""
    given_problem = problem(dim, NOISES[name], depth=3)
    for limit in (True, False):
        found = []
        for which in ("skfem", "box"):
            equation = BackwardKolmogorov(
                given_problem, cells=CELLS[dim] + 4, backend=which, half_width=3.0, limit=limit
            )
            loss = equation.expected_loss()
            gradient = torch.autograd.grad(loss, list(given_problem.network.parameters()))
            found.append(np.concatenate([[loss.item()], *(g.numpy().ravel() for g in gradient)]))
        np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12 * np.abs(found[0]).max())
