"""The benchmarks: peers solve our problem, every key is there, what is missing is said. Nothing is timed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import problem as small_problem

from kolmo import cli, noise
from kolmo.benchmarks import cases, equation, run, sampling, scaling
from kolmo.benchmarks.peers import MissingPeerError, Task, torch_chain, torch_training, torchsde_peer
from kolmo.benchmarks.peers.pypde import PyPDE
from kolmo.benchmarks.peers.tuned_dolfinx import TunedDolfinx
from kolmo.benchmarks.peers.tutorial_dolfinx import TutorialDolfinx
from kolmo.benchmarks.results import Results
from kolmo.benchmarks.targets import TARGETS, Target
from kolmo.benchmarks.timing import Contender, Timing, cores, interleave, peak_memory, threads
from kolmo.pde import BackwardKolmogorov, ExactRecursion
from kolmo.problem import Problem

KEYS = {
    "tutorial_value_over_box_gradient",
    "tutorial_value_over_mesh_gradient",
    "tuned_dolfinx_value_over_box_value",
    "tutorial_gradient_over_ours_equal_error",
    "gradient_over_value",
    "mesh_gradient_over_exact_gradient",
    "chain_over_torchsde",
    "chain_over_torch",
    "training_steps_over_torch",
    "stochastic_seconds_over_control_seconds",
    "gradient_3d_over_tutorial_3d",
}
HALF_WIDTH = 3.5


def tiny(dim: int) -> tuple[Problem, Task]:
    """Four layers of four units."""
    found = small_problem(dim, noise.BernoulliDropout(cases.KEEP), depth=4, width=4, samples=30)
    return found, cases.task(found, HALF_WIDTH)


def value(problem: Problem, cells: int) -> float:
    with torch.no_grad():
        return float(
            BackwardKolmogorov(problem, cells=cells, backend="skfem", half_width=HALF_WIDTH).expected_loss()
        )


# ------------------------------------------------------------------ peers


@pytest.mark.parametrize(
    ("peer", "dim", "cells"),
    [
        (TutorialDolfinx, 1, 128),
        (TutorialDolfinx, 2, 32),
        (TunedDolfinx, 1, 128),
        (TunedDolfinx, 2, 32),
        (lambda task, cells: TutorialDolfinx(task, cells, "gmres"), 3, 8),
    ],
)
def test_dolfinx_peers_solve_our_equation(
    peer: Callable[[Task, int], TutorialDolfinx], dim: int, cells: int, dolfinx: None
) -> None:
    """Within 1% of ours on a mesh of the same spacing (3-D, where both are coarse: 5%)."""
    problem, task = tiny(dim)
    assert peer(task, cells).value() == pytest.approx(value(problem, cells), rel=0.05 if dim == 3 else 0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pypde_solves_our_equation(dim: int) -> None:
    """Finite differences end within 1% of our finite elements."""
    problem, task = tiny(dim)
    try:
        found = PyPDE(task, 48).value()
    except MissingPeerError as error:
        pytest.skip(str(error))
    assert found == pytest.approx(value(problem, 48), rel=0.01)


def test_the_tutorial_gradient_is_that_of_its_value(dolfinx: None) -> None:
    """Central differences of its own J, two steps a layer; and our gradient up to the mesh's error."""
    problem, task = tiny(2)
    peer = TutorialDolfinx(task, 24, steps=2)
    J, gradient = peer.gradient()
    assert pytest.approx(peer.value(), rel=1e-12) == J
    for weights, layer, index, column in ((task.W, 1, 3, 3), (task.b, 2, 1, 8 + 1), (task.V, 0, 6, 12 + 6)):
        entry, ends = weights[layer].reshape(-1), []
        for change in (1e-4, -2e-4):
            entry[index] += change
            ends.append(peer.value())
        entry[index] += 1e-4
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(gradient[layer, column], rel=1e-4, abs=1e-9)
    BackwardKolmogorov(problem, cells=24, backend="skfem", half_width=HALF_WIDTH).expected_loss().backward()
    ours = equation.weights_gradient(problem)
    assert np.linalg.norm(gradient - ours) < 0.1 * np.linalg.norm(ours)


