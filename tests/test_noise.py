"""Noise models: increments, declared moments and outcomes are those of the table and of torch's idioms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import DEPTH, NOISES, PlainNetwork, moments, strength, trained_size
from torch import Tensor

from kolmo import ResidualNetwork, noise
from kolmo.errors import InputError
from kolmo.noise.base import Noise, Outcomes
from kolmo.noise.structure import Structure, packed
from kolmo.stream import Draws, Stream

SAMPLES = 200_000
DEVIATIONS = 5
LAYER = 2
SILENT = ("none", "dropout-1", "injection-0")

every_noise = pytest.mark.parametrize("name", list(NOISES))
every_dim = pytest.mark.parametrize("dim", [1, 2, 3])


def draws(count: int, layer: int, seed: int = 0, **options: Any) -> Draws:
    """Random numbers of `count` samples in one layer."""
    return Stream(seed, 0, count, **options).layer(layer)


def small_layer(name: str, dim: int) -> tuple[ResidualNetwork, Tensor]:
    """A network so narrow that all its masks can be listed, and a point."""
    network = trained_size(dim, DEPTH, 2 if name.startswith("dropconnect") else 4, std=0.8)
    return network, torch.linspace(-0.7, 0.9, dim, dtype=torch.float64)[None]


def expected(model: Noise, network: ResidualNetwork, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """h m and h^2 C + h D of one layer at one point, by the table."""
    z, V, h = network.hidden(LAYER, x)[0].detach().numpy(), network.V[LAYER].detach().numpy(), network.step
    ratio, C, D = moments(model, LAYER, DEPTH, np.outer(z, z), V)
    return h * ratio * V @ z, h * h * C + h * D


def assert_sampled(increments: Tensor, mean: np.ndarray, covariance: np.ndarray) -> None:
    """First and second moments of the rows within 5 of their standard errors."""
    centred = increments.numpy() - mean  # before averaging: a naive sum of equal numbers loses digits
    error = DEVIATIONS * centred.std(axis=0) / math.sqrt(len(centred)) + 1e-13
    assert np.all(np.abs(centred.mean(axis=0)) <= error)
    products = centred[:, :, None] * centred[:, None, :]  # mean known: no bias by its estimate
    error = DEVIATIONS * products.std(axis=0) / math.sqrt(len(centred)) + 1e-13
    assert np.all(np.abs(products.mean(axis=0) - covariance) <= error)


def close(found: Any, wanted: Any, tolerance: float = 1e-12) -> bool:
    """Equal to a tolerance relative to the largest entry; 0 to the square of rounding."""
    found, wanted = (np.asarray(torch.as_tensor(v).detach()) for v in (found, wanted))
    return bool(np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max() + 1e-30)


# ------------------------------------------------------------------ moments


def test_every_kind_is_examined() -> None:
    """The examples cover all kinds, schedules of all four forms, both scalings, batches."""
    assert {model.kind for model in NOISES.values()} == set(noise.KINDS)


@every_noise
@every_dim
def test_increments_have_mean_and_covariance(name: str, dim: int) -> None:
    """E = h m and Cov = h^2 C + h D of sampled increments, each entry within 5 standard errors."""
    model, (network, x) = NOISES[name], small_layer(name, dim)
    with torch.no_grad():
        found = model.sample(network, LAYER, x.expand(SAMPLES, dim), draws(SAMPLES, LAYER, 11))
    assert found.shape == (SAMPLES, dim)
    mean, covariance = expected(model, network, x)
    assert_sampled(found, mean, covariance)
    assert (np.diag(covariance).min() > 1e-6) == (name not in SILENT)  # the comparison is not 0 = 0


@every_noise
@every_dim
def test_declared_moments_are_the_table(name: str, dim: int) -> None:
    """m, C and D that the modified equation is told of, at several points of all layers: to 1e-12."""
    model, (network, _) = NOISES[name], small_layer(name, dim)
    x = torch.randn(5, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        jet = network.jet(x)
        z, V = (t.numpy() for t in jet.hidden_units())
        mean, C, D = model.mean(jet).value, model.covariance(jet), model.diffusion(jet)
    for k in range(DEPTH):
        M = z[k][:, :, None] * z[k][:, None, :]
        ratio, covariance, diffusion = moments(model, k, DEPTH, M, V[k])
        assert close(mean[k], ratio * z[k] @ V[k].T)
        full = None if C is None else packed(C)[k]
        full = (
            torch.zeros(5, dim, dim) if full is None else torch.diag_embed(full) if full.ndim == 2 else full
        )
        assert close(full, covariance) and close(torch.zeros(dim, dim) if D is None else D[k], diffusion)


@every_noise
@every_dim
def test_structured_covariances_are_matrices(name: str, dim: int) -> None:
    """C = S S^T: S e, C, its root and multiples by layer are those of S written out (d x r)."""
    x = torch.linspace(-1, 1, 5 * dim, dtype=torch.float64).reshape(5, dim)
    C = NOISES[name].covariance(small_layer(name, dim)[0].jet(x))
    if not isinstance(C, Structure):
        return
    S, root = C.dense(), C.root()
    assert S.shape == (DEPTH, 5, dim, C.units)
    e = torch.randn(DEPTH, 5, C.units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert close(C.apply(e), (S @ e[..., None])[..., 0])
    root = root if root.ndim == 4 else torch.diag_embed(root)
    full = C.packed() if C.packed().ndim == 4 else torch.diag_embed(C.packed())
    assert close(full, S @ S.transpose(-1, -2)) and close(full, root @ root.transpose(-1, -2))
    factors = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    assert close(C.scaled(factors).dense(), factors[:, None, None, None] * S)


@every_noise
@every_dim
def test_outcomes_have_the_exact_moments(name: str, dim: int) -> None:
    """Weights sum to 1; sum_o w_o (base + factor table_o) = h m, its covariance h^2 C + h D: to 1e-12."""
    model, (network, x) = NOISES[name], small_layer(name, dim)
    outcomes = model.outcomes(network, LAYER, x, gauss=3)
    found, weights = listed(outcomes)
    assert weights.min() > 0 and weights.sum() == pytest.approx(1, rel=1e-13)
    mean, covariance = expected(model, network, x)
    assert close(weights @ found, mean)
    assert close((found - mean).T @ (weights[:, None] * (found - mean)), covariance)
    parameters = list(network.parameters())
    gradient = torch.autograd.grad((outcomes.base.sum() + outcomes.factor.sum()), parameters)
    assert all(bool(torch.isfinite(g).all()) for g in gradient) and float(gradient[2].abs().max()) > 0


def listed(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """All increments (O, d) from the one point, with their probabilities."""
    base, factor = outcomes.base[0].detach().numpy(), outcomes.factor[0].detach().numpy()
    return base + outcomes.table @ factor.T, outcomes.weights


@pytest.mark.parametrize("gauss", [2, 3, 5])
@pytest.mark.parametrize("name", ["gaussian-dropout", "uniform", "shake", "injection"])
def test_gauss_rules_are_exact_to_their_degree(name: str, gauss: int) -> None:
    """E e^j of one continuous number by g points is exact for j < 2g and no further."""
    model, (network, x) = NOISES[name], small_layer(name, 1)
    found, weights = listed(model.outcomes(network, LAYER, x, gauss))
    mean, covariance = expected(model, network, x)
    score = (found[:, 0] - mean[0]) / math.sqrt(covariance[0, 0])
    normal = name in ("gaussian-dropout", "injection")
    for degree in range(0, 2 * gauss + 1, 2):
        exact = math.prod(range(1, degree, 2)) if normal else 3 ** (degree / 2) / (degree + 1)
        assert (weights @ score**degree == pytest.approx(exact, rel=1e-10)) == (degree < 2 * gauss)


def test_too_many_outcomes_are_refused() -> None:
    """2^16 masks, or a product of two laws, beyond the limit: one line with the numbers and the remedy."""
    network, x = trained_size(2, DEPTH, 16), torch.zeros(1, 2, dtype=torch.float64)
    both = noise.Composition([noise.GaussianDropout(0.1), noise.GaussianInjection(0.1)])
    for model, gauss, words in ((noise.HiddenDropout(0.5), 5, "65536"), (both, 11, "14641")):
        with pytest.raises(InputError, match=words) as caught:
            model.outcomes(network, 0, x, gauss)
        assert "8192" in str(caught.value) and "chain" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [noise.HiddenDropout(1), noise.GaussianInjection(0)])
def test_many_silent_units_have_one_outcome(model: Noise) -> None:
    """Certain numbers (p = 1, s = 0) make one outcome, however many they are."""
    network = ResidualNetwork(40, 40, 1)
    outcomes = model.outcomes(network, 0, torch.zeros(1, 40, dtype=torch.float64))
    assert outcomes.table.shape == (1, 40) and outcomes.weights.tolist() == [1.0]


# ------------------------------------------------------------------ masks by enumeration, torch's idioms


def enumerated(model: Noise, network: ResidualNetwork, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The increment of every mask of positive probability; what is kept is divided by p, as by F.dropout."""
    keys, h = model.settings(), network.step
    p = strength(keys["keep"], LAYER, DEPTH, 1.0)
    z, V = network.hidden(LAYER, x)[0].detach().numpy(), network.V[LAYER].detach().numpy()
    dim, width = V.shape
    shape = {"bernoulli_dropout": (dim,), "hidden_dropout": (width,), "dropconnect": (dim, width)}
    increments, weights = [], []
    for bits in itertools.product((0.0, 1.0), repeat=math.prod(shape.get(model.kind, (1,)))):
        weight = math.prod(p if bit else 1 - p for bit in bits)
        eta = np.reshape(bits, shape.get(model.kind, (1,))) / (1 if "scaling" in keys else p)
        hidden = eta * z if model.kind == "hidden_dropout" else z
        weight_matrix = eta * V if model.kind == "dropconnect" else V
        output = eta if model.kind in ("bernoulli_dropout", "stochastic_depth") else 1
        if weight > 0:
            increments.append(h * output * (weight_matrix @ hidden))
            weights.append(weight)
    return np.array(increments), np.array(weights)


