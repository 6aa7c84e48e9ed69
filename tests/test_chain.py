"""Monte Carlo of the chain: moments, intervals, reproducibility, gradients, variance reduction."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import DEPTH, NOISES, affine_network, chain_loss, cluster
from scipy import stats

from kolmo import Dataset, Problem, ResidualNetwork, chain, data, noise
from kolmo.chain import Chain
from kolmo.errors import InputError, MissingBackendError
from kolmo.loss import LeastSquares
from kolmo.noise.base import Noise


def _problem(width: int = 6, depth: int = 5) -> Problem:
    network = ResidualNetwork(2, width, depth, seed=2)
    with torch.no_grad():
        network.V *= 3
    return Problem(data.moons(20, seed=1), network, noise.BernoulliDropout(0.7))


def test_streaming_moments_equal_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and standard error over many blocks against one pass over all losses."""
    problem = _problem()
    monkeypatch.setattr(chain, "BLOCK", 200)
    found = Chain(problem, seed=5).estimate(20_000)
    monkeypatch.undo()
    with torch.no_grad():
        table = torch.cat([Chain(problem, seed=5).losses(250, first) for first in (0, 250, 500, 750)])
    assert table.shape == (1000, 20)
    assert found.value == pytest.approx(float(table.mean()), rel=1e-12)
    error = float((table.var(dim=0) / 1000).sum().sqrt()) / 20
    assert found.standard_error == pytest.approx(error, rel=1e-10)


def test_same_seed_same_numbers_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks own their noise streams."""
    problem = _problem()
    values = []
    for threads in (1, 3):
        monkeypatch.setattr(chain.os, "cpu_count", lambda threads=threads: threads)
        values.append(Chain(problem, seed=9).estimate(40_000).value)
    assert values[0] == values[1]
    assert Chain(problem, seed=10).estimate(40_000).value != values[0]


def test_gradient_of_the_noiseless_chain_is_exact() -> None:
    """Without noise the sampled gradient is autograd's of the plain network, without spread."""
    problem = _problem().without_noise()
    found = Chain(problem).gradient(1000)
    loss = problem.loss(problem.network(problem.data.points), problem.data.labels).mean()
    exact = torch.autograd.grad(loss, list(problem.network.parameters()))
    for (name, _), gradient in zip(problem.network.named_parameters(), exact, strict=True):
        torch.testing.assert_close(found.value[name], gradient, rtol=1e-10, atol=1e-14)
        assert float(found.standard_error[name].max()) < 1e-10


