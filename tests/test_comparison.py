"""Four estimators compared: false alarms are rare, injected faults are found, every noise agrees."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import DEPTH, NOISES, points, problem, trained_size

import kolmo
from kolmo import Chain, ResidualNetwork, case, cli, modified, noise
from kolmo.consistency import one_step
from kolmo.errors import InputError
from kolmo.experiments import estimators
from kolmo.experiments.comparison import Z_LIMIT, Comparison, Pair, parse_estimators
from kolmo.experiments.estimators import ESTIMATORS, Options, Reached, reach
from kolmo.noise.base import LinearNoise
from kolmo.noise.law import TwoPoint
from kolmo.pde import BackwardKolmogorov, value_gradient
from kolmo.penalty import StepPenalty, WeightDecay

#: paths and meshes that take a second or so
SMALL = Options(paths=40_000, sde_paths=20_000, backend="skfem")


def mild(model: noise.Noise | None = None, dim: int = 1) -> kolmo.Problem:
    """A trained network under noise, by default that of its training."""
    chosen = noise.BernoulliDropout(0.6) if model is None else model
    return kolmo.Problem(points(dim, 20), trained(dim), chosen)


@lru_cache
def trained(dim: int) -> ResidualNetwork:
    """A network trained for a few steps on the exact expectation of its noisy loss: noise matters to J."""
    given = kolmo.Problem(points(dim, 20), trained_size(dim, 16, 4, 0.4), noise.BernoulliDropout(0.6))
    penalties = (WeightDecay(1e-2), StepPenalty(threshold=0.25))
    kolmo.control.train(given, penalties, estimator="exact", cells=(48,), iterations=(25,))
    network = given.network
    assert isinstance(network, ResidualNetwork)
    return network


# ------------------------------------------------------------------ agreement


@pytest.mark.parametrize("name", ["dropout", "hidden", "depth-test-time", "shake+injection", "none"])
def test_all_four_agree(name: str) -> None:
    """Three pairs of four estimators agree, and so do single steps."""
    found = Comparison(mild(NOISES[name] if "list" not in name else None), SMALL).run()
    assert set(found.reached) == set(ESTIMATORS) and not found.refused
    assert {(p.first, p.second) for p in found.pairs} == {
        ("exact", "chain"),
        ("pde", "sde"),
        ("pde", "exact"),
    }
    assert found.verdict[0] == "agree", found.verdict
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NOISES if "list" not in n and "injections" not in n])
def test_all_four_agree_for_every_noise(name: str) -> None:
    """In 2-D, every noise: none is called different."""
    found = Comparison(mild(NOISES[name], 2), SMALL).run()
    assert found.verdict[0] == "agree", found.verdict


@pytest.mark.slow
def test_false_alarms_are_rare() -> None:
    """200 seeds of both samples: at most one verdict is 'differ', and z is what a normal number allows."""
    given = mild()
    fixed = {name: reach(name, given, SMALL) for name in ("pde", "exact")}
    alarms, scores = 0, []
    for seed in range(200):
        options = Options(paths=4000, sde_paths=1000, seed=seed)
        drawn = {name: reach(name, given, options) for name in ("chain", "sde")}
        found = Comparison(given, options, {**fixed, **drawn})
        alarms += found.verdict[0] != "agree"
        scores += [p.difference / p.sampling for p in found.pairs if p.first == "exact"]
    assert alarms <= 1
    # exact has no modelling error: its z-scores are normal, up to its own small bounds
    assert abs(np.mean(scores)) < 0.4 and 0.85 < np.std(scores) < 1.2


@pytest.mark.slow
def test_one_step_has_no_false_alarms_either() -> None:
    """60 seeds of sampled steps."""
    given = mild(dim=2)
    assert all(not one_step(given, samples=256, layers=3, seed=seed).faults for seed in range(60))


@pytest.mark.parametrize("name", NOISES)
def test_one_step_agrees_for_every_noise(name: str) -> None:
    """Drift, correction and covariance of a step are the equation's for every noise, both orders."""
    given = problem(2, NOISES[name], depth=DEPTH, width=4, std=0.6)
    for order in (1, 2):
        step = one_step(given, order, samples=1024)
        assert not step.faults, step
        assert math.isfinite(step.drift)
        noisy = name not in ("none", "dropout-1", "injection-0")
        assert math.isfinite(step.covariance) == noisy
    assert step.correction == pytest.approx(1, abs=0.3)


