"""Monte Carlo of the modified equation: closed forms, orders, Brownian paths, reproducibility, refusals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    PlainNetwork,
    affine_network,
    chain_loss,
    cluster,
    fitted_order,
    points,
    problem,
    sde_loss,
    trained_size,
)
from torch import Tensor

import kolmo
from kolmo import chain, noise
from kolmo.brownian import LayerPath, LayerSDE, symmetric_root
from kolmo.errors import InputError, MissingBackendError
from kolmo.loss import LeastSquares, Logistic
from kolmo.modified import modified_equation
from kolmo.network import Jet, ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed
from kolmo.sde import BEST, SCHEMES, SDE
from kolmo.stream import Stream

DROPOUT, INJECTION = noise.BernoulliDropout(0.4), noise.GaussianInjection(0.4)
STRONG = noise.BernoulliDropout(0.2)
BOTH = noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.3)])


def affine(dim: int, model: Noise, depth: int = 4, radius: float = 0.8) -> kolmo.Problem:
    """Affine blocks and quadratic loss: J of the modified equation has a closed form."""
    return kolmo.Problem(cluster(dim, radius), affine_network(dim, depth), model, LeastSquares())


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("model", [STRONG, INJECTION], ids=["dropout", "injection"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_agrees_with_the_closed_form(dim: int, model: Noise, order: int) -> None:
    """|J - J of the modified equation by its moments| <= 4 standard errors + time error."""
    case = affine(dim, model)
    found = SDE(case, order=order, seed=dim, antithetic=True).estimate(48_000)
    exact, without = sde_loss(case, order), sde_loss(case.without_noise(), order)
    allowed = 4 * found.standard_error + found.time_error
    assert abs(found.value - exact) <= allowed
    assert found.paths == 48_000 and found.seconds > 0
    assert allowed < 0.4 * abs(exact - without)  # noise of another size would show


@pytest.mark.parametrize("method", sorted(SCHEMES))
@pytest.mark.parametrize("dim", [1, 2])
def test_every_method_agrees_with_the_closed_form(dim: int, method: str) -> None:
    """One layer of length 1 and strong dropout: time errors are large, and stated."""
    case = affine(dim, DROPOUT, depth=1)
    found = SDE(case, method=method, seed=3, steps=2).estimate(60_000)
    assert abs(found.value - sde_loss(case, 2)) <= 4 * found.standard_error + found.time_error
    assert found.method == method and found.noise_type == "diagonal" and found.steps == 2


def test_orders_are_told_apart() -> None:
    """The difference of order 2 and order 1, common paths, is that of the closed forms."""
    case = affine(2, DROPOUT, depth=2)
    first, second = (SDE(case, order=order, seed=1).estimate(60_000) for order in (1, 2))
    expected = sde_loss(case, 2) - sde_loss(case, 1)
    assert abs(expected) > 8 * second.standard_error
    assert second.value - first.value == pytest.approx(expected, rel=0.1)


def test_no_noise_is_the_ordinary_differential_equation() -> None:
    """x' = b(x) solved to its time error, one path from each point, standard error exactly 0."""
    case = affine(2, noise.NoNoise())
    exact = sde_loss(case, 2)
    errors = []
    for steps in (1, 2, 4):
        found = SDE(case, steps=steps).estimate(1000)
        assert found.standard_error == 0.0 and found.paths == len(case.data)
        assert found.noise_type == "additive"
        errors.append(abs(found.value - exact))
        assert 0 < errors[-1] < 5 * found.time_error  # an estimate, not a bound
    assert -fitted_order([1, 2, 4], errors) == pytest.approx(3, abs=0.5)  # extrapolated Euler
    assert abs(sde_loss(case, 2) - chain_loss(case)) > 10 * errors[0]  # not the chain


# ------------------------------------------------------------------ orders in the step


