"""The explicit penalty against closed forms, hessians and its other forms; the experiment and its faults."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import problems
import pytest
import torch
from problems import NOISES, PlainNetwork
from torch import Tensor

from kolmo import KolmoError, Problem, ResidualNetwork, noise
from kolmo import explicit as module
from kolmo import figures_regularization as figures
from kolmo.chain import Chain
from kolmo.config import Config
from kolmo.control import Objective, lbfgs, taylor_test
from kolmo.errors import AuditError, InputError
from kolmo.experiments import regularization, remainder
from kolmo.experiments.optima import Effort, Optimum
from kolmo.experiments.penalties import (
    MeshPenalty,
    at_rate,
    flow_penalty,
    mask_penalty,
    path_penalty,
    sampled_loss,
    split,
)
from kolmo.experiments.progress import Silent
from kolmo.experiments.regularization import FULL, QUICK, Regularization
from kolmo.explicit import ExplicitPenalty, expansion, explicit_penalty
from kolmo.loss import LeastSquares
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed
from kolmo.pde.exact import ExactRecursion
from kolmo.penalty import WeightDecay

#: noises that take any block; the others need V sigma(W x + b) or two branches
ANY_BLOCK = sorted(name for name in NOISES if not name.startswith(("hidden", "dropconnect", "shake")))


# ------------------------------------------------------------------ against derivatives by torch


def by_hessians(problem: Problem) -> float:
    """R with hess u_{k+1} by torch.func.hessian of the remaining network, point by point."""
    network, model, h = problem.network, problem.noise, problem.network.step

    def layer(k: int, x: Tensor) -> Tensor:
        return x + h * model.mean(network.jet(x, slice(k, k + 1))).value[0]

    def rest(k: int, x: Tensor, label: Tensor) -> Tensor:
        x = x[None]
        for later in range(k, network.depth):
            x = layer(later, x)
        return problem.loss(x[0], label)

    total, x = 0.0, problem.data.points
    for k in range(network.depth):
        jet = network.jet(x, slice(k, k + 1))
        C, D = model.covariance(jet), model.diffusion(jet)
        sigma = torch.zeros(len(x), network.dim, network.dim, dtype=torch.float64)
        if C is not None:
            full = packed(C)[0]
            sigma = sigma + h**2 * (full if full.ndim == 3 else torch.diag_embed(full))
        if D is not None:
            sigma = sigma + h * D[0]
        x = layer(k, x)
        for point, label, spread in zip(x, problem.data.labels, sigma, strict=True):
            hessian = torch.func.hessian(lambda z, k=k, y=label: rest(k + 1, z, y))(point)
            total += float((0.5 * spread * hessian).sum().detach()) / len(x)
    return total


@pytest.mark.parametrize("name", NOISES)
def test_the_penalty_is_made_of_the_remaining_networks_hessians(name: str) -> None:
    problem = problems.problem(2, NOISES[name], depth=problems.DEPTH, samples=4)
    assert float(explicit_penalty(problem).detach()) == pytest.approx(
        by_hessians(problem), rel=1e-12, abs=1e-18
    )


@pytest.mark.parametrize("name", ANY_BLOCK)
@pytest.mark.parametrize("dim", [1, 3])
def test_blocks_without_a_closed_form_have_the_same_penalty(name: str, dim: int) -> None:
    problem = problems.problem(dim, NOISES[name], depth=problems.DEPTH, samples=5)
    assert isinstance(problem.network, ResidualNetwork)
    plain = problem.with_network(PlainNetwork(problem.network))
    expected = float(explicit_penalty(problem).detach())
    assert float(explicit_penalty(plain).detach()) == pytest.approx(expected, rel=1e-11, abs=1e-18)


@pytest.mark.parametrize(
    "name", ["dropout-line", "hidden", "depth-test-time", "injection", "shake+injection"]
)
def test_taylor_rates_of_the_penalty_alone_and_with_the_loss(name: str) -> None:
    """The gradient is that of the value: remainders fall with the square of the step."""
    problem = problems.problem(2, NOISES[name], depth=problems.DEPTH, samples=12)
    for estimator in (ExplicitPenalty(problem).expected_loss, lambda: 100 * explicit_penalty(problem)):
        objective = Objective(problem.network, estimator)
        rates = taylor_test(objective, objective.theta, seed=3, steps=(0.1, 0.05, 0.025, 0.0125))
        assert rates.order1 == pytest.approx(2.0, abs=0.1)
        assert rates.order0 == pytest.approx(1.0, abs=0.3)


def test_shapes_and_sums() -> None:
    """Contributions add up to R, slopes are the gradient by the data, features end at the network's own."""
    problem = problems.problem(2, depth=6, samples=10)
    points = problem.data.points.clone().requires_grad_()
    found = expansion(problem)
    assert found.contributions.shape == (6, 10)
    assert found.features.shape == found.slopes.shape == (7, 10, 2)
    torch.testing.assert_close(found.contributions.sum(), found.penalty)
    torch.testing.assert_close(found.features[-1], problem.network(problem.data.points))
    loss = problem.loss(problem.network(points), problem.data.labels)
    torch.testing.assert_close(found.slopes[0], torch.autograd.grad(loss.sum(), points)[0])
    assert float(found.loss.detach()) == pytest.approx(float(loss.mean().detach()), rel=1e-13)
    total = float(ExplicitPenalty(problem).expected_loss().detach())
    assert total == pytest.approx(float((found.loss + found.penalty).detach()), rel=1e-13)


