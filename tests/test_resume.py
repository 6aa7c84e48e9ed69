"""Runs that are killed and resumed: what they leave is bitwise what an undisturbed run leaves.

Every kill is SIGKILL to a process that was alive. Wall times are what results.json has under `seconds`.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kolmo import cli, runs
from kolmo.checkpoint import pack, unpack
from kolmo.config import Config
from kolmo.experiments import EXPERIMENTS, STUDIES

#: one feature and a small network: seconds of work, of which trainings take more than half
TINY = """
[data]
kind = "interval"
train = 20
test = 40
[network]
depth = 6
width = 6
[control]
cells = [32, 64]
iterations = [30, 10]
[stochastic]
steps = 250
[noiseless]
steps = 100
[check]
paths = 4000
gradient_paths = 4000
sde_paths = 4000
snapshots = 2
[run]
backend = "skfem"
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "kolmo.cli", *(str(a) for a in arguments)]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=1800, check=False)


def kill(process: subprocess.Popen[str]) -> bool:
    """kill -9; whether that is what ended the process: it was alive."""
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there; fails where the process ends before."""
    while not path.exists():
        if process.poll() is not None:
            pytest.fail(f"{path} never came: {process.communicate()}")
        time.sleep(0.002)


def timeless(content: Any) -> Any:
    """What does not depend on the clock: everything but what is called `seconds`."""
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key != "seconds"}
    return [timeless(value) for value in content] if isinstance(content, list) else content


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves: results.json without wall times as text, every other file as bytes.

    The figure `training` and report.html have a time axis; of them, the name. A kill after results.json
    leaves the checkpoint.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name == "results.json":
            found[name] = json.dumps(timeless(json.loads(path.read_text())))
        elif path.is_file() and path.parent.name != "checkpoint":
            found[name] = None if path.stem in ("training", "report") else path.read_bytes()
    return found


def assert_same(folder: Path, expected: dict[str, Any], hint: str) -> None:
    found = outcome(folder)
    assert found.keys() == expected.keys(), hint
    assert [name for name in found if found[name] != expected[name]] == [], hint


@dataclass
class Undisturbed:
    """A run nobody disturbed: how it was started, its exit code, what it left, and its seconds by stage."""

    arguments: list[str | Path]
    code: int
    left: dict[str, Any]
    length: float
    resume: list[str]


def undisturbed(folder: Path, *arguments: str | Path) -> Undisturbed:
    process = start(*arguments, "--quiet", "--out", folder)
    wait_for(folder / "run.json", process)
    begun = time.perf_counter()
    wait_for(folder / "results.json", process)
    length = time.perf_counter() - begun
    process.communicate()
    assert process.returncode in (0, 1)
    resume = [str(a) for a in arguments if str(a) in ("reproduce", "experiment", *EXPERIMENTS)]
    return Undisturbed(list(arguments), process.returncode, outcome(folder), length, resume)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.toml").write_text(TINY)
    return undisturbed(folder / "run", "reproduce", "--config", folder / "tiny.toml", "--seed", "3")


def kill_at(run: Undisturbed, folder: Path, *shares: float) -> int:
    """Begin a run, kill every sitting after a share of the undisturbed length, then let it end; the hits."""
    hits = 0
    process = start(*run.arguments, "--quiet", "--out", folder)
    wait_for(folder / "run.json", process)
    for share in shares:
        time.sleep(share * run.length)
        if not kill(process):
            break
        hits += 1
        process = start(*run.resume, "--resume", folder)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("kolmo: going on with") or "finished already" in line, line
    _, error = process.communicate(timeout=1800)
    assert process.returncode == run.code, error
    return hits


def killed_twice(run: Undisturbed, folder: Path, first: float, second: float, hint: str) -> None:
    """Two kills that hit, and in the end what the undisturbed run left.

    A machine that is less busy than it was during that run may be done before a kill: then a little earlier.
    """
    while kill_at(run, folder, first, second) < 2:
        shutil.rmtree(folder)
        first, second = 0.8 * first, 0.8 * second
    assert_same(folder, run.left, f"{hint}: killed after {first:.3f} of the length, then {second:.3f}")


# ------------------------------------------------------------------ killed


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same(tiny: Undisturbed, tmp_path: Path) -> None:
    """Twice in its first half, mostly trainings: results, networks and figures are bitwise the same."""
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    killed_twice(tiny, tmp_path / "run", draw.uniform(0.1, 0.5), draw.uniform(0, 0.3), f"seed {seed}")


@pytest.mark.slow
def test_a_run_killed_while_it_writes_ends_the_same(tiny: Undisturbed, tmp_path: Path) -> None:
    """After its first figure, before results.json; no half-written file is left."""
    folder = tmp_path / "run"
    process = start(*tiny.arguments, "--quiet", "--out", folder)
    wait_for(folder / "value_density.png", process)
    assert kill(process)
    assert not (folder / "results.json").exists()
    (folder / ".weights.pdf.abc.part").write_bytes(b"half of a file")
    assert finish("reproduce", "--resume", folder, "--quiet").returncode == tiny.code
    assert_same(folder, tiny.left, "killed while writing")


@pytest.mark.slow
def test_runs_killed_at_twenty_random_moments_end_the_same(tiny: Undisturbed, tmp_path: Path) -> None:
    """Ten runs: one moment in each tenth of the length, writing included, and one in the sitting after it."""
    for number in range(10):
        seed, folder = random.SystemRandom().randrange(2**32), tmp_path / f"run-{number}"
        draw = random.Random(seed)
        first = (number + draw.random()) / 10
        killed_twice(tiny, folder, first, draw.uniform(0, 0.5 * (1 - first)), f"seed {seed}")
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_the_same(tiny: Undisturbed, tmp_path: Path) -> None:
    """Many sittings of one run, none of them long."""
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    hits = kill_at(tiny, tmp_path / "run", *(draw.uniform(0.02, 0.2) for _ in range(8)))
    assert hits >= 4, f"seed {seed}"
    assert_same(tmp_path / "run", tiny.left, f"seed {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary_classification", *STUDIES])
def test_every_experiment_killed_and_resumed_ends_the_same(name: str, tmp_path: Path) -> None:
    """--quick, killed at two random moments."""
    run = undisturbed(tmp_path / "undisturbed", "experiment", name, "--quick")
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    killed_twice(run, tmp_path / "run", draw.uniform(0.1, 0.8), draw.uniform(0, 0.1), f"seed {seed}")


# ------------------------------------------------------------------ interrupted, and resumed with what


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_tells_how_to_go_on(number: int, tiny: Undisturbed, tmp_path: Path) -> None:
    """Exit code 130, what is done in results.json, and the command; its seconds add up."""
    folder = tmp_path / "run"
    process = start(*tiny.arguments, "--quiet", "--out", folder)
    wait_for(folder / "checkpoint" / "control.npz", process)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].endswith(f"kolmo reproduce --resume {folder}")
    before = json.loads((folder / "results.json").read_text())
    assert before["status"] == "interrupted"
    assert finish("reproduce", "--resume", folder, "--quiet").returncode == tiny.code
    after = json.loads((folder / "results.json").read_text())
    assert after["seconds"]["total"] > after["seconds"]["control"] > 0
    assert after["seconds"]["total"] > sum(s for name, s in after["seconds"].items() if name != "total")
    assert_same(folder, tiny.left, "interrupted")


def run(*arguments: str | Path) -> int:
    return cli.main([str(a) for a in arguments])


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run of the main job that has just begun, and of which one part is done."""
    config = Config()
    opened = runs.begin(tmp_path / "begun", False, "binary_classification", False, config)
    opened.memo.remember("control", lambda _: {"history": []})
    os.close(opened.lock)
    return opened.folder


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str | Path) -> str:
    """The one line of a refused command that changed nothing."""
    before = content(folder)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and content(folder) == before
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("kolmo: "), captured.err
    return lines[0]


