"""Choosing a noise: descent on a validation loss, its parts and refusals; the experiment and faults in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kolmo
from kolmo.checkpoint import Memo
from kolmo.config import Config, load
from kolmo.control import Interval, Iterate, Objective, design, hypergradient, newton
from kolmo.control.bilevel import Inner, SaddleError
from kolmo.control.design import at_the_edge
from kolmo.errors import ConditionError, InfeasibleError, InputError
from kolmo.experiments import noise_design, noise_design_draw
from kolmo.experiments.intervals import half_width
from kolmo.experiments.noise_design import FAMILIES, WAYS, Mean, NoiseDesign, every_way
from kolmo.experiments.noise_design_draw import DEPTH, LEAST, MOST, SETS, Choice, Draw
from kolmo.noise import Controlled, HiddenDropout
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.penalty import WeightDecay
from kolmo.report import plain, study_figures

DECAY, INTERVAL = (WeightDecay(5e-2),), Interval(0.5, 0.95)


def tiny(keep: float = 0.8, scale: float = 1.0) -> tuple[BackwardKolmogorov, Any]:
    """Two layers of two units on 14 points, and the loss of the plain network on 200 others."""
    strengths = torch.full((2,), keep, dtype=torch.float64, requires_grad=True)
    network = kolmo.ResidualNetwork(2, 2, 2)
    with torch.no_grad():
        for weights in network.parameters():
            weights *= scale
    noise = Controlled(HiddenDropout(keep), strengths)
    problem = kolmo.Problem(kolmo.data.moons(14, 0.5, seed=1), network, noise)
    fixed = Explicit(substeps=3)
    equation = BackwardKolmogorov(problem, cells=12, half_width=5.0, limit=False, propagator=fixed)
    other = kolmo.data.moons(200, 0.5, seed=7)
    return equation, lambda: problem.loss(network(other.points), other.labels).mean()


def trained(keep: float, start: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """V at the minimum for a constant schedule, by Newton's method alone; the weights."""
    equation, validation = tiny(keep)
    objective = Objective(equation.problem.network, equation.expected_loss, DECAY, equation.curvature)
    found = newton(objective, objective.theta if start is None else start, tolerance=1e-7, iterations=200)
    assert found.residual <= 1e-7
    return float(validation().detach()), found.theta


# ------------------------------------------------------------------ the gradient of V


def test_what_stopping_early_is_worth() -> None:
    """V at weights near a minimum, less V there: `excess` to first order, so off by O(distance^2)."""
    V, theta = trained(0.8)
    direction = np.random.default_rng(0).standard_normal(len(theta))
    rest = []
    for distance in (2e-2, 1e-2):
        equation, validation = tiny()
        Inner(equation, DECAY).theta = theta + distance * direction / np.linalg.norm(direction)
        found = hypergradient(equation, validation, DECAY, tolerance=1e-5)
        assert abs(found.excess) > 1e-5
        rest.append(abs(found.value - V - found.excess))
    assert rest[1] < 0.35 * rest[0]  # a quarter, and terms of third order


def test_saddles_come_with_a_way_out() -> None:
    """At weights of 0 the gradient by W and V is 0, and the Hessian is indefinite without a penalty."""
    equation, validation = tiny(scale=0.01)
    with pytest.raises(SaddleError, match="direction of negative curvature") as caught:
        hypergradient(equation, validation)
    direction = caught.value.direction
    assert np.linalg.norm(direction) == pytest.approx(1)
    inner = Inner(equation)
    assert direction @ inner.hessian(inner.theta)(direction) < 0


# ------------------------------------------------------------------ the descent