def test_a_kinked_block_is_refused() -> None:
    problem = problems.problem(2, activation="relu")
    with pytest.raises(InputError, match="two derivatives"):
        ExplicitPenalty(problem)
    with pytest.raises(InputError, match="two derivatives"):
        explicit_penalty(problem)


# ------------------------------------------------------------------ closed forms


def affine(model: Noise, depth: int, dim: int = 2, samples: int = 12) -> Problem:
    """Affine blocks and quadratic loss: the chain's J is known exactly."""
    network = problems.affine_network(dim, depth)
    return Problem(problems.points(dim, samples), network, model, LeastSquares())


@pytest.mark.parametrize("name", [n for n in NOISES if not n.endswith(("-list", "-line", "+injections"))])
def test_one_affine_layer_and_a_quadratic_loss_have_no_remainder(name: str) -> None:
    """J = J_0 + R exactly: the value function after the layer is a quadratic."""
    problem = affine(NOISES[name], 1)
    found = ExplicitPenalty(problem).expected_loss()
    assert float(found.detach()) == pytest.approx(problems.chain_loss(problem), rel=1e-12)


@pytest.mark.parametrize(
    "family",
    [
        lambda q: noise.BernoulliDropout(1 / (1 + q)),
        lambda q: noise.HiddenDropout(1 / (1 + q)),
        lambda q: noise.StochasticDepth(1 / (1 + q)),
        lambda q: noise.GaussianDropout(np.sqrt(q)),
        lambda q: noise.UniformNoise(np.sqrt(q)),
    ],
)
def test_affine_layers_leave_a_remainder_of_second_order(family: object) -> None:
    """|J - J_0 - R| over q has slope 2, and R itself is linear in q."""
    rates, left, penalties = (0.1, 0.05, 0.025, 0.0125), [], []
    for q in rates:
        problem = affine(family(q), 8)  # type: ignore[operator]
        found = expansion(problem)
        left.append(abs(problems.chain_loss(problem) - float((found.loss + found.penalty).detach())))
        penalties.append(float(found.penalty.detach()))
    np.testing.assert_allclose(np.array(penalties) / rates, penalties[0] / rates[0], rtol=1e-12)
    assert problems.fitted_order(rates, left) == pytest.approx(2.0, abs=0.05)


def test_additive_noise_on_affine_layers_has_no_remainder_at_all() -> None:
    """Gaussian injection does not depend on x: J of a quadratic loss is linear in its variance."""
    problem = affine(noise.GaussianInjection(0.7), 8)
    assert float(ExplicitPenalty(problem).expected_loss().detach()) == pytest.approx(
        problems.chain_loss(problem), rel=1e-12
    )


def test_dropout_on_linear_least_squares_is_a_ridge_penalty() -> None:
    """One layer, prediction x_1 + h v . z: R = q h^2/2 sum_j v_j^2 mean z_j^2 (Wager, Wang, Liang 2013)."""
    problem = affine(noise.HiddenDropout(0.8), 1)
    network = problem.network
    assert isinstance(network, ResidualNetwork)
    z = network.hidden(0, problem.data.points)
    ridge = 0.5 * 0.25 * (network.V[0, 0].square() * z.square().mean(dim=0)).sum()
    torch.testing.assert_close(explicit_penalty(problem), network.step**2 * ridge, rtol=1e-12, atol=0)
    # and so is its gradient by the weights of the prediction
    gradient = torch.autograd.grad(explicit_penalty(problem), network.V)[0][0, 0]
    expected = network.step**2 * 0.25 * network.V[0, 0] * z.square().mean(dim=0)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", [n for n in NOISES if n not in ("none", "dropout-1", "injection-0")])
