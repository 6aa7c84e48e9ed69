"""Trained networks four ways: two estimates taken over, two more, refusals said, nothing computed twice."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from problems import points, trained_size

import kolmo
from kolmo import html, noise, tidy
from kolmo.checkpoint import Memo
from kolmo.config import Config
from kolmo.console import console, print_comparison
from kolmo.experiments import comparison
from kolmo.experiments.comparison import Comparison
from kolmo.experiments.crosscheck import SAFETY, pde_value
from kolmo.experiments.estimators import ESTIMATORS, Options, reach
from kolmo.experiments.progress import Silent
from kolmo.experiments.trained_comparison import claim, compare, known

HIDDEN = noise.HiddenDropout(0.8)


def given(model: noise.Noise | None = None, width: int = 4) -> kolmo.Problem:
    return kolmo.Problem(points(1, 20), trained_size(1, 8, width), model or noise.BernoulliDropout(0.8))


@lru_cache
def measured(hidden: bool = False) -> dict[str, Any]:
    """What the cross-check leaves of a network, as the main job keeps it."""
    problem = given(HIDDEN, 16) if hidden else given()
    pde = pde_value(problem, model=True, backend="skfem")
    chain = kolmo.Chain(problem, seed=1).estimate(20_000)
    low, high = chain.interval
    return {
        "pde": {
            "value": pde.value, "order": 2, "cells": pde.resolved.cells,
            "half_width": pde.resolved.half_width, "error": {**pde.errors, "sampling": 0.0}, "seconds": 0.1,
        },
        "chain": {
            "value": chain.value, "standard_error": chain.standard_error, "paths": chain.paths,
            "error": {"sampling": (high - low) / 2}, "seconds": 0.1,
        },
    }  # fmt: skip


def compared(memo: Memo | None = None, hidden: bool = False) -> Comparison:
    config = Config()
    config.check.sde_paths = 2000
    problem = given(HIDDEN, 16) if hidden else given()
    return compare("four", problem, measured(hidden), config, "cpu", 3, memo or Memo(), Silent())


def test_two_are_taken_over_and_two_are_new() -> None:
    """The cross-check's own numbers, bit by bit; across, the modified equation has its estimate, no more."""
    found, before = compared(), measured()
    assert list(found.reached) == list(ESTIMATORS) and not found.refused
    assert found.verdict[0] == "agree" and found.step is not None
    for name in ("pde", "chain"):
        assert found.reached[name].value == before[name]["value"]
    assert found.reached["chain"].standard_error == before["chain"]["standard_error"]
    across = next(pair for pair in found.pairs if (pair.first, pair.second) == ("pde", "exact"))
    stated = found.reached["pde"].bound + found.reached["exact"].bound + before["pde"]["error"]["model"]
    assert across.bound == pytest.approx(SAFETY * stated)


def test_a_wrong_value_is_found() -> None:
    """J of the equation, off by more than the errors that it states: the verdict and the claim say so."""
    wrong = {**measured(), "pde": {**measured()["pde"], "value": measured()["pde"]["value"] + 0.02}}
    found = compared()
    found.reached |= known(wrong)
    assert found.verdict[0] == "differ" and found.largest == math.inf
    assert not claim({"control": found}, 0.3).holds
    assert claim({"control": found, "stochastic": compared()}, 0.3).measured == "1 of 2"


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second sitting reads what the first one kept, and has the same results."""
    first = compared(Memo(tmp_path)).as_dict()

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(comparison, "reach", never)
    monkeypatch.setattr(comparison, "one_step", never)
    assert compared(Memo(tmp_path)).as_dict() == first


@lru_cache
def refusing() -> Comparison:
    """16 hidden units have 65536 masks, too many to sum over."""
    return compared(hidden=True)


def test_a_refusal_is_shown_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal, in the CSV, in the claim and in results.json, each with the reason or a count."""
    found = refusing()
    assert set(found.reached) == {"pde", "chain", "sde"} and found.verdict[0] == "agree"
    told = claim({"control": found}, 0.3)
    assert told.holds and told.measured == "1 of 1, 1 of 4 estimates refused"
    assert "65536 outcomes" in found.as_dict()["refused"]["exact"]
    console.cache_clear()
    print_comparison({"control": found.as_dict()}, ESTIMATORS, "network")
    printed = " ".join(capsys.readouterr().out.split())
    console.cache_clear()
    assert printed.count("refused") == 2 and "control, exact refused: " in printed and "65536" in printed
    run: Any = SimpleNamespace(lines=[], measured={}, optimality={}, comparisons={"control": found})
    lines = list(tidy.of_run(run))
    assert ("comparisons", "control", "verdict", "agree") in lines
    assert ("comparisons", "control/refused", "exact", found.refused["exact"]) in lines
    assert ("comparisons", "control/estimates/sde", "value", found.reached["sde"].value) in lines


@pytest.mark.skipif(html.unavailable() is not None, reason="no page can be written")
def test_the_page_s_table() -> None:
    """Values with their errors, the reason of a refusal, the verdict in words, and the sum of it."""
    from kolmo.html.tables import four_ways_summary, four_ways_table, pairs_table

    both = {"control": compared(), "hidden": refusing()}
    table = four_ways_table(both)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert [row["verdict"] for row in rows.values()] == ["agree", "agree"]
    assert rows["control"]["exact recursion"].startswith(f"{both['control'].reached['exact'].value:.5f} ± ")
    assert rows["hidden"]["exact recursion"].startswith("refused: ")
    pairs = {row[0]: row[1] for row in pairs_table(both).rows}
    assert len(pairs) == 3 + 1 + 2 + 1 and set(pairs.values()) == {"agree"}
    assert {"control, exact recursion against chain", "hidden, equation against chain"} < set(pairs)
    assert four_ways_summary(both).endswith("agree for 2 of 2 networks; 1 estimate was refused.")
    assert four_ways_summary({"control": both["control"]}).endswith("1 of 1 networks, none is refused.")


def test_mirrored_paths_of_the_sde() -> None:
    """Antithetic pairs give the same J with a smaller standard error from as many paths."""
    plain = reach("sde", given(), Options(sde_paths=20_000))
    pairs = reach("sde", given(), replace(Options(sde_paths=20_000), reduce=("antithetic",)))
    assert pairs.details["reduction"] == ["antithetic"] and pairs.details["paths"] == plain.details["paths"]
    assert pairs.standard_error < plain.standard_error / 2
    error = math.hypot(plain.standard_error, pairs.standard_error)
    assert abs(plain.value - pairs.value) <= 5 * error + plain.bound + pairs.bound