def test_it_ends_where_a_fine_search_does() -> None:
    """One constant: V of networks that were trained again at neighbouring rates, by Newton's method alone."""
    equation, validation = tiny()
    options: dict[str, Any] = {"tolerance": 3e-3, "resolution": 1e-5, "slope": 1e-6, "accuracy": 1e-6}
    found = design(
        equation, validation, DECAY,
        start=np.array([0.8]), modes=np.ones((2, 1)), admissible=INTERVAL, **options,
    )  # fmt: skip
    z = float(found.best.controls[0])
    assert found.status in ("stationary", "resolved") and found.strengths == pytest.approx([z, z])
    assert 0.6 < z < 0.78  # not at a bound
    grid = z + np.array([-0.04, -0.02, 0.0, 0.02, 0.04])
    values = [trained(float(keep), found.best.theta)[0] for keep in grid]
    assert found.best.value - found.best.excess == pytest.approx(values[2], abs=1e-6)
    assert np.argmin(values) == 2
    a, b, _ = np.polyfit(grid - z, values, 2)
    assert abs(b / (2 * a)) < 5e-3  # the vertex of their parabola
    losses = [e.value for e in found.accepted]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 1e-4
    assert found.solves == found.evaluations + found.curvatures + found.products == found.trials[-1][0]
    assert isinstance(equation.problem.noise, Controlled)
    np.testing.assert_allclose(equation.problem.noise.strengths.detach(), found.strengths)
    assert float(validation().detach()) == pytest.approx(found.best.value, abs=1e-12)


@pytest.mark.parametrize("start", [[0.6, 0.9], [0.95, 0.55]])
def test_every_layer_is_chosen_and_the_end_is_not_above_the_start(start: list[float]) -> None:
    """V never rises, controls stay in the interval, trainings end in minima."""
    equation, validation = tiny()
    found = design(equation, validation, DECAY, start=np.array(start), admissible=INTERVAL, iterations=4)
    losses = [e.value for e in found.accepted]
    assert losses == sorted(losses, reverse=True)
    assert found.best.value < losses[0] - 1e-4
    for evaluation in found.accepted:
        np.testing.assert_array_equal(INTERVAL.project(evaluation.controls), evaluation.controls)
        assert evaluation.slope <= 1e-5 and abs(evaluation.excess) < 1e-3


def test_starts_that_are_refused() -> None:
    """Weights that no mesh resolves; no minimum inside of the admissible weights; shapes; other noises."""
    options: dict[str, Any] = {"start": np.full(2, 0.8), "admissible": INTERVAL}
    equation, validation = tiny(scale=60.0)
    with pytest.raises(InfeasibleError):
        design(equation, validation, DECAY, weights=kolmo.control.Box(1e3), **options)
    equation, validation = tiny()
    with pytest.raises(ConditionError, match="on the boundary of the admissible weights, with a slope of"):
        design(equation, validation, DECAY, weights=kolmo.control.Box(0.3), **options)
    with pytest.raises(InputError, match=r"modes: shape \(2, 3\) for a start of shape \(2,\), expected"):
        design(equation, validation, DECAY, modes=np.ones((2, 3)), **options)
    problem = equation.problem.without_noise()
    with pytest.raises(InputError, match="by the strengths of a Controlled one"):
        design(BackwardKolmogorov(problem, cells=12, half_width=4.0), validation, DECAY, **options)


def test_trainings_along_the_edge_are_ended() -> None:
    """After 60 refused points, not before."""

    def at(refused: int) -> Iterate:
        return Iterate(1, np.zeros(1), 0.0, 1.0, 30, refused, dict)

    at_the_edge(at(60))
    with pytest.raises(ConditionError, match="61 points were refused along one training"):
        at_the_edge(at(61))


# ------------------------------------------------------------------ one draw


def test_schedules_of_a_draw() -> None:
    """Constants, linear decay, lines; points of three seeds; every set lies in the box."""
    config = load("noise_design")
    draw = Draw(config, "moons", 3)
    np.testing.assert_array_equal(draw.constant(0.7), np.full(DEPTH, 0.7))
    np.testing.assert_allclose(draw.decay(0.7), 1 - 0.3 * np.arange(1, 7) / 6)
    np.testing.assert_allclose(draw.lines @ [0.9, 0.6], np.linspace(0.9, 0.6, DEPTH))
    np.testing.assert_allclose(draw.lines.sum(axis=1), 1)
    sizes = [len(points) for points in (draw.train, draw.validation, draw.test)]
    assert sizes == [config.data.train, noise_design_draw.VALIDATION, config.data.test]
    assert not torch.equal(draw.validation.points, draw.test.points[: sizes[1]])
    for name in SETS:
        assert Draw(config, name, 0).train.radius < noise_design_draw.HALF_WIDTH