# ------------------------------------------------------------------ faults


def _flip_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    original = modified.modified_equation

    def flipped(*args: Any, **keys: Any) -> modified.Coefficients:
        found = original(*args, **keys)
        return modified.Coefficients(-found.drift, found.diffusion)

    _everywhere(monkeypatch, flipped)


def _order_two_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """b = m + h/2 (...) in place of m - h/2 (...)."""
    original = modified.modified_equation

    def flipped(
        network: Any, model: Any, x: Any, order: int = 2, *args: Any, **more: Any
    ) -> modified.Coefficients:
        found = original(network, model, x, order, *args, **more)
        if order == 1:
            return found
        first = original(network, model, x, 1, *args, **more)
        return modified.Coefficients(2 * first.drift - found.drift, found.diffusion)

    _everywhere(monkeypatch, flipped)


def _double_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """h (...) in place of h/2 (...): the drift's missing 1/2."""
    original = modified.modified_equation

    def doubled(
        network: Any, model: Any, x: Any, order: int = 2, *args: Any, **more: Any
    ) -> modified.Coefficients:
        found = original(network, model, x, order, *args, **more)
        first = original(network, model, x, 1, *args, **more)
        return modified.Coefficients(2 * found.drift - first.drift, found.diffusion)

    _everywhere(monkeypatch, doubled)


def _everywhere(monkeypatch: pytest.MonkeyPatch, replacement: Any) -> None:
    from kolmo import consistency, sde
    from kolmo.pde import kolmogorov

    for module in (modified, consistency, sde, kolmogorov):
        if hasattr(module, "modified_equation"):
            monkeypatch.setattr(module, "modified_equation", replacement)


def _covariance_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariance p f^2 in place of (1-p)/p f^2: the model's variance, not what is drawn."""
    monkeypatch.setattr(TwoPoint, "variance", property(lambda self: self.p))


def _chain_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks drawn with probability p but not divided by p."""
    original = LinearNoise.sample

    def unscaled(self: Any, network: Any, layer: int, x: Any, draws: Any) -> Any:
        return 0.6 * original(self, network, layer, x, draws)

    monkeypatch.setattr(LinearNoise, "sample", unscaled)


FAULTS = [_flip_drift, _order_two_sign, _double_correction, _covariance_p, _chain_variance]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("strength", ["strong", pytest.param("weak", marks=pytest.mark.slow)])
def test_faults_are_found(fault: Any, strength: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault makes the comparison differ, also where the noise changes J by a few percent only."""
    given = mild(dim=2) if strength == "strong" else mild(noise.BernoulliDropout(0.9), 2)
    options = SMALL if strength == "strong" else Options(paths=200_000, sde_paths=100_000, backend="skfem")
    fault(monkeypatch)
    found = Comparison(given, options).run()
    assert found.verdict[0] == "differ", found.verdict
    assert found.faults and all("\n" not in text for text in found.faults)


# ------------------------------------------------------------------ verdicts


def made(name: str, value: float, error: float = 0.0, bound: float = 0.0) -> Reached:
    return Reached(name, value, error, {"mesh": bound} if bound else {}, 0.0)


def test_pairs_and_scores() -> None:
    """z counts what the bounds leave in standard errors; without sampling the bounds decide."""
    assert Pair("a", "b", 0.5, 0.1, 0.1).z == pytest.approx(4)
    assert Pair("a", "b", -0.05, 0.1, 0.1).z == 0
    assert Pair("a", "b", 0.2, 0.1, 0.0).z == math.inf and not Pair("a", "b", 0.2, 0.1, 0.0).agree
    assert Pair("a", "b", 0.1, 0.1, 0.0).agree
    assert not Pair("a", "b", 0.1 + (Z_LIMIT + 0.01) * 0.1, 0.1, 0.1).agree


def test_what_is_compared() -> None:
    """Two estimators of one model by their errors; across models the modelling error is allowed too."""
    given = mild()
    both = Comparison(given, SMALL, {"sde": made("sde", 0.5, 1e-4), "chain": made("chain", 0.508, 1e-4)})
    assert [(p.first, p.second) for p in both.pairs] == [("sde", "chain")]
    assert both.pairs[0].bound > 0.01 and both.verdict[0] == "agree"
    inside = Comparison(given, SMALL, {"exact": made("exact", 0.5), "chain": made("chain", 0.508, 1e-4)})
    assert inside.verdict[0] == "differ" and "|J_exact - J_chain|" in inside.verdict[1]


