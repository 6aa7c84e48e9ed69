"""Monte Carlo of the chain: moments, intervals, reproducibility, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kolmo import Problem, ResidualNetwork, chain, data, noise
from kolmo.chain import Chain
from kolmo.errors import InputError, MissingBackendError


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


def test_intervals_cover() -> None:
    """95% intervals of 200 seeds cover a long run's value: between 90% and 99% of the time."""
    problem = _problem(width=3, depth=3)
    truth = Chain(problem, seed=0).estimate(2_000_000)
    hits = 0
    for seed in range(1, 201):
        low, high = Chain(problem, seed=seed).estimate(1000).interval
        hits += low <= truth.value <= high
    assert 180 <= hits <= 198


def test_gradient_of_the_noiseless_chain_is_exact() -> None:
    """Without noise the sampled gradient is autograd's of the plain network, without spread."""
    problem = _problem().without_noise()
    found = Chain(problem).gradient(1000)
    loss = problem.loss(problem.network(problem.data.points), problem.data.labels).mean()
    exact = torch.autograd.grad(loss, list(problem.network.parameters()))
    for (name, _), gradient in zip(problem.network.named_parameters(), exact, strict=True):
        torch.testing.assert_close(found.value[name], gradient, rtol=1e-10, atol=1e-14)
        assert float(found.standard_error[name].max()) < 1e-10


def test_gradient_matches_differences_of_common_paths() -> None:
    """The sampled gradient against central differences of long runs with common noise, 5 combined errors."""
    problem = _problem(width=3, depth=3)
    found = Chain(problem, seed=3).gradient(400_000)
    step = 1e-4
    weight = problem.network.V
    for index in [(0, 0, 0), (1, 1, 1), (2, 0, 2)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
            values.append(Chain(problem, seed=11).estimate(400_000).value)
            with torch.no_grad():
                weight[index] -= sign * step
        difference = (values[0] - values[1]) / (2 * step)
        assert abs(float(found.value["V"][index]) - difference) < 7 * float(found.standard_error["V"][index])


def test_single_precision_agrees() -> None:
    """float32 paths: the same J within sampling, and the network keeps its own precision."""
    problem = _problem()
    single = Chain(problem, seed=4, dtype=torch.float32).estimate(200_000)
    double = Chain(problem, seed=6).estimate(200_000)
    assert abs(single.value - double.value) < 5 * np.hypot(single.standard_error, double.standard_error)
    assert problem.network.W.dtype == torch.float64


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
