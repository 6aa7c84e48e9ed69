"""Kernels against the plain torch path: losses path by path, gradients, which problems have kernels."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DEPTH, NOISES, PlainNetwork, points, trained_size
from torch import Tensor

from kolmo import Problem, chain, noise
from kolmo.chain import Chain
from kolmo.compiled import elementary
from kolmo.compiled.chain import CompiledChain, has_kernels
from kolmo.loss import LeastSquares, Logistic
from kolmo.network import LayeredNetwork

#: the noises of the zoo with kernels
COMPILED = [
    name
    for name, model in NOISES.items()
    if not model.shared and not isinstance(model, (noise.Composition, noise.ShakeShake))
]
#: relative errors allowed in losses and in gradients
TOLERANCES = {torch.float64: (1e-12, 1e-10), torch.float32: (1e-4, 1e-4)}


def problem(name: str, dim: int = 2, width: int = 8, **keys: Any) -> Problem:
    """A noise of the zoo in a network of trained size."""
    return Problem(points(dim, 13), trained_size(dim, DEPTH, width, **keys), NOISES[name], Logistic(3.0))


def kernels_of(simulated: Chain) -> tuple[CompiledChain, LayeredNetwork]:
    network = simulated._here(simulated.problem.network)
    found = simulated.kernels(network)
    assert isinstance(found, CompiledChain)
    return found, network


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------ the same paths


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", COMPILED)
def test_losses_are_those_of_torch(name: str, dtype: torch.dtype, antithetic: bool) -> None:
    """Path by path, from any copy on, to rounding."""
    simulated = Chain(problem(name), seed=5, dtype=dtype, antithetic=antithetic)
    kernels, network = kernels_of(simulated)
    for copies, first in [(1, 0), (4, 3), (90, 2)]:
        stream = simulated.stream(copies, first)
        with torch.no_grad():
            ours, theirs = kernels.losses(stream), simulated.plain(network, stream)
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert float(((ours - theirs) / theirs).abs().max()) < TOLERANCES[dtype][0]


@settings(max_examples=40)
@given(
    name=st.sampled_from(COMPILED), dim=st.integers(1, 3), width=st.integers(1, 9),
    first=st.integers(0, 10**12), copies=st.integers(1, 60), activation=st.sampled_from(["tanh", "sigmoid"]),
    antithetic=st.booleans(),
)  # fmt: skip
def test_losses_and_gradients_of_any_shape(
    name: str, dim: int, width: int, first: int, copies: int, activation: str, antithetic: bool
) -> None:
    """Every dimension, odd widths, any number of paths: losses, and gradients with any cotangent."""
    given_problem = problem(name, dim, width, activation=activation)
    simulated = Chain(given_problem, seed=first % 7, antithetic=antithetic)
    kernels, network = kernels_of(simulated)
    stream = simulated.stream(copies, first)
    ours, theirs = kernels.losses(stream), simulated.plain(network, stream)
    assert float(((ours - theirs) / theirs).detach().abs().max()) < TOLERANCES[torch.float64][0]
    weights = torch.cos(torch.arange(len(ours), dtype=torch.float64))
    pairs = (torch.autograd.grad((weights * x).sum(), list(network.parameters())) for x in (ours, theirs))
    for found, wanted in zip(*pairs, strict=True):
        assert relative(found, wanted) < TOLERANCES[torch.float64][1]


@pytest.mark.parametrize("name", ["none", "dropout", "hidden", "dropconnect", "depth-test-time", "injection"])
def test_gradients_in_single_precision(name: str) -> None:
    simulated = Chain(problem(name), seed=2, dtype=torch.float32)
    kernels, network = kernels_of(simulated)
    stream = simulated.stream(70, 0)
    pairs = (
        torch.autograd.grad(losses.mean(), list(network.parameters()))
        for losses in (kernels.losses(stream), simulated.plain(network, stream))
    )
    for found, wanted in zip(*pairs, strict=True):
        assert found.dtype == torch.float32 and relative(found, wanted) < TOLERANCES[torch.float32][1]


@pytest.mark.parametrize("name", COMPILED)
def test_taylor_remainders(name: str) -> None:
    """|J(theta + e d) - J - e J'd| = O(e^2) under the same random numbers."""
    given_problem = problem(name)
    simulated = Chain(given_problem, seed=1)
    parameters = list(given_problem.network.parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def value() -> Tensor:
        return simulated.losses(30, 0).mean()

    start = value()
    gradient = torch.autograd.grad(start, parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    remainders = []
    for size in (1e-2, 5e-3, 2.5e-3):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=size)
            remainders.append(abs(float(value()) - float(start.detach()) - size * slope))
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=size)
    orders = [math.log2(a / b) for a, b in itertools.pairwise(remainders)]
    assert all(1.8 < order < 2.3 for order in orders), orders