@pytest.mark.parametrize(
    "option",
    ["--seed 0", "--config default", "--quick", "--out x", "--overwrite", "--backend auto", "--device cpu"],
)
def test_settings_are_not_given_twice(option: str, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, begun, "reproduce", "--resume", begun, *option.split())
    assert option.split()[0] in line and "--resume" in line


def test_what_is_not_a_run_of_this_is_refused(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another experiment's, no run's folder, none at all: one line, nothing touched."""
    line = refused(capsys, begun, "experiment", "overfitting", "--resume", begun)
    assert "binary_classification, not of overfitting" in line
    assert f"kolmo reproduce --resume {begun}" in line
    (tmp_path / "other").mkdir()
    assert "not the folder of a run" in refused(capsys, tmp_path, "reproduce", "--resume", tmp_path / "other")
    assert "not a directory" in refused(capsys, tmp_path, "reproduce", "--resume", tmp_path / "nowhere")
    (begun / "run.json").write_text("{")
    assert "run.json: damaged" in refused(capsys, begun, "reproduce", "--resume", begun)


def test_a_run_of_other_circumstances_is_refused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another Kolmo, another torch, a library less, changed settings."""
    whole = json.loads((begun / "run.json").read_text())
    for name in ("kolmo", "torch", "device"):
        changed = {**whole, "circumstances": {**whole["circumstances"], name: "0.0"}}
        (begun / "run.json").write_text(json.dumps(changed))
        line = refused(capsys, begun, "reproduce", "--resume", begun)
        assert re.search(rf"{name} is \S+, was 0\.0", line)
    changed = {**whole, "circumstances": {**whole["circumstances"], "fortran": "77"}}
    (begun / "run.json").write_text(json.dumps(changed))
    assert "fortran is missing" in refused(capsys, begun, "reproduce", "--resume", begun)
    (begun / "run.json").write_text(json.dumps(whole))
    settings = (begun / "config.toml").read_text()
    (begun / "config.toml").write_text(settings.replace("keep = 0.8", "keep = 0.7"))
    assert "config.toml: changed since" in refused(capsys, begun, "reproduce", "--resume", begun)


def test_changed_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration names a CSV file: found from anywhere, and compared."""
    points = tmp_path / "points.csv"
    points.write_text("x1,label\n0.5,1\n-0.5,0\n")
    config = Config()
    config.data.file = str(points)
    opened = runs.begin(tmp_path / "run", False, "binary_classification", False, config)
    os.close(opened.lock)
    points.write_text("x1,label\n0.5,1\n-0.25,0\n")
    assert "points.csv: changed since" in refused(capsys, tmp_path, "reproduce", "--resume", opened.folder)


def test_a_damaged_checkpoint_is_refused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = begun / "checkpoint" / "control.npz"
    for damaged in (part.read_bytes()[:-40], b"junk", b""):
        part.write_bytes(damaged)
        assert "control.npz: damaged" in refused(capsys, begun, "reproduce", "--resume", begun)


def test_two_processes_do_not_share_a_run(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = runs.resume(begun, "binary_classification")
    assert "another process" in refused(capsys, begun, "reproduce", "--resume", begun)
    assert "another process" in refused(capsys, begun, "reproduce", "--quick", "--overwrite", "--out", begun)
    os.close(opened.lock)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(tiny: Undisturbed, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, prints its claims, and ends with their exit code."""
    folder = Path(tiny.arguments[2]).parent / "run"
    before = content(folder)
    assert run("reproduce", "--resume", folder) == tiny.code
    captured = capsys.readouterr()
    assert "finished already" in captured.err and "claims" in captured.out
    assert run("reproduce", "--resume", folder, "--json") == tiny.code
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert claims == json.loads((folder / "results.json").read_text())["claims"]
    assert tiny.code == int(not all(claim["holds"] for claim in claims))
    assert content(folder) == before


def test_a_new_run_takes_nothing_of_the_old_one(begun: Path) -> None:
    """--overwrite: neither its parts nor its results are found again."""
    (begun / "results.json").write_text("{}")
    config = Config()
    config.run.seed = 5
    opened = runs.begin(begun, True, "binary_classification", True, config)
    assert opened.memo.finished == 0 and not (begun / "results.json").exists()
    os.close(opened.lock)
    again = runs.resume(begun, "binary_classification")
    assert again.config.run.seed == 5 and again.quick and again.memo.finished == 0
    os.close(again.lock)


def test_a_run_folder_is_a_run_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right after it appeared, or in an old folder before config.toml came: it can be resumed."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_lock", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.begin(folder, False, "weak_order", True, Config())
    assert list(tmp_path.iterdir()) == [folder]
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "run.json"]
    for _ in range(2):
        opened = runs.resume(folder, "weak_order")
        assert opened.quick and opened.config == Config()
        os.close(opened.lock)
        (folder / "config.toml").unlink()


