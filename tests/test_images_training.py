"""Trainings on images from end to end: digits, processes, the command line, the experiment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import images_worker
import numpy as np
import pytest
from image_files import folder_of

from kolmo import checkpoint, cli, config
from kolmo.architectures import ARCHITECTURES
from kolmo.checkpoint import Memo, unpack
from kolmo.errors import InputError
from kolmo.experiments.image_dropout import ImageDropout
from kolmo.images import NetworkPlan, Schedule, digits, train_once, training
from kolmo.images.__main__ import main
from kolmo.images.cifar import LAYOUTS
from kolmo.images.weak import Moments
from kolmo.report import study_figures

TINY = """
[images]
depth = 8
width = 4
epochs = 1
batch = 200
placements = ["none", "output", "between"]
rates = [0.3]
seeds = 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


# ------------------------------------------------------------------ digits


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_digits(architecture: str) -> None:
    """97% of the test images, in well under two minutes (by the processor's clock) with one thread."""
    plan = NetworkPlan.of_layers(architecture, 3, width=16)
    start = time.process_time()
    _, outcome = train_once(plan, digits(0), Schedule(epochs=30))
    assert outcome.accuracy >= 0.97
    assert time.process_time() - start < 120


# ------------------------------------------------------------------ processes


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """In float64, to rounding: masks, normalisations over the whole batch, and what they learn of it."""
    done = torchrun(Path(images_worker.__file__), tmp_path / "two.npz")
    assert done.returncode == 0, done.stderr
    one, two = images_worker.gradient(), np.load(tmp_path / "two.npz")
    assert set(one) == set(two.files)
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, *options: str | Path) -> None:
    """A training from the command line that Ctrl-C ends at a step; all steps before it are kept."""
    original = training._Run.step

    def until(run: training._Run, number: int) -> object:
        if number == step:
            raise KeyboardInterrupt
        return original(run, number)

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "step", until)
        for name in ("LEAST", "PATIENCE"):
            patch.setattr(checkpoint, name, 0.0)
        assert main([*map(str, options)]) == 130
    assert unpack((Path(options[-1]) / "network.npz").read_bytes())["state"]["steps"] == step


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them go on with what one began, then find it done. A few steps in float32: 1e-7 of rounding,
    and relus near 0 that it flips.
    """
    options = ["--config", tiny, "--placement", "output", "--rate", "0.3", "--quiet"]
    assert main([*map(str, options), "--out", str(tmp_path / "one")]) == 0
    interrupted(monkeypatch, 2, *options, "--out", tmp_path / "two")
    for _ in range(2):
        done = torchrun("-m", "kolmo.images", *options, "--out", tmp_path / "two")
        assert done.returncode == 0, done.stderr
    assert "resnet-8, width 4, noise output 0.3: test error" in done.stdout
    one, two = (unpack((tmp_path / n / "network.npz").read_bytes())["state"] for n in ("one", "two"))
    for name, weight in one["weights"].items():
        np.testing.assert_allclose(two["weights"][name], weight, atol=3e-3, err_msg=name)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["processes"] == 2 and results["network"]["placement"] == "output"


# ------------------------------------------------------------------ the command line


def test_one_training_from_the_command_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is finished is left alone; one of another network is refused in one line."""
    options = ["--config", str(tiny), "--quiet", "--out", str(tmp_path / "out")]
    assert main(options) == 0
    assert "resnet-8, width 4, noise none: test error" in capsys.readouterr().out
    before = (tmp_path / "out" / "network.npz").stat().st_mtime_ns
    assert main(options) == 0
    assert (tmp_path / "out" / "network.npz").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*options, "--placement", "output", "--rate", "0.5"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "of resnet-8, width 4, noise none; expected resnet-8, width 4, noise output 0.5" in captured.err


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_a_training_on_a_folder_of_images(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files to a test error; the folder is taken from where the configuration lies."""
    folder_of(kind, tmp_path / "data" / LAYOUTS[kind].folder)
    table = f"data = '{kind}'\nfolder = 'data'\ndepth = 8\nwidth = 4\nepochs = 1\nbatch = 25"
    (tmp_path / "c.toml").write_text(f"[images]\n{table}\n")
    assert main(["--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "epoch 1 of 1: loss" in captured.err and "test error" in captured.out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"] == LAYOUTS[kind].title


def test_an_interrupted_training_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again: bitwise the network of a training that nobody disturbed."""
    options = ["--config", str(tiny), "--quiet", "--placement", "before", "--rate", "0.2", "--out"]
    assert main([*options, str(tmp_path / "one")]) == 0
    interrupted(monkeypatch, 3, *options, tmp_path / "two")
    assert "the same command goes on" in capsys.readouterr().err
    assert main([*options, str(tmp_path / "two")]) == 0
    one, two = (unpack((tmp_path / n / "network.npz").read_bytes())["state"] for n in ("one", "two"))
    for name, weight in one["weights"].items():
        assert weight.tobytes() == two["weights"][name].tobytes(), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth = 9", "images.depth: 9 for resnet, expected 6 n + 2"),
        ("data = 'cifar10'", "images.folder: empty, expected the folder with CIFAR-10"),
        ("data = 'cifar10'\nfolder = 'no'", "no: no such folder with CIFAR-10; expected data_batch_1.bin"),
        ("data = 'mnist'", "images.data: 'mnist' is unknown"),
        ("placements = []", "images.placements: empty"),
        ("placements = ['output', 'output']", "has an entry twice"),
        ("placements = [3]", "images.placement: '3' is unknown"),
        ("rates = [0.5, 1.5]", "images.rates: 1.5 is not a number between 0 and 1"),
        ("rates = 0.5", "rates is 0.5, expected a list of numbers"),
        ("widht = 8", "did you mean 'width'"),
        ("seeds = 1", "seeds is 1, expected an integer from 2"),
        ("precision = 'float8'", "images.precision: 'float8' is unknown"),
    ],
    ids=lambda value: value.partition("=")[0].strip() if "=" in value else "",
)
def test_bad_settings_are_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f"[images]\n{text}\n")
    out = tmp_path / "out"
    assert cli.main(["experiment", "image_dropout", "--config", str(path), "--out", str(out), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# ------------------------------------------------------------------ the experiment


def study(path: Path) -> ImageDropout:
    made = ImageDropout(config.load(path))
    made.depths, made.samples = (8, 16, 32), 128
    made.places = ["output", "between"]
    return made


def test_the_experiment_on_a_tiny_network(tiny: Path, tmp_path: Path) -> None:
    """Tables, figures, results that JSON holds; resumed from its parts it trains nothing again."""
    made = study(tiny)
    (tmp_path / "parts").mkdir()
    made.memo = Memo(tmp_path / "parts")
    assert all(make(made) is None for make in study_figures(made.name).values())
    made.run()
    assert made.finished
    (_, columns, weak), (_, names, rows) = made.tables()
    assert len(weak) == 2 and len(rows) == 3 and all(len(row) == len(names) for row in rows)
    assert all(len(row) == len(columns) for row in weak)
    results = json.loads(json.dumps(made.results(), allow_nan=False))
    assert [len(t["seeds"]) for t in results["trainings"]] == [2] * 3
    # the mean of a network without noise is its own
    assert results["trainings"][0]["seeds"][0]["bias"] == 0.0
    assert results["trainings"][0]["seeds"][0]["shift"] == 1.0
    assert all(make(made) is not None for make in study_figures(made.name).values())
    orders = [claim for claim in made.claims() if "order in h" in claim.claim]
    assert len(orders) == 3 and all(claim.holds for claim in orders), orders
    again = study(tiny)
    again.memo = Memo(tmp_path / "parts")
    before = again.memo.finished
    again.run()
    assert again.memo.finished == before and again.results() == made.results()


def test_changed_images_are_noticed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    made = study(tiny)
    made.memo = Memo(tmp_path / "parts")
    made._same(digits(0))
    with pytest.raises(InputError, match="changed since the run was begun"):
        made._same(digits(1))


def test_biases_of_another_order_are_noticed(tiny: Path) -> None:
    """A mean that is not kept, and one that is kept by what should not keep it."""
    made = study(tiny)
    stays = {L: Moments(0.1, L**-0.5, 1e-6) for L in (8, 16, 32)}
    falls = {L: replace(m, bias=1 / L) for L, m in stays.items()}
    made.weak = {"output": falls, "between": stays}
    assert all(claim.holds for claim in made.claims())
    made.weak = {"output": stays, "between": falls}
    assert [claim.holds for claim in made.claims()] == [False, False, True]
    made.weak["output"] = {L: replace(m, deviation=1.0) for L, m in falls.items()}
    assert not made.claims()[2].holds


@pytest.mark.slow
def test_the_claims_of_the_quick_version_hold() -> None:
    made = ImageDropout(config.quick(config.load("image_dropout")), quick=True)
    made.run()
    claims = made.claims()
    assert len(claims) == 10
    assert all(claim.holds for claim in claims), claims
