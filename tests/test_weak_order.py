"""Weak orders without sampling noise: the fitted slopes, and faults that they must notice."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from kolmo.config import Config
from kolmo.experiments import weak_order as module
from kolmo.experiments.claims import Claim
from kolmo.experiments.weak_numbers import Value, extrapolated
from kolmo.experiments.weak_order import CASES, ORDERS, SHARE, Curve, Point, WeakOrder
from kolmo.figures_weak_order import weak_order as figure
from kolmo.network import Jet
from kolmo.noise import KINDS, BernoulliDropout
from kolmo.noise.structure import Diagonal


def study(quick: bool = True, *names: str) -> WeakOrder:
    """The experiment on scikit-fem, all of it or some noises."""
    config = Config()
    config.run.backend = "skfem"
    made = WeakOrder(config, quick)
    made.cases = [case for case in made.cases if not names or case.name in names]
    return made


@pytest.fixture(scope="module")
def finished() -> WeakOrder:
    """The quick version, run once."""
    made = study()
    made.run()
    return made


def test_the_claims_of_the_quick_version_hold(finished: WeakOrder) -> None:
    assert finished.finished
    claims = finished.claims()
    assert len(claims) == 2 * len(finished.cases) >= 8
    assert all(claim.holds for claim in claims), claims
    assert not [claim for claim in claims if "without" in claim.claim]


@pytest.mark.slow
def test_the_claims_of_the_full_version_hold() -> None:
    """Every noise at orders 1.0 +- 0.15 and 2.0 +- 0.25, no depth left out."""
    made = study(quick=False)
    made.run()
    claims = made.claims()
    assert len(claims) == 2 * len(CASES)
    assert all(claim.holds and "without" not in claim.claim for claim in claims), claims
    # the wide box changes nothing in 1-D: the taper acts where no path goes
    first = [p for case in made.cases if case.dim == 1 for p in made.points[case.title]]
    assert max(value.box_error for p in first for value in (p.exact, *p.modified.values())) < 1e-7


def test_every_noise_is_covered() -> None:
    assert {case.noise.kind for case in CASES} == set(KINDS) - {"none"}
    assert len({case.title for case in CASES}) == len(CASES)


# ------------------------------------------------------------------ faults


def _wrong_drift(mean: Jet, D: Tensor | None, h: float, order: int) -> Tensor:
    """m + h/2 [...] in place of m - h/2 [...] at order 2."""
    if order == 1:
        return mean.value
    correction = mean.directional(mean.value)
    return mean.value + 0.5 * h * (correction if D is None else correction + 0.5 * mean.second(D))


def _drift_without_curvature(mean: Jet, D: Tensor | None, h: float, order: int) -> Tensor:
    """The term h/4 D : hess m left out."""
    return mean.value if order == 1 else mean.value - 0.5 * h * mean.directional(mean.value)


@pytest.mark.parametrize("name", ["dropout", "Gaussian injection"])
def test_a_wrong_sign_of_the_drift_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolmo.modified.drift", _wrong_drift)
    assert _second_fails(name).holds


def test_a_missing_curvature_term_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kolmo.modified.drift", _drift_without_curvature)
    assert _second_fails("Gaussian injection").holds


def test_a_wrong_covariance_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """C = p f^2 in place of (1-p)/p f^2: an error of O(h), so that order 2 is lost."""

    def covariance(noise: BernoulliDropout, jet: Jet) -> Diagonal:
        return Diagonal(math.sqrt(noise.keep.at(0, jet.depth)) * jet.value)

    monkeypatch.setattr(BernoulliDropout, "covariance", covariance)
    _second_fails("dropout")


def _second_fails(name: str) -> Claim:
    """The claim of order 2 fails, with a slope near 1; the other one is returned."""
    made = study(True, name)
    made.numerics = {1: replace(made.numerics[1], aim=1e-5)}  # enough for an error of O(h)
    made.run()
    first, second = made.claims()
    assert not second.holds
    assert float(second.measured) < 1.5
    return first


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize("dim", [1, 2])
def test_one_curve_is_read_at_every_depth(dim: int) -> None:
    """Layer k of 5 and layer 3k + 1 of 15 share a midpoint; the mean of 2k and 2k + 1 of 10 is near it."""
    curve = Curve(dim, seed=3)
    coarse, middle, fine = (curve.network(depth) for depth in (5, 10, 15))
    for name in ("W", "b", "V"):
        five, ten, fifteen = (getattr(net, name).detach().numpy() for net in (coarse, middle, fine))
        np.testing.assert_allclose(fifteen[1::3], five, atol=1e-15)
        assert np.abs(0.5 * (ten[::2] + ten[1::2]) - five).max() < 0.5 * (math.pi / 20) ** 2 * 0.25
        assert np.abs(np.diff(five, axis=0)).max() > 1e-3
    assert not np.array_equal(Curve(dim, 4).network(5).W.detach(), coarse.W.detach())


def test_three_meshes_remove_two_powers() -> None:
    cells = (48, 96, 192)
    values = [0.3 + 7 * n**-2.0 - 500 * n**-4.0 for n in cells]
    assert extrapolated(cells, values) == pytest.approx(0.3, abs=1e-12)


def test_numerical_errors_are_those_of_finer_numbers(finished: WeakOrder) -> None:
    """The estimate of a quick value bounds its distance to the full version's."""
    case, depth = finished.cases[1], 10
    precise = study(quick=False).measure(case, depth)
    point = next(p for p in finished.points[case.title] if p.depth == depth)
    for rough, fine in (
        (point.exact, precise.exact),
        *((point.modified[q], precise.modified[q]) for q in ORDERS),
    ):
        assert abs(rough.value - fine.value) <= rough.error + fine.error
        assert fine.error <= rough.error