@pytest.mark.parametrize(
    ("method", "weak_order", "dim", "model", "order"),
    [
        ("euler", 1, 1, INJECTION, 1),
        ("euler", 1, 1, INJECTION, 2),
        ("euler", 1, 3, noise.BernoulliDropout(0.8), 2),
        ("milstein", 1, 1, INJECTION, 2),
        ("milstein", 1, 3, noise.BernoulliDropout(0.8), 2),
        ("srk", 2, 1, INJECTION, 1),
        ("srk", 2, 1, INJECTION, 2),
    ],
)
def test_weak_order_before_extrapolation(
    method: str, weak_order: int, dim: int, model: Noise, order: int
) -> None:
    """|J_steps - J| = O(steps^-weak_order); J is the extrapolated value of the finest common paths."""
    case = affine(dim, model, depth=1 if dim == 1 else 2)
    levels, count = {1: (2, 4, 8, 16, 32), 2: (1, 2, 4, 8)}[weak_order], len(case.data)
    weights = torch.tensor(SCHEMES[method].value, dtype=torch.float64)
    sampler = SDE(case, order=order, method=method, seed=4)
    table = sampler.losses(0, 8000 * count, levels).mean(dim=-1)
    value = torch.tensordot(weights, table[-len(weights) :], 1)
    error = math.sqrt(float((value.reshape(-1, count).var(dim=0) / 8000).sum())) / count
    assert abs(float(value.mean()) - sde_loss(case, order)) < 4 * error
    errors = (table - value).mean(dim=1).abs()[:-2]
    assert -fitted_order(levels[:-2], errors) == pytest.approx(weak_order, abs=0.3)


def test_milstein_has_strong_order_one_with_scalar_noise() -> None:
    """Common paths: their distance halves with the step, and falls by sqrt(2) for Euler.

    torchsde's Milstein by derivatives takes the Jacobian of g transposed, and would be no better.
    """
    network = affine_network(2, 1, pull=-0.5, spread=1.5)
    case = kolmo.Problem(cluster(2, 0.8), network, noise.StochasticDepth(0.4), LeastSquares())
    levels, ratios = (8, 16, 32, 64), {}
    for method in ("euler", "milstein"):
        table = SDE(case, method=method, seed=2).losses(0, 12_000, levels)[..., 0]
        distances = [float((a - b).abs().mean()) for a, b in itertools.pairwise(table)]
        ratios[method] = -fitted_order(levels[:-1], distances)
    assert ratios["euler"] == pytest.approx(0.5, abs=0.2)
    assert 0.85 < ratios["milstein"] < 1.4


def test_common_paths_leave_little_noise_in_the_time_error() -> None:
    """Differences between step sizes scatter far less than losses do, and less with finer steps."""
    case = problem(2)
    for method, levels in (("euler", (4, 8, 16)), ("srk", (1, 2, 4))):
        table = SDE(case, method=method).losses(0, 8000, levels)[..., 0]
        spread = [float((a - b).std()) for a, b in itertools.pairwise(table)]
        assert spread[1] < 0.75 * spread[0] < 0.075 * float(table[0].std())


# ------------------------------------------------------------------ noise types and coefficients


EXPECTED = {
    "none": "additive", "bernoulli_dropout": "diagonal", "hidden_dropout": "general",
    "dropconnect": "diagonal", "stochastic_depth": "scalar", "gaussian_dropout": "diagonal",
    "uniform_noise": "diagonal", "gaussian_injection": "general", "shake_shake": "scalar",
    "composition": "general",
}  # fmt: skip
MODELS = {
    "none": noise.NoNoise(), "bernoulli_dropout": noise.BernoulliDropout(0.8),
    "hidden_dropout": noise.HiddenDropout(0.8), "dropconnect": noise.DropConnect(0.8),
    "stochastic_depth": noise.StochasticDepth(0.8, scaling="test_time", per="batch"),
    "gaussian_dropout": noise.GaussianDropout(0.5), "uniform_noise": noise.UniformNoise(0.5),
    "gaussian_injection": noise.GaussianInjection({"first": 0.2, "last": 0.4}),
    "shake_shake": noise.ShakeShake(), "composition": BOTH,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(noise.KINDS))
@pytest.mark.parametrize("dim", [2, 3])
def test_noise_type_follows_from_the_structure(kind: str, dim: int) -> None:
    """Each noise has the type that its structure says, and runs."""
    case = problem(dim, MODELS[kind], depth=3)
    sampler = SDE(case)
    assert sampler.noise_type == EXPECTED[kind]
    found = sampler.estimate(4000)
    reference = kolmo.Chain(case, seed=1).estimate(4000)
    assert found.noise_type == EXPECTED[kind] and found.method == BEST
    error = 5 * math.hypot(found.standard_error, reference.standard_error)
    assert abs(found.value - reference.value) < error + 0.02 * reference.value
    assert (found.standard_error > 0) == (kind != "none")


