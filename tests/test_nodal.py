"""Coefficients at the nodes, compiled: which equations are of that kind, and their values and gradients."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NOISES, problem
from torch import Tensor

import kolmo
from kolmo import field, noise
from kolmo.control import Objective
from kolmo.modified import modified_equation
from kolmo.multiplicative import multiplicative
from kolmo.network import Jet
from kolmo.noise.base import Noise
from kolmo.noise.structure import Diagonal, Structure
from kolmo.pde import BackwardKolmogorov, plane, stencil
from kolmo.pde.boundary import Taper
from kolmo.pde.box_space import BoxSpace
from kolmo.pde.nodal import NodalLayers, Nodes
from kolmo.pde.pool import KEPT, Pool
from kolmo.stream import Draws

#: noises that multiply the block, and others
PLAIN: dict[str, Noise] = {
    "none": noise.NoNoise(),
    "dropout": noise.BernoulliDropout({"first": 0.9, "last": 0.6}),
    "gaussian": noise.GaussianDropout(0.4),
    "uniform": noise.UniformNoise(0.5),
    "depth": noise.StochasticDepth(0.8),
    "test-time depth": noise.StochasticDepth({"last": 0.5}, scaling="test_time"),
}
OTHERS = ("injection", "hidden", "dropconnect", "shake")


def close(left: Any, right: Any, digits: float = 1e-13) -> None:
    left, right = np.asarray(left), np.asarray(right)
    np.testing.assert_allclose(left, right, rtol=0, atol=digits * max(np.abs(left).max(), 1e-300))


def grid(dim: int, cells: int, half_width: float) -> np.ndarray:
    axis = np.linspace(-half_width, half_width, cells + 1)
    return np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)


# ------------------------------------------------------------------ which equations


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_three_numbers_a_layer(name: str, order: int) -> None:
    """b = beta f + gamma (grad f) f and a = alpha f f^T or its diagonal are the modified equation."""
    network, x = problem(2, depth=4).network, torch.from_numpy(grid(2, 3, 2.0))
    for correction in (1.0, 0.5):
        found = multiplicative(network, PLAIN[name], order, correction)
        assert found is not None and found.diagonal == ("depth" not in name)
        jet = network.jet(x)
        beta, gamma, alpha = torch.from_numpy(found.scales).T[:, :, None, None]
        whole = modified_equation(network, PLAIN[name], x, order, correction=correction)
        close(whole.drift.detach(), (beta * jet.value + gamma * jet.advection()).detach())
        f = jet.value
        a = alpha * f * f if found.diagonal else alpha[..., None] * f[..., :, None] * f[..., None, :]
        np.testing.assert_allclose(whole.diffusion.detach(), a.detach(), rtol=1e-13, atol=1e-300)


class Clipped(noise.BernoulliDropout):
    """Its spread is no multiple of the block."""

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value.clamp(max=0.1))


class Shifted(noise.BernoulliDropout):
    """A spread with a constant part."""

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value + 0.1)


class Advected(noise.BernoulliDropout):
    """A spread along (grad f) f."""

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value + 0.1 * jet.advection())


class Squared(Noise):
    """A covariance given as a tensor."""

    def sample(self, network: Any, layer: int, x: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError

    def covariance(self, jet: Jet) -> Tensor:
        return 0.1 * jet.value.square()


class Detached(noise.BernoulliDropout):
    """A mean whose jet is its own, of tensors."""

    def mean(self, jet: Jet) -> Jet:
        if isinstance(jet.value, Tensor):
            return jet
        return problem(2, depth=3).network.jet(torch.zeros(1, 2, dtype=torch.float64))


class Varying(noise.BernoulliDropout):
    """A strength that varies with x: the block times something as large as itself."""

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value * jet.value)


@pytest.mark.parametrize("kind", [Clipped, Shifted, Advected, Squared, Detached, Varying])
def test_a_noise_of_ones_own_is_not_mistaken(kind: type[Noise]) -> None:
    """Whatever is not a multiple of the block takes the general way, and gives the general equation."""
    own = kind() if kind is Squared else kind(0.8)  # type: ignore[call-arg]
    given_problem = problem(2, own, depth=3)
    assert multiplicative(given_problem.network, own) is None
    boxed = [BackwardKolmogorov(given_problem, cells=8, half_width=3.0, backend=b) for b in ("box", "skfem")]
    one, two = (float(equation.expected_loss().detach()) for equation in boxed)
    assert one == pytest.approx(two, rel=1e-12)
    assert boxed[0].nodal.layers(given_problem.network, True) is None


def test_what_the_others_need() -> None:
    """Hidden units, branches and injections are not of this kind, dropout with an injection neither."""
    network = problem(2, depth=3).network
    for name in OTHERS:
        assert multiplicative(network, NOISES[name]) is None, name
    both = noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.1)])
    assert multiplicative(network, both) is None


# ------------------------------------------------------------------ values and gradients


@pytest.mark.parametrize("cores", ["1", "2"])
@pytest.mark.parametrize("line", [True, False], ids=["grid", "points"])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_coefficients_and_their_gradient(
    dim: int, name: str, line: bool, cores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `modified_equation` and `Taper`, and their derivatives by all weights, on one core or two."""
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    network = problem(dim, depth=3).network
    cells = {1: 40, 2: 18, 3: 7}[dim]
    points = grid(dim, cells, 3.0)
    taper = Taper(points, 3.0, 6.0 / cells)
    plain = multiplicative(network, PLAIN[name])
    assert plain is not None
    nodes = Nodes(points, taper, cells + 1 if line else 0)
    general = taper(modified_equation(network, PLAIN[name], torch.from_numpy(points)))
    rng = torch.Generator().manual_seed(2)
    both = general.drift, general.diffusion
    pulls = [torch.randn(v.shape, generator=rng, dtype=torch.float64) for v in both]
    total = sum((v * pull).sum() for v, pull in zip(both, pulls, strict=True))
    expected = torch.autograd.grad(total, list(network.parameters()))  # type: ignore[arg-type]
    for adjoint in (True, False):
        layers = NodalLayers(network, plain, nodes, adjoint)  # type: ignore[arg-type]
        for k in (2, 1, 0, 1):  # as a march asks, and one again
            for left, right in zip(general.at(k), layers.at(k), strict=True):
                close(left, right)
        for _ in range(2 if adjoint else 0):
            for k in range(3):
                rows = layers.empty()
                for pull, into in zip(pulls, layers.shaped(rows), strict=True):
                    into[:] = pull[k].numpy()
                layers.pull(k, rows)
            for left, right in zip(expected, layers.gradient(), strict=True):
                assert left.shape == right.shape
                close(left, right, 1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
@given(seed=st.integers(0, 10**6), size=st.floats(0.1, 300), width=st.integers(1, 7))
def test_the_field_on_a_grid(dim: int, seed: int, size: float, width: int) -> None:
    """Units as products over the axes are those of single points, from small weights to saturated ones."""
    rng = np.random.default_rng(seed)
    W, b, V = (
        torch.from_numpy(size * rng.standard_normal(s))
        for s in ((1, width, dim), (1, width), (1, dim, width))
    )
    weights = [w[0] for w in field.kernel_weights(W, b, V / size)]
    points = field.kernel_points(np.ascontiguousarray(grid(dim, {1: 300, 2: 20, 3: 7}[dim], 2.5).T))
    line, dims = {1: 301, 2: 21, 3: 8}[dim], (0,) * dim
    f, g = np.empty((2, 2, dim, points.shape[1]))
    for k, step in enumerate((0, line)):
        field.evaluate(dims, *weights, points, step, f[k], g[k])
    # the argument of a unit is off by its rounding, which size multiplies
    digits = 1e-14 * (1 + size)
    np.testing.assert_allclose(f[0], f[1], rtol=0, atol=digits * width)
    np.testing.assert_allclose(g[0], g[1], rtol=0, atol=digits * size * width**2)
    pulls, found = rng.standard_normal((2, *f[0].shape)), []
    for step in (0, line):
        into = [np.empty_like(w) for w in weights]
        field.differentiate(dims, *weights, points, step, f[0], *pulls, *into)
        found.append(np.concatenate([v.ravel() for v in into]))
    close(found[0], found[1], 1e-12 * (1 + size))


def test_a_grid_does_not_hide_what_is_not_finite() -> None:
    """A nan weight makes the layer's coefficients nan, on the grid too."""
    given_problem = problem(2, depth=3)
    with torch.no_grad():
        given_problem.network.b[1, 2] = float("nan")
        equation = BackwardKolmogorov(given_problem, cells=8, half_width=3.0)
        layers = equation.nodal.layers(given_problem.network, False)
    assert layers is not None
    assert np.isfinite(layers.at(0)[0]).all() and np.isnan(layers.at(1)[0]).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["dropout", "hidden", "injection"])
