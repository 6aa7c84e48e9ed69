"""More layers with the same control and the same diffusion; training through depths."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from problems import PlainNetwork, problem, trained_size

import kolmo
from kolmo import noise
from kolmo.control import continuation, train
from kolmo.errors import InputError
from kolmo.modified import modified_equation
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.pde import ExactRecursion
from kolmo.penalty import StepPenalty, WeightDecay
from kolmo.refinement import refined

REFINABLE: dict[str, Noise] = {
    "none": noise.NoNoise(),
    "dropout": noise.BernoulliDropout([0.9, 0.8, 0.7]),
    "hidden": noise.HiddenDropout(0.8),
    "dropconnect": noise.DropConnect({"last": 0.5}),
    "depth": noise.StochasticDepth({"last": 0.5}),
    "gaussian": noise.GaussianDropout(0.4),
    "uniform": noise.UniformNoise([0.1, 0.2, 0.3]),
    "injection": noise.GaussianInjection([0.1, 0.2, 0.3]),
    "both": noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.2)]),
}


@pytest.mark.parametrize("name", REFINABLE)
def test_drift_and_diffusion_stay(name: str) -> None:
    """Every layer's, at order 1, in each of the layers that take its place."""
    given = problem(2, REFINABLE[name], depth=3)
    finer = refined(given, 4)
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coarse = modified_equation(given.network, given.noise, x, 1)
    fine = modified_equation(finer.network, finer.noise, x, 1)
    assert torch.allclose(coarse.drift.repeat_interleave(4, dim=0), fine.drift, rtol=1e-12)
    repeated = coarse.diffusion.repeat_interleave(4, dim=0)
    assert torch.allclose(repeated, fine.diffusion, rtol=1e-9, atol=1e-14)
    assert finer.network.depth == 12 and finer.network.step == given.network.step / 4


def test_losses_tend_to_a_limit() -> None:
    """Differences of J of neighbouring depths fall like h, by the exact recursion."""
    given = problem(2, noise.GaussianDropout(0.3), depth=5)
    with torch.no_grad():
        J = [float(ExactRecursion(refined(given, n), cells=32).expected_loss()) for n in (1, 2, 4, 8)]
    changes = [abs(a - b) for a, b in pairwise(J)]
    assert all(0.4 < b / a < 0.65 for a, b in pairwise(changes)), J


def test_what_cannot_be_refined() -> None:
    """One line each."""
    given = problem(2, noise.ShakeShake(), depth=2)
    with pytest.raises(InputError, match="'shake_shake': it has no strength that could grow"):
        refined(given, 2)
    with pytest.raises(InputError, match=r"no strength of it has variance 0\.48"):
        refined(problem(2, noise.StochasticDepth(0.6, scaling="test_time"), depth=2), 2)
    with pytest.raises(InputError, match="PlainNetwork cannot be refined"):
        refined(given.with_network(PlainNetwork(trained_size(2, 2))), 2)
    with pytest.raises(InputError, match=r"factor: 1\.5"):
        refined(given, 1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="depths: 5 is no multiple of the 2 layers"):
        continuation(given, (2, 5), cells=(10, 10), iterations=(0, 0))
    with pytest.raises(InputError, match="2 depths, 1 cells and 2 iterations"):
        continuation(given, (2, 4), cells=(10,), iterations=(1, 1))


def test_training_through_depths() -> None:
    """The last problem has the noise asked for, and an objective about that of training it at once."""
    keys: dict[str, Any] = {"penalties": (WeightDecay(1e-2), StepPenalty())}

    def start(depth: int, keep: float) -> kolmo.Problem:
        network = ResidualNetwork(2, 6, depth)
        return kolmo.Problem(kolmo.data.moons(60), network, noise.BernoulliDropout(keep))

    at_once = train(start(12, 0.8), cells=(36,), iterations=(60,), **keys)
    first = start(3, 1 / (1 + 0.25 / 4))
    last, trainings = continuation(first, (3, 6, 12), cells=(24, 28, 36), iterations=(60, 30, 30), **keys)
    assert last.network.depth == 12 and last.noise.settings()["keep"] == pytest.approx(0.8)
    assert [t.cells for t in trainings] == [24, 28, 36]
    assert trainings[-1].result.value < 1.03 * at_once.result.value
