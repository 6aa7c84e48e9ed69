"""Linear-quadratic control: the experiment's claims, faults that they must notice, and the closed forms."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kolmo.checkpoint import Checkpoint
from kolmo.config import Config
from kolmo.experiments import pontryagin
from kolmo.experiments.affine import Affine, AffineSystem
from kolmo.experiments.descents import METHODS, SUCCESSIVE
from kolmo.experiments.linear_quadratic import CASES, RATES, Case, LinearQuadratic
from kolmo.network import LayeredNetwork
from kolmo.report import study_figures


def study(quick: bool = True) -> LinearQuadratic:
    """The experiment on scikit-fem."""
    config = Config()
    config.run.backend = "skfem"
    return LinearQuadratic(config, quick)


@pytest.fixture(scope="module")
def finished() -> LinearQuadratic:
    """The quick version, run once."""
    made = study()
    made.run()
    return made


def test_the_claims_of_the_quick_version_hold(finished: LinearQuadratic) -> None:
    assert finished.finished
    claims = finished.claims()
    assert len(claims) == (3 + len(RATES)) * len(finished.cases) > 0
    assert all(claim.holds for claim in claims), claims
    assert set(finished.descents[CASES[0].name]) == {*METHODS, SUCCESSIVE}


@pytest.mark.slow
def test_the_claims_of_the_full_version_hold() -> None:
    made = study(quick=False)
    made.run()
    claims = made.claims()
    assert len(claims) == (3 + len(RATES)) * len(CASES)
    assert all(claim.holds for claim in claims), claims


def test_results_tables_and_figures(finished: LinearQuadratic) -> None:
    """Numbers that JSON holds, a row for each method, figures with a panel for each case."""
    (row,) = json.loads(json.dumps(finished.results(), allow_nan=False))["linear_quadratic"]
    assert len(row["methods"]) == len(METHODS) + 1
    assert [point["depth"] for point in row["depths"]] == [20, 40, 80]
    for _, columns, table in finished.tables():
        assert table and all(len(line) == len(columns) for line in table)
    makers = study_figures(finished.name)
    assert len(makers) == 3
    for make in makers.values():
        drawn = make(finished)
        assert drawn is not None
        assert [axes.get_title() for axes in drawn.axes] == [case.name for case in finished.cases]
        assert make(study()) is None


# ------------------------------------------------------------------ faults


def _failing(made: LinearQuadratic) -> list[str]:
    return [claim.claim for claim in made.claims() if not claim.holds]


def _with(finished: LinearQuadratic) -> LinearQuadratic:
    """The same results in a study whose own may be changed."""
    made = study()
    made.descents = {case: dict(found) for case, found in finished.descents.items()}
    made.points = {case: list(found) for case, found in finished.points.items()}
    return made


@pytest.mark.parametrize("method", [*METHODS, SUCCESSIVE])
def test_a_method_short_of_the_optimum_is_noticed(method: str, finished: LinearQuadratic) -> None:
    """By two parts in a million."""
    made, case = _with(finished), CASES[0]
    found = made.descents[case.name][method]
    made.descents[case.name][method] = replace(found, theta=(1 + 2e-6) * found.theta)
    (line,) = _failing(made)
    assert "methods at the closed form" in line


def test_weights_that_stall_are_noticed(finished: LinearQuadratic) -> None:
    made, name = _with(finished), CASES[0].name
    made.points[name][1] = replace(made.points[name][1], verdict="stalled")
    (line,) = _failing(made)
    assert "stationary" in line


def test_another_closed_form_is_noticed(finished: LinearQuadratic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order 1 for order 2: differs by O(h)."""
    original = AffineSystem.modified
    monkeypatch.setattr(AffineSystem, "modified", lambda system, depth, order: original(system, depth, 1))
    assert any("methods at the closed form" in line for line in _failing(_with(finished)))


def test_a_wrong_equation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order 2's correction left out: its optimum is neither at the closed form nor near the network's own."""
    monkeypatch.setattr("kolmo.modified.drift", lambda mean, D, h, order: mean.value)
    made = study()
    case = replace(made.cases[0], successive=False)
    made.cases = [case]
    monkeypatch.setattr("kolmo.experiments.linear_quadratic.CASES", (case,))
    made.run()
    failing = " ".join(_failing(made))
    assert all(word in failing for word in ("methods at", "optima of all depths", "network's own"))


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the penalty, by a part in a million: differences of the Hamiltonian know better."""
    made = study()
    case = replace(made.cases[0], successive=False)
    monkeypatch.setattr("kolmo.experiments.linear_quadratic.CASES", (case,))

    original = pontryagin.shares
    monkeypatch.setattr(pontryagin, "shares", lambda *given: (1 + 1e-6) * original(*given))
    assert made._measure(case, 10, Checkpoint())["pontryagin"] > 1e-8


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_chains_closed_form(case: Case) -> None:
    """Gradient of the noiseless network's own loss and penalty: noise only adds a number."""
    system = case.system(0)
    problem = system.problem(7)
    network = problem.network
    (theta,) = network.parameters()
    weights = np.random.default_rng(0).standard_normal(theta.numel())
    with torch.no_grad():
        theta.copy_(torch.from_numpy(weights).reshape(theta.shape))
    last = network(problem.data.points)
    total = (
        problem.loss(last, problem.data.labels).mean() + system.decay * network.step * theta.square().sum()
    )
    (found,) = torch.autograd.grad(total, [theta])
    np.testing.assert_allclose(found.numpy().ravel(), system.chain(7).gradient(weights), rtol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_problems_have_one_limit(case: Case) -> None:
    """The optima of deep chains and of both modified equations are Riccati's."""
    system, depth = case.system(3), 1000
    limit = system.midpoints(depth)
    for found, order in (
        (system.chain(depth), 1),
        (system.modified(depth, 2), 1),
        (system.modified(depth, 1), 2),
    ):
        far = np.abs(found.minimiser - limit).max() / np.abs(limit).max()
        assert far < 10 * (system.horizon / depth) ** order


def test_the_jet_is_that_of_automatic_differentiation() -> None:
    A, B = np.array([[-0.3, 2.0], [-2.0, 0.1]]), np.array([[0.5], [1.0]])
    network, x = Affine(A, B, 5), torch.randn(6, 2, dtype=torch.float64)
    with torch.no_grad():
        network.theta.normal_()
    own, other = network.jet(x, slice(1, 4)), LayeredNetwork.jet(network, x, slice(1, 4))
    assert own.layers == other.layers
    matrix = torch.eye(2, dtype=torch.float64)
    for mine, theirs in (
        (own.value, other.value),
        (own.advection(), other.advection()),
        (own.jacobian(), other.jacobian()),
        (own.second(matrix), other.second(matrix)),
    ):
        torch.testing.assert_close(mine, theirs)