@pytest.mark.parametrize(
    ("noise", "line"),
    [
        ({"kind": "gaussian_injection", "std": 0.3}, "has not one keep probability"),
        ({"kind": "hidden_dropout", "keep": [0.8, 0.7]}, "has not one keep probability"),
        ({"kind": "hidden_dropout", "keep": 0.5}, r"keep is 0\.5, expected 0\.65 to 0\.95"),
    ],
    ids=["injection", "schedule", "outside"],
)
def test_noises_that_no_choice_can_begin_at(noise: dict[str, Any], line: str) -> None:
    config = load("noise_design")
    config.noise = noise
    with pytest.raises(InputError, match=line):
        Draw(config, "moons", 0)


def test_a_training_that_is_refused_costs_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its V is nan, the others count; where all are refused, so is the search."""
    draw = Draw(load("noise_design"), "blobs", 0)
    fit = draw._fit

    def refusing(objective: Objective) -> Any:
        if len(seen) < 2:
            seen.append(objective)
            raise ConditionError("no")
        return fit(objective)

    seen: list[Objective] = []
    monkeypatch.setattr(draw, "_fit", refusing)
    with pytest.raises(ConditionError, match="no"):
        draw.search([draw.constant(0.8)])
    found = draw.search([draw.constant(keep) for keep in (0.7, 0.8)])
    assert found.refused == 1 and found.strengths[0] == 0.8
    assert found.reached(found.validation) == found.solves and found.reached(0.0) == float("inf")


@pytest.mark.slow
def test_every_way_on_one_draw() -> None:
    """Grids find the best of what they hold; descents end below their start, in the interval."""
    draw = Draw(load("noise_design"), "moons", 1)
    found = every_way(draw, 3)
    assert list(found) == list(WAYS)
    for family in FAMILIES:
        choice = found[f"descent:{family}"]
        assert choice.validation <= found["own"].validation + 1e-4
        assert (choice.strengths >= LEAST - 1e-12).all() and (choice.strengths <= MOST + 1e-12).all()
        assert abs(choice.excess) < 1e-2 * choice.validation
    for way in ("constant", "decay", "line"):
        assert found[way].validation == np.nanmin(found[way].trials[:, 1])
    assert found["line"].validation <= found["constant"].validation + 1e-3  # the diagonal
    line = found["descent:line"].strengths
    np.testing.assert_allclose(np.diff(line, 2), 0, atol=1e-12)


# ------------------------------------------------------------------ the study


def made_up(seed: int, **changes: float) -> dict[str, Choice]:
    """A draw on which all is well; changes: of V and test losses by way, and of `descent:line`'s solves."""
    rng = np.random.default_rng(seed)
    values = {"none": 0.42, "own": 0.40, "constant": 0.39, "decay": 0.39, "line": 0.385}
    values |= {"descent:constant": 0.39, "descent:line": 0.385, "descent:layers": 0.38}
    draw = {}
    for way, base in values.items():
        V = base + 1e-3 * rng.standard_normal() + changes.get(way, 0.0)
        solves = {"line": 2000, "descent:line": int(500 * changes.get("times", 1.0))}.get(way, 300)
        excess = changes.get("excess", 1e-4) if way.startswith("descent") else float("nan")
        trials = np.array([[100.0, np.nan], [float(solves), V]])
        strengths = rng.uniform(LEAST, MOST, DEPTH)
        draw[way] = Choice(strengths, V, V + 0.01, trials, solves, 10, excess, "stationary", 1.0)
    return draw


def finished(**changes: float) -> NoiseDesign:
    made = NoiseDesign(Config())
    made.chosen = {
        name: [made_up(10 * i + k, **changes) for k in range(10)] for i, name in enumerate(made.plan.sets)
    }
    return made


