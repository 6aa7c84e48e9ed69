"""Methods side by side: drivers on functions that are known, counts of solves, the experiment's faults."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import NOISES, problem

from kolmo import Problem
from kolmo.config import Config
from kolmo.control import Objective
from kolmo.control.admissible import layer_of_weights
from kolmo.errors import InputError, MaximumPrincipleError
from kolmo.experiments import methods, pontryagin
from kolmo.experiments.descents import CountedSteps
from kolmo.experiments.drivers import DRIVERS, Options
from kolmo.experiments.methods import Methods, Size
from kolmo.experiments.pontryagin import slope_along
from kolmo.experiments.races import CONTINUATION, RACERS, Race, Stopped, Traced, race, shallow
from kolmo.noise import GaussianInjection, NoNoise, ShakeShake
from kolmo.pde import BackwardKolmogorov
from kolmo.penalty import StepPenalty, WeightDecay
from kolmo.refinement import refined
from kolmo.report import study_figures

PENALTIES = (WeightDecay(5e-2), StepPenalty())


def installed(method: str) -> None:
    """Skips, visibly, a method of PETSc where there is none."""
    if method.startswith("TAO"):
        pytest.importorskip("petsc4py.PETSc")


# ------------------------------------------------------------------ drivers


class _Bowl:
    """1/2 |A (w - centre)|^2 + 1/4 |w - centre|^4 of 40 weights, refused beyond a distance."""

    def __init__(self, cliff: float = np.inf) -> None:
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.full((40,), 1.0, dtype=torch.float64))]
        )
        self.scales = torch.linspace(0.8, 1.5, 40, dtype=torch.float64)
        self.centre = torch.linspace(-0.5, 0.5, 40, dtype=torch.float64)
        self.cliff = cliff

    def function(self, w: torch.Tensor) -> torch.Tensor:
        away = w - self.centre
        if float(away.detach().norm()) > self.cliff:
            raise MaximumPrincipleError("too far out; take smaller weights", 0)
        return 0.5 * (self.scales * away).square().sum() + 0.25 * away.square().sum() ** 2

    def curvature(self) -> Any:
        return _Dense(torch.autograd.functional.hessian(self.function, self.weights[0].detach()).numpy())

    def objective(self) -> Objective:
        return Objective(self.weights, lambda: self.function(self.weights[0]), (), self.curvature)  # type: ignore[arg-type]


class _Dense:
    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix

    def product(self, direction: np.ndarray) -> np.ndarray:
        return self.matrix @ direction


@pytest.mark.parametrize("method", DRIVERS)
def test_every_driver_finds_a_minimum(method: str) -> None:
    """Of a smooth convex function, and leaves the counts in the objective."""
    installed(method)
    bowl = _Bowl()
    objective = bowl.objective()
    options, start = Options(1e-6, 400), objective.theta
    if method in ("torch Adam", "torch SGD"):  # of fixed rates, which suit a neighbourhood
        start = bowl.centre.numpy() + 0.1
    found = DRIVERS[method](objective, start, options)
    np.testing.assert_allclose(found, bowl.centre.numpy(), atol=1e-5)
    second = method in ("Newton-Krylov", "scipy Newton-CG", "scipy trust-krylov", "TAO ntr")
    assert objective.evaluations > 2 and (objective.products > 0) == second


@pytest.mark.parametrize("method", ["L-BFGS", "Newton-Krylov", "scipy trust-krylov", "TAO ntr"])
def test_drivers_step_back_from_refused_weights(method: str) -> None:
    """A cliff just behind the start and a first region that reaches beyond it."""
    installed(method)
    bowl = _Bowl(cliff=7.0)
    found = DRIVERS[method](bowl.objective(), bowl.centre.numpy() - 1.0, Options(1e-6, 200, radius=40.0))
    np.testing.assert_allclose(found, bowl.centre.numpy(), atol=1e-5)


def test_without_petsc_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petsc4py", None)
    found = race("TAO lmvm", small, tiny(), PENALTIES, reached=0.5, budget=10)
    assert found.status == "not installed" and not found.ran


# ------------------------------------------------------------------ races


def tiny(depth: int = 4) -> Problem:
    return problem(2, NOISES["dropout"], depth=depth, samples=12)


def small(given: Problem) -> BackwardKolmogorov:
    steps = CountedSteps(max(1, 16 // given.network.depth))
    return BackwardKolmogorov(given, cells=10, half_width=4.0, limit=False, propagator=steps)


def test_what_solves_are() -> None:
    """A value 1, with its gradient 2, a Hessian 2, a product 4; of half of the layers half as many."""
    for share in (1.0, 0.5):
        equation = small(tiny())
        traced = Traced(equation, PENALTIES, share=share)
        theta, spent = traced.theta, [0.0]
        traced.value(theta)
        spent.append(traced.solves)
        traced.value_and_gradient(theta)
        spent.append(traced.solves)
        product = traced.hessian(theta)
        spent.append(traced.solves)
        product(theta)
        spent.append(traced.solves)
        np.testing.assert_allclose(np.diff(spent), share * np.array([1, 2, 2, 4]))
        assert [row[0] for row in traced.rows] == [spent[2]]


def test_marches_behind_a_solve() -> None:
    """Steps are made for every layer once a value and gradient, and once a solution of both equations."""
    equation = small(tiny())
    assert isinstance(equation.propagator, CountedSteps)
    Objective(equation.problem.network, equation.expected_loss).value_and_gradient(_weights(equation.problem))
    assert equation.propagator.layers == 4
    equation.solve()
    assert equation.propagator.layers == 8


def _weights(given: Problem) -> np.ndarray:
    vector = torch.nn.utils.parameters_to_vector(given.network.parameters())
    return vector.detach().numpy().copy()


def test_stopped_where_the_gradient_is_small_or_the_solves_are_spent() -> None:
    equation = small(tiny())
    traced = Traced(equation, PENALTIES, tolerance=1e9)
    with pytest.raises(Stopped, match="reached"):
        traced.value_and_gradient(traced.theta)
    traced = Traced(equation, PENALTIES, budget=2)
    traced.value_and_gradient(traced.theta)
    for ask in (traced.value, traced.value_and_gradient, traced.hessian):
        with pytest.raises(Stopped, match="solves spent"):
            ask(traced.theta)


def test_weights_that_are_refused_end_a_race_that_cannot_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's SGD, at a rate that throws it out: the best until then is what it has."""
    original = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda p, **keys: original(p, lr=500.0))
    found = race("torch SGD", small, tiny(), PENALTIES, reached=1e-3, budget=60)
    assert found.status == "refused"
    assert found.value == pytest.approx(found.rows[:, 2].min())


