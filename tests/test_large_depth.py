"""Very deep networks: gradients, the flow and its integrator, and the claims at small sizes, with faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import Tape, same
from torch import Tensor

from kolmo import chebyshev, deep
from kolmo.chebyshev import Chebyshev, stages_for
from kolmo.checkpoint import Checkpoint
from kolmo.config import Config
from kolmo.deep import Regression, Weights, descend, independent, smooth, tied
from kolmo.errors import InputError, NonFiniteError
from kolmo.experiments import large_depth, long_time
from kolmo.experiments.large_depth import LargeDepth
from kolmo.experiments.long_time import LongTime
from kolmo.network import ResidualNetwork
from kolmo.report import study_figures

STARTS = {"tied": tied, "smooth": smooth, "independent": independent}


def trained_size(start: deep.Start, depth: int, width: int = 5, dim: int = 3) -> Weights:
    """Weights of a start, V no longer zero."""
    weights = start(depth, width, dim, 0)
    generator = torch.Generator().manual_seed(7)
    weights.V.add_(0.3 * torch.randn(weights.V.shape, generator=generator, dtype=torch.float64))
    return weights


def by_torch(weights: Weights, points: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features at the end of the same network as a `ResidualNetwork`, and its W and V."""
    L, m, _ = weights.W.shape
    biases = torch.zeros(L, m, dtype=torch.float64)
    network = ResidualNetwork.from_weights(weights.W, biases, weights.V, activation="gelu")
    return network(points), [network.W, network.V]


# ------------------------------------------------------------------ loss, gradient, kernel


@pytest.mark.parametrize("name", STARTS)
def test_loss_and_gradient_are_those_of_automatic_differentiation(name: str) -> None:
    """With more layers than are held at once, and a number that is no multiple of those."""
    regression, weights = Regression.drawn(7, 3, 0), trained_size(STARTS[name], 70)
    features, parameters = by_torch(weights, regression.points)
    expected = (features - regression.targets).square().mean()
    loss, gradient = regression.loss_and_gradient(weights)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-14)
    assert regression.loss(weights) == loss
    for found, wanted in zip(
        (gradient.W, gradient.V), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13 * float(wanted.abs().max()))
    flat = regression.velocity(weights)(weights.flat())
    torch.testing.assert_close(flat, -70 * gradient.flat(), rtol=0, atol=0)


def test_the_bound_of_the_ratio_is_the_tangent_kernels() -> None:
    """4/(n d) times the least eigenvalue of L J J^T, J by automatic differentiation."""
    regression, weights = Regression.drawn(4, 3, 1), trained_size(tied, 9)
    features, parameters = by_torch(weights, regression.points)
    rows = [torch.autograd.grad(f, parameters, retain_graph=True) for f in features.reshape(-1)]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    expected = 4 / 12 * float(torch.linalg.eigvalsh(9 * J @ J.T)[0])
    assert regression.least_ratio(weights) == pytest.approx(expected, rel=1e-10)
    assert expected > 1e-3  # else equal to rounding, whatever it is


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_no_targets_have_a_smaller_ratio(seed: int, scale: float) -> None:
    """L |gradient|^2 / loss for any targets is at least mu."""
    weights = trained_size(smooth, 6)
    drawn = Regression.drawn(3, 3, 1)
    other = Regression(drawn.points, scale * Regression.drawn(3, 3, seed).targets)
    loss, gradient = other.loss_and_gradient(weights)
    ratio = weights.depth * float(gradient.flat().square().sum()) / loss
    assert ratio >= (1 - 1e-9) * drawn.least_ratio(weights)


def test_starts_are_samples_of_one_curve() -> None:
    """Layer k of 8 is layer 3k of 24; independent ones are not."""
    for name, start in STARTS.items():
        far = float(start(8, 5, 3, 2).distances(start(24, 5, 3, 2)).max())
        assert far > 1 if name == "independent" else far < 1e-14
        assert not torch.equal(start(8, 5, 3, 2).W, start(8, 5, 3, 3).W)
    assert float(tied(8, 5, 3, 2).jumps().max()) == 0
    # a Lipschitz constant: at twice the layers half the jumps, up to O(1/L)
    jumps = [float(smooth(L, 5, 3, 2).jumps().max()) for L in (64, 128)]
    assert jumps[0] / jumps[1] == pytest.approx(2, rel=0.02)