def test_a_convex_loss_of_an_affine_network_is_penalised(name: str) -> None:
    """u_k is convex along the paths, so R > 0 for every noise: here the logistic loss."""
    problem = affine(NOISES[name], problems.DEPTH)
    problem = Problem(problem.data, problem.network, problem.noise)
    found = expansion(problem)
    assert float(found.penalty.detach()) > 0
    assert bool((found.contributions.detach() >= -1e-18).all())


# ------------------------------------------------------------------ the other forms


def test_the_flow_is_the_modified_equations_first_order() -> None:
    """J of the modified equation, affine and quadratic, less J_0 less R: slope 2 in q."""
    rates, left = (0.8, 0.4, 0.2, 0.1), []
    for q in rates:
        problem = affine(noise.BernoulliDropout(1 / (1 + q)), 20)
        loss, penalty = flow_penalty(problem)
        left.append(abs(problems.sde_loss(problem, 2) - loss - penalty))
    assert problems.fitted_order(rates, left) == pytest.approx(2.0, abs=0.05)


def test_the_flow_of_additive_noise_is_the_modified_equation() -> None:
    """Gaussian injection, whose b has a correction of its own: nothing is left but the Runge-Kutta error."""
    problem = affine(noise.GaussianInjection(0.7), 20)
    assert sum(flow_penalty(problem)) == pytest.approx(problems.sde_loss(problem, 2), rel=1e-7)


def test_single_masks_and_curvature_are_one_for_a_quadratic_value_function() -> None:
    """Third derivatives are all that tells them apart."""
    problem = affine(noise.BernoulliDropout({"first": 0.9, "last": 0.6}), 7)
    assert mask_penalty(problem) == pytest.approx(float(path_penalty(problem).penalty), rel=1e-11)


def test_single_masks_are_the_chains_derivative_by_the_rate() -> None:
    """On a tanh network: (J - J_0) / q tends to the sum over single masks, not to R along the paths."""
    network = problems.trained_size(1, depth=6, std=0.8)
    problem = at_rate(problems.problem(1, depth=6, samples=8).with_network(network), 1e-4)
    found = float(expansion(problem).loss.detach())

    def value(p: Problem) -> float:
        with torch.no_grad():
            return float(ExactRecursion(p, cells=400, half_width=6.0, limit=False).expected_loss())

    added = value(problem) - value(problem.without_noise())
    masks, path = mask_penalty(problem), float(path_penalty(problem).penalty)
    assert found > 0
    assert added == pytest.approx(masks, rel=1e-3)
    assert abs(path / masks - 1) > 5e-3


@pytest.mark.slow
def test_path_flow_and_masks_meet_as_layers_are_split() -> None:
    """Their relative differences are of the first order in h."""
    problem = problems.problem(2, depth=6, samples=20)
    assert isinstance(problem.network, ResidualNetwork)
    errors = []
    for parts in (2, 4, 8):
        unit = at_rate(problem, 1.0, split(problem.network, parts))
        path = float(path_penalty(unit).penalty)
        errors.append([abs(path / flow_penalty(unit)[1] - 1), abs(path / mask_penalty(unit) - 1)])
    for column in np.array(errors).T:
        assert problems.fitted_order([1 / 2, 1 / 4, 1 / 8], column) == pytest.approx(1.0, abs=0.2)


@pytest.fixture(scope="module")
def small() -> Problem:
    """Two moons through ten layers of trained size, at q = 1."""
    network = problems.trained_size(2, depth=10, std=0.5, seed=3)
    return at_rate(problems.problem(2, depth=10, samples=30), 1.0, network)


@pytest.fixture(scope="module")
def mesh(small: Problem) -> MeshPenalty:
    return MeshPenalty(small, 48, 3.5, backend="skfem")


