"""Hostile input from the command line, by the thousand: one line, exit code 2, and nothing written.

Each example starts from valid input, damages it (keys, values, shapes, bytes), and runs `kolmo` in this
process. What is accepted ends quickly by construction: cases have a few paths, configurations meet an
output folder that is taken, which is refused after everything else was looked at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_settings import CONFIG, PROBLEM, toml
from fuzz_weights import npz, safetensors
from fuzzing import Hangs, attempt, damage, fuzz, ring, sizes
from hypothesis import strategies as st

from kolmo import Problem, ResidualNetwork, case, cli, data, memory, noise


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """4 GiB of memory, on any machine; faults are raised, not printed; calls that hang are ended."""
    monkeypatch.setattr(memory, "available", lambda: 4 * 2**30)
    monkeypatch.setenv("KOLMO_TRACEBACK", "1")
    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, before)
    faulthandler.cancel_dump_traceback_later()


# ------------------------------------------------------------------ valid input to start from


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small case, both formats of weights."""
    network = ResidualNetwork(2, 4, 3, seed=1)
    problem = Problem(data.moons(8, seed=2), network, noise.BernoulliDropout(0.8))
    found: dict[str, bytes] = {}
    for format in ("npz", "safetensors"):
        folder = tmp_path_factory.mktemp(format)
        case.save(problem, folder, format)
        found |= {path.name: path.read_bytes() for path in folder.iterdir()}
    found["problem.toml"] = b'[noise]\nkind = "bernoulli_dropout"\nkeep = 0.8\n[loss]\nscale = 4.0\n'
    return found


def put(
    folder: Path, valid: dict[str, bytes], changed: dict[str, bytes], weights: str = "weights.npz"
) -> Path:
    """A case directory of valid files, but for those that are changed."""
    directory = folder / "case"
    directory.mkdir()
    for name in ("problem.toml", "points.csv", weights):
        (directory / name).write_bytes({**valid, **changed}[name])
    return directory


def evaluated(folder: Path, directory: Path) -> tuple[int, str]:
    return attempt(folder, "evaluate", str(directory), "--estimator", "chain", "--paths", "64")


def test_the_valid_case_is_accepted(valid: dict[str, bytes], tmp_path: Path) -> None:
    """Otherwise all that follows would be refused for one reason."""
    for name in ("weights.npz", "weights.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        assert evaluated(folder, put(folder, valid, {}, name)) == (0, "")


# ------------------------------------------------------------------ settings


@sizes(40, 1300)
def test_configurations(examples: int) -> None:
    """`kolmo reproduce`: the file at fault, or, where it is right, the output folder that is taken."""
    accepted = []

    def body(draw: Any, folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "results.json").write_text("precious")
        path = folder / "c.toml"
        path.write_bytes(toml(draw, CONFIG))
        code, line = attempt(
            folder, "reproduce", "--config", str(path), "--out", str(folder / "out"), "--quiet"
        )
        assert code == 2
        accepted.append("--overwrite" in line)

    fuzz(examples, body)
    assert any(accepted) and not all(accepted)


@sizes(30, 900)
def test_problems(examples: int, valid: dict[str, bytes]) -> None:
    """problem.toml: its tables, its noise, its file names."""
    codes = []

    def body(draw: Any, folder: Path) -> None:
        codes.append(evaluated(folder, put(folder, valid, {"problem.toml": toml(draw, PROBLEM)}))[0])

    fuzz(examples, body)
    assert set(codes) == {0, 2}


# ------------------------------------------------------------------ points

FIELDS = [
    "0", "1", "0.5", "-0.25", " 1", "1.0", "nan", "inf", "-inf", "1e308", "1e-320", "1e999", "", "a",
    "0x1", "1_0", '"0.5"', '"0', "2", "-1", "--1", "\t0", "\x00", "\N{ARABIC-INDIC DIGIT THREE}", "True",
    "1e5",
]  # fmt: skip


def table(draw: Any) -> bytes:
    """A CSV file with some fields, rows or line ends that are wrong."""
    rows = [["x1", "x2", "label"], *([f"{i / 4}", f"{-i / 8}", f"{i % 2}"] for i in range(6))]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        if draw(st.booleans()) and row:
            row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(FIELDS))
        elif draw(st.booleans()) or not row:
            row.append(draw(st.sampled_from(FIELDS)))
        else:
            row.pop()
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    return end.join(",".join(row) for row in rows).encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16"])))


@sizes(40, 1000)
def test_points(examples: int, valid: dict[str, bytes]) -> None:
    """points.csv: damaged tables, damaged bytes, and bytes that never were a table."""
    codes = []

    def body(draw: Any, folder: Path) -> None:
        kind = draw(st.sampled_from(["table", "bytes", "random"]))
        content = table(draw) if kind == "table" else draw(st.binary(max_size=64))
        content = damage(draw, valid["points.csv"]) if kind == "bytes" else content
        code, line = evaluated(folder, put(folder, valid, {"points.csv": content}))
        codes.append(code)
        assert code == 0 or "case" in line

    fuzz(examples, body)
    assert set(codes) == {0, 2}


# ------------------------------------------------------------------ weights