def test_bad_sizes() -> None:
    """One line each."""
    with pytest.raises(InputError, match="width: 0 is not a positive integer"):
        tied(4, 0, 3, 0)
    with pytest.raises(InputError, match=r"network: 10\d* layers of 64 units in 16 dimensions: about"):
        tied(10**9, 64, 16, 0)
    with pytest.raises(InputError, match="6 layers are no multiple of 4"):
        tied(4, 2, 2, 0).distances(tied(6, 2, 2, 0))
    with pytest.raises(InputError, match=r"points \(2, 3\) and targets \(2, 2\)"):
        Regression(torch.zeros(2, 3), torch.zeros(2, 2))


# ------------------------------------------------------------------ gradient descent


def _descended(step: float, time: float = 0.2) -> tuple[Weights, list[float]]:
    regression, weights = Regression.drawn(6, 3, 0), tied(8, 6, 3, 0)
    losses = [descend(regression, weights, step) for _ in range(round(time / step))]
    return weights, losses


def test_descent_is_a_discretised_flow() -> None:
    """Weights converge with the step at order 1, and losses fall by what the flow says."""
    finest = _descended(0.2 / 640)[0]
    errors = [float(_descended(0.2 / n)[0].distances(finest).max()) for n in (10, 20, 40)]
    rates = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert all(0.9 < rate < 1.25 for rate in rates), rates  # the reference is off by 1/16 of the last error
    regression, start = Regression.drawn(6, 3, 0), trained_size(tied, 8, 6)
    loss, gradient = regression.loss_and_gradient(start)
    speed = 8 * float(gradient.flat().square().sum())
    falls = []
    for step in (1e-3, 5e-4):
        weights = Weights(start.W.clone(), start.V.clone())
        assert descend(regression, weights, step) == loss
        falls.append((loss - regression.loss(weights)) / step)
    assert 2 * falls[1] - falls[0] == pytest.approx(speed, rel=1e-4)


def test_a_loss_that_is_not_finite_says_so() -> None:
    regression, weights = Regression.drawn(6, 3, 0), tied(4, 6, 3, 0)
    weights.V.fill_(1e200)
    with pytest.raises(NonFiniteError, match="take a smaller step"):
        descend(regression, weights, 1e3)


# ------------------------------------------------------------------ Runge-Kutta-Chebyshev


def _logistic(y: Tensor) -> Tensor:
    return y * (1 - y)


@pytest.mark.parametrize("stages", [2, 3, 5, 12, 40])
def test_steps_are_of_order_two(stages: int) -> None:
    """On y' = y (1 - y) from 0.1 to time 1."""
    exact = 1 / (1 + 9 * math.exp(-1))
    errors = []
    for count in (10, 20, 40):
        y = torch.tensor([0.1], dtype=torch.float64)
        for _ in range(count):
            y = chebyshev.step(_logistic, y, _logistic(y), 1 / count, stages)
        errors.append(abs(float(y) - exact))
    rates = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert all(1.8 < rate < 2.2 for rate in rates), rates


