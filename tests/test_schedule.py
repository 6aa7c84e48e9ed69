"""What users put together: strengths over depth, compositions, settings on disk, noises of their own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import DEPTH, NOISES, cluster, points, strength, trained_size
from torch import Tensor

import kolmo
from kolmo import case, noise
from kolmo.errors import InputError
from kolmo.modified import modified_equation
from kolmo.network import Jet, LayeredNetwork, ScaledJet
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed
from kolmo.pde import BackwardKolmogorov
from kolmo.stream import Draws, Stream

#: kind -> the key that varies with depth
KEYS = {
    "bernoulli_dropout": "keep", "hidden_dropout": "keep", "dropconnect": "keep", "stochastic_depth": "keep",
    "gaussian_dropout": "std", "gaussian_injection": "std", "uniform_noise": "half_width",
}  # fmt: skip
#: kinds that act on the block: their random numbers multiply what it gives
ACTING = sorted(set(noise.KINDS) - {"none", "gaussian_injection", "composition"})
EXAMPLES = {model.kind: model for model in reversed(list(NOISES.values()))}

every_kind = pytest.mark.parametrize("kind", list(KEYS))
unit = st.floats(0.05, 1.0)


def strengths(kind: str, value: Any, depth: int) -> list[float]:
    """p or s in every layer, read off the noise's variance in a network with f = 1."""
    ones = torch.ones(depth, 1, 1)
    network = kolmo.ResidualNetwork.from_weights(0 * ones, ones[:, 0], ones, activation="identity")
    model = noise.from_settings({"kind": kind, KEYS[kind]: value})
    jet = network.jet(torch.zeros(1, 1, dtype=torch.float64))
    C, D = model.covariance(jet), model.diffusion(jet)
    variances = (packed(C) if D is None else D).reshape(depth).tolist()  # type: ignore[arg-type]
    if KEYS[kind] == "keep":
        return [1 / (1 + v) for v in variances]
    return [math.sqrt(v * (3 if kind == "uniform_noise" else 1)) for v in variances]


# ------------------------------------------------------------------ strengths over depth


@every_kind
@given(first=unit, last=unit, depth=st.integers(1, 12))
def test_strengths_of_every_layer(kind: str, first: float, last: float, depth: int) -> None:
    """Constants, lists, lines from layer 0 to layer L-1, and the decay n + l/L (s_L - n), l = 1, ..., L."""
    line = [first + (last - first) * (k / (depth - 1) if depth > 1 else 0) for k in range(depth)]
    neutral = 1.0 if KEYS[kind] == "keep" else 0.0
    decay = [neutral + l / depth * (last - neutral) for l in range(1, depth + 1)]  # noqa: E741
    forms: list[tuple[Any, list[float]]] = [
        (first, [first] * depth), ({"first": first, "last": last}, line), ({"last": last}, decay),
    ]  # fmt: skip
    if depth > 1:
        forms += [(line, line), (tuple(line), line)]
    for value, wanted in forms:
        assert strengths(kind, value, depth) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_published_decay_of_stochastic_depth() -> None:
    """p_l = 1 - l/L (1 - p_L): 0.875, 0.75, 0.625, 0.5 for L = 4, p_L = 0.5 (Huang et al., figure 2)."""
    assert strengths("stochastic_depth", {"last": 0.5}, 4) == pytest.approx([0.875, 0.75, 0.625, 0.5])
    assert strengths("gaussian_injection", {"last": 1}, 4) == pytest.approx([0.25, 0.5, 0.75, 1])
    assert [strength({"last": 0.5}, k, 4, 1.0) for k in range(4)] == [0.875, 0.75, 0.625, 0.5]


@every_kind
@pytest.mark.parametrize("count", [2, 7])
def test_a_list_has_one_entry_for_each_layer(kind: str, count: int) -> None:
    """Whatever is asked of a list of another length: the key and both numbers are named."""
    key, network, x = KEYS[kind], trained_size(2, DEPTH, 2), torch.zeros(3, 2, dtype=torch.float64)
    model = noise.from_settings({"kind": kind, key: [0.5] * count})
    for call in (
        lambda: model.sample(network, 1, x, Stream(0, 0, 3).layer(1)),
        lambda: modified_equation(network, model, x),
        lambda: model.outcomes(network, 1, x),
        lambda: kolmo.Chain(kolmo.Problem(points(2), network, model)).estimate(2000),
    ):
        with pytest.raises(InputError, match=rf"^noise\.{key}: {count} values, .* {DEPTH} layers$"):
            call()


BAD: list[Any] = [
    -0.1, math.nan, math.inf, "0.8", None, True, [], [0.5], [0.5, -1.0], [0.5, "x"], [[0.5, 0.5]], {},
    {"first": 0.5}, {"last": -1}, {"first": math.nan, "last": 0.5}, {"last": 0.5, "step": 2},
]  # fmt: skip