def test_noise_type_of_special_cases() -> None:
    """Constant D at order 1 is additive; one column is scalar, as in 1-D always."""
    assert SDE(problem(2, INJECTION), order=1).noise_type == "additive"
    assert SDE(problem(2, BOTH), order=1).noise_type == "general"
    assert SDE(problem(1, INJECTION)).noise_type == "scalar"
    assert SDE(problem(1, noise.HiddenDropout(0.8))).noise_type == "scalar"
    assert SDE(problem(2, noise.HiddenDropout(0.8), width=1)).noise_type == "scalar"


#: noises that look inside the block, where automatic jets see nothing
INSIDE = ("hidden_dropout", "dropconnect", "shake_shake")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("dim", "kind", "plain"),
    [(dim, kind, False) for dim in (1, 2, 3) for kind in sorted(noise.KINDS)]
    + [(2, kind, True) for kind in sorted(noise.KINDS) if kind not in INSIDE],
)
def test_coefficients_are_those_of_the_modified_equation(
    dim: int, kind: str, plain: bool, order: int
) -> None:
    """f = tau b and g g^T = tau a at points, in every layer, for closed-form and automatic jets."""
    network = trained_size(dim, depth=3)
    case = kolmo.Problem(points(dim), PlainNetwork(network) if plain else network, MODELS[kind])
    x, tau = points(dim).points[:7], 0.01
    with torch.no_grad():
        expected = modified_equation(network, MODELS[kind], x, order)
        for k in range(network.depth):
            layer = LayerSDE(case, k, order, tau, x[:1])
            t = torch.tensor(0.0)
            torch.testing.assert_close(layer.f(t, x), tau * expected.drift[k], rtol=1e-12, atol=1e-14)
            g = layer.g(t, x)
            found = g.square() if g.ndim == 2 else g @ g.mT
            a = tau * expected.diffusion[k]
            if found.ndim > a.ndim:
                a = torch.diag_embed(a)
            torch.testing.assert_close(found, a, rtol=1e-10, atol=1e-14)


def test_drift_of_order_two_by_differentiation() -> None:
    """b = f - h/2 (f f' + s^2/2 f'') in 1-D, the derivatives by autograd of the block itself."""
    network, std = trained_size(1, depth=2, std=1.0), 0.7
    case = kolmo.Problem(points(1), network, noise.GaussianInjection(std))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    for k in range(2):
        f = network.block(k, x)
        (first,) = torch.autograd.grad(f.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        expected = f - 0.5 * network.step * (f * first + 0.5 * std**2 * second)
        found = LayerSDE(case, k, 2, 1.0, x[:1]).f(torch.tensor(0.0), x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert float((0.1 * network.step * std**2 * second).abs().max()) > 1e-3  # it matters


class TensorNoise(Noise):
    """Another noise's moments as plain tensors, its C full where `full`, its D varying with x in form."""

    kind = "tensor"

    def __init__(self, inner: Noise, full: bool) -> None:
        self.inner, self.full = inner, full

    def sample(self, *arguments: object) -> Tensor:  # type: ignore[override]
        raise NotImplementedError

    def covariance(self, jet: Jet) -> Tensor | None:
        C = self.inner.covariance(jet)
        if C is None:
            return None
        tensor = packed(C)
        return torch.diag_embed(tensor) if self.full and tensor.ndim == 3 else tensor

    def diffusion(self, jet: Jet) -> Tensor | None:
        D = self.inner.diffusion(jet)
        if D is None or not self.full:
            return D
        return D[:, None].expand(*jet.value.shape, D.shape[-1])


@pytest.mark.parametrize(
    ("inner", "full", "order", "expected"),
    [
        (DROPOUT, False, 2, "diagonal"),
        (DROPOUT, True, 2, "general"),
        (noise.HiddenDropout(0.5), False, 2, "general"),
        (BOTH, True, 1, "general"),
        (INJECTION, True, 1, "general"),
    ],
)
@pytest.mark.parametrize("dim", [2, 3])
def test_plain_tensors_of_a_noise_of_ones_own(
    dim: int, inner: Noise, full: bool, order: int, expected: str
) -> None:
    """Covariances given as tensors have the law of the structures that they were made of."""
    own, case = (problem(dim, model, depth=3) for model in (TensorNoise(inner, full), inner))
    found = SDE(own, order=order, seed=1).estimate(20_000)
    reference = SDE(case, order=order, seed=2).estimate(20_000)
    assert found.noise_type == expected
    error = math.hypot(found.standard_error, reference.standard_error)
    assert abs(found.value - reference.value) < 4 * error
    assert found.standard_error == pytest.approx(reference.standard_error, rel=0.1)


@given(
    dim=st.integers(1, 4),
    rank=st.integers(0, 4),
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-8, 1, 1e8]),
)
def test_symmetric_root(dim: int, rank: int, seed: int, size: float) -> None:
    """R = R^T >= 0 and R R = a, of rank-deficient a too."""
    factor = size * torch.randn(
        5, dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    a = factor @ factor.mT
    root = symmetric_root(a)
    scale = float(a.abs().amax()) + 1e-300
    assert float((root @ root - a).abs().amax()) <= 1e-12 * scale
    assert float((root - root.mT).abs().amax()) <= 1e-12 * math.sqrt(scale)
    assert float(torch.linalg.eigvalsh(root).min()) >= -1e-7 * math.sqrt(scale)


# ------------------------------------------------------------------ Brownian paths


def path(count: int, steps: int = 4, channels: int = 2, **options: object) -> LayerPath:
    return LayerPath(Stream(5, 0, count, **options).layer(3), steps, channels, integrals=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 3), (0, 4)])