# ------------------------------------------------------------------ disks and folders that fail


def last_states(folder: Path) -> dict[str, Any]:
    """Every part of a run, whole."""
    return {path.stem: unpack(path.read_bytes()) for path in (folder / "checkpoint").glob("*.npz")}


def one_line(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 2, process
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("kolmo: "), process.stderr
    return lines[0]


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_the_run_goes_on_later(tiny: Undisturbed, tmp_path: Path) -> None:
    """No file may grow beyond 50 kB: parts of the checkpoint fit, the figures do not."""
    folder = tmp_path / "run"
    process = start(*tiny.arguments, "--quiet", "--out", folder)
    wait_for(folder / "run.json", process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    output, error = process.communicate(timeout=600)
    line = one_line(subprocess.CompletedProcess([], process.returncode, output, error))
    assert "cannot be written: File too large" in line and f"kolmo reproduce --resume {folder}" in line
    assert not list(folder.rglob("*.part"))
    assert last_states(folder), (error, sorted(folder.rglob("*")))
    assert finish("reproduce", "--resume", folder, "--quiet").returncode == tiny.code
    assert_same(folder, tiny.left, "after a full disk")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; skips, visibly, where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_really_full_disk_is_one_error(tiny: Undisturbed, small_disk: Path) -> None:
    folder = small_disk / "run"
    line = one_line(finish(*tiny.arguments, "--quiet", "--out", folder))
    assert "cannot be written: No space left on device" in line
    assert last_states(folder) and not list(folder.rglob("*.part"))
    enlarge = ["mount", "-o", "remount,size=16m", str(small_disk)]
    subprocess.run(enlarge, check=True)
    assert finish("reproduce", "--resume", folder, "--quiet").returncode == tiny.code
    assert_same(folder, tiny.left, "after a full disk")


def vanish_in_training(folder: Path) -> Path:
    return folder / "checkpoint" / "control.npz"


def vanish_in_writing(folder: Path) -> Path:
    return folder / "regions.png"


@pytest.mark.slow
@pytest.mark.parametrize("moment", [vanish_in_training, vanish_in_writing])
def test_a_vanished_folder_is_one_error(
    moment: Callable[[Path], Path], tiny: Undisturbed, tmp_path: Path
) -> None:
    """Removed in mid-run: one line, and nothing is made in its place."""
    folder = tmp_path / "run"
    process = start(*tiny.arguments, "--quiet", "--out", folder)
    wait_for(moment(folder), process)
    folder.rename(tmp_path / "away")
    output, error = process.communicate(timeout=600)
    line = one_line(subprocess.CompletedProcess([], process.returncode, output, error))
    assert str(folder) in line and "--resume" not in line
    assert not folder.exists()
    assert last_states(tmp_path / "away")


@pytest.mark.slow
def test_the_comparison_sees_a_single_bit(tiny: Undisturbed, tmp_path: Path) -> None:
    """The check itself: one bit of one weight, or the last digit of one number, is a difference."""
    folder = tmp_path / "run"
    shutil.copytree(Path(tiny.arguments[2]).parent / "run", folder)
    assert_same(folder, tiny.left, "a copy")
    results = json.loads((folder / "results.json").read_text())
    results["seconds"]["total"] += 1.0
    (folder / "results.json").write_text(json.dumps(results))
    assert_same(folder, tiny.left, "another wall time")
    value = results["networks"]["control"]["chain"]["value"]
    results["networks"]["control"]["chain"]["value"] = float(np.nextafter(value, 1.0))
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(AssertionError):
        assert_same(folder, tiny.left, "another value")
    assert pack(value) != pack(float(np.nextafter(value, 1.0)))