def test_a_network_on_an_accelerator(name: str) -> None:
    """Its coefficients are computed there, J and the gradient are the processor's."""
    given_problem = problem(2, NOISES[name], depth=3)
    equation = BackwardKolmogorov(given_problem, cells=12, half_width=3.0)
    objective = Objective(given_problem.network, equation.expected_loss)
    value, gradient = objective.value_and_gradient(objective.theta)
    given_problem.network.cuda()
    again, other = objective.value_and_gradient(objective.theta)
    assert again == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-11 * np.abs(gradient).max())


# ------------------------------------------------------------------ the stencil in the plane


@pytest.mark.parametrize("components", [2, 3])
@pytest.mark.parametrize("cells", [2, 3, 17])
def test_the_plane_is_the_stencils(cells: int, components: int) -> None:
    """K, its rate and the pullback, entry by entry."""
    s = BoxSpace(2, cells, 1.3).stencil
    rng = np.random.default_rng(cells)
    b, a = rng.standard_normal((2, s.count)), rng.standard_normal((components, s.count))
    tables = (s.table(components == 2), s.paths, s.nodes, s.slots, s.valid)
    work = np.zeros((plane.ROWS, s.width))
    work[-1, s.margin : s.margin + len(s.valid)] = s.valid
    K = np.zeros((2, 7, s.width))
    one = stencil.assemble(b, a, *tables, s.margin, s.c1, s.c2, s.lumped, K[0])
    two = plane.assemble((0,) * components, b, a, cells + 1, s.margin, s.c1, s.c2, s.inverse, work, K[1])
    assert one == pytest.approx(two, rel=1e-13)
    close(K[0], K[1])
    G, found = rng.standard_normal((7, s.count)), np.empty((2, 2 + components, s.count))
    stencil.pullback(G, *tables, s.c1, s.c2, found[0, :2], found[0, 2:])
    plane.pullback((0,) * components, G, cells + 1, s.margin, s.c1, s.c2, work, found[1, :2], found[1, 2:])
    close(found[0], found[1])
    for bad in (np.nan, np.inf):
        b[1, 4] = bad
        assert np.isnan(
            plane.assemble((0,) * components, b, a, cells + 1, s.margin, s.c1, s.c2, s.inverse, work, K[1])
        )