def test_the_density_sums_to_the_penalty(small: Problem, mesh: MeshPenalty) -> None:
    """Nodes add up to R of the flow, and R is the derivative of the mesh's J: slope 2 of what it leaves."""
    loss, penalty = flow_penalty(small)
    assert mesh.nodal.shape == (len(mesh.space.coefficient_points),)
    assert mesh.nodal.sum() == pytest.approx(mesh.penalty, rel=1e-12)
    assert mesh.penalty == pytest.approx(penalty, rel=0.02)
    assert mesh.loss == pytest.approx(loss, rel=0.01)
    rates = (4e-3, 2e-3, 1e-3)
    left = [abs(mesh.difference(q) - q * mesh.penalty) for q in rates]
    assert problems.fitted_order(rates, left) == pytest.approx(2.0, abs=0.1)


def test_the_control_variate_leaves_the_chain_alone(small: Problem) -> None:
    """Same J as the plain chain within 4 standard errors, a smaller error."""
    plain = Chain(small, seed=5).estimate(20_000)
    found = sampled_loss(small, 32, "skfem", 20_000, seed=6)
    error = np.hypot(plain.standard_error, found.standard_error)
    assert abs(found.value - plain.value) <= 4 * error
    assert found.standard_error < 0.5 * plain.standard_error


@pytest.fixture(scope="module")
def looked_at(small: Problem, mesh: MeshPenalty) -> tuple[remainder.Forms, list[remainder.Rate]]:
    """The first half of the experiment on a small network."""
    coarse = MeshPenalty(small, 32, 3.5, backend="skfem")
    forms = remainder.measure_forms(small, mesh, coarse)
    rates = remainder.Rates(small, mesh, 96, 3.5)
    return forms, [rates.measure(keep, 20_000, number) for number, keep in enumerate((0.98, 0.95, 0.9))]


def test_the_claims_of_the_penalty_hold_on_a_small_network(
    looked_at: tuple[remainder.Forms, list[remainder.Rate]],
) -> None:
    claims = remainder.claims(*looked_at, small=0.15, miss=0.08)
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    assert len(claims) == 7
    for _, columns, rows in remainder.tables(*looked_at):
        assert all(len(row) == len(columns) for row in rows)


@pytest.mark.parametrize("form", ["path", "flow", "mesh", "mask"])
def test_a_missing_half_breaks_a_claim(
    looked_at: tuple[remainder.Forms, list[remainder.Rate]], form: str
) -> None:
    """Each form of R, twice as large as it should be, fails at least one claim."""
    forms, rates = looked_at
    column = {"path": 1, "flow": 2, "mask": 3}.get(form)
    steps = tuple(tuple(2 * v if i == column else v for i, v in enumerate(row)) for row in forms.steps)
    wrong = dataclasses.replace(forms, steps=steps, **{form: 2 * getattr(forms, form)})
    assert not all(claim.holds for claim in remainder.claims(wrong, rates, small=0.15, miss=0.08))


def test_a_wrong_chain_breaks_the_agreement(
    looked_at: tuple[remainder.Forms, list[remainder.Rate]],
) -> None:
    """One rate off by six standard errors is one claim that fails, for rates and for trained networks."""
    forms, rates = looked_at
    first = rates[0]
    wrong = dataclasses.replace(first, chain=first.exact + first.error + 6 * first.standard_error)
    claims = remainder.claims(forms, [wrong, *rates[1:]], small=0.15, miss=0.08)
    assert [claim.holds for claim in claims].count(False) == 1
    optimum = Optimum(
        value=0.2, error=1e-6, penalty=0.05, chain=0.2006, standard_error=1e-4, noiseless=0.19, explicit=0.01,
        seconds=1.0, status="",
    )  # fmt: skip
    assert not optimum.agrees and dataclasses.replace(optimum, chain=0.2003).agrees


def test_the_curvature_alone_leaves_a_part_of_first_order_in_the_rate(
    looked_at: tuple[remainder.Forms, list[remainder.Rate]],
) -> None:
    """A rare mask is a jump: what R along the paths leaves has slope 1, what single masks leave 2."""
    forms, rates = looked_at
    assert remainder.slope(rates, forms.path) == pytest.approx(1.0, abs=0.2)
    assert remainder.slope(rates, forms.mask) == pytest.approx(2.0, abs=0.2)