def test_far_out_and_not_finite() -> None:
    """Weights so large that units saturate, losses beyond where torch's softplus is linear, and nan."""
    given_problem = problem("dropout")
    with torch.no_grad():
        given_problem.network.W.mul_(1e4)
        given_problem.network.V.mul_(30)
    simulated = Chain(given_problem, seed=1)
    kernels, network = kernels_of(simulated)
    stream = simulated.stream(20, 0)
    with torch.no_grad():
        ours, theirs = kernels.losses(stream), simulated.plain(network, stream)
    assert float(ours.max()) > 20 > 1e-3 > float(ours.min()) > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0)
    with torch.no_grad():
        given_problem.network.b[1, 0] = math.nan
    assert bool(Chain(given_problem).losses(2).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_exponents_within_reach_are_not_cut_off(dtype: torch.dtype) -> None:
    """Bit by bit the same with and without the bounds that only far exponents need."""
    simulated = Chain(problem("dropout"), seed=1, dtype=dtype)
    kernels, _ = kernels_of(simulated)
    stream = simulated.stream(90, 0)
    without = kernels.values(stream)
    kernels._layers.reach.fill(math.inf)
    assert torch.equal(kernels.values(stream), without)


@pytest.mark.parametrize("weight", ["W", "b"])
def test_reach_of_a_layer(weight: str) -> None:
    """No exponent is beyond it, and a weight that is not a number is in it."""
    given_problem = problem("dropout", width=7)
    kernels, network = kernels_of(Chain(given_problem))
    x = given_problem.data.points
    for k, reach in enumerate(kernels._layers.reach):
        most = reach[0] + reach[1:] @ x.abs().amax(dim=0).numpy()
        exponents = (x @ network.W[k].T + network.b[k]).detach().numpy() * 2 / math.log(2)
        assert np.abs(exponents).max() <= most
    with torch.no_grad():
        getattr(network, weight)[2, 3] = math.nan
    kernels.refresh()
    assert np.isnan(kernels._layers.reach[2]).any() and np.isfinite(kernels._layers.reach[3]).all()


def test_probabilities_beyond_32_bits() -> None:
    """p = 1 keeps every unit, p below 2^-33 none."""
    for p, kept in ((1.0, 1.0), (1e-12, 0.0)):
        given_problem = problem("dropout")
        given_problem.noise = noise.StochasticDepth(p, scaling="test_time")
        simulated = Chain(given_problem)
        kernels, network = kernels_of(simulated)
        stream = simulated.stream(3, 0)
        torch.testing.assert_close(
            kernels.losses(stream), simulated.plain(network, stream), rtol=1e-12, atol=0
        )
        x, network = given_problem.data.points, given_problem.network
        end = network(x) if kept else x
        expected = given_problem.loss(end, given_problem.data.labels)
        torch.testing.assert_close(simulated.losses(1, 0)[0], expected, rtol=1e-12, atol=0)


# ------------------------------------------------------------------ addresses


def test_paths_do_not_depend_on_the_split() -> None:
    """Bit by bit, whatever the blocks that a path is simulated in."""
    simulated = Chain(problem("hidden"), seed=3)
    with torch.no_grad():
        whole = simulated.losses(150, 0)
        pieces = torch.cat([simulated.losses(n, first) for n, first in ((1, 0), (40, 1), (7, 41), (102, 48))])
    assert torch.equal(whole, pieces)


def test_estimates_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "KERNEL_BLOCK", 500)
    values = []
    for threads in (1, 4):
        monkeypatch.setattr(chain.os, "cpu_count", lambda threads=threads: threads)
        found = Chain(problem("dropout"), seed=9, antithetic=True).estimate(20_000)
        values.append((found.value, found.standard_error))
    assert values[0] == values[1]