def test_gradient_is_the_derivative_of_the_same_paths() -> None:
    """The sampled gradient against central differences of the estimate under the same random numbers."""
    problem = _problem(width=3, depth=3)
    found = Chain(problem, seed=3).gradient(64 * 20)
    for index in [(0, 0, 0), (1, 1, 1), (2, 0, 2)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                problem.network.V[index] += sign * 1e-5
            values.append(Chain(problem, seed=3).estimate(64 * 20).value)
            with torch.no_grad():
                problem.network.V[index] -= sign * 1e-5
        assert float(found.value["V"][index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_bad_requests() -> None:
    """Too few paths, an absent device, an unknown one."""
    problem = _problem()
    with pytest.raises(InputError, match="too few"):
        Chain(problem).estimate(30)
    with pytest.raises(MissingBackendError, match="unknown"):
        Chain(problem, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(MissingBackendError, match="CUDA"):
            Chain(problem, device="cuda")


# ------------------------------------------------------------------ against closed forms


def affine(model: Noise, scale: float = 1.0) -> Problem:
    """An affine block and a quadratic loss, whose J is known; scale: of the output weights."""
    network = affine_network(2, DEPTH)
    with torch.no_grad():
        network.V *= scale
    return Problem(cluster(2, 0.8), network, model, LeastSquares())


def in_step(model: Noise) -> Problem:
    """f = -2 x, points x with label 1 and -x with label 0: under one mask all losses move together."""
    ones = torch.ones(DEPTH, 1, 1)
    network = ResidualNetwork.from_weights(ones, 0 * ones[:, 0], -2 * ones, activation="identity")
    x = torch.linspace(0.6, 1.0, 5, dtype=torch.float64)
    return Problem(Dataset(torch.cat([x, -x])[:, None], torch.arange(10) < 5), network, model, LeastSquares())


#: a p-value of seeds that are fixed: below it, a claim about them is refuted
LEVEL = 1e-4
INDEX = (1, 0, 0)


def spread(values: list[float], errors: list[float], exact: float) -> float:
    """The p-value of chi-square: independent estimates scatter around the truth by their errors."""
    squares = (np.array(values) - exact) ** 2 / np.mean(np.square(errors))
    below = stats.chi2.cdf(float(squares.sum()), len(squares))
    return 2 * min(below, 1 - below)


@pytest.mark.parametrize(
    "name", ["dropout", "injection", "uniform", "shake", "depth-test-time+injections", "depth-batch"]
)
def test_antithetic_estimates_are_unbiased(name: str) -> None:
    """|estimate - J| <= 5 standard errors, from odd and even copies together."""
    given = affine(NOISES[name])
    estimate = Chain(given, seed=2, antithetic=True).estimate(60_000)
    assert abs(estimate.value - chain_loss(given)) <= 5 * estimate.standard_error
    assert estimate.paths == 60_000 and estimate.standard_error > 0


@pytest.mark.parametrize("model", [noise.GaussianInjection(0.5), noise.UniformNoise(0.9), noise.ShakeShake()])
def test_antithetic_numbers_cancel_what_is_odd(model: Noise) -> None:
    """Symmetric numbers, a loss nearly linear in them: from as many paths an 8 times smaller variance."""
    given = affine(model)
    plain, paired = (Chain(given, antithetic=flag).estimate(20_000) for flag in (False, True))
    assert plain.standard_error**2 > 8 * paired.standard_error**2


@pytest.mark.parametrize(
    ("model", "make", "antithetic"),
    [
        (noise.BernoulliDropout(0.5), affine, True),
        (NOISES["injection"], affine, True),
        (NOISES["depth-batch"], in_step, False),
        (NOISES["depth-batch+injection"], in_step, False),
    ],
    ids=["antithetic-dropout", "antithetic-injection", "batch", "batch+injection"],
)
def test_reported_errors_are_honest(model: Noise, make: Callable[[Noise], Problem], antithetic: bool) -> None:
    """60 seeds scatter around J by what they report; errors as of independent paths would be refuted."""
    given = make(model)
    exact, runs, naive = chain_loss(given), [], []
    for seed in range(60):
        runs.append(Chain(given, seed=seed, antithetic=antithetic).estimate(200 * len(given.data)))
        with torch.no_grad():
            table = Chain(given, seed=seed, antithetic=antithetic).losses(200)
        assert runs[-1].value == pytest.approx(float(table.mean()), rel=1e-12)
        naive.append(float((table.var(dim=0) / len(table)).sum().sqrt()) / table.shape[1])
    values = [run.value for run in runs]
    assert spread(values, [run.standard_error for run in runs], exact) > LEVEL > spread(values, naive, exact)


@pytest.mark.parametrize(
    ("model", "make", "antithetic"),
    [(NOISES["depth-batch"], in_step, False), (noise.BernoulliDropout(0.5), affine, True)],
    ids=["batch", "antithetic"],
)
def test_gradient_errors_are_honest(model: Noise, make: Callable[[Noise], Problem], antithetic: bool) -> None:
    """60 seeds of dJ/dV_11 of layer 1, from few paths, scatter by their reported errors."""
    given = make(model)
    assert isinstance(given.network, ResidualNetwork)
    runs = [Chain(given, seed=s, antithetic=antithetic).gradient(24 * len(given.data)) for s in range(60)]
    values = [float(run.value["V"][INDEX]) for run in runs]
    errors = [float(run.standard_error["V"][INDEX]) for run in runs]
    assert spread(values, errors, derivative(given, given.network.V, INDEX)) > LEVEL


def derivative(given: Problem, weight: torch.Tensor, index: tuple[int, ...]) -> float:
    """Central difference of the exact J by one weight."""
    values, step = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            weight[index] += sign * step
            values.append(chain_loss(given))
            weight[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", ["dropout", "depth-batch", "shake+injection"])
def test_gradients_are_those_of_the_closed_form(name: str, antithetic: bool) -> None:
    """Sampled dJ/dtheta against central differences of the exact J: 5 errors, which are small."""
    given = affine(NOISES[name])
    found = Chain(given, seed=1, antithetic=antithetic).gradient(30_000)
    for name, index in [("V", (0, 0, 1)), ("W", (2, 1, 0)), ("b", (3, 2))]:
        exact = derivative(given, getattr(given.network, name), index)
        error = float(found.standard_error[name][index])
        assert abs(float(found.value[name][index]) - exact) <= 5 * error + 1e-9
        assert 0 < error < 0.1 * abs(exact)


# ------------------------------------------------------------------ common random numbers


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", ["dropout", "hidden-list", "shake+injection", "depth-batch"])
def test_differences_under_common_numbers(name: str, antithetic: bool) -> None:
    """J of a nearby network minus J: unbiased, its error far below that of independent runs."""
    given, other = affine(NOISES[name]), affine(NOISES[name], scale=1.01)
    simulated = Chain(given, seed=4, antithetic=antithetic)
    found = simulated.difference(other.network, 24_000)
    exact = chain_loss(other) - chain_loss(given)
    assert abs(found.value - exact) <= 5 * found.standard_error
    assert found.standard_error < 0.2 * abs(exact)
    independent = np.hypot(*(Chain(p, seed=5).estimate(24_000).standard_error for p in (given, other)))
    assert found.standard_error < 0.05 * independent
    assert simulated.difference(given.network, 2400).value == 0


def test_networks_share_their_noise_under_one_seed() -> None:
    """Two chains with one seed drop the same blocks, whatever their weights: losses hardly differ."""
    given, other = affine(NOISES["depth"]), affine(NOISES["depth"], scale=1.001)
    with torch.no_grad():
        ours, theirs = Chain(given, seed=3).losses(100), Chain(other, seed=3).losses(100)
    assert ours.std(dim=0).mean() > 0.05 and (ours - theirs).abs().max() < 0.01


def test_differences_in_single_precision() -> None:
    given, other = affine(NOISES["dropout"]), affine(NOISES["dropout"], scale=1.1)
    found = Chain(given, dtype=torch.float32).difference(other.network, 6000)
    exact = chain_loss(other) - chain_loss(given)
    assert abs(found.value - exact) <= 5 * found.standard_error


# ------------------------------------------------------------------ control variates


def waves(layer: int, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A vector field that has nothing to do with any equation."""
    return 3 * torch.sin(x + layer) + label[:, None]


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", [n for n in NOISES if n not in ("none", "dropout-1", "injection-0")])
def test_control_variates_leave_the_mean(name: str, antithetic: bool) -> None:
    """sum_k g(.) . (X_{k+1} - E[X_{k+1} | X_k]) has mean zero for any field g, and every noise."""
    given = affine(NOISES[name])
    found = Chain(given, seed=6, control=waves, antithetic=antithetic).estimate(24_000)
    assert abs(found.value - chain_loss(given)) <= 5 * found.standard_error
    with torch.no_grad():
        plain, moved = (Chain(given, seed=6, control=g).losses(10) for g in (None, waves))
    assert (plain - moved).abs().max() > 1e-2  # the field does something


def test_control_by_the_gradient_removes_the_linear_part() -> None:
    """One layer: Phi(m + zeta) - grad Phi(m) . zeta = Phi(m) + zeta_1^2 / 2, of variance (h s^2)^2 / 2."""
    network = affine_network(2, 1)
    given = Problem(cluster(2, 0.8), network, noise.GaussianInjection(0.5), LeastSquares())

    def gradient(layer: int, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0] - (2 * label - 1), torch.zeros(len(x), dtype=x.dtype)], dim=1)

    found, plain = (Chain(given, control=g).estimate(60_000) for g in (gradient, None))
    assert abs(found.value - chain_loss(given)) <= 5 * found.standard_error
    assert found.standard_error**2 * found.paths == pytest.approx(0.25**2 / 2, rel=0.05)
    assert found.standard_error < 0.5 * plain.standard_error


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("name", ["dropout", "hidden", "dropconnect", "depth-batch", "dropout+injection"])
def test_single_precision_has_the_same_paths(name: str) -> None:
    """float32 draws the masks (and rounded normal numbers) of float64: losses agree path by path."""
    given = affine(NOISES[name])
    single = copy.deepcopy(given.network).float()
    with torch.no_grad():
        ours = Chain(given, seed=7, dtype=torch.float32).losses(500, network=single)
        theirs = Chain(given, seed=7).losses(500)
    assert ours.dtype == torch.float32 and theirs.std(dim=0).mean() > 0.05
    assert (ours - theirs).abs().max() < 1e-5


def test_single_precision_leaves_the_network_alone() -> None:
    """After a float32 estimate the weights are what they were, bit by bit, in float64."""
    given = affine(NOISES["dropout"])
    before = [p.detach().clone() for p in given.network.parameters()]
    single = Chain(given, dtype=torch.float32).estimate(60_000)
    assert abs(single.value - chain_loss(given)) <= 5 * single.standard_error
    for ours, theirs in zip(given.network.parameters(), before, strict=True):
        assert ours.dtype == torch.float64 and torch.equal(ours, theirs)