def test_a_refusal_is_kept_and_said() -> None:
    """Hidden masks that are too many: exact is refused with its reason, the others are compared."""
    network = trained_size(1, 8, width=16)
    given = kolmo.Problem(points(1, 20), network, noise.HiddenDropout(0.8))
    found = Comparison(given, SMALL).run()
    assert "65536 outcomes" in found.refused["exact"]
    assert set(found.reached) == {"pde", "chain", "sde"} and found.verdict[0] == "agree"
    with pytest.raises(InputError, match="65536 outcomes"):
        Comparison(given, SMALL).run(("exact",))


def test_bad_requests() -> None:
    for text, words in (("pde,chian", "'chain'"), ("", "empty"), (" , ", "empty")):
        with pytest.raises(InputError, match=words):
            parse_estimators(text)
    assert parse_estimators("exact, chain,exact") == ("exact", "chain")
    with pytest.raises(InputError, match="'chain'"):
        reach("chian", mild(), SMALL)
    with pytest.raises(InputError, match="reduce: 'antithetik'"):
        reach("chain", mild(), Options(paths=1000, reduce=("antithetik",)))
    with pytest.raises(InputError, match="sde estimator has none"):
        reach("sde", mild(), Options(gradient=True))


# ------------------------------------------------------------------ control variate


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_control_variate_is_unbiased_and_pays(dim: int, antithetic: bool) -> None:
    """J with the PDE's martingale removed: the same mean, a standard error several times smaller."""
    given = problem(dim, noise.BernoulliDropout(0.7), depth=8, samples=20)
    equation = BackwardKolmogorov(given, cells={1: 64, 2: 32, 3: 12}[dim], backend="skfem", limit=False)
    control = value_gradient(equation)
    plain = Chain(given, seed=1).estimate(40_000)
    reduced = Chain(given, seed=2, control=control, antithetic=antithetic).estimate(40_000)
    error = math.hypot(plain.standard_error, reduced.standard_error)
    assert abs(plain.value - reduced.value) <= 5 * error
    assert reduced.standard_error < plain.standard_error / 4
    exact = estimators.reach("exact", given, Options()) if dim < 3 else None
    if exact is not None:
        assert abs(reduced.value - exact.value) <= 5 * reduced.standard_error + exact.bound


def test_the_martingale_has_mean_zero_for_any_field() -> None:
    """Even a wrong u leaves J alone: 5 standard errors, test-time scaling (a biased mean) included."""
    given = problem(2, noise.StochasticDepth(0.6, scaling="test_time"), depth=6, samples=10)
    wild = Chain(given, seed=3, control=lambda layer, x, labels: torch.cos(5 * x) + layer).estimate(200_000)
    plain = Chain(given, seed=4).estimate(200_000)
    assert abs(wild.value - plain.value) <= 5 * math.hypot(wild.standard_error, plain.standard_error)


def test_the_value_gradient_is_that_of_the_solution() -> None:
    """Between nodes it is the slope of u over four cells, to second order."""
    given = problem(2, noise.BernoulliDropout(0.8), depth=4, samples=20)
    equation = BackwardKolmogorov(given, cells=48, half_width=2.5, backend="skfem", limit=False)
    control, solution = value_gradient(equation), equation.solve()
    x = torch.tensor([[0.3, -0.2], [-0.6, 0.5]], dtype=torch.float64)
    labels, step = torch.tensor([0, 1]), 2 * 2.5 / 48
    found = control(1, x, labels)
    for row, label in enumerate(labels.tolist()):
        for axis in range(2):
            shift = torch.zeros(2, dtype=torch.float64)
            shift[axis] = 2 * step
            both = torch.stack([x[row] + shift, x[row] - shift]).numpy()
            values = equation.space.interpolation(both) @ solution.value[2][:, label]
            slope = (values[0] - values[1]) / (4 * step)
            assert float(found[row, axis]) == pytest.approx(slope, abs=0.06)
    far = torch.tensor([[9.0, 9.0]], dtype=torch.float64)
    assert bool(torch.isfinite(control(0, far, labels[:1])).all())