MASKED = [n for n, m in NOISES.items() if "keep" in m.settings()]


@pytest.mark.parametrize("name", MASKED)
@every_dim
def test_outcomes_are_the_masks(name: str, dim: int) -> None:
    """All masks, enumerated: the same increments with the same probabilities, and the same moments."""
    model, (network, x) = NOISES[name], small_layer(name, dim)
    values, weights = enumerated(model, network, x)
    assert len(weights) == 1 if name == "dropout-1" else len(weights) >= 2
    found = []
    for increments, probabilities in (listed(model.outcomes(network, LAYER, x)), (values, weights)):
        order = np.lexsort(increments.round(11).T)
        found.append(np.column_stack([increments, probabilities])[order])
    assert found[0].shape == found[1].shape and np.abs(found[0] - found[1]).max() < 1e-14
    mean, covariance = expected(model, network, x)
    centred = values - mean
    assert close(weights @ values, mean) and close(centred.T @ (weights[:, None] * centred), covariance)


def idiom(model: Noise, network: ResidualNetwork, x: Tensor) -> Tensor:
    """Increments of x (N, d) as the model's docstring writes them for torch."""
    h, f, z, V = network.step, network.block(LAYER, x), network.hidden(LAYER, x), network.V[LAYER]
    if isinstance(model, noise.Composition):
        return h * f + sum(idiom(part, network, x) - h * f for part in model.parts)
    keys = {"keep": 1.0, "std": 0.0, "half_width": 0.0, **model.settings()}
    p, s, w = (strength(keys[k], LAYER, DEPTH, float(k == "keep")) for k in ("keep", "std", "half_width"))
    if isinstance(model, noise.ShakeShake):
        a, half = torch.rand(len(x), 1, dtype=x.dtype), z.shape[1] // 2
        f1, f2 = 2 * z[:, :half] @ V[:, :half].T, 2 * z[:, half:] @ V[:, half:].T
        return h * (a * f1 + (1 - a) * f2)
    if isinstance(model, noise.DropConnect):
        return h * torch.einsum("nij,nj->ni", F.dropout(V.expand(len(x), *V.shape), 1 - p), z)
    if isinstance(model, noise.StochasticDepth):
        eta = F.dropout(torch.ones(len(x), 1, dtype=x.dtype), 1 - p)
        return h * f * eta * (p if keys.get("scaling") == "test_time" else 1)
    return {
        "none": lambda: h * f,
        "bernoulli_dropout": lambda: h * F.dropout(f, 1 - p),
        "hidden_dropout": lambda: h * F.dropout(z, 1 - p) @ V.T,
        "gaussian_dropout": lambda: h * f * (1 + s * torch.randn_like(f)),
        "uniform_noise": lambda: h * f * torch.empty_like(f).uniform_(1 - w, 1 + w),
        "gaussian_injection": lambda: h * f + h**0.5 * s * torch.randn_like(f),
    }[model.kind]()