@every_kind
@pytest.mark.parametrize("value", [*BAD, 0, 1.01, {"last": 0}, [0.5, 2]], ids=repr)
def test_bad_strengths_name_the_key(kind: str, value: Any) -> None:
    """Probabilities are in (0, 1], strengths finite and >= 0, in every form of a schedule."""
    key = KEYS[kind]
    if key != "keep" and value not in BAD:
        assert strengths(kind, value, 2)
        return
    with pytest.raises(InputError, match=rf"^noise\.{key}: ") as caught:
        noise.KINDS[kind](**{key: value})
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", list(NOISES))
def test_settings_round_trip(name: str, tmp_path: Path) -> None:
    """from_settings, and a case directory, give the noise again: its settings, its paths, its moments."""
    model = NOISES[name]
    given_problem = kolmo.Problem(points(2), trained_size(2, DEPTH, 4), model)
    case.save(given_problem, tmp_path)
    x, network = given_problem.data.points[:3], given_problem.network
    with torch.no_grad():
        wanted = modified_equation(network, model, x), model.sample(network, 2, x, Stream(0, 0, 3).layer(2))
        for again in (
            noise.from_settings({"kind": model.kind, **model.settings()}),
            case.load(tmp_path).noise,
        ):
            assert type(again) is type(model) and again.settings() == model.settings()
            assert again.shared == model.shared
            found = (
                modified_equation(network, again, x),
                again.sample(network, 2, x, Stream(0, 0, 3).layer(2)),
            )
            assert torch.equal(found[0].drift, wanted[0].drift) and torch.equal(found[1], wanted[1])
            assert torch.equal(found[0].diffusion, wanted[0].diffusion)


def test_no_settings_is_no_noise() -> None:
    assert isinstance(noise.from_settings({}), noise.NoNoise)


PART = {"kind": "gaussian_injection", "std": 0.1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"kind": "bernouli_dropout", "keep": 0.8},
            ("noise.kind", "'bernouli_dropout'", "'bernoulli_dropout'"),
        ),
        ({"kind": "zzz"}, ("noise.kind", "'zzz'", "gaussian_injection")),
        ({"kind": 3}, ("noise.kind", "3")),
        ({"kind": "bernoulli_dropout", "kep": 0.8}, ("noise.kep", "keep")),
        ({"kind": "bernoulli_dropout", "keep": 0.8, "std": 1.0}, ("noise.std",)),
        ({"kind": "none", "keep": 0.8}, ("noise.keep", "no keys")),
        ({"kind": "shake_shake", "keep": 0.8}, ("noise.keep", "no keys")),
        ({"kind": "bernoulli_dropout"}, ("noise.keep", "missing")),
        ({"kind": "gaussian_injection"}, ("noise.std", "missing")),
        ({"kind": "gaussian_injection", "std": -1}, ("noise.std", "-1")),
        ({"kind": "stochastic_depth", "keep": 0.5, "scaling": "test"}, ("noise.scaling", "'test_time'")),
        ({"kind": "stochastic_depth", "keep": 0.5, "per": None}, ("noise.per", "None", "batch")),
        ({"kind": "composition"}, ("noise.parts", "missing")),
        *(
            ({"kind": "composition", "parts": p}, ("noise.parts", "two or more"))
            for p in ([], [PART], "no", 3)
        ),
        ({"kind": "composition", "parts": [PART, {"kind": "zzz"}]}, ("noise.kind", "'zzz'")),
        ({"kind": "composition", "parts": [PART, {**PART, "std": -1}]}, ("noise.std", "-1")),
        ({"kind": "composition", "parts": [PART, 3]}, ("noise", "3")),
    ],
)
def test_bad_settings_name_the_key(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        noise.from_settings(settings)
    assert str(caught.value).startswith(words[0] + ":")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


# ------------------------------------------------------------------ compositions


@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(ACTING, 2)), ids="+".join)
def test_two_noises_on_the_block_do_not_compose(pair: tuple[str, str]) -> None:
    """Masks, factors and branches multiply, their covariances do not add: refused, both named."""
    parts = [EXAMPLES[kind] for kind in pair]
    for order in (parts, parts[::-1], [parts[0], noise.GaussianInjection(0.1), parts[1]]):
        with pytest.raises(InputError, match=r"^noise\.parts: .* do not compose") as caught:
            noise.Composition(order)
        text = str(caught.value)
        assert sum(text.count(repr(kind)) for kind in set(pair)) == 2 and "\n" not in text


@pytest.mark.parametrize("name", list(NOISES))
def test_injection_composes_with_everything(name: str) -> None:
    """Any noise and injections, in any order, but no composition inside a composition."""
    model, more = NOISES[name], noise.GaussianInjection(0.1)
    for parts in ([model, more], [more, model], [more, model, more]):
        if isinstance(model, noise.Composition):
            with pytest.raises(InputError, match=r"^noise\.parts: .*composition inside a composition"):
                noise.Composition(parts)
        else:
            assert noise.Composition(parts).shared == model.shared


# ------------------------------------------------------------------ a noise of one's own


