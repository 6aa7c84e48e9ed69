"""The experiment `loss_landscape`: its claims, what it writes, and faults that it must notice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kolmo
from kolmo import KolmoError
from kolmo.config import Config, load
from kolmo.errors import InputError
from kolmo.experiments import loss_landscape
from kolmo.experiments.loss_landscape import Found, LossLandscape, Plan
from kolmo.experiments.sharpness import noiseless_loss
from kolmo.experiments.two_optima import BOTH, PLANES, WITH
from kolmo.report import study_figures, write_study

#: seconds of work: its numbers are not the claims'
TINY = Plan(
    starts=2, grid=5, line=9, directions=8, eigenvalues=2, probes=3, confidence=0.8,
    small={
        "data": {"train": 16, "test": 40, "noise": 0.3},
        "network": {"depth": 3, "width": 3},
        "penalty": {"weight_decay": 0.05},
        "control": {"cells": [14], "iterations": [2000], "tolerance": 1e-6},
        "check": {"paths": 4000},
    },
)  # fmt: skip


def tiny() -> LossLandscape:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_landscape, "QUICK", TINY)
        return LossLandscape(load("loss_landscape"), quick=True)


@pytest.fixture(scope="module")
def done() -> LossLandscape:
    made = tiny()
    made.run()
    return made


def with_changes(done: LossLandscape, **changes: Any) -> Found:
    """What was found, with some of it replaced."""
    return replace(done.found, **changes)


def failing(found: Found) -> list[str]:
    return [claim.claim for claim in found.claims() if not claim.holds]


def test_claims_of_the_numbers_hold_on_any_problem(done: LossLandscape) -> None:
    """All but those of sharpness, which two starts of 16 points decide nothing of."""
    assert done.finished and len(done.claims()) == 12
    assert [text for text in failing(done.found) if "without noise" not in text and "ratio" not in text] == []


@pytest.mark.slow
def test_results_tables_and_figures(done: LossLandscape, tmp_path: Path) -> None:
    """Numbers that JSON holds, no weights among them; rows as long as the head; a panel for each map."""
    found = json.loads(json.dumps(done.results(), allow_nan=False))
    assert len(found["starts"]) == 2 and [m["title"] for m in found["maps"]] == list(PLANES)
    assert np.array(found["maps"][0]["noisy"]["values"], dtype=float).shape == (5, 5)
    assert "theta" not in json.dumps(found) and "axes" not in json.dumps(found)
    write_study(done, done.claims(), tmp_path, seconds=1.0, status="finished")
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["claims"]) == 12 and written["figures"] == ["landscape", "line", "sharpness"]
    for _, columns, table in done.tables():
        assert table and all(len(line) == len(columns) for line in table)
    makers = study_figures(done.name)
    titles = {
        "landscape": set(PLANES),
        "line": {"the two objectives"},
        "sharpness": {"Hessian of $J$, seed 0"},
    }
    assert makers.keys() == titles.keys()
    for name, make in makers.items():
        drawn = make(done)
        assert drawn is not None and titles[name] <= {axes.get_title() for axes in drawn.axes}
        assert make(tiny()) is None


def test_an_unfinished_run_claims_nothing() -> None:
    made = tiny()
    assert not made.finished
    with pytest.raises(KolmoError, match="not finished"):
        made.claims()
    assert made.results()["starts"] == [] and "ratios" not in made.results()


def test_the_planes_of_the_first_start(done: LossLandscape) -> None:
    """Optima lie where they are said to; the third map's axes are orthogonal; values are J + penalties."""
    start, of = done.found.starts[0], done.first
    for found in done.found.maps:
        for name, at in found.optima.items():
            theta = getattr(start, name).theta
            np.testing.assert_allclose(found.plane.at(*at), theta, rtol=0, atol=1e-12)
    through = done.found.maps[PLANES.index(BOTH)].plane
    np.testing.assert_allclose(
        np.linalg.norm(through.axes, axis=1), np.linalg.norm(through.axes[0]), rtol=1e-12
    )
    assert abs(through.axes[0] @ through.axes[1]) < 1e-12
    around = done.found.maps[PLANES.index(WITH)]
    middle = around.plane.at(0, 0)
    np.testing.assert_array_equal(middle, start.noisy.theta)
    of.set(middle)
    penalties = sum(float(p(of.network).detach()) for p in of.penalties)
    J = float(noiseless_loss(of.problem).detach())
    assert around.plain.values[2, 2] == pytest.approx(J + penalties, rel=1e-13)
    assert around.noisy.values[2, 2] == pytest.approx(J + penalties + start.cost[1], rel=1e-12)


def test_the_noisy_landscape_is_that_of_the_chain(done: LossLandscape) -> None:
    """Elsewhere too, by an independent estimator: the exact recursion, within the stated errors."""
    start, of = done.found.starts[0], done.first
    theta = 0.8 * start.noisy.theta
    spot = of.spot("near", theta, start.half_width)
    exact = kolmo.pde.resolve_exact(of.problem).value
    assert spot.numerical > 0 and abs(spot.value - exact) < 2 * spot.numerical


def changed_start(done: LossLandscape, **changes: Any) -> list[Any]:
    return [replace(done.found.starts[0], **changes), *done.found.starts[1:]]