def _points(numerical: list[float]) -> list[Point]:
    """Errors 0.1 h^q at the quick depths, with these numerical errors."""
    return [
        Point(
            depth,
            Value(0.5, 100, error, 0.0),
            {order: Value(0.5 + 0.1 * depth**-order, 100, 0.0, 0.0) for order in ORDERS},
        )
        for depth, error in zip((5, 10, 20, 40), numerical, strict=True)
    ]


def test_what_numerical_errors_hide_enters_no_fit() -> None:
    """The limit is SHARE times; with fewer than four points nothing is claimed to hold."""
    made = study(True, "dropout")
    made.points["dropout, 1-D"] = _points([0.99 * 0.1 / 1600 / SHARE] * 4)
    assert [claim.holds for claim in made.claims()] == [True, True]
    assert float(made.claims()[1].measured) == pytest.approx(2.0)
    made.points["dropout, 1-D"] = _points([0, 0, 0, 1.01 * 0.1 / 1600 / SHARE])
    first, second = made.claims()
    assert first.holds
    assert not second.holds
    assert "without L = 40" in second.claim
    assert made.tables()[1][2][0][4:6] == ["(6.2e-05)", "-"]


def test_an_interrupted_run_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = study(True, "dropout", "shake-shake"), []

    def measure(study: WeakOrder, case: module.Case, depth: int) -> Point:
        calls.append(depth)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return next(p for p in _points([0.0] * 4) if p.depth == depth)

    monkeypatch.setattr(WeakOrder, "measure", measure)
    assert figure(made) is None
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert not made.finished
    assert len(made.claims()) == 2
    assert [len(row["depths"]) for row in made.results()["weak_order"]] == [4, 1]
    drawn = figure(made)
    assert drawn is not None
    assert len(drawn.axes) == 2
    made.run()
    assert made.finished
    assert calls == [5, 10, 20, 40, 5, 10, 10, 20, 40]


def test_results_tables_and_figure(finished: WeakOrder) -> None:
    """Numbers that JSON holds, tables that fit 100 columns, a panel for each noise."""
    rows = json.loads(json.dumps(finished.results(), allow_nan=False))["weak_order"]
    for row, case in zip(rows, finished.cases, strict=True):
        assert row["noise"]["kind"] == case.noise.kind
        assert row["depths"] == [5, 10, 20, 40]
        for order in ORDERS:
            found = row[f"order_{order}"]
            assert abs(found["slope"] - order) < 0.25
            assert all(e > SHARE * n for e, n in zip(found["errors"], found["numerical_errors"], strict=True))
    for title, columns, table in finished.tables():
        widths = [max(len(str(row[i])) for row in [columns, *table]) for i in range(len(columns))]
        assert len(title) <= 100
        assert sum(widths) + 2 * len(widths) <= 100
    drawn = figure(finished)
    assert drawn is not None
    assert [axes.get_title() for axes in drawn.axes] == [case.title for case in finished.cases]