def test_increments_and_integrals_have_their_covariance(a: int, b: int) -> None:
    """Var W = s, Var U = s^3/3, Cov(W, U) = s^2/2, channels independent: 5 deviations of each."""
    count, s = 200_000, b - a
    W, U = path(count)(float(a), float(b), return_U=True)
    both = torch.cat([W, U], dim=1)
    one = torch.tensor([[s, s**2 / 2], [s**2 / 2, s**3 / 3]], dtype=torch.float64)
    expected = torch.kron(one, torch.eye(2, dtype=torch.float64))
    found = both.T @ both / count
    diagonal = expected.diagonal()
    error = ((expected.square() + diagonal[:, None] * diagonal) / count).sqrt()
    assert bool(((found - expected).abs() < 5 * error).all())
    assert bool((both.mean(dim=0).abs() < 5 * (diagonal / count).sqrt()).all())


@given(
    cuts=st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8)).filter(lambda c: len(set(c)) == 3)
)
def test_intervals_add(cuts: tuple[int, int, int]) -> None:
    """W_ac = W_ab + W_bc and U_ac = U_ab + U_bc + (c - b) W_ab; disjoint steps are uncorrelated."""
    a, b, c = sorted(cuts)
    brownian = path(2000, steps=8)
    (W1, U1), (W2, U2), (W, U) = (brownian(*ends, return_U=True) for ends in ((a, b), (b, c), (a, c)))
    torch.testing.assert_close(W, W1 + W2)
    torch.testing.assert_close(U, U1 + U2 + (c - b) * W1)
    for left in (W1, U1):
        for right in (W2, U2):
            product = (left * right / (left.std(0) * right.std(0))).mean(dim=0)
            assert float(product.abs().max()) < 6 / math.sqrt(2000)


@given(first=st.integers(0, 40), count=st.integers(1, 20), antithetic=st.booleans())
def test_a_path_belongs_to_its_sample(first: int, count: int, antithetic: bool) -> None:
    """Numbers do not depend on how samples are batched; those of a pair are mirrored."""
    whole = LayerPath(Stream(5, 0, 64, 1, antithetic).layer(3), 3, 2, True)(0, 3, return_U=True)
    part = LayerPath(Stream(5, first, count, 1, antithetic).layer(3), 3, 2, True)(0, 3, return_U=True)
    for all_, some in zip(whole, part, strict=True):
        assert torch.equal(all_[first : first + count], some)
        mirrored = torch.allclose(all_[::2], -all_[1::2], rtol=1e-9, atol=1e-12)
        assert mirrored == antithetic
    assert not torch.equal(whole[0], LayerPath(Stream(5, 0, 64).layer(2), 3, 2)(0, 3))


