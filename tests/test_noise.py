"""Noise models: sampled increments have the moments that the modified equation is told of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import PlainNetwork, trained_size

from kolmo import ResidualNetwork, noise
from kolmo.errors import InputError
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed
from kolmo.stream import Draws, Stream

SAMPLES = 1_000_000
DEVIATIONS = 5

MODELS = [
    noise.NoNoise(), noise.BernoulliDropout(0.8), noise.BernoulliDropout(0.3), noise.BernoulliDropout(1),
    noise.GaussianInjection(0.5), noise.GaussianInjection(0), noise.HiddenDropout(0.7),
    noise.DropConnect(0.6), noise.StochasticDepth(0.8), noise.GaussianDropout(0.5), noise.UniformNoise(0.9),
]  # fmt: skip
MODELS += [
    noise.ShakeShake(), noise.StochasticDepth(0.7, scaling="test_time"),
    noise.StochasticDepth({"last": 0.5}), noise.GaussianInjection({"first": 0.2, "last": 0.6}),
    noise.HiddenDropout([0.9, 0.8, 0.7, 0.6]),
    noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.3)]),
    noise.Composition([{"kind": "stochastic_depth", "keep": 0.7, "scaling": "test_time"},
                       {"kind": "gaussian_injection", "std": 0.2}, noise.GaussianInjection(0.4)]),
]  # fmt: skip
NAMES = ["none", "dropout-0.8", "dropout-0.3", "dropout-1", "gaussian-0.5", "gaussian-0"]
NAMES += ["hidden-0.7", "dropconnect-0.6", "depth-0.8", "gaussdrop-0.5", "uniform-0.9"]
NAMES += ["shake", "depth-test-time", "depth-decay", "gaussian-line", "hidden-list", "dropout+gaussian"]
NAMES += ["depth-test-time+gaussian+gaussian"]
SILENT = ("none", "dropout-1", "gaussian-0")


def draws(count: int, layer: int, seed: int = 0, **options: object) -> Draws:
    """Random numbers of `count` samples in one layer."""
    return Stream(seed, 0, count, **options).layer(layer)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_increments_have_mean_and_covariance(
    model: Noise, dim: int, request: pytest.FixtureRequest
) -> None:
    """E = h m and Cov = h^2 C + h D, each entry within 5 of its own standard errors."""
    network = trained_size(dim, depth=4, std=0.8)
    h, layer = network.step, 2
    x = torch.linspace(-0.7, 0.9, dim, dtype=torch.float64)[None]
    with torch.no_grad():
        found = model.sample(network, layer, x.expand(SAMPLES, dim), draws(SAMPLES, layer, 11)).numpy()
        jet = network.jet(x)
        mean = h * model.mean(jet).value[layer, 0].numpy()
        expected = np.zeros((dim, dim))
        covariance, diffusion = model.covariance(jet), model.diffusion(jet)
        if covariance is not None:
            C = packed(covariance)[layer, 0].numpy()
            expected += h * h * (np.diag(C) if C.ndim == 1 else C)
        if diffusion is not None:
            expected += h * diffusion[layer].numpy()
    assert found.shape == (SAMPLES, dim)
    rounding = 1e-13
    centred = found - mean  # before averaging: a naive sum of a million equal numbers is off by 1e-11
    error = DEVIATIONS * centred.std(axis=0) / math.sqrt(SAMPLES) + rounding
    assert np.all(np.abs(centred.mean(axis=0)) <= error)
    products = centred[:, :, None] * centred[:, None, :]  # mean known: no bias by its estimate
    error = DEVIATIONS * products.std(axis=0) / math.sqrt(SAMPLES) + rounding
    assert np.all(np.abs(products.mean(axis=0) - expected) <= error)
    noisy = request.node.callspec.id.partition("-")[2] not in SILENT
    assert (np.abs(np.diag(expected)).min() > 1e-6) == noisy  # the comparison is not 0 = 0


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_rows_are_independent_and_reproducible(model: Noise, request: pytest.FixtureRequest) -> None:
    """Increments of different rows are uncorrelated; the generator's seed fixes them."""
    network = trained_size(2, depth=4)
    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64).expand(100_000, 2)
    with torch.no_grad():
        first, again, other = (
            model.sample(network, 1, x, draws(len(x), 1, seed)) for seed in (0, 0, 1)
        )
    assert torch.equal(first, again)
    if request.node.callspec.id in SILENT:
        assert torch.equal(first, other)
        return
    assert not torch.equal(first, other)
    a, b = first[::2], first[1::2]
    correlation = ((a - a.mean(0)) * (b - b.mean(0))).mean(0) / (a.std(0) * b.std(0))
    assert correlation.abs().max() < DEVIATIONS / math.sqrt(len(a))


