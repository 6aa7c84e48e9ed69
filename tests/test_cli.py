"""The command line as a user meets it: exit codes, one-line errors, files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kolmo import Problem, ResidualNetwork, case, cli, data, experiments, noise
from kolmo.config import Config
from kolmo.errors import ResolutionError
from kolmo.experiments.claims import Claim

TINY = """
[data]
kind = "moons"
train = 20
test = 40
[network]
depth = 6
width = 6
[control]
cells = [16, 32]
iterations = [6, 4]
[stochastic]
steps = 20
[noiseless]
steps = 20
[check]
paths = 4000
gradient_paths = 4000
sde_paths = 4000
snapshots = 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small case directory."""
    network = ResidualNetwork(2, 5, 8, seed=1)
    with torch.no_grad():
        network.V *= 2
    case.save(Problem(data.moons(30, seed=2), network, noise.BernoulliDropout(0.8)), tmp_path / "case")
    return tmp_path / "case"


def run(*arguments: str | Path) -> int:
    return cli.main([str(a) for a in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused command prints."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("kolmo: ")
    return lines[0]


def test_evaluate_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The format that scripts read, gradients included."""
    assert run("evaluate", folder, "--paths", 20_000, "--cells", 48, "--json", "--gradient") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["case"] == "case"
    assert found["dim"] == 2
    pde, chain = found["estimates"]["pde"], found["estimates"]["chain"]
    assert {"value", "order", "cells", "half_width", "seconds", "gradient"} <= set(pde)
    assert {"value", "standard_error", "paths", "seconds", "gradient"} <= set(chain)
    assert abs(pde["value"] - chain["value"]) < 0.02
    assert found["verdict"] == "agree"
    gradient = np.load(chain["gradient"])
    assert gradient["W"].shape == gradient["W_se"].shape == (8, 5, 2)
    left, right = np.load(pde["gradient"])["V"].ravel(), gradient["V"].ravel()
    assert left @ right > 0.9 * np.linalg.norm(left) * np.linalg.norm(right)
    shutil.rmtree(Path(pde["gradient"]).parent)