# ------------------------------------------------------------------ memory that is used again


def test_a_pool_lends_what_nobody_holds() -> None:
    """An array comes back when its last view is gone, never before; shapes keep to themselves."""
    pool = Pool()
    first = pool.take(3, 4)
    first[:] = 7
    place, view = first.ctypes.data, first[1:, 2:].T
    del first
    other = pool.take(3, 4)
    assert other.ctypes.data != place and (view == 7).all() and not other.any()
    tensor = torch.from_numpy(view)
    del view
    assert pool.take(3, 4).ctypes.data != place
    del tensor
    gc.collect()
    assert place in {a.ctypes.data for a in [pool.take(3, 4) for _ in range(1)] + [pool.take(3, 4)]}
    assert pool.take(4, 3).shape == (4, 3)
    assert all(pool.take(2, n).ctypes.data % 64 == 0 for n in range(1, 40))


def test_a_pool_does_not_hoard() -> None:
    """What is more than it may keep is freed."""
    pool = Pool()
    arrays = [pool.take(KEPT // 32) for _ in range(6)]  # a quarter of what is kept each
    del arrays
    assert len([a for found in pool._free.values() for a in found]) == 4


def test_two_marches_at_once_do_not_share() -> None:
    """A loss that waits for its backward pass keeps its own numbers while others are computed."""
    given_problem = problem(2, depth=3)
    equation = BackwardKolmogorov(given_problem, cells=12, half_width=3.0)
    weights = list(given_problem.network.parameters())
    alone = torch.autograd.grad(equation.expected_loss(), weights)
    waiting = equation.expected_loss()
    with torch.no_grad():
        moved = kolmo.ResidualNetwork.from_weights(*(1.5 * w for w in given_problem.network.parameters()))
    torch.autograd.grad(equation.expected_loss(moved), list(moved.parameters()))
    equation.expected_loss(moved)
    for one, two in zip(alone, torch.autograd.grad(waiting, weights), strict=True):
        assert torch.equal(one, two)