def test_dropout_is_torch_dropout() -> None:
    """An increment is h times what F.dropout may return: 0 or f / p, componentwise, kept with p."""
    network, keep = trained_size(2, depth=4), 0.7
    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64).expand(50_000, 2)
    with torch.no_grad():
        found = noise.BernoulliDropout(keep).sample(network, 0, x, draws(len(x), 0))
        full = network.step * network.block(0, x[:1]) / keep
    kept = found != 0
    assert torch.allclose(found[kept], full.expand_as(found)[kept], rtol=1e-14)
    share = kept.double().mean(0)
    assert (share - keep).abs().max() < DEVIATIONS * math.sqrt(keep * (1 - keep) / len(x))


@pytest.mark.parametrize("keep", [0, 0.0, -0.1, 1.01, 7, math.nan, math.inf, "0.8", None, True, [0.5]])
def test_bad_keep_raises(keep: object) -> None:
    with pytest.raises(InputError, match=r"^noise\.keep: ") as caught:
        noise.BernoulliDropout(keep)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [noise.HiddenDropout, noise.DropConnect, noise.StochasticDepth])
@pytest.mark.parametrize("keep", [0, 1.01, math.nan, "0.8"])
def test_bad_keep_raises_everywhere(kind: type[noise.BernoulliDropout], keep: object) -> None:
    with pytest.raises(InputError, match=r"^noise\.keep: "):
        kind(keep)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [noise.HiddenDropout(0.5), noise.DropConnect(0.5)])
def test_hidden_noise_needs_hidden_units(model: Noise) -> None:
    """A block without V sigma(W x + b) has no hidden units to drop: said when sampled and when solved."""
    network = PlainNetwork(trained_size(2, depth=2))
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="need the block"):
        model.sample(network, 0, x, draws(3, 0))
    with pytest.raises(InputError, match="need the block"):
        model.covariance(network.jet(x))


def test_hidden_masks_by_enumeration() -> None:
    """All 2^m masks of a small layer: exact mean and covariance to 1e-12."""
    network = trained_size(2, depth=3, width=4)
    x, keep = torch.tensor([[0.4, -0.2]], dtype=torch.float64), 0.7
    with torch.no_grad():
        z, V = network.hidden(1, x)[0], network.V[1]
        masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
        weights = (keep * masks + (1 - keep) * (1 - masks)).prod(dim=1)
        values = (masks * z / keep) @ V.T
        mean = weights @ values
        covariance = (values - mean).T @ (weights[:, None] * (values - mean))
        jet = network.jet(x)
        torch.testing.assert_close(mean, jet.value[1, 0], rtol=1e-12, atol=1e-15)
        expected = noise.HiddenDropout(keep).covariance(jet)
        assert expected is not None
        torch.testing.assert_close(covariance, packed(expected)[1, 0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, "1", None, False, [0.5]])
def test_bad_std_raises(std: object) -> None:
    with pytest.raises(InputError, match=r"^noise\.std: "):
        noise.GaussianInjection(std)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_settings_round_trip(model: Noise) -> None:
    again = noise.from_settings({"kind": model.kind, **model.settings()})
    assert type(again) is type(model) and again.settings() == model.settings()


def test_no_settings_is_no_noise() -> None:
    assert isinstance(noise.from_settings({}), noise.NoNoise)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"kind": "bernouli_dropout", "keep": 0.8},
            ("noise.kind", "'bernouli_dropout'", "'bernoulli_dropout'"),
        ),
        ({"kind": "zzz"}, ("noise.kind", "'zzz'", "gaussian_injection")),
        ({"kind": "bernoulli_dropout", "kep": 0.8}, ("noise.kep", "keep")),
        ({"kind": "bernoulli_dropout", "keep": 0.8, "std": 1.0}, ("noise.std",)),
        ({"kind": "none", "keep": 0.8}, ("noise.keep", "no keys")),
        ({"kind": "bernoulli_dropout"}, ("noise.keep", "missing")),
        ({"kind": "gaussian_injection"}, ("noise.std", "missing")),
        ({"kind": "gaussian_injection", "std": -1}, ("noise.std", "-1")),
    ],
)
def test_bad_settings_name_the_key(settings: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        noise.from_settings(settings)
    assert str(caught.value).startswith(words[0] + ":")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