@sizes(40, 1000)
def test_npz(examples: int, valid: dict[str, bytes]) -> None:
    """weights.npz: shapes, types, values, headers, zip directories, bytes."""
    codes = []

    def body(draw: Any, folder: Path) -> None:
        code, line = evaluated(folder, put(folder, valid, {"weights.npz": npz(draw, valid)}))
        codes.append(code)
        assert code == 0 or "case" in line

    fuzz(examples, body)
    assert set(codes) == {0, 2}


@sizes(20, 500)
def test_safetensors(examples: int, valid: dict[str, bytes]) -> None:
    """weights.safetensors: header, its length, bytes."""
    codes = []

    def body(draw: Any, folder: Path) -> None:
        name = "weights.safetensors"
        directory = put(folder, valid, {name: safetensors(draw, valid)}, name)
        code, line = evaluated(folder, directory)
        codes.append(code)
        assert code == 0 or "case" in line

    fuzz(examples, body)
    assert set(codes) == {0, 2}


# ------------------------------------------------------------------ flags

SAMPLING = [
    "--estimator", "--paths", "--sde-paths", "--cells", "--exact-cells", "--order", "--rule", "--reduce",
    "--backend", "--device", "--seed", "--out", "--json", "--bogus", "-x", "--path", "--",
]  # fmt: skip
RUNNING = [
    "--backend",
    "--device",
    "--seed",
    "--quick",
    "--quiet",
    "--json",
    "--config",
    "--bogus",
    "--",
    "-q",
]
#: commands with arguments that end quickly, and the flags that they get besides
COMMANDS = {
    "evaluate": (["CASE", "--estimator", "chain", "--paths", "64"], [*SAMPLING, "--gradient"]),
    "compare": (
        ["CASE", "OTHER", "--estimator", "chain,sde", "--paths", "64", "--sde-paths", "64"],
        SAMPLING,
    ),
    "reproduce": (["--config", "FOLDER/c.toml"], RUNNING),
    "experiment": (["overfitting"], [*RUNNING, "estimators", "weak_ordre", "--list"]),
    "bogus": ([], RUNNING),
    "": ([], SAMPLING),
}
#: flags without a value
_BARE = {"--gradient", "--json", "--quick", "--quiet", "--list", "estimators", "weak_ordre"}
VALUES = [
    "0", "1", "2", "-1", "3", "5", "16", "64", "4097", "1000000000", "10000000000000", "-10000000000000",
    "9" * 4000, "9" * 5000, "1e3", "nan", "", " ", ",", "chain", "pde,chain", "chain,chain", "chian",
    "antithetic", "control,x", "outcomes", "gauss", "auto", "skfem", "skfme", "cpu", "cud", "1_0", "0x10",
    "a\nb", "\x1b[2J", "\udcff", "é" * 500, "x" * 5000, "\x00",
]  # fmt: skip
#: what is neither quick nor refused
_SLOW = {("--paths", "1000000000"), ("--sde-paths", "1000000000"), ("--estimator", "pde,chain")}


@sizes(30, 400)
def test_flags(examples: int, valid: dict[str, bytes]) -> None:
    """Every flag with every kind of value."""
    codes = []

    def body(draw: Any, folder: Path) -> None:
        directory = put(folder, valid, {})
        (folder / "c.toml").write_text("[data]\ntrain = 20\ntest = 20\n")
        command = draw(st.sampled_from([*COMMANDS, "evaluate", "evaluate", "compare"]))
        own, flags = COMMANDS[command]
        where = str(draw(st.sampled_from([directory] * 8 + [folder, folder / "no", "", "x" * 5000])))
        given = {"CASE": where, "FOLDER": str(folder), "OTHER": str(shutil.copytree(directory, folder / "b"))}
        arguments = [command, *(given.get(word, word).replace("FOLDER", str(folder)) for word in own)]
        for _ in range(draw(st.integers(0, 3))):
            flag, value = draw(st.sampled_from(flags)), draw(st.sampled_from(VALUES))
            if (flag, value) not in _SLOW:
                arguments += [flag] if flag in _BARE else [flag, value]
        if command in ("reproduce", "experiment") or "--gradient" in arguments or "--out" in arguments:
            arguments += ["--out", str(directory)]  # is taken
        codes.append(attempt(folder, *arguments)[0])

    fuzz(examples, body)
    assert set(codes) == {0, 2}


# ------------------------------------------------------------------ the harness itself


def test_the_clock_rings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that takes too long is interrupted, also where it catches exceptions."""
    monkeypatch.setattr("fuzzing.LIMIT", 0.2)

    def endless(arguments: object) -> int:
        while True:
            with contextlib.suppress(Exception):
                torch.zeros(1)

    monkeypatch.setattr(cli, "main", endless)
    with pytest.raises(Hangs):
        attempt(tmp_path)


@pytest.mark.parametrize("fault", ["write", "touch", "lines", "code"])
def test_the_harness_notices(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file left behind, one changed, two lines, an exit code that is not documented."""
    (tmp_path / "there").write_text("x")

    def faulty(arguments: object) -> int:
        import sys

        print("kolmo: no" + ("\nkolmo: nor" if fault == "lines" else ""), file=sys.stderr)
        if fault == "write":
            (tmp_path / "left").mkdir()
        if fault == "touch":
            (tmp_path / "there").write_text("x")
        return 3 if fault == "code" else 2

    monkeypatch.setattr(cli, "main", faulty)
    with pytest.raises(AssertionError):
        attempt(tmp_path)
