"""Deep noisy networks tend to the Kolmogorov equation's control: parts, claims at a small size, faults."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import Tape, same

from kolmo import noise
from kolmo.checkpoint import Checkpoint
from kolmo.config import Config
from kolmo.control import Box, Objective, lbfgs
from kolmo.errors import DomainError
from kolmo.experiments import depth_flow, depth_limit, depth_optima
from kolmo.experiments.depth_flow import FlowPlan
from kolmo.experiments.depth_limit import DepthLimit, order
from kolmo.experiments.depth_optima import CASES, Trainings, extrapolated, transported
from kolmo.experiments.smooth_controls import (
    Metric,
    SmoothObjective,
    apart,
    at_depth,
    layers_of,
    minimise,
    network_of,
    steepness,
)
from kolmo.network import ResidualNetwork
from kolmo.report import study_figures

QUICK = depth_limit.QUICK
SMALL = replace(
    QUICK, depths=(5, 10), layers=10, grid=32, meshes=(48, 60), steps=100, within=0.4,
    flow=FlowPlan(depths=(5, 10), layers=10, grid=24, meshes=(32, 40), steps=6, every=2),
)  # fmt: skip


def study() -> DepthLimit:
    """Much smaller than --quick."""
    made = DepthLimit(Config(), quick=True)
    made.plan = SMALL
    return made


# ------------------------------------------------------------------ step functions and their metric


def test_controls_at_other_depths() -> None:
    """Repeating and then averaging gives back; distances are relative, in L2, to the averages."""
    theta = np.random.default_rng(0).standard_normal((6, 20))
    np.testing.assert_allclose(at_depth(at_depth(theta, 24), 6), theta, atol=1e-15)
    assert apart(theta, at_depth(theta, 24)) < 1e-15
    limit = np.stack([np.full(20, t) for t in np.linspace(0, 1, 12)])
    shifted = at_depth(limit, 6) + 0.1
    assert apart(shifted, limit) == pytest.approx(0.1 / np.sqrt(np.mean(limit**2)))
    assert steepness(limit) == pytest.approx(12 * np.sqrt(20) / 11)
    network = network_of(theta, 2)
    assert (network.depth, network.width, network.dim) == (6, 4, 2)
    np.testing.assert_array_equal(layers_of(network), theta)


def test_penalties_are_half_the_square_in_the_metric() -> None:
    """For any weights, and gradients are those of theta transformed."""
    metric = Metric(decay=0.02, smoothness=3e-3)
    network = ResidualNetwork(2, 3, 7, seed=1)

    def zero() -> torch.Tensor:
        return 0 * network.W.sum()

    smooth, plain = (
        SmoothObjective(network, zero, metric),
        Objective(network, zero, metric.penalties),
    )
    theta = np.random.default_rng(1).standard_normal(len(plain.theta))
    eta = smooth.eta(theta)
    value, gradient = smooth.value_and_gradient(eta)
    np.testing.assert_allclose(smooth.weights(eta), theta, rtol=1e-10)
    assert value == pytest.approx(plain.value(theta)) == pytest.approx(0.5 * eta @ eta)
    np.testing.assert_allclose(gradient, eta, rtol=1e-9, atol=1e-12)


def test_the_metric_moves_no_minimum_and_saves_iterations() -> None:
    """The minimum of a smooth objective of 20 layers, by L-BFGS with and without the metric."""
    metric = Metric(decay=1e-2, smoothness=1e-2)
    trainings = Trainings(0, 16, "box")
    start = at_depth(trainings.tied, 20)

    def loss(problem: Any) -> Any:
        return lambda: problem.loss(
            transported(problem.network, problem.data.points), problem.data.labels
        ).mean()

    problem = trainings.problem(start, depth_optima.none)
    found = minimise(problem, loss(problem), metric, Checkpoint(), tolerance=1e-7)
    other = trainings.problem(found.theta, depth_optima.none)
    objective = Objective(other.network, loss(other), metric.penalties)
    again = lbfgs(objective, objective.theta, Box(np.inf), iterations=5, tolerance=1e-7)
    assert found.status == "stationary" and again.value == pytest.approx(found.value, rel=1e-9)
    fresh = trainings.problem(start, depth_optima.none)
    plain = Objective(fresh.network, loss(fresh), metric.penalties)
    slow = lbfgs(plain, plain.theta, Box(np.inf), iterations=found.iterations, tolerance=1e-7)
    assert slow.value > found.value + 1e-6


# ------------------------------------------------------------------ noises and limits


def test_noises_keep_what_they_should() -> None:
    """h C is kappa for factors and masks at every depth, and falls like h for masks of fixed rate."""
    for depth in (5, 10, 80):
        variances = {case.name: case.law(1 / depth) for case in CASES}
        for name in ("factors", "masks"):
            made = variances[name]
            assert isinstance(made, noise.LinearNoise)
            assert made.law(0, depth).variance / depth == pytest.approx(depth_optima.KAPPA)
        made = variances["fixed"]
        assert isinstance(made, noise.LinearNoise)
        assert made.law(0, depth).variance == pytest.approx(1 / depth_optima.KEEP - 1)


def test_transport_is_of_order_four() -> None:
    """In the step, for weights constant on [0, 1]."""
    trainings = Trainings(0, 16, "box")
    points = trainings.points.points
    with torch.no_grad():
        ends = [transported(network_of(at_depth(trainings.tied, n), 2), points) for n in (1, 2, 4, 64)]
    errors = [float((end - ends[-1]).abs().max()) for end in ends[:-1]]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (rates > 3.5).all(), errors


def test_two_meshes_remove_the_first_error() -> None:
    limit, error = np.ones((2, 3)), np.full((2, 3), 5.0)
    controls = [limit + error / cells**2 for cells in (60, 80)]
    np.testing.assert_allclose(extrapolated(controls, (60, 80)), limit, atol=1e-14)


def test_paths_that_leave_the_box_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_optima, "HALF_WIDTH", 1.0)
    trainings = Trainings(0, 16, "box")
    with pytest.raises(DomainError, match="5 layers: paths leave the box"):
        depth_optima.start(trainings, Checkpoint())


# ------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def finished() -> DepthLimit:
    made = study()
    made.run()
    return made


def test_trained_weights_come_nearer(finished: DepthLimit) -> None:
    """Twice the layers, about half the distance: of the optima, and along the flow."""
    assert finished.finished
    found = finished.distances(CASES[0])
    assert order(found) == pytest.approx(1, abs=0.3) and found[5] < 0.15
    assert finished.flow is not None
    np.testing.assert_allclose(finished.flow.slopes(), 1, atol=0.3)
    for path in finished.flow.paths.values():
        assert (np.diff(path.objective) < 0).all()


@pytest.mark.slow
def test_the_claims_of_the_quick_version_hold() -> None:
    made = DepthLimit(Config(), quick=True)
    made.run()
    assert all(claim.holds for claim in made.claims()), made.claims()
    assert len(made.claims()) == 7


@pytest.mark.slow
def test_strengths_of_another_scaling_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of a variance that does not grow with L lose their diffusion: not the limit's control."""
    weak = replace(CASES[0], law=lambda h: depth_optima.factors(0.2))
    monkeypatch.setattr(depth_limit, "CASES", (weak, *CASES[1:]))
    made = DepthLimit(Config(), quick=True)
    made.plan = replace(made.plan, seeds=2, steps=10, flow=SMALL.flow)
    made.run()
    failing = [claim.claim for claim in made.claims() if not claim.holds]
    assert any("order in h over all depths" in line for line in failing), made.claims()