def test_evaluate_the_chain_alone_in_four_dimensions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """d > 3: the chain answers, the equation says why it does not."""
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    four = data.Dataset(points, (points[:, 0] > 0).long())
    case.save(Problem(four, ResidualNetwork(4, 5, 4, seed=0), noise.BernoulliDropout(0.8)), tmp_path / "four")
    assert run("evaluate", tmp_path / "four", "--estimator", "chain", "--paths", 3000, "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["estimates"]) == ["chain"]
    assert "1, 2 or 3 dimensions" in refused(capsys, "evaluate", tmp_path / "four", "--paths", 3000)


def test_refusals_under_json_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """{"case": ..., "error": ...} and exit code 2."""
    assert run("evaluate", tmp_path / "nowhere", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["case"] == "nowhere"
    assert "not a directory" in found["error"]


BROKEN = {
    "weights missing": (lambda f: (f / "weights.npz").unlink(), "weights.npz: cannot be read"),
    "weights junk": (lambda f: (f / "weights.npz").write_bytes(b"junk"), "not an npz file"),
    "weights cut": (
        lambda f: (f / "weights.npz").write_bytes((f / "weights.npz").read_bytes()[:200]),
        "weights.npz",
    ),
    "array missing": (lambda f: np.savez(f / "weights.npz", W=np.ones((2, 3, 2))), "array b is missing"),
    "wrong shape": (
        lambda f: np.savez(f / "weights.npz", W=np.ones((2, 3, 2)), b=np.ones((2, 3)), V=np.ones((2, 3, 2))),
        "weights V: shape (2, 3, 2), expected (2, 2, 3)",
    ),
    "pickled": (
        lambda f: np.savez(f / "weights.npz", W=np.array([{}]), b=np.ones(1), V=np.ones(1)),
        "not an npz file of plain arrays",
    ),
    "NaN weight": (
        lambda f: np.savez(
            f / "weights.npz", W=np.full((2, 3, 2), np.nan), b=np.ones((2, 3)), V=np.ones((2, 2, 3))
        ),
        "weights W: a value of layer 0 is not finite",
    ),
    "other dimension": (
        lambda f: np.savez(f / "weights.npz", W=np.ones((2, 3, 3)), b=np.ones((2, 3)), V=np.ones((2, 3, 3))),
        "data have 2 features, the network takes 3",
    ),
    "label 2": (lambda f: (f / "points.csv").write_text("x1,x2,label\n0,0,2\n"), "line 2: label '2'"),
    "one class": (lambda f: (f / "points.csv").write_text("x1,x2,label\n0,0,1\n"), "class 0 has no points"),
    "ragged": (lambda f: (f / "points.csv").write_text("x1,x2,label\n0,1\n"), "line 2: 2 fields, expected 3"),
    "bad keep": (
        lambda f: (f / "problem.toml").write_text("[noise]\nkind = 'bernoulli_dropout'\nkeep = 0"),
        "noise.keep: 0",
    ),
    "bad key": (lambda f: (f / "problem.toml").write_text("[nose]\nkeep = 0"), "did you mean 'noise'"),
    "bad loss": (
        lambda f: (f / "problem.toml").write_text("[loss]\nkind = 'hinge'"),
        "loss.kind: 'hinge' is unknown",
    ),
    "bad horizon": (lambda f: (f / "problem.toml").write_text("[network]\nhorizon = -1"), "horizon"),
    "bad activation": (
        lambda f: (f / "problem.toml").write_text("[network]\nactivation = 'tahn'"),
        "did you mean 'tanh'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_cases_get_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file or key at fault, and what was expected."""
    damage, message = BROKEN[name]
    damage(folder)
    before = sorted(p.name for p in folder.iterdir())
    line = refused(capsys, "evaluate", folder)
    assert message in line
    assert str(folder) in line
    assert sorted(p.name for p in folder.iterdir()) == before


def test_bad_flags_get_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags, devices, backends, folders."""
    assert "did you mean 'pde'" in refused(capsys, "evaluate", folder, "--estimator", "pdf")
    assert "--paths" in refused(capsys, "evaluate", folder, "--paths", "many")
    assert "--cells" in refused(capsys, "evaluate", folder, "--cells", 1)
    assert "order" in refused(capsys, "evaluate", folder, "--order", 3)
    assert "--bogus" in refused(capsys, "evaluate", folder, "--bogus")
    assert "'skfme' is unknown; did you mean 'skfem'" in refused(
        capsys, "evaluate", folder, "--backend", "skfme"
    )
    assert "did you mean" in refused(capsys, "experiment", "overfiting")
    assert "default" in refused(capsys, "reproduce", "--config", "defualt")
    assert "--config: empty" in refused(capsys, "reproduce", "--config", "")
    assert "--seed" in refused(capsys, "evaluate", folder, "--seed", -1)
    if not torch.cuda.is_available():
        out = tmp_path / "never"
        assert "CUDA" in refused(capsys, "reproduce", "--quick", "--device", "cuda", "--out", out)
        assert not out.exists()


def test_missing_dolfinx_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for by name it is an error with the command that installs it; 'auto' goes on without."""
    monkeypatch.setattr("kolmo.pde.dolfinx_compat.unavailable", lambda: "it is not installed for this Python")
    assert "apt-get install python3-dolfinx-real" in refused(
        capsys, "evaluate", folder, "--backend", "dolfinx"
    )
    assert run("evaluate", folder, "--paths", 5000, "--cells", 48) == 0
    assert "dolfinx" not in capsys.readouterr().err


def test_reproduce_from_start_to_reload(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny run: every promised file, only finite numbers, networks that evaluate to what was written."""
    out = tmp_path / "run"
    code = run("reproduce", "--config", tiny, "--out", out, "--quiet", "--seed", 1)
    assert code in (0, 1)  # so few steps need not support every claim
    text = capsys.readouterr().out
    assert "cross-check" in text
    results = json.loads((out / "results.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert results["status"] == "finished"
    assert results["seed"] == 1
    assert len(results["claims"]) == 8
    assert {c["holds"] for c in results["claims"]} <= {True, False}
    assert (code == 0) == all(c["holds"] for c in results["claims"])
    assert [line["network"] for line in results["checks"]] == [
        n for n in ("control", "stochastic", "noiseless") for _ in range(2)
    ]
    assert "J by each estimator" in text and "sde" in text
    assert list(results["comparisons"]) == ["control", "stochastic", "noiseless"]
    for name, four in results["comparisons"].items():
        assert set(four["estimates"]) == {"pde", "chain", "sde", "exact"} and four["verdict"]
        for way in ("pde", "chain"):  # taken over, not computed again
            assert four["estimates"][way]["value"] == results["networks"][name][way]["value"]
        assert f"comparisons,{name},verdict,{four['verdict']}" in (out / "tables.csv").read_text()
    assert any("pde, chain, sde, exact agree" in c["claim"] for c in results["claims"])
    for figure in results["figures"]:
        assert (out / f"{figure}.png").stat().st_size > 5000
        assert (out / f"{figure}.pdf").exists()
    assert len(results["figures"]) == 7
    again = run("evaluate", out / "control", "--json", "--paths", 4000)
    found = json.loads(capsys.readouterr().out)
    assert again == 0
    expected = results["networks"]["control"]["pde"]
    assert found["estimates"]["pde"]["value"] == pytest.approx(expected["value"], rel=1e-9)
    # the same folder again is refused and left as it was
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert "--overwrite" in refused(capsys, "reproduce", "--config", tiny, "--out", out)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    # the written configuration runs again, with the same seed
    assert "seed = 1" in (out / "config.toml").read_text()


def _heeds_interrupts() -> None:
    """A shell's background jobs, and what they start, ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_saves_what_is_done(tiny: Path, tmp_path: Path) -> None:
    """An interrupt in the stochastic training: exit code 130, the control's network on disk."""
    text = tiny.read_text().replace("steps = 20", "steps = 1000000")
    tiny.write_text(text)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "kolmo.cli", "reproduce", "--config", str(tiny), "--out", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_heeds_interrupts
    )
    assert process.stderr is not None
    for line in process.stderr:  # the finished control stage prints its line
        if line.startswith("control"):
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert json.loads((out / "results.json").read_text())["status"] == "interrupted"
    assert isinstance(case.load(out / "control"), Problem)


def test_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Names and summaries."""
    assert run("experiment", "--list") == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(experiments.EXPERIMENTS)
    assert "weak_order" in experiments.EXPERIMENTS
    assert "did you mean 'weak_order'" in refused(capsys, "experiment", "weak_orders")


class _Short:
    """A study that counts to two and is interrupted, or refused, on the way."""

    name, summary, shipped = "short", "for the tests", "default"
    failure: BaseException | None = None

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.done, self.finished = config, 0, False

    def run(self, progress: Any = None) -> None:
        self.done = 1
        if self.failure is not None:
            raise self.failure
        self.done, self.finished = 2, True

    def claims(self) -> list[Claim]:
        return [Claim("counts to two", self.done, 3, False)]

    def results(self) -> dict[str, Any]:
        return {"done": self.done}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        return [("counting", ["done"], [[self.done]])]


@pytest.mark.parametrize(
    ("failure", "code", "status", "done"),
    [
        (None, 1, "finished", 2),
        (KeyboardInterrupt(), 130, "interrupted", 1),
        (ResolutionError("no mesh; take more cells"), 2, "refused", 1),
    ],
)
def test_an_experiment_keeps_what_is_done(
    failure: BaseException | None,
    code: int,
    status: str,
    done: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed claim is exit code 1, an interrupt 130, a refusal 2; results.json tells how far it came."""
    monkeypatch.setattr(_Short, "failure", failure)
    monkeypatch.setitem(experiments.STUDIES, "short", _Short)
    monkeypatch.setitem(experiments.EXPERIMENTS, "short", _Short.summary)
    assert run("experiment", "short", "--out", tmp_path / "run", "--quiet") == code
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["status"] == status and found["done"] == done
    assert ("counting" in capsys.readouterr().out) == (status == "finished")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(experiments.STUDIES))
def test_quick_experiments_hold(name: str, tmp_path: Path) -> None:
    """`kolmo experiment NAME --quick`: all claims hold; results and figures are there."""
    out = tmp_path / "run"
    assert run("experiment", name, "--quick", "--quiet", "--out", out) == 0
    results = json.loads((out / "results.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert results["claims"] and all(claim["holds"] for claim in results["claims"])
    assert all((out / f"{figure}.png").stat().st_size > 10_000 for figure in results["figures"])


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    """Text and JSON."""
    assert run("doctor") == 0
    assert "torch" in capsys.readouterr().out
    assert run("doctor", "--json") == 0
    assert "python" in json.loads(capsys.readouterr().out)


def test_help_is_quick() -> None:
    """`kolmo --help` does not load torch."""
    script = (
        "import contextlib, sys\nfrom kolmo.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_quick_seeds_end_with_a_verdict(seed: int, tmp_path: Path) -> None:
    """--quick from ten seeds: a verdict for every line and no non-finite number."""
    out = tmp_path / "run"
    assert run("reproduce", "--quick", "--quiet", "--seed", seed, "--out", out) in (0, 1)
    results = json.loads((out / "results.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert [line["verdict"] for line in results["checks"]] == ["agree"] * 6


@pytest.mark.slow
def test_the_default_main_job(tmp_path: Path) -> None:
    """`kolmo reproduce`: all claims hold."""
    assert run("reproduce", "--quiet", "--out", tmp_path / "run") == 0