def test_the_explicit_penalty_trains(small: Problem) -> None:
    """L-BFGS on J_0 + R plus weight decay descends, and the expectation descends with it."""
    problem = at_rate(small, 0.25, problems.trained_size(2, depth=10, std=0.2))
    objective = Objective(problem.network, ExplicitPenalty(problem).expected_loss, [WeightDecay(1e-2)])
    start = objective.theta
    before = objective.value(start)
    result = lbfgs(objective, start, iterations=15)
    assert result.value < 0.9 * before
    assert sampled_loss(problem, 32, "skfem", 5000, 1).value < 0.9 * before


# ------------------------------------------------------------------ the experiment


def tiny(**changes: object) -> Regularization:
    """The whole experiment in seconds, too small for its claims."""
    config = Config()
    config.run.backend = "skfem"
    config.data.train, config.network.width, config.network.depth = 20, 4, 6
    config.stochastic.steps, config.check.paths = 5, 2000
    study = Regularization(config)
    effort = Effort(
        exact=((12, 3),), control=((16, 3),), explicit=3, continued=((12, 2),), steps=4, learning_rate=0.02,
        masks=1, paths=2000,
    )  # fmt: skip
    plan = dataclasses.replace(
        FULL, rates=(0.9, 0.8), mesh=24, coarse=16, grid=16, paths=1000, keeps=(0.9, 0.6), effort=effort,
        own=((12, 4),), depth=4,
    )  # fmt: skip
    study.plan = dataclasses.replace(plan, **changes)  # type: ignore[arg-type]
    return study


class Stop(Silent):
    """Interrupts at the n-th step."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, note: str = "", steps: int = 1) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_is_done_and_goes_on() -> None:
    study = tiny()
    assert study.results()["rates"] == [] and study.tables() == []
    assert figures.penalty(study) is None and figures.optima(study) is None
    with pytest.raises(KeyboardInterrupt):
        study.run(Stop(5))  # two trainings, the forms, two rates
    assert not study.finished and len(study.rates) == 2 and not study.optima
    with pytest.raises(KolmoError, match="not finished"):
        study.claims()
    kept = study.own["exact"]
    study.run()
    assert study.finished and study.own["exact"] is kept
    assert len(study.claims()) == 11
    json.dumps(study.results())
    assert len(study.tables()) == 4
    assert figures.penalty(study) is not None and figures.optima(study) is not None


def test_a_refused_training_is_said_and_fails_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    real = regularization.reach

    def reach(method: str, *arguments: object) -> object:
        if method == "control":
            raise AuditError("training ended where the equation cannot be trusted")
        return real(method, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(regularization, "reach", reach)
    study = tiny(keeps=(0.9,))
    study.run()
    assert set(study.refused) == {(0.9, "control")}
    claim = next(claim for claim in study.claims() if "four trainings" in claim.claim)
    assert not claim.holds
    rows = [row for title, _, rows in study.tables() if title.startswith("trained") for row in rows]
    assert rows[0].count("refused") == 1
    assert figures.optima(study) is not None


def test_what_the_experiment_is_not_made_for_is_refused() -> None:
    config = Config()
    config.noise = {"kind": "gaussian_injection", "std": 0.3}
    with pytest.raises(InputError, match="gaussian_injection"):
        Regularization(config)
    config = Config()
    config.data.kind = "blobs"
    study = Regularization(config)
    assert study.plan is FULL and Regularization(config, quick=True).plan is QUICK
    assert config.network.depth == 40  # the caller's configuration is left alone


@pytest.fixture(scope="module")
def quick() -> Regularization:
    """The quick version, run once."""
    config = Config()
    config.run.backend = "skfem"
    study = Regularization(config, quick=True)
    study.run()
    return study


@pytest.mark.slow
def test_the_claims_of_the_quick_version_hold(quick: Regularization) -> None:
    claims = quick.claims()
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    for title, columns, rows in quick.tables():
        widths = [max(len(str(row[i])) for row in [columns, *rows]) for i in range(len(columns))]
        assert sum(widths) + 3 * len(widths) <= 100, title


@pytest.mark.slow
def test_a_penalty_without_its_half_fails_the_quick_version(
    quick: Regularization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault in the code itself: R twice as large."""
    real = module._spread
    monkeypatch.setattr(module, "_spread", lambda *arguments: 2 * real(*arguments))
    assert quick.mesh is not None
    wrong = dataclasses.replace(quick, forms=remainder.measure_forms(quick.problem(), quick.mesh, quick.mesh))
    wrong.plan = quick.plan
    assert not all(claim.holds for claim in wrong.claims())