def test_faults_in_the_numbers_are_noticed(finished: DepthLimit) -> None:
    """Weights off by 3%, an optimiser that stalls, jumps that grow with L, a flow that rises."""

    def changed(**changes: Any) -> list[str]:
        made = study()
        made.minima = {name: dict(found) for name, found in finished.minima.items()}
        made.limits, made.stochastic, made.flow = finished.limits, finished.stochastic, finished.flow
        theirs = made.minima["factors"]
        if "flow" in changes:
            made.flow = changes["flow"]
        else:
            theirs[10] = replace(theirs[10], **changes)
        return [claim.claim for claim in made.claims() if not claim.holds]

    good = finished.minima["factors"][10]
    rough = good.theta + 0.05 * (-1.0) ** np.arange(10)[:, None]
    assert finished.flow is not None
    path = finished.flow.paths[10]
    rising = replace(
        finished.flow, paths={**finished.flow.paths, 10: replace(path, objective=path.objective[::-1])}
    )
    for changes, word in (
        ({"theta": 1.1 * good.theta}, "distance to the limit's control"),
        ({"status": "stalled"}, "stationary"),
        ({"theta": rough}, "largest jump"),
        ({"flow": rising}, "objectives fall"),
    ):
        assert any(word in line for line in changed(**changes)), word


def test_a_flow_that_was_interrupted_ends_the_same() -> None:
    """From a state that was kept on the way, bitwise."""
    trainings = Trainings(0, 16, "box")

    def run(checkpoint: Checkpoint) -> object:
        problem = trainings.problem(at_depth(trainings.tied, 5), depth_optima.factors)
        loss = trainings.recursion(problem).expected_loss
        return depth_flow._path(replace(SMALL.flow, steps=5), problem, loss, checkpoint)

    tape = Tape()
    whole = run(tape)
    assert same(run(Tape(tape.kept[2])), whole)


def test_results_tables_and_figures(finished: DepthLimit) -> None:
    """Numbers that JSON holds, tables that fit 100 columns, figures; none of what is not done."""
    content = json.loads(json.dumps(finished.results()["depth_limit"], allow_nan=False))
    assert set(content["cases"]) == {"factors"} and len(content["flow"]["times"]) == 4
    for title, columns, table in finished.tables():
        widths = [max(len(str(row[i])) for row in [columns, *table]) for i in range(len(columns))]
        assert len(title) <= 100 and sum(widths) + 2 * len(widths) <= 100
        assert table and all(len(row) == len(columns) for row in table)
    makers = study_figures("depth_limit")
    assert set(makers) == {"limit", "flow"}
    for make in makers.values():
        drawn = make(finished)
        assert drawn is not None and len(drawn.axes) == 2
        assert make(study()) is None
    assert study().claims() == [] and json.dumps(study().results())