@pytest.mark.parametrize(
    "sample",
    [
        torch_chain.value,
        torchsde_peer.value,
        partial(torchsde_peer.value, equation=torchsde_peer.SharedDropoutSDE),
    ],
)
def test_sampled_peers_reach_the_exact_value(sample: Callable[[Task, int], tuple[float, float]]) -> None:
    """Within 5 standard errors and 2%, the SDE's distance from the chain at four layers."""
    problem, task = tiny(2)
    with torch.no_grad():
        exact = float(ExactRecursion(problem, cells=64).expected_loss())
    J, error = sample(task, 60_000)
    assert abs(J - exact) < 5 * error + 0.02 * exact


def test_the_training_peer_is_our_network_and_learns() -> None:
    """Without noise its module gives our features; with noise its loss falls; weights come back."""
    problem, task = tiny(2)
    network = torch_training.ResidualNet(task).eval()
    x = problem.data.points
    with torch.no_grad():
        torch.testing.assert_close(network(x.float()).double(), problem.network(x), atol=1e-5, rtol=0)
    loss, snapshots = torch_training.train(task, 60, 2, 0.05, 1e-3, every=25)
    assert [len(w) for _, w in snapshots] == [3, 3, 3]
    before, after = (
        float(p.loss(p.network(x), p.data.labels).mean().detach())
        for p in (problem, sampling.with_weights(problem, snapshots[-1][1]))
    )
    assert after < before and loss < before


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of an absent dolfinx say so, and are reported as missing under their own names."""
    from kolmo.pde import dolfinx_compat

    monkeypatch.setattr(dolfinx_compat, "unavailable", lambda: "it is not installed for this Python")
    _, task = tiny(2)
    for peer in (TutorialDolfinx, TunedDolfinx):
        with pytest.raises(MissingPeerError, match="dolfinx: it is not installed"):
            peer(task, 8)
    timings, missing = interleave([Contender("tutorial", lambda: TutorialDolfinx(task, 8).value)], 0.0)
    assert not timings and missing == {"tutorial": "dolfinx: it is not installed for this Python"}


# ------------------------------------------------------------------ timing


def test_contenders_take_turns() -> None:
    """Every contender gets at least its turns, seconds are for a unit of work, the first result is kept."""
    order: list[str] = []

    def contender(name: str, units: float) -> Contender:
        return Contender(name, lambda: lambda: order.append(name) or len(order), units)

    timings, missing = interleave([contender("a", 1.0), contender("b", 10.0)], 0.0, least=3)
    assert not missing and set(timings) == {"a", "b"} and timings["a"].result == 1
    assert all(len(t.seconds) >= 3 and t.quartiles[0] <= t.median <= t.quartiles[1] for t in timings.values())
    assert order.index("b") < len(order) - 1 - order[::-1].index("a")  # b ran before a's last turn


def test_threads_are_given_back() -> None:
    """One core within, all that were there before afterwards."""
    before = cores()
    with threads(1):
        assert len(cores()) == 1 and torch.get_num_threads() == 1
    assert cores() == before


def test_peak_memory_sees_what_was_freed() -> None:
    """64 MiB that are gone at the end count; Linux only."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell the peak")
    with peak_memory() as peak:
        np.ones(8 * 2**20).sum()
    if peak.mebibytes is None:
        pytest.skip("the system does not let the peak be reset")
    assert 60 < peak.mebibytes < 200


# ------------------------------------------------------------------ ratios


def test_the_keys_are_complete() -> None:
    assert set(TARGETS) == KEYS
    planned = [run.plan([key], quick=False, complete=False) for key in TARGETS]
    assert all(len(parts) == 1 and parts[0][0] == {key} for key, parts in zip(TARGETS, planned, strict=True))
    assert len(run.plan(list(TARGETS), quick=False, complete=True)) > len(
        run.plan(list(TARGETS), quick=True, complete=True)
    )


def test_verdicts() -> None:
    """At least and at most; the stretch only where it is harder than the target."""
    more, less = Target("a", "", 10, 20), Target("b", "", 3.5, 2.5, least=False)
    assert [more.verdict(x) for x in (9.9, 10, 20)] == ["missed", "met", "stretch"]
    assert [less.verdict(x) for x in (3.6, 3.5, 2.5)] == ["missed", "met", "stretch"]
    assert (more.bound, less.bound) == ("at least 10", "at most 3.5")