@pytest.mark.parametrize("reach", [0.5, 3.0, 20.0, 300.0, 4e4])
def test_stages_are_stable_as_far_as_they_are_taken(reach: float) -> None:
    """|R(z)| <= 1 on [-reach, 0] and a fifth beyond, not with half of the stages; R by the scheme."""
    z = -torch.linspace(0, 1.2 * reach, 2001, dtype=torch.float64)

    def largest(stages: int) -> float:
        one = torch.ones_like(z)
        return float(chebyshev.step(lambda y: z * y, one, z, 1.0, stages).abs().max())

    stages = stages_for(reach)
    assert largest(stages) <= 1 + 1e-9
    if stages > 4:
        assert largest(stages // 2) > 1.5


def _heat(n: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Callable[[float], Tensor]]:
    """u_t = u_xx on n nodes by differences, a start, and the exact solution of that system."""
    x = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    modes, sizes = (1, 3, n), (1.0, 0.5, 0.2)
    shapes = [torch.sin(math.pi * k * x) for k in modes]
    rates = [4 * (n + 1) ** 2 * math.sin(0.5 * math.pi * k / (n + 1)) ** 2 for k in modes]

    def field(u: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(u, (1, 1))
        return (n + 1) ** 2 * (padded[2:] - 2 * u + padded[:-2])

    def exact(t: float) -> Tensor:
        parts = zip(shapes, sizes, rates, strict=True)
        return torch.stack([size * math.exp(-rate * t) * shape for shape, size, rate in parts]).sum(dim=0)

    return field, exact(0.0), exact


def test_a_stiff_equation_to_tolerance() -> None:
    """Errors follow the tolerance, rho is found, and evaluations are far fewer than Euler's."""
    field, start, exact = _heat(127)
    errors, evaluations = [], []
    for tolerance in (1e-4, 1e-5, 1e-6):
        flow = Chebyshev(field, start, tolerance)
        found = flow.advance(0.1)
        evaluations.append(flow.evaluations)
        assert flow.time == 0.1
        errors.append(float((found - exact(0.1)).square().mean().sqrt()))
        assert errors[-1] < 10 * tolerance
    assert errors[2] < 0.1 * errors[0]
    assert flow.radius == pytest.approx(4 * 128**2, rel=0.05)
    euler = 0.1 * flow.radius / 2
    assert evaluations[0] < 0.25 * euler and evaluations[2] < 0.5 * euler


def test_an_integration_goes_on_from_its_state() -> None:
    """Bitwise, and stopping on the way changes only where steps end."""
    field, start, exact = _heat(31)
    flow = Chebyshev(field, start, 1e-5)
    flow.advance(0.01)
    other = Chebyshev.resumed(field, flow.state())
    for one in (flow, other):
        for time in (0.011, 0.03, 0.1):
            one.advance(time)
    assert torch.equal(flow.y, other.y) and flow.evaluations == other.evaluations
    assert float((flow.y - exact(0.1)).abs().max()) < 1e-4


def test_what_cannot_be_integrated() -> None:
    y = torch.ones(2, dtype=torch.float64)
    with pytest.raises(InputError, match="tolerance: 0 is not a positive number"):
        Chebyshev(_logistic, y, 0)
    with pytest.raises(NonFiniteError, match="not finite at the start"):
        Chebyshev(lambda y: y / 0, y, 1e-3)
    wall = Chebyshev(lambda y: torch.where(y < 1.5, 1.0, torch.nan), y, 1e-3)
    with pytest.raises(NonFiniteError, match=r"time 0\.5: steps become too short"):
        wall.advance(1.0)
    still = Chebyshev(lambda y: 0 * y, y, 1e-3)
    assert torch.equal(still.advance(5.0), y) and still.evaluations < 10


# ------------------------------------------------------------------ large_depth


def small() -> LargeDepth:
    """Much smaller than --quick."""
    made = LargeDepth(Config())
    limits = {"tied": 256, "smooth": 256, "independent": 0}
    made.plan = large_depth.Plan(8, 3, 8, (4, 8, 16, 32), limits, steps=8)
    return made


@pytest.fixture(scope="module")
def many() -> LargeDepth:
    made = small()
    made.run()
    return made


def _failing(made: LargeDepth | LongTime) -> list[str]:
    return [claim.claim for claim in made.claims() if not claim.holds]


def test_slopes_over_the_depth(many: LargeDepth) -> None:
    """-1/2 and -1 for neighbours, -1 to the limit; from independent weights +1/2 and 0."""
    for name in ("tied", "smooth"):
        course = many.courses[name]
        assert course.slope(course.together) == pytest.approx(-0.5, abs=0.08)
        assert course.slope(course.worst) == pytest.approx(-1, abs=0.08)
        slopes = many.distance_slopes(name)
        assert len(slopes) >= 6 and np.abs(slopes + 1).max() < 0.15  # the limit is but 8 times as deep
    course = many.courses["independent"]
    assert course.slope(course.together) == pytest.approx(0.5, abs=0.15)
    assert course.slope(course.worst) == pytest.approx(0, abs=0.15)
    assert all((np.diff(found.loss, axis=0) < 0).all() for found in many.courses.values())


@pytest.mark.slow
def test_the_claims_of_the_quick_version_of_large_depth_hold() -> None:
    made = LargeDepth(Config(), quick=True)
    made.run()
    assert made.finished and len(made.claims()) == 11 and not _failing(made)


def test_a_speed_without_the_factor_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent with one learning rate for all depths: deep layers hardly move."""

    def unscaled(regression: Regression, weights: Weights, step: float) -> float:
        return descend(regression, weights, step / weights.depth)

    monkeypatch.setattr(large_depth, "descend", unscaled)
    made = small()
    made.run()
    assert any("tied: the largest difference" in line for line in _failing(made))


def test_blocks_without_the_scaling_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start whose V grows with L is no discretisation of one curve."""

    def grown(depth: int, width: int, dim: int, seed: int) -> Weights:
        weights = smooth(depth, width, dim, seed)
        weights.V.mul_((depth / 8) ** 0.1)
        return weights

    monkeypatch.setitem(large_depth.STARTS, "smooth", grown)
    made = small()
    made.run()
    assert any("smooth: distance" in line for line in _failing(made))


# ------------------------------------------------------------------ long_time


def short(seed: int = 1) -> LongTime:
    """Much smaller than --quick, with points that few units fit well."""
    config = Config()
    config.run.seed = seed
    made = LongTime(config)
    made.plan = long_time.Plan(
        points=4, dim=4, width=32, depths=(8, 16, 32), shown=16, end=60.0, same=0.25, within=0.35, times=30
    )
    return made


@pytest.fixture(scope="module")
def trained() -> LongTime:
    made = short()
    made.run()
    return made


def test_the_claims_hold_at_a_small_size(trained: LongTime) -> None:
    """Loss below 1e-7 and only falling, ratio above its bound, jumps that settle, neighbours O(1/L) apart."""
    assert trained.finished and len(trained.claims()) == 7
    assert not _failing(trained), trained.claims()


def test_the_ratio_is_the_losss_rate(trained: LongTime) -> None:
    """log loss falls by the integral of the ratio: trapezoidal, where times are dense enough for it."""
    course = trained.course
    assert course is not None
    steps = np.diff(course.times)[:, None]
    integral = 0.5 * steps * (course.ratio[1:] + course.ratio[:-1])
    fall = -np.diff(np.log(course.loss), axis=0)
    kept = steps[:, 0] < 0.5
    assert kept.sum() > 10
    np.testing.assert_allclose(integral[kept].sum(axis=0), fall[kept].sum(axis=0), rtol=0.03)


@pytest.mark.slow
def test_the_claims_of_the_quick_version_of_long_time_hold() -> None:
    made = LongTime(Config(), quick=True)
    made.run()
    assert not _failing(made), made.claims()


def test_weights_that_fall_apart_are_noticed(trained: LongTime) -> None:
    """Faults in what was measured fail the claims about it."""
    course = trained.course
    assert course is not None
    rising, apart, rough, fast = (course.loss.copy() for _ in range(4))
    rising[5] = 2 * rising[4]
    apart, rough = course.apart * np.sqrt(trained.plan.depths[:-1]), course.jump * trained.plan.depths
    fast = np.where(np.isfinite(course.mu), 1.01 * course.ratio[:, 1], np.nan)
    for changes, word in (
        ({"loss": rising}, "losses only fall"),
        ({"loss": 1e6 * course.loss}, "loss at the end"),
        ({"apart": apart}, "neighbouring depths"),
        ({"jump": rough}, "16 against 32"),
        ({"jump": course.jump * (1 + course.times[:, None])}, "second half"),
        ({"mu": fast}, "ratio over mu"),
        ({"mu": 1e-5 * course.mu}, "mu along training"),
    ):
        made = short()
        made.course = replace(course, **changes)
        assert any(word in line for line in _failing(made)), word


# ------------------------------------------------------------------ both


@pytest.mark.parametrize("name", ["large_depth", "long_time"])
def test_a_flow_that_was_interrupted_ends_the_same(name: str) -> None:
    """From a state that was kept on the way, bitwise."""

    def run(checkpoint: Checkpoint) -> object:
        if name == "large_depth":
            made = small()
            made.plan = replace(made.plan, depths=(4, 8), limits={"tied": 16}, steps=4)
            return made._descend("tied", lambda *_: None, checkpoint)
        other = short()
        other.plan = replace(other.plan, depths=(4, 8), shown=4, end=1.0, times=8)
        return other._flow(checkpoint, long_time.Silent())

    tape = Tape()
    whole = run(tape)
    assert len(tape.kept) >= 5
    assert same(run(Tape(tape.kept[2])), whole)


def test_results_tables_and_figures(many: LargeDepth, trained: LongTime) -> None:
    """Numbers that JSON holds, tables that fit 100 columns, figures; none of what is not done."""
    for made, unfinished in ((many, small()), (trained, short())):
        content = json.loads(json.dumps(made.results()[made.name]))
        assert content["plan"]
        for title, columns, table in made.tables():
            widths = [max(len(str(row[i])) for row in [columns, *table]) for i in range(len(columns))]
            assert len(title) <= 100 and sum(widths) + 2 * len(widths) <= 100
            assert table and all(len(row) == len(columns) for row in table)
        ((key, make),) = study_figures(made.name).items()
        drawn = make(made)
        assert key == made.name and drawn is not None and len(drawn.axes) >= 4
        assert make(unfinished) is None and unfinished.claims() == [] and not unfinished.finished
        assert json.dumps(unfinished.results()) and unfinished.tables() == []