def test_a_network_short_of_its_optimum_is_noticed(done: LossLandscape) -> None:
    noisy = replace(done.found.starts[0].noisy, residual=2e-6)
    (line,) = set(failing(with_changes(done, starts=changed_start(done, noisy=noisy)))) - set(
        failing(done.found)
    )
    assert "largest gradient" in line


def test_a_moved_optimum_is_noticed(done: LossLandscape) -> None:
    """By a hundredth of the way back: the slope, which is what it must be, and the plane's minimum."""
    start, of = done.found.starts[0], done.first
    theta = start.noisy.theta + 0.01 * (start.plain.theta - start.noisy.theta)
    moved = replace(start, noisy=replace(start.noisy, theta=theta))
    found = loss_landscape.line_of(of, moved, 9)
    assert abs(found.slope) > 1e-5
    assert found.slope == pytest.approx(-0.01 * found.bend, rel=0.3)
    around = loss_landscape.map_of(of, moved, WITH, 5)
    maps = [around if m.title == WITH else m for m in done.found.maps]
    new = set(failing(with_changes(done, line=found, maps=maps))) - set(failing(done.found))
    assert any("slope" in line for line in new) and any("nearest minimum" in line for line in new)


def test_no_minimum_is_noticed(done: LossLandscape) -> None:
    maps = [replace(m, noisy_minima=[]) for m in done.found.maps]
    (line,) = set(failing(with_changes(done, maps=maps))) - set(failing(done.found))
    assert "nearest minimum" in line


def test_costs_that_rise_or_are_unknown_are_noticed(done: LossLandscape) -> None:
    """A refused optimum does not count; where all are refused there is no evidence."""
    text = "noise cost less"
    rises = with_changes(done, starts=changed_start(done, cost=np.array([0.1, 0.2])))
    assert any(text in line for line in failing(rises))
    unknown = with_changes(done, starts=changed_start(done, cost=np.array([np.nan, 0.2])))
    assert not any(text in line for line in failing(unknown))
    (claim,) = (c for c in unknown.claims() if text in c.claim)
    assert claim.expected == "1 of 1, 1 refused"
    none = with_changes(done, starts=[replace(s, cost=np.full(2, np.nan)) for s in done.found.starts])
    assert any(text in line for line in failing(none))


@pytest.mark.parametrize(
    ("ratios", "broken"),
    [
        ((0.5, 0.6, 1.1), set()),
        ((1.2, 0.6, 1.1), {"leading eigenvalue"}),
        ((0.5, 1.2, 1.3), {"one without: trace"}),
        ((0.5, 0.6, 0.8), {"one without: filter-normalised trace"}),
        ((0.5, 1.2, 1.1), {"one without: trace", "the same ratio"}),
    ],
    ids=["as claimed", "sharper", "larger trace", "flatter by filters", "filters take nothing away"],
)  # fmt: skip
def test_sharpness_is_claimed_as_it_is_measured(
    ratios: tuple[float, float, float], broken: set[str], done: LossLandscape
) -> None:
    """Two starts whose ratios differ by a part in a thousand: tight intervals, on either side of 1."""
    starts = []
    for shift, start in zip((1.0, 1.001), done.found.starts, strict=True):
        plain = start.sharpness[0]
        noisy = replace(
            plain,
            largest=ratios[0] * shift * plain.largest,
            trace=ratios[1] * shift**2 * plain.trace,
            filtered=ratios[2] * shift * plain.filtered,
            increase=ratios[2] * shift * plain.increase,
            sampling=ratios[2] * shift * plain.sampling,
        )
        starts.append(replace(start, sharpness=(plain, noisy)))
    lines = failing(with_changes(done, starts=starts))
    assert len(lines) == len(broken) and all(any(text in line for line in lines) for text in broken), lines


def test_wrong_directions_spectra_and_spots_are_noticed(done: LossLandscape) -> None:
    known = set(failing(done.found))
    sharp = done.found.starts[0].sharpness
    off = replace(sharp[0], filtered=3 * sharp[0].filtered)
    (line,) = {
        text
        for text in failing(with_changes(done, starts=changed_start(done, sharpness=(off, sharp[1]))))
        if "directions drawn" in text
    }
    assert done.found.spectra is not None
    spectra = replace(done.found.spectra, residual=1e-7)
    (line,) = set(failing(with_changes(done, spectra=spectra))) - known
    assert "eigenpairs" in line
    spot = done.found.spots[0]
    wrong = replace(spot, value=spot.chain + 1.01 * spot.allowed)
    (line,) = set(failing(with_changes(done, spots=[wrong, *done.found.spots[1:]]))) - known
    assert "by the chain" in line


def test_problems_it_is_not_for() -> None:
    """No noise, three features: one line each."""
    config = Config()
    config.noise = {"kind": "none"}
    with pytest.raises(InputError, match="kind 'none'"):
        LossLandscape(config)


def test_three_features_are_refused(tmp_path: Path) -> None:
    config = Config()
    config.data.file = str(tmp_path / "points.csv")
    (tmp_path / "points.csv").write_text("x1,x2,x3,label\n0,0,0,0\n1,1,1,1\n")
    with pytest.raises(InputError, match="3 features"):
        LossLandscape(config)


@pytest.mark.slow
def test_the_claims_of_the_quick_version_hold() -> None:
    made = LossLandscape(load("loss_landscape"), quick=True)
    made.run()
    assert made.finished and failing(made.found) == []