def test_a_missing_contender_leaves_its_key_missing() -> None:
    """The others are compared; the reason is kept; a run with a missing key is not ok."""
    results = Results()
    timings = {"box_value": Timing([0.01, 0.012, 0.011]), "box_gradient": Timing([0.03, 0.03, 0.033])}
    results.add("plane", timings, {"tutorial_value": "dolfinx: absent"})
    results.compare("gradient_over_value", "plane", "box_gradient", "box_value", "same J")
    results.compare("tutorial_value_over_box_gradient", "plane", "tutorial_value", "box_gradient", "")
    assert results.ratios["gradient_over_value"] == pytest.approx(0.03 / 0.011)
    assert results.missing["tutorial_value_over_box_gradient"] == "dolfinx: absent"
    keys = ["gradient_over_value", "tutorial_value_over_box_gradient"]
    assert results.ok(keys[:1]) and not results.ok(keys)
    rows = {row[0]: row for row in results.ratio_rows(keys)}
    assert rows["gradient_over_value"][-1] == "met" and rows["gradient_over_value"][3] == "at most 3.5"
    assert rows["tutorial_value_over_box_gradient"][1:3] == ("-", "") and "missing" in rows[keys[1]]
    content = json.loads(json.dumps(results.as_json(keys), allow_nan=False))
    assert content["seconds"]["plane"]["box_value"] == 0.011
    assert set(content["ratios"]) == {"gradient_over_value"}
    assert content["targets"]["tutorial_value_over_box_gradient"]["verdict"] == "missing"


def test_the_objective_is_reached_for_good() -> None:
    """Bisection finds the first snapshot below the goal, or none."""
    course = [(float(k), lambda k=k: 1 / k) for k in range(1, 9)]  # type: ignore[misc]
    assert sampling.first(course, 0.3) == 4.0
    assert sampling.first(course, 0.01) is None


def test_exponents() -> None:
    """The slope of the upper half: a constant below does not hide it."""
    x = [1, 10, 1e3, 1e4, 1e5]
    assert scaling.slope(x, [1 + v for v in x]) == pytest.approx(1, abs=1e-3)
    assert scaling.slope([1], [1.0]) == 0


# ------------------------------------------------------------------ the command


def test_bad_flags_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flags, word in (
        (["--only", "chain_over_torhc"], "chain_over_torch"),
        (["--out", str(tmp_path / "no" / "results.json")], "is not a folder"),
        (["--fast"], "--fast"),
    ):
        assert cli.main(["bench", *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error


def test_the_command_prints_and_writes_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One part that works and one that breaks: the table, the file, exit code 1."""

    def works(results: Results) -> None:
        timings = {"box_value": Timing([0.01]), "box_gradient": Timing([0.02])}
        results.add("plane-64", timings, {})
        results.compare("gradient_over_value", "plane-64", "box_gradient", "box_value", "equal J")

    def breaks(results: Results) -> None:
        raise MissingPeerError("torchsde: no such module")

    parts = [({"gradient_over_value"}, "plane", works), ({"chain_over_torchsde"}, "chain", breaks)]
    monkeypatch.setattr(run, "plan", lambda *args, **keys: parts)
    rates = {"cores": 1.0, "bandwidth_GB_s": 10.0}
    monkeypatch.setattr(run.roofline, "measure", lambda s: {"one_core": rates, "all_cores": rates})
    out = tmp_path / "results.json"
    only = "gradient_over_value,chain_over_torchsde"
    assert cli.main(["bench", "--quiet", "--only", only, "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "at most 3.5" in printed and "stretch" in printed and "torchsde: no such module" in printed
    content = json.loads(out.read_text())
    assert {"machine", "versions", "roofline", "seconds", "ratios"} <= set(content)
    assert content["ratios"] == {"gradient_over_value": 2.0}
    assert content["missing"] == {"chain_over_torchsde": "torchsde: no such module"}
    assert cli.main(["bench", "--quiet", "--only", "gradient_over_value", "--out", str(out)]) == 0


def test_the_committed_results_are_whole() -> None:
    """benchmarks/results.json: every key is measured or said to be missing, every number is finite."""
    content = json.loads((Path(run.__file__).with_name("results.json")).read_text())
    assert set(content["targets"]) == KEYS
    shown = {key for key in content["ratios"] if not key.endswith(("_trained", "_shared"))}
    assert shown | (KEYS & set(content["missing"])) == KEYS == set(content["targets"])
    assert all(math.isfinite(v) and v > 0 for v in content["ratios"].values())
    assert all(s > 0 for found in content["seconds"].values() for s in found.values())