def test_a_path_refuses_what_it_does_not_know() -> None:
    """Parts of a step, times outside, Levy areas, integrals that were not prepared."""
    brownian = LayerPath(Stream(0, 0, 3).layer(0), 2, 1)
    for ends in ((0.0, 0.5), (0.0, 3.0), (-1.0, 1.0), (1.0, 1.0), (1.0, None)):
        with pytest.raises(InputError, match="whole steps"):
            brownian(*ends)
    with pytest.raises(InputError, match="U is not known"):
        brownian(0.0, 1.0, return_U=True)
    with pytest.raises(InputError, match="Levy areas are not known"):
        brownian(0.0, 1.0, return_A=True)
    assert brownian.levy_area_approximation == "none" and brownian.shape == (3, 1)


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("method", ["euler", "srk"])
def test_memory_and_threads_do_not_matter(
    method: str, antithetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole copies of the points at once, or some points, or one: the same numbers to rounding."""
    case = problem(2, samples=5, depth=2)
    found, cuts = [], set()
    for memory, threads in ((2**28, 1), (2**28, 3), (2**16, 1), (20_000, 2), (1, 1)):
        monkeypatch.setattr(chain.os, "cpu_count", lambda threads=threads: threads)
        sampler = SDE(case, method=method, antithetic=antithetic, memory=memory, seed=2)
        found.append(sampler.estimate(100))
        cuts.add(len(sampler._blocks(20, 5)))
    assert len(cuts) == 4  # into one, some whole copies, parts of a copy, single rows
    for other in found[1:]:
        assert other.value == pytest.approx(found[0].value, rel=1e-12)
        assert other.standard_error == pytest.approx(found[0].standard_error, rel=1e-10)
        assert other.time_error == pytest.approx(found[0].time_error, rel=1e-8)
        assert other.paths == found[0].paths == 100


def test_streaming_moments_equal_the_plain_ones() -> None:
    """Value, standard error and time error of one pass over all losses, pairs as one."""
    case = problem(2, samples=10, depth=2)
    found = SDE(case, antithetic=True, memory=2**20, seed=3).estimate(8000)
    scheme = SCHEMES[found.method]
    table = SDE(case, antithetic=True, seed=3).losses(0, 4000)
    value, error = (
        torch.tensordot(torch.tensor(w, dtype=torch.float64), table.mean(dim=-1), 1).reshape(400, 10)
        for w in (scheme.value, scheme.error)
    )
    assert found.value == pytest.approx(float(value.mean()), rel=1e-12)
    assert found.time_error == pytest.approx(abs(float(error.mean())), rel=1e-10)
    assert found.standard_error == pytest.approx(float((value.var(dim=0) / 400).sum().sqrt()) / 10, rel=1e-10)


def test_seeds_and_the_chain_have_numbers_of_their_own() -> None:
    """The same seed gives the same estimate, another one another; the chain's numbers are not reused."""
    case = problem(2, INJECTION, samples=10, depth=2)
    runs = [SDE(case, seed=seed).estimate(2000) for seed in (0, 0, 1)]
    assert runs[0].value == runs[1].value != runs[2].value
    copies = 2000
    ours = SDE(case, order=1, seed=0).losses(0, copies * 10, (1,)).reshape(copies, 10)
    with torch.no_grad():
        theirs = kolmo.Chain(case, seed=0).losses(copies)
    centred = [(t - t.mean(dim=0)) / t.std(dim=0) for t in (ours, theirs)]
    correlation = float((centred[0] * centred[1]).mean())
    assert abs(correlation) < 5 / math.sqrt(copies * 10)


def test_automatic_jets_give_the_same_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block without closed-form jets: the same estimate, and no threads, which torch's jets cannot take."""
    inner = trained_size(2, depth=2)
    first, second = (kolmo.Problem(points(2), n, DROPOUT) for n in (inner, PlainNetwork(inner)))
    reference = SDE(first, memory=2**18, seed=1).estimate(800)
    monkeypatch.delattr(chain, "ThreadPoolExecutor")
    found = SDE(second, memory=2**18, seed=1).estimate(800)
    assert found.value == pytest.approx(reference.value, rel=1e-12)
    with pytest.raises(NameError):
        SDE(first).estimate(800)


def test_antithetic_pairs_help_an_almost_linear_loss() -> None:
    """Small injection, logistic loss: odd parts cancel, at the same number of paths."""
    case = kolmo.Problem(points(2), trained_size(2, depth=4), noise.GaussianInjection(0.1), Logistic(1.0))
    plain, paired = (SDE(case, antithetic=a, seed=2).estimate(8000) for a in (False, True))
    assert plain.paths == paired.paths == 8000
    assert paired.standard_error < 0.1 * plain.standard_error
    assert abs(plain.value - paired.value) < 4 * plain.standard_error


def test_intervals_cover() -> None:
    """95% intervals of 60 seeds cover the closed form 51 times at least: by chance they fail 1 in 1000."""
    case = affine(2, DROPOUT)
    exact = sde_loss(case, 2)
    runs = [SDE(case, seed=seed).estimate(1200) for seed in range(60)]
    bias = SDE(case, seed=60).estimate(60_000).time_error
    assert bias < 0.1 * min(run.standard_error for run in runs)
    assert sum(run.interval[0] <= exact <= run.interval[1] for run in runs) >= 51
    scores = np.array([(run.value - exact) / run.standard_error for run in runs])
    assert abs(np.mean(scores**2) - 1) < 5 * math.sqrt(2 / len(runs))


def test_agrees_with_the_kolmogorov_equation() -> None:
    """J by paths and J by finite elements: one equation, 4 standard errors + mesh error + time error."""
    from kolmo.pde.resolution import resolve_value

    case = problem(1, noise.BernoulliDropout(0.5), depth=8)
    # a box beyond all paths: the one that is chosen by itself leaves a bias of its own
    mesh = resolve_value(case, backend="skfem", half_width=4.0)
    found = SDE(case, antithetic=True, seed=1).estimate(80_000)
    allowed = 4 * found.standard_error + found.time_error + mesh.mesh_error
    assert abs(found.value - mesh.value) <= allowed
    quiet = SDE(case.without_noise()).estimate(1000).value
    assert allowed < 0.2 * abs(mesh.value - quiet)


# ------------------------------------------------------------------ refusals


def test_table_of_methods_is_torchsdes() -> None:
    from torchsde._core.methods import select

    for name, scheme in SCHEMES.items():
        solver = select(name, "ito")
        assert set(scheme.noise_types) == set(solver.noise_types)
        assert sum(scheme.value) == pytest.approx(1) and sum(scheme.error) == pytest.approx(0)


@pytest.mark.parametrize("method", ["milstein", "srk"])
@pytest.mark.parametrize("model", [INJECTION, noise.HiddenDropout(0.8), BOTH])
def test_methods_that_do_not_fit_the_noise_are_refused(model: Noise, method: str) -> None:
    with pytest.raises(InputError, match=rf"^method: '{method}' .*'general'.*valid: euler$") as caught:
        SDE(problem(2, model), method=method)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"steps": -1}, "steps: -1"),
        ({"steps": 1.5}, "steps: 1.5"),
        ({"steps": True}, "steps: True"),
        ({"memory": 0}, "memory: 0"),
        ({"method": "heun"}, "method: 'heun' is unknown"),
        ({"method": "eulr"}, "method: 'eulr' is unknown; did you mean 'euler'"),
        ({"method": None}, "method: None is unknown"),
        ({"order": 3}, "order: 3"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict, start: str) -> None:
    with pytest.raises(InputError) as caught:
        SDE(problem(2), **options)
    assert str(caught.value).startswith(start) and "\n" not in str(caught.value)


