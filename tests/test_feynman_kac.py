"""Feynman-Kac ensembles: the limit against a closed form, attacks, and what the experiment claims."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import kolmo
from kolmo import config
from kolmo.errors import InputError
from kolmo.experiments import feynman_kac
from kolmo.experiments.ensemble import Ensemble, Limit, accuracy, attack, error, single
from kolmo.experiments.feynman_kac import NAMES, RADII, FeynmanKac
from kolmo.loss import LeastSquares
from kolmo.report import study_figures

STD = 0.7


def identity(scale: float = 2.0) -> kolmo.Problem:
    """A network that does nothing but add noise: X_L = x + STD N(0, I)."""
    network = kolmo.ResidualNetwork(2, 2, 4)
    with torch.no_grad():
        network.V.zero_()
    injection = kolmo.noise.GaussianInjection(STD)
    return kolmo.Problem(kolmo.data.moons(20), network, injection, kolmo.loss.Logistic(scale))


def moments(x: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """E p, its slope along x_1, and Var p of the identity's passes, by Gauss and Hermite's rule."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / math.sqrt(2 * math.pi)
    p = torch.sigmoid(scale * (x[:, :1] + STD * nodes))
    mean = p @ weights
    return mean, (scale * p * (1 - p)) @ weights, p.square() @ weights - mean.square()


def test_the_limit_is_the_expectation_of_a_pass() -> None:
    """Values, slopes and variances: second order in the mesh, up to what the box leaves out."""
    x = 2 * torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    mean, slope, variance = moments(x)
    errors = []
    for cells in (32, 64):
        limit = Limit(identity(), 1.0, cells=cells)
        points = x.clone().requires_grad_()
        value = limit(points)
        (found,) = torch.autograd.grad(value.sum(), points)
        spread = torch.from_numpy(limit.variance(x.numpy()))
        wrong = (value - mean, found[:, 0] - slope, found[:, 1], spread - variance)
        errors.append([float(w.detach().abs().max()) for w in wrong])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.35 * coarse + 5e-4


def test_ensembles_are_fresh_and_unbiased() -> None:
    x = torch.tensor([[0.3, 0.1], [-0.5, 0.2], [0.0, 0.0]], dtype=torch.float64)
    mean, _, variance = moments(x)
    ensemble = Ensemble(identity(), 4000, seed=1)
    first, second = ensemble(x), ensemble(x)
    assert not torch.equal(first, second)
    for found in (first, second):
        assert bool(((found - mean).abs() < 4.5 * (variance / 4000).sqrt()).all())
    torch.testing.assert_close(Ensemble(identity(), 4000, seed=1)(x), first, rtol=0, atol=0)


def test_an_attack_on_a_linear_classifier_is_the_worst_one() -> None:
    """The error of sigma(w . x) is largest at x -+ radius w / |w|, where every step leads."""
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 2
    found = attack(lambda z: torch.sigmoid(z @ w), x, labels, 0.4)
    sign = (1 - 2 * labels)[:, None].double()
    torch.testing.assert_close(found, x + 0.4 * sign * w / w.norm())
    assert torch.equal(attack(lambda z: torch.sigmoid(z @ w), x, labels, 0.0), x)


def test_attacks_stay_in_their_ball_and_raise_the_error() -> None:
    problem = kolmo.Problem(kolmo.data.moons(40), kolmo.ResidualNetwork(2, 8, 5))
    x, labels = problem.data.points, problem.data.labels
    for classifier in (single(problem), Limit(identity(), 3.0, cells=32)):
        found = attack(classifier, x, labels, 0.3)
        assert float((found - x).norm(dim=1).max()) <= 0.3 * (1 + 1e-12)
        with torch.no_grad():
            before, after = (float(error(classifier, z, labels).mean()) for z in (x, found))
        assert after > before
        assert accuracy(classifier, found, labels) <= accuracy(classifier, x, labels)


def test_other_losses_have_no_ensemble() -> None:
    problem = kolmo.Problem(kolmo.data.moons(20), kolmo.ResidualNetwork(2, 2, 2), loss=LeastSquares())
    for make in (single, lambda p: Ensemble(p, 2), lambda p: Limit(p, 1.0)):
        with pytest.raises(InputError, match=r"loss 'least_squares': .* the logistic one"):
            make(problem)
    with pytest.raises(InputError, match="members: 0"):
        Ensemble(identity(), 0)


# ------------------------------------------------------------------ the experiment


@pytest.fixture(scope="module")
def small() -> FeynmanKac:
    """The experiment with small networks and few steps: it runs, whatever its claims are worth."""
    patch = pytest.MonkeyPatch()
    patch.setattr(feynman_kac, "MANY", 100)
    patch.setattr(feynman_kac, "CELLS", 40)
    patch.setattr(feynman_kac, "MAP", 11)
    settings = config.load("feynman_kac")
    settings.network.depth, settings.network.width, settings.data.test = 10, 4, 40
    settings.stochastic.steps = settings.noiseless.steps = 60
    made = FeynmanKac(settings, quick=True)
    made.run()
    patch.undo()
    return made


def test_results_tables_and_figures(small: FeynmanKac) -> None:
    assert small.finished
    rows = json.loads(json.dumps(small.results(), allow_nan=False))["rows"]
    assert len(rows) == small.seeds
    for _, columns, table in small.tables():
        assert table and all(len(line) == len(columns) for line in table)
    makers = study_figures(small.name)
    assert set(makers) == {"boundaries", "attacks"}
    empty = FeynmanKac(small.config, quick=True)
    for make in makers.values():
        assert make(small) is not None
        assert make(empty) is None
    assert empty.tables() == [] and not empty.finished


def test_attacks_of_the_experiment_grow_with_their_radius(small: FeynmanKac) -> None:
    for name in ("plain", "single", "limit"):  # sampled ones have noise
        assert bool((np.diff(small.table(name, "error"), axis=1) > 0).all())
        assert bool((np.diff(small.table(name), axis=1) <= 0).all())
    assert small.table("limit").shape == (small.seeds, len(RADII))
    assert set(small.rows[0]["attacked"]) == set(NAMES)


def test_claims_notice_a_limit_of_other_noise(small: FeynmanKac) -> None:
    """With a variance, a mean or an adversarial error that is another's, claims fall."""
    sound = [claim.holds for claim in small.claims()]
    assert all(sound[:3])
    for number, change in enumerate(("variance", "bias", "sampled")):
        made = FeynmanKac(small.config, quick=True)
        made.rows = copy.deepcopy(small.rows)
        for row in made.rows:
            if change == "sampled":
                row["sampled"] = [s + 0.05 for s in row["sampled"]]
            else:
                row[change] *= 10 if change == "bias" else 1.3
        assert not made.claims()[number].holds, change


@pytest.mark.slow
def test_the_claims_of_the_quick_version_hold() -> None:
    made = FeynmanKac(config.load("feynman_kac"), quick=True)
    made.run()
    claims = made.claims()
    assert len(claims) == 4
    assert all(claim.holds for claim in claims), claims