def test_shallow_is_the_inverse_of_refined() -> None:
    """Layers and noise; what it cannot thin out is named."""
    given = refined(tiny(2), 4)
    again = refined(shallow(given, 4), 4)
    for one, other in zip(given.network.parameters(), again.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for layer in range(8):
        laws = (p.noise.law(layer, 8) for p in (given, again))  # type: ignore[attr-defined]
        assert np.ptp([law.variance for law in laws]) < 1e-14
    injected = Problem(given.data, given.network, GaussianInjection(0.3))
    assert shallow(injected, 2).noise.settings() == injected.noise.settings()
    with pytest.raises(InputError, match="8 layers, not a ResidualNetwork of 3 times as many"):
        shallow(given, 3)
    for noise in (NoNoise(), ShakeShake()):
        with pytest.raises(InputError, match="no strength that could shrink"):
            shallow(Problem(given.data, given.network, noise), 4)
    without = race(CONTINUATION, small, Problem(given.data, given.network), PENALTIES, reached=0.5, budget=10)
    assert "no strength" in without.status and not without.ran


def test_slopes_of_the_hamiltonian() -> None:
    """By differences they are the gradient's, to 1e-9 of it, layer by layer; a wrong penalty is noticed."""
    given = tiny()
    equation, h = small(given), given.network.step
    gradient = Objective(given.network, equation.expected_loss, PENALTIES).value_and_gradient(
        _weights(given)
    )[1]
    v, layer = np.random.default_rng(0).standard_normal(len(gradient)), layer_of_weights(given.network)
    expected = np.bincount(layer, gradient * v) / h
    before = _weights(given)
    found = slope_along(equation, PENALTIES, v)
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()
    np.testing.assert_array_equal(_weights(given), before)
    wrong = slope_along(equation, (WeightDecay(5.001e-2), StepPenalty()), v)
    assert np.abs(wrong - expected).max() > 1e-6 * np.abs(expected).max()


# ------------------------------------------------------------------ the experiment


def study(seeds: int = 2) -> Methods:
    config = Config()
    config.network.depth, config.network.width = 4, 3
    config.data.train, config.data.test = 20, 20
    config.penalty.weight_decay = 0.5
    config.run.backend = "box"
    made = Methods(config, quick=True)
    made.size = Size(cells=10, starts=seeds, budget=60, reached=1e-6)
    return made


@pytest.fixture(scope="module")
def finished() -> Methods:
    """A tiny version, run once."""
    patch = pytest.MonkeyPatch()
    patch.setattr(methods, "SUBSTEPS", 8)
    made = study()
    made.run()
    patch.undo()
    return made


def test_the_claims_of_a_tiny_version_hold(finished: Methods) -> None:
    assert finished.finished and set(finished.races) == set(RACERS)
    assert all(claim.holds for claim in finished.claims()), finished.claims()
    assert len(finished.starts) == 4 and {seed for seed, _ in finished.starts} == {0, 1}


@pytest.mark.parametrize("method", RACERS)
def test_every_race_ends_below_its_start(method: str, finished: Methods) -> None:
    """Within its budget but for what one step of it takes; its rows are as it went."""
    found, allowed = finished.races[method], finished.size
    if method.startswith("TAO") and not found.ran:
        assert found.status == "not installed"
        return
    assert found.status in ("reached", "solves spent", "ended", "refused")
    solves, seconds, values, gradients = found.rows.T
    assert found.value < values[0] and (np.diff(solves) > 0).all() and (np.diff(seconds) >= 0).all()
    assert solves[-1] <= found.solves <= allowed.budget + 4 * 12  # a sweep of successive approximations
    assert (found.status == "reached") == (found.gradient <= allowed.reached)
    assert found.value >= values.min() - 1e-12
    if found.status == "reached":
        assert found.gradient == pytest.approx(gradients[-1])


def test_results_tables_and_figures(finished: Methods) -> None:
    """Numbers that JSON holds, a row for each method and start, figures that are drawn."""
    from kolmo.report import plain

    json.dumps([claim.as_dict() for claim in finished.claims()], allow_nan=False)
    results = json.loads(json.dumps(plain(finished.results()), allow_nan=False))
    assert list(results["methods"]) == list(RACERS) and len(results["starts"]) == 4
    first, second = finished.tables()
    assert len(first[2]) == len(RACERS) and len(second[2]) == 4
    for _, columns, rows in (first, second):
        assert all(len(row) == len(columns) for row in rows)
    for make in study_figures(finished.name).values():
        assert make(finished) is not None and make(study()) is None


def test_a_method_that_is_missing_has_a_row(finished: Methods) -> None:
    made = _copy(finished)
    made.races["TAO ntr"] = Race.absent("not installed")
    row = made.tables()[0][2][list(RACERS).index("TAO ntr")]
    assert row[0] == "TAO ntr" and row[-1] == "not installed" and set(row[1:-1]) == {""}
    assert all(claim.holds for claim in made.claims())
    assert study_figures(made.name)["methods"](made) is not None


def _copy(finished: Methods) -> Methods:
    """The same results in a study whose own may be changed."""
    made = study()
    made.races, made.starts, made.slopes = (
        dict(found) for found in (finished.races, finished.starts, finished.slopes)
    )
    return made


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"gradient": 1.1e-6}, "L-BFGS: largest gradient"),
        ({"verdict": "stalled"}, "call stationary"),
        ({"identity": 2e-8}, "is the gradient's norm"),
    ],
    ids=["gradient", "verdict", "identity"],
)
def test_a_start_that_falls_short_is_noticed(change: dict[str, Any], line: str, finished: Methods) -> None:
    made = _copy(finished)
    made.starts[1, "L-BFGS"] = replace(made.starts[1, "L-BFGS"], **change)
    (failing,) = [claim.claim for claim in made.claims() if not claim.holds]
    assert line in failing


def test_a_race_that_ends_above_its_start_is_noticed(finished: Methods) -> None:
    made = _copy(finished)
    found = made.races["torch Adam"]
    made.races["torch Adam"] = replace(found, value=float(found.rows[0, 2]))
    (failing,) = [claim.claim for claim in made.claims() if not claim.holds]
    assert "below the start" in failing


def test_a_wrong_hamiltonian_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers pay, by a part in a million: differences of H know better than the claim allows."""
    original = pontryagin.shares
    monkeypatch.setattr(pontryagin, "shares", lambda *given: (1 + 1e-6) * original(*given))
    monkeypatch.setattr(methods, "SUBSTEPS", 16)
    from kolmo.checkpoint import Checkpoint

    assert study()._slope(0, Checkpoint()) > methods.AGREE


@pytest.mark.slow
def test_the_claims_of_the_quick_version_hold() -> None:
    from kolmo.config import load, quick

    made = Methods(quick(load("methods")), quick=True)
    made.run()
    assert all(claim.holds for claim in made.claims()), made.claims()