@every_noise
def test_torch_idioms_have_the_same_moments(name: str) -> None:
    """Increments drawn by plain torch (F.dropout, torch.rand, ...): the model's m, C and D, 5 errors."""
    model, (network, x) = NOISES[name], small_layer(name, 2)
    torch.manual_seed(6)
    with torch.no_grad():
        found = idiom(model, network, x.expand(SAMPLES, 2))
    assert_sampled(found, *expected(model, network, x))


@every_noise
def test_rows_are_independent_and_reproducible(name: str) -> None:
    """Increments of different rows are uncorrelated; the stream's seed fixes them."""
    model, (network, _) = NOISES[name], small_layer(name, 2)
    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64).expand(50_000, 2)
    with torch.no_grad():
        first, again, other = (
            model.sample(network, LAYER, x, draws(len(x), LAYER, seed)) for seed in (0, 0, 1)
        )
    assert torch.equal(first, again) and torch.equal(first, other) == (name in SILENT)
    if name not in SILENT:
        a, b = first[::2], first[1::2]
        correlation = ((a - a.mean(0)) * (b - b.mean(0))).mean(0) / (a.std(0) * b.std(0))
        assert correlation.abs().max() < DEVIATIONS / math.sqrt(len(a))


@pytest.mark.parametrize("name", ["hidden", "dropconnect", "shake"])
def test_noise_inside_a_block_needs_its_parts(name: str) -> None:
    """A block without V sigma(W x + b), or of one branch: said when sampled and when solved."""
    network, x = PlainNetwork(trained_size(2, DEPTH)), torch.zeros(3, 2, dtype=torch.float64)
    words = "two branches" if name == "shake" else "need the block"
    for call in (
        lambda: NOISES[name].sample(network, 0, x, draws(3, 0)),
        lambda: NOISES[name].covariance(network.jet(x)),
    ):
        with pytest.raises(InputError, match=words):
            call()
    if name == "shake":
        with pytest.raises(InputError, match="odd number"):
            NOISES[name].sample(trained_size(2, DEPTH, width=5), 0, x, draws(3, 0))
