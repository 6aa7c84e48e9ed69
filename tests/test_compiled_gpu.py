"""The fused kernel against the plain torch path: on an accelerator, or by Triton's interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from problems import NOISES, points, trained_size

from kolmo import Problem
from kolmo.chain import Chain
from kolmo.loss import Logistic

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

#: noises of every structure and law, with schedules that any depth has
NAMES = [
    "none", "dropout", "dropout-line", "hidden", "dropconnect-decay", "depth-decay-test-time",
    "gaussian-dropout", "uniform-decay", "injection-line",
]  # fmt: skip


def fused(simulated: Chain) -> tuple[Any, Any]:
    from kolmo.compiled import gpu

    network = simulated._here(simulated.problem.network)
    return gpu.FusedChain(simulated.problem, network), network


@pytest.mark.parametrize(("name", "dim", "antithetic"), [
    *((name, 2, False) for name in NAMES), ("dropout", 1, True), ("injection-line", 3, True),
    ("hidden", 3, False),
])  # fmt: skip
def test_losses_and_gradients_are_those_of_torch(
    name: str, dim: int, antithetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path by path, and gradients with any cotangent, over several blocks and chunks."""
    from kolmo.compiled import gpu

    monkeypatch.setattr(gpu, "ROWS", 32)
    monkeypatch.setattr(gpu, "STATES", 48)
    activation = "sigmoid" if name == "dropout-line" else "tanh"
    problem = Problem(
        points(dim, 9), trained_size(dim, 3, width=3, activation=activation), NOISES[name], Logistic(3.0)
    )
    simulated = Chain(problem, seed=3, device=DEVICE, dtype=torch.float32, antithetic=antithetic)
    kernels, network = fused(simulated)
    stream = simulated.stream(7, 3)
    ours, theirs = kernels.losses(stream), simulated.plain(network, stream)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    weights = torch.cos(torch.arange(len(ours), dtype=torch.float32, device=DEVICE))
    pairs = (torch.autograd.grad((weights * x).sum(), list(network.parameters())) for x in (ours, theirs))
    for found, wanted in zip(*pairs, strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_far_rows_and_large_losses() -> None:
    """Rows beyond what 32 bits count, losses beyond where softplus is linear, and small ones."""
    problem = Problem(points(2, 8), trained_size(2, 2, width=2), NOISES["depth"], Logistic(25.0))
    simulated = Chain(problem, seed=2**40, device=DEVICE, dtype=torch.float32)
    kernels, network = fused(simulated)
    stream = simulated.stream(2, 2**33)
    with torch.no_grad():
        ours, theirs = kernels.losses(stream), simulated.plain(network, stream)
    assert float(ours.max()) > 20 > 1e-6 > float(ours.min())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-30)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_chains_on_an_accelerator_are_fused() -> None:
    """In single precision: the same estimate as on the CPU, from the same paths."""
    problem = Problem(points(2, 40), trained_size(2, 10), NOISES["dropout"], Logistic())
    there = Chain(problem, seed=1, device=DEVICE, dtype=torch.float32)
    assert there.is_compiled(problem.network)
    here = Chain(problem, seed=1, dtype=torch.float32)
    ours, theirs = there.estimate(200_000), here.estimate(200_000)
    assert ours.value == pytest.approx(theirs.value, rel=1e-5)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=1e-4)
    gradients = there.gradient(20_000), here.gradient(20_000)
    for name in ("W", "b", "V"):
        found, wanted = (g.value[name] for g in gradients)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-4