class OwnDropout(Noise):
    """Dropout by the three methods; the covariance is a tensor, its diagonal."""

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        return network.step * network.block(layer, x) * draws.bernoulli(0.8, x.shape[1]) / 0.8

    def mean(self, jet: Jet) -> Jet:
        return jet

    def covariance(self, jet: Jet) -> Tensor:
        return 0.2 / 0.8 * jet.value.square()


class OwnDepth(Noise):
    """Stochastic depth with test-time scaling: a biased mean, and a full covariance as a tensor."""

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        return network.step * network.block(layer, x) * draws.bernoulli(0.7, 1)

    def mean(self, jet: Jet) -> Jet:
        return ScaledJet(jet, torch.full((len(jet.layers),), 0.7, dtype=torch.float64))

    def covariance(self, jet: Jet) -> Tensor:
        return 0.3 * 0.7 * jet.value[..., :, None] * jet.value[..., None, :]


class Multiplicative(OwnDropout):
    """h f + sqrt(h) f * xi: a diffusion that varies with x."""

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        f, h = network.block(layer, x), network.step
        return h * f + h**0.5 * f * draws.normal(x.shape[1])

    def covariance(self, jet: Jet) -> None:  # type: ignore[override]
        return None

    def diffusion(self, jet: Jet) -> Tensor:
        return torch.diag_embed(jet.value.square())


@pytest.mark.parametrize(("own", "name"), [(OwnDropout(), "dropout"), (OwnDepth(), "depth-test-time")])
@pytest.mark.parametrize("order", [1, 2])
def test_a_noise_of_ones_own_is_as_good(own: Noise, name: str, order: int) -> None:
    """sample, mean and covariance: the modified equation, the chain and the PDE of the library's own."""
    for dim in (1, 3):
        network = trained_size(dim, DEPTH)
        ours, theirs = (modified_equation(network, m, points(dim).points, order) for m in (own, NOISES[name]))
        torch.testing.assert_close(ours.drift, theirs.drift, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(ours.diffusion, theirs.diffusion, rtol=1e-12, atol=1e-15)
    problems = [kolmo.Problem(cluster(1, 0.8), trained_size(1), m) for m in (own, NOISES[name])]
    chains = [kolmo.Chain(p).estimate(2000) for p in problems]
    assert chains[0].value == pytest.approx(chains[1].value, rel=1e-12)
    options: Any = {"cells": 32, "half_width": 3.0, "backend": "skfem", "order": order}
    losses = [float(BackwardKolmogorov(p, **options).expected_loss().detach()) for p in problems]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_what_a_noise_of_ones_own_lacks_is_refused() -> None:
    """Exact expectations need `outcomes`, another noise on the block is refused: one line each."""
    network, x = trained_size(2, DEPTH), points(2).points
    with pytest.raises(InputError, match=r"^noise .*outcomes.* chain") as caught:
        OwnDropout().outcomes(network, 0, x)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^noise\.parts: .*'shake_shake' do not compose"):
        noise.Composition([OwnDropout(), noise.ShakeShake()])


def test_a_diffusion_that_varies_with_x_has_order_one_only() -> None:
    """a = D(x) at order 1; at order 2 a third-derivative term survives that no SDE has."""
    model, network, x = Multiplicative(), trained_size(2, DEPTH), points(2).points
    found = modified_equation(network, model, x, 1)
    torch.testing.assert_close(found.diffusion, torch.diag_embed(network.jet(x).value.square()))
    torch.testing.assert_close(found.drift, network.jet(x).value)
    with pytest.raises(InputError, match=r"^order: 2 .* order 1$") as caught:
        modified_equation(network, model, x, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [DEPTH, 7])
def test_a_diffusion_that_varies_with_x_composes(count: int) -> None:
    """D(x) + s_k^2 I, also where there are as many points as layers."""
    model = noise.Composition([Multiplicative(), noise.GaussianInjection([0.1, 0.2, 0.3, 0.4])])
    jet = trained_size(2, DEPTH).jet(points(2).points[:count])
    s = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    added = s.square()[:, None, None, None] * torch.eye(2)
    found = model.diffusion(jet)
    assert found is not None and found.shape == (DEPTH, count, 2, 2)
    torch.testing.assert_close(found, torch.diag_embed(jet.value.square()) + added, rtol=1e-12, atol=0)


def test_no_noise_composes_with_anything() -> None:
    """`none` acts on nothing: the composition has the other's moments."""
    both = noise.Composition([noise.NoNoise(), noise.BernoulliDropout(0.5)])
    network = trained_size(2, 4, width=4)
    jet = network.jet(torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    covariance, alone = both.covariance(jet), noise.BernoulliDropout(0.5).covariance(jet)
    assert covariance is not None and alone is not None
    torch.testing.assert_close(packed(covariance), packed(alone))


def test_a_noise_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    """problem.toml could not name it: said, and nothing is written."""

    class Own(noise.NoNoise):
        kind = "own"

    own = kolmo.Problem(points(2, 20), trained_size(2, 2), Own())
    with pytest.raises(InputError, match="'own'"):
        case.save(own, tmp_path / "case")
    assert not (tmp_path / "case").exists()