def test_orders_that_do_not_exist_are_refused() -> None:
    """Order 2 with a kinked activation, and with a D that varies with x."""
    relu = ResidualNetwork(2, 4, 3, activation="relu")
    with pytest.raises(InputError, match="order: 2"):
        SDE(kolmo.Problem(points(2), relu, DROPOUT))
    assert SDE(kolmo.Problem(points(2), relu, DROPOUT), order=1).estimate(400).standard_error > 0
    with pytest.raises(InputError, match="order: 2 does not exist"):
        SDE(problem(2, TensorNoise(INJECTION, True)))


@pytest.mark.parametrize("antithetic", [False, True])
def test_too_few_paths_are_refused(antithetic: bool) -> None:
    least = 160 if antithetic else 80
    sampler = SDE(problem(2, depth=2), antithetic=antithetic)
    assert sampler.estimate(least).paths == least
    with pytest.raises(InputError, match=r"^paths: "):
        sampler.estimate(least - 1)


def test_an_absent_device_is_refused() -> None:
    with pytest.raises(MissingBackendError, match="unknown"):
        SDE(problem(2), device="tpu")


def test_importing_kolmo_leaves_torchsde_alone() -> None:
    code = (
        "import sys, kolmo, kolmo.chain, kolmo.noise; assert 'torchsde' not in sys.modules; import kolmo.sde"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
