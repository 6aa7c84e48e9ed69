"""The self-check: it holds here, it fails whenever a scheme is perturbed, its formulas are true."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import problems
import pytest
from faults import FAULTS, Fault, wrong_sign

from kolmo import chain, cli
from kolmo.errors import InputError
from kolmo.pde import spline
from kolmo.verify import CHECKS, Figure, verify
from kolmo.verify.affine import CASES, affine_problem, chain_loss, modified_loss
from kolmo.verify.figure import around, below

Patch = pytest.MonkeyPatch


@pytest.fixture(params=["box", "skfem", "dolfinx"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend; dolfinx is skipped, visibly, where it is absent."""
    if request.param == "dolfinx":
        request.getfixturevalue("dolfinx")
    return request.param


# ------------------------------------------------------------------ it holds


@pytest.mark.slow
def test_everything_holds(backend: str) -> None:
    """All checks, in under 2 minutes."""
    report = verify(backend)
    assert [str(f) for _, f in report.results if not f.holds] == []
    assert {name for name, _ in report.results} == set(CHECKS)
    assert report.backend == backend and report.seconds < 120


#: checks that take a second or less
QUICK = ["coefficients", "matrices", "conservation", "time-steps", "grids", "limiters", "chain-gradient"]


def test_the_quick_checks_hold(backend: str) -> None:
    report = verify(backend, QUICK)
    assert report.holds and [name for name in QUICK if not report.figures(name)] == []


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", list(CASES))
def test_two_derivations_of_the_closed_forms(name: str, dim: int) -> None:
    """Random affine maps here, covariances of the table of noises in `problems`: J to rounding."""
    case = CASES[name]
    given = affine_problem(dim, case.noise)
    assert chain_loss(case, given) == pytest.approx(problems.chain_loss(given), rel=1e-13)
    for order in (1, 2):
        assert modified_loss(case, given, order) == pytest.approx(problems.sde_loss(given, order), rel=1e-12)


# ------------------------------------------------------------------ it fails


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        pytest.param(
            fault, check, id=f"{fault.__name__}-{check}", marks=[] if check in QUICK else [pytest.mark.slow]
        )
        for fault, checks in FAULTS
        for check in checks
    ],
)
def test_a_fault_is_seen(fault: Fault, check: str, monkeypatch: Patch) -> None:
    """The check holds without the fault (see above) and fails with it."""
    fault(monkeypatch)
    assert not verify("box", [check]).holds


def test_every_check_has_a_fault_that_it_sees() -> None:
    """But for two: the chain's gradient, whose fault is its own test below, and the grids' order."""
    seen = {check for _, checks in FAULTS for check in checks}
    assert set(CHECKS) - seen == {"chain-gradient", "grids"}


def test_a_gradient_of_other_paths_is_seen(monkeypatch: Patch) -> None:
    """The chain's gradient from another seed than its value."""
    right = chain.Chain.gradient

    def elsewhere(self: chain.Chain, paths: int) -> chain.GradientEstimate:
        return right(chain.Chain(self.problem, seed=self.seed + 1), paths)

    monkeypatch.setattr(chain.Chain, "gradient", elsewhere)
    assert not verify("skfem", ["chain-gradient"]).holds


def test_linear_interpolation_is_seen(monkeypatch: Patch) -> None:
    """Nodal values for coefficients: the spline then smooths, at second order in the grid."""

    def nodal(self: spline.TensorSpline, values: np.ndarray) -> np.ndarray:
        nodes = np.arange(self.cells + 1)
        padded = np.zeros((self.cells + 3, len(nodes)))
        padded[nodes + 1, nodes] = 1
        padded[0, :2] = padded[-1, -2:][::-1] = [2, -1]
        found = values.reshape(*[len(nodes)] * self.dim, 2)
        for axis in range(self.dim):
            found = np.moveaxis(np.tensordot(padded, found, (1, axis)), 0, axis)
        return np.ascontiguousarray(found.reshape(-1, 2))

    monkeypatch.setattr(spline.TensorSpline, "coefficients", nodal)
    assert not verify("skfem", ["grids"]).holds


# ------------------------------------------------------------------ ranges, failures, the command


def test_figures_and_their_ranges() -> None:
    """Bounds included; nan never holds, and is null in JSON."""
    assert below("x", -2, 2).holds and not below("x", 2.1, 2).holds
    assert around("x", 1.9, 2, 0.1 + 1e-12).holds and not around("x", 2.2, 2, 0.1).holds
    assert below("x", 1, 0.5).expected == "<= 0.5" and around("x", 2, 2, 0.25).expected == "1.75 to 2.25"
    assert Figure("x", 3, 1.9, math.inf).expected == ">= 1.9"
    missing = Figure("x", math.nan, 0, math.inf)
    assert not missing.holds
    assert missing.as_dict("c") == {"check": "c: x", "measured": None, "expected": "<= inf", "holds": False}


def test_a_check_that_raises_has_failed(monkeypatch: Patch) -> None:
    """The others run all the same, and the figure says what was raised."""

    def breaks(backend: str) -> Iterator[Figure]:
        yield below("before", 0, 1)
        raise RuntimeError("no such library\nand more")

    monkeypatch.setitem(CHECKS, "matrices", breaks)
    report = verify("skfem", ["matrices", "time-steps"])
    before, after = report.figures("matrices")
    assert before.holds and after.what == "RuntimeError: no such library" and not after.holds
    assert all(figure.holds for figure in report.figures("time-steps")) and not report.holds


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["verify", *arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def two_checks(monkeypatch: Patch) -> None:
    """The command with two checks only."""
    for name in set(CHECKS) - {"coefficients", "time-steps"}:
        monkeypatch.delitem(CHECKS, name)


@pytest.mark.usefixtures("two_checks")
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: Patch) -> None:
    """A table and a line of progress for each check; one JSON object; exit code 1 with a fault."""
    code, out, err = run(capsys, "--backend", "skfem")
    assert code == 0 and "time-steps: order in the substep, implicit" in out and "all 5 figures hold" in out
    assert err.splitlines()[0].startswith("coefficients: 3 of 3 figures hold") and len(err.splitlines()) == 2
    assert run(capsys, "--backend", "skfem", "--quiet")[2] == ""
    wrong_sign(monkeypatch)
    code, out, err = run(capsys, "--backend", "skfem", "--json")
    found = json.loads(out)
    assert code == 1 and err == ""
    assert found["name"] == "verify" and found["backend"] == "skfem" and found["seconds"] > 0
    assert [sorted(check) for check in found["checks"]] == [["check", "expected", "holds", "measured"]] * 5
    failed = [check["check"] for check in found["checks"] if not check["holds"]]
    assert failed == ["coefficients: affine blocks, every noise, order 2"]
    assert "1 of 5 figures FAIL" in run(capsys, "--backend", "skfem", "--quiet")[1]


def test_bad_flags(capsys: pytest.CaptureFixture[str], monkeypatch: Patch) -> None:
    """Exit code 2 and one line."""
    assert run(capsys, "--backend", "skfme")[0] == 2
    code, out, err = run(capsys, "--bogus")
    assert code == 2 and out == "" and "--bogus" in err
    monkeypatch.setattr("kolmo.pde.dolfinx_compat.unavailable", lambda: "it is not installed")
    code, out, err = run(capsys, "--backend", "dolfinx")
    assert code == 2 and out == "" and "apt-get" in err
    with pytest.raises(InputError, match="did you mean 'time-steps'"):
        verify("skfem", ["time-step"])