def test_gain_counts_seconds_at_equal_error() -> None:
    """gain = (error^2 seconds of the plain sample) / (error^2 seconds of this one)."""
    fast, slow = kolmo.chain.Estimate(1.0, 0.1, 10, 1.0), kolmo.chain.Estimate(1.0, 0.1, 10, 4.0)
    assert fast.gain(slow) == pytest.approx(4)
    assert kolmo.chain.Estimate(1.0, 0.05, 10, 1.0).gain(fast) == pytest.approx(4)


# ------------------------------------------------------------------ command line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    case.save(mild(), tmp_path / "mild")
    return tmp_path / "mild"


def run(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


FEW = ("--paths", 40_000, "--sde-paths", 10_000, "--quiet")


def test_compare_prints_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row for each case, exit code 0; comparison.json holds everything."""
    out = tmp_path / "out"
    assert run("compare", folder, *FEW, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "mild" in printed and "agree" in printed and "exact" in printed
    saved = json.loads((out / "comparison.json").read_text())["mild"]
    assert set(saved["estimates"]) == set(ESTIMATORS) and len(saved["pairs"]) == 3
    assert saved["one_step"]["drift"] == pytest.approx(1, abs=0.1)
    assert run("compare", folder, *FEW, "--out", out) == 2
    assert "not empty" in capsys.readouterr().err


def test_compare_exits_with_one_where_estimators_differ(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong covariance: the verdict, the reason, and exit code 1."""
    _covariance_p(monkeypatch)
    assert run("compare", folder, *FEW, "--json") == 1
    found = json.loads(capsys.readouterr().out)["cases"]["mild"]
    assert found["verdict"] == "differ" and "covariance" in found["reason"]


def test_compare_refuses_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (("compare", folder, "--estimator", "pde"), "nothing to compare"),
        (("compare", folder, "--estimator", "pde,sdee"), "'sde'"),
        (("compare", folder, folder), "given before"),
        (("compare", folder, "--sde-paths", 0), "--sde-paths"),
        (("compare", folder, "--reduce", "luck"), "--reduce"),
        (("compare", folder / "nowhere"), "not a directory"),
        (("evaluate", folder, "--estimator", "sde", "--gradient"), "--gradient"),
        (("evaluate", folder, "--estimator", "exact", "--rule", "trapezoid"), "rule"),
        (("evaluate", folder, "--estimator", "exact", "--exact-cells", 4), "cells"),
    ):
        assert run(*arguments) == 2
        captured = capsys.readouterr()
        assert words in captured.err and len(captured.err.strip().splitlines()) == 1
        assert captured.out == ""


def test_evaluate_with_all_four(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object: every estimate with its errors by source, gradients where there are any."""
    assert run("evaluate", folder, "--estimator", "pde,chain,sde,exact", *FEW[:4], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["estimates"]) == set(ESTIMATORS) and found["verdict"] == "agree"
    assert {"mesh", "domain"} <= set(found["estimates"]["exact"]["error"])
    assert set(found["estimates"]["sde"]["error"]) == {"time"}
    names = (
        "evaluate",
        folder,
        "--estimator",
        "exact,chain",
        "--paths",
        40_000,
        "--reduce",
        "antithetic,control",
    )
    assert run(*names, "--gradient", "--out", tmp_path / "gradients", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimates"]["chain"]["gain"] > 1 and found["verdict"] == "agree"
    exact, chain = (np.load(found["estimates"][n]["gradient"]) for n in ("exact", "chain"))
    assert np.linalg.norm(exact["V"] - chain["V"]) < 0.05 * np.linalg.norm(exact["V"]) + 4 * np.linalg.norm(
        chain["V_se"]
    )


def test_a_diffusion_that_lost_definiteness_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strong expansion under injection: the plain order-2 diffusion is indefinite, and that is said."""
    W, V = torch.full((4, 2, 1), 2.0), torch.full((4, 1, 2), 2.5)
    network = ResidualNetwork.from_weights(W, torch.zeros(4, 2), V)
    given = kolmo.Problem(points(1, 20), network, noise.GaussianInjection(0.3))
    found = modified.indefinite(network, given.noise, given.data.points)
    assert found is not None and found.share > 0 and found.worst < 0
    case.save(given, tmp_path / "strong")
    code = run("evaluate", tmp_path / "strong", "--estimator", "pde", "--paths", 40_000)
    printed = capsys.readouterr()
    assert (code == 0 and "indefinite" in printed.out) or (code == 2 and "grad f|" in printed.err)