def failing(study: NoiseDesign) -> list[str]:
    return [claim.claim for claim in study.claims() if not claim.holds]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"descent:constant": 0.02}, ["constant: validation loss by descent above"]),
        ({"descent:line": 0.02}, ["line: validation loss by descent above"]),
        ({"times": 3.0}, ["line: solves of descent over those of the grid"]),
        ({"descent:layers": 0.02}, ["layers by descent: validation loss less"]),
        ({"excess": 0.02}, ["stopping trainings early"]),
    ],
    ids=["well", "constant", "line", "cost", "layers", "early"],
)
def test_claims_fail_where_they_should(changes: dict[str, float], words: list[str]) -> None:
    """Each fault, and no other claim, is noticed."""
    study = finished(**changes)
    lines = failing(study)
    assert len(lines) == len(words), lines
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines


def test_refused_draws_are_counted_and_left_out() -> None:
    study = finished()
    study.chosen["xor"] = [None] * 10
    study.chosen["blobs"][0] = None
    assert study.finished and len(study.draws()) == 39
    assert any("every way to choose" in line for line in failing(study))
    assert len(study.values("line", name="blobs")) == 9


def test_intervals_are_students() -> None:
    """Against scipy's own, and of one draw none."""
    from scipy import stats

    values = np.random.default_rng(0).standard_normal(7)
    mean = Mean.of(values)
    low, high = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert (mean.value - mean.half, mean.value + mean.half) == pytest.approx((low, high))
    test = stats.ttest_1samp(values, mean.highest(0.9), alternative="less")
    assert test.pvalue == pytest.approx(0.1)
    assert np.isnan(Mean.of(values[:1]).half) and not Mean.of(values[:1]).highest(0.9) < np.inf


def test_a_grid_of_all_layers_is_computed_from_that_of_lines() -> None:
    study = finished()
    assert study._grid("layers", "solves") == pytest.approx(2000 / 25 * 5**DEPTH * np.ones(50))
    assert study.share("layers") == pytest.approx(300 / (80 * 5**DEPTH))


def test_results_tables_and_figures() -> None:
    """Numbers that JSON holds, tables that fit 100 columns, figures; none of what is not done."""
    study = finished()
    content = json.loads(json.dumps(plain(study.results()), allow_nan=False))["noise_design"]
    assert content["chosen"]["moons"][0]["line"]["trials"][0] == [100.0, None]
    for title, columns, table in study.tables():
        assert len(title) <= 100 and all(len(row) == len(columns) for row in table)
        cells = zip(columns, *table, strict=True)
        widths = [max(len(str(cell)) for cell in column) for column in cells]
        assert sum(widths) + 2 * len(widths) <= 100, title
    empty = NoiseDesign(Config())
    assert empty.claims() == empty.tables() == []
    for name, make in study_figures("noise_design").items():
        assert make(study) is not None and make(empty) is None, name


def test_draws_are_kept_and_refusals_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on computes nothing twice, and ends the same."""
    asked = []

    def choose(draw: Draw, points: int) -> dict[str, Choice]:
        asked.append(points)
        if len(asked) == 2:
            raise ConditionError("no minimum here")
        return made_up(len(asked))

    monkeypatch.setattr(noise_design, "every_way", choose)
    studies = []
    for _ in range(2):
        study = NoiseDesign(load("noise_design"), quick=True)
        study.plan = replace(study.plan, sets=("moons", "blobs"))
        study.memo = Memo(tmp_path)
        assert not study.finished
        study.run()
        assert study.finished
        studies.append(study)
    assert asked == [3] * 4
    assert studies[0].refused == studies[1].refused == {"blobs-0": "no minimum here"}
    one, two = (json.dumps(plain(study.results())) for study in studies)
    assert one == two


@pytest.mark.parametrize("sides", [1, 2])
def test_half_widths_are_students(sides: int) -> None:
    """Against scipy's quantile, column by column; of one value none."""
    from scipy import stats

    values = np.random.default_rng(1).standard_normal((5, 3))
    quantile = stats.t.ppf(1 - 0.1 / sides, 4)
    np.testing.assert_allclose(half_width(values, 0.9, sides), quantile * stats.sem(values), rtol=1e-12)
    assert np.isnan(half_width(values[:1], 0.9, sides)).all()