@pytest.mark.parametrize("antithetic", [False, True])
def test_estimates_and_gradients_are_those_of_torch(
    antithetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, error, gradient and its error by either path."""
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(Chain, "is_compiled", lambda self, network: False)
        simulated = Chain(problem("uniform"), seed=4, antithetic=antithetic)
        found.append((simulated.estimate(5000), simulated.gradient(5000)))
    (ours, ours_g), (theirs, theirs_g) = found
    assert ours.value == pytest.approx(theirs.value, rel=1e-12)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=1e-10)
    assert ours.paths == theirs.paths and ours_g.paths == theirs_g.paths
    for name in ("W", "b", "V"):
        assert relative(ours_g.value[name], theirs_g.value[name]) < 1e-10
        assert relative(ours_g.standard_error[name], theirs_g.standard_error[name]) < 1e-8


# ------------------------------------------------------------------ what has kernels


class Mine(noise.BernoulliDropout):
    """A subclass may do anything."""


def test_anything_else_takes_torch() -> None:
    """Other noises, losses, networks, dimensions, activations, and the control variate."""
    known = problem("dropout")
    assert has_kernels(known, known.network) and has_kernels(known, copy.deepcopy(known.network))
    for name, model in NOISES.items():
        given_problem = Problem(known.data, known.network, model, known.loss)
        assert has_kernels(given_problem, known.network) == (name in COMPILED), name
    for other in (
        Problem(known.data, known.network, Mine(0.8), known.loss),
        Problem(known.data, known.network, known.noise, LeastSquares()),
        Problem(known.data, PlainNetwork(trained_size(2, DEPTH)), known.noise, known.loss),
        Problem(known.data, trained_size(2, DEPTH, activation="gelu"), known.noise, known.loss),
        Problem(points(4), trained_size(4, DEPTH), known.noise, known.loss),
    ):
        assert not has_kernels(other, other.network)
        assert Chain(other).kernels(other.network) is None
    controlled = Chain(known, control=lambda layer, x, label: x)
    assert controlled.kernels(known.network) is None


def test_losses_follow_the_weights() -> None:
    """Weights changed in place between two calls are seen by the second."""
    given_problem = problem("dropout")
    simulated = Chain(given_problem)
    with torch.no_grad():
        before = simulated.losses(5, 0)
        given_problem.network.V.mul_(2)
        after = simulated.losses(5, 0)
        stream = simulated.stream(5, 0)
        wanted = simulated.plain(given_problem.network, stream).reshape(before.shape)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, wanted, rtol=1e-12, atol=0)


def test_second_derivatives_are_refused() -> None:
    """The backward pass is written by hand, once."""
    given_problem = problem("dropout")
    loss = Chain(given_problem).losses(2).mean()
    (gradient,) = torch.autograd.grad(loss, [given_problem.network.V], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.slow
def test_kernels_come_from_the_cache() -> None:
    """A second process compiles nothing."""
    program = (
        "import kolmo\n"
        "from kolmo.compiled import forward, reverse\n"
        "problem = kolmo.Problem(kolmo.data.moons(10), kolmo.ResidualNetwork(2, 4, 3),"
        " kolmo.noise.BernoulliDropout(0.8))\n"
        "kolmo.Chain(problem).estimate(100)\n"
        "kolmo.Chain(problem).gradient(100)\n"
        "for kernel in (forward.losses, forward.moments, reverse.gradient):\n"
        "    print(len(kernel.stats.cache_misses), sum(kernel.stats.cache_hits.values()))\n"
    )
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:3] == ["0 1"] * 3


# ------------------------------------------------------------------ elementary functions


@numba.njit
def softplus(x: Any, value: Any, slope: Any, c: Any) -> None:
    for i in range(len(x)):
        value[i], slope[i] = elementary.softplus(x[i], c), elementary.softplus_slope(x[i], c)


@numba.njit
def quantiles(u: Any, out: Any) -> None:
    for i in range(len(u)):
        out[i] = elementary.normal_quantile(u[i])


@numba.njit
def units(y: Any, out: Any, c: Any) -> None:
    for i in range(len(y)):
        above, below = elementary.halves(y[i], c)
        out[i] = below / (above + below)


@numba.njit
def largest(x: Any) -> Any:
    return elementary.largest(x, 0, x.shape[1])


@pytest.mark.parametrize(("dtype", "most"), [("float32", 2.5e-7), ("float64", 3e-16)])
def test_units(dtype: str, most: float) -> None:
    """1 / (1 + 2^y) to the ends of what it is for."""
    c = elementary.constants(dtype)
    y = np.concatenate([np.linspace(-30, 30, 20001), [-c.units, c.units]]).astype(dtype)
    found = np.empty_like(y)
    units(y, found, c)
    wanted = 1 / (1 + np.exp2(y.astype(np.longdouble)))
    assert np.abs(found - wanted).max() < most
    np.testing.assert_allclose(found, wanted.astype(float), rtol=1e-6 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_largest(dtype: str) -> None:
    """Of magnitudes, with signs, infinities and nan."""
    x = np.cos(np.arange(100.0)).astype(dtype)[None]
    for worst in (1.5, -2.5, math.inf, -math.inf):
        x[0, 37] = worst
        assert largest(x) == abs(worst)
    x[0, 5] = math.nan
    assert math.isnan(largest(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softplus_is_torchs(dtype: str) -> None:
    """With its slope, over all magnitudes, infinite and nan included."""
    ends = [1e-8, -1e-8, 0.0, 20.0, 1e30, np.inf, np.nan]
    x = torch.tensor([*np.linspace(-60, 60, 4001), *ends], dtype=getattr(torch, dtype), requires_grad=True)
    wanted = torch.nn.functional.softplus(x)
    wanted.sum().backward()
    assert x.grad is not None
    value, slope = np.empty((2, len(x)), dtype)
    softplus(x.detach().numpy(), value, slope, elementary.constants(dtype))
    rtol = 1e-5 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(value, wanted.detach(), rtol=rtol)
    np.testing.assert_allclose(slope, x.grad, rtol=rtol)


def test_normal_quantiles() -> None:
    """Of the centre and of both tails to their ends, against torch's."""
    low = 2.0 ** np.linspace(-54, -1, 5000)
    u = np.concatenate([low, 1 - low[low > 2.0**-53], np.linspace(0.01, 0.99, 5000)])
    found = np.empty_like(u)
    quantiles(u, found)
    wanted = torch.special.ndtri(torch.from_numpy(u)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=4e-15, atol=1e-16)
