"""Single files that once broke something, or would, and what is said of them.

`test_fuzz.py` looks for more; weights are in `test_weights.py`, sizes in `test_memory.py`.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import refused, small_case

from kolmo import Problem, case, cli, data, toml
from kolmo.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_case(tmp_path / "case")


# ------------------------------------------------------------------ files that are none


@pytest.mark.parametrize("name", ["problem.toml", "points.csv", "weights.npz"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling link", "loop", "link to a pipe"])
def test_only_plain_files_are_read(
    kind: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pipes would wait for ever, devices never end."""
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
    else:
        path.symlink_to({"device": "/dev/zero", "dangling link": "nowhere", "loop": name}[kind])
    line = refused(capsys, "evaluate", folder)
    assert str(path) in line
    expected = {"dangling link": "No such file", "loop": "symbolic link", "link to a pipe": "a pipe"}
    assert expected.get(kind, f"is a {kind}") in line


def test_a_link_to_a_file_is_read(folder: Path) -> None:
    (folder / "weights.npz").rename(folder.parent / "elsewhere")
    (folder / "weights.npz").symlink_to("../elsewhere")
    assert case.load(folder).network.depth == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden_files_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "points.csv").chmod(0)
    assert "points.csv: cannot be read: Permission denied" in refused(capsys, "evaluate", folder)


def test_names_that_no_system_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too long, with a NUL, a loop of links."""
    assert "File name too long" in refused(capsys, "evaluate", "x" * 5000)
    assert "not a file name" in refused(capsys, "evaluate", "a\0b")
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic link" in refused(capsys, "evaluate", tmp_path / "loop")
    path = tmp_path / "c.toml"
    path.write_text('[data]\nfile = "a\\u0000b"')
    line = refused(capsys, "reproduce", "--config", path, "--out", tmp_path / "out")
    assert r"file is 'a\x00b', expected a file name" in line
    assert "no such file" in refused(capsys, "reproduce", "--config", "y" * 5000)
    assert not (tmp_path / "out").exists()


def test_messages_are_one_printable_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and names from outside cannot move the cursor or fill the screen."""
    line = refused(capsys, "evaluate", tmp_path / "\x1b[2J\n\u2028red")
    assert "\x1b" not in line and r"\x1b[2J" in line
    path = tmp_path / "c.toml"
    path.write_text(f'"{"k" * 100_000}" = 1')
    assert len(refused(capsys, "reproduce", "--config", path)) < 1000


def test_a_fault_of_ours_is_one_line_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, unless it is asked for; memory that ran out all the same is said as such."""

    def faulty(error: Exception) -> Callable[[str], Problem]:
        def load(directory: str) -> Problem:
            raise error

        return load

    monkeypatch.setattr(case, "load", faulty(TypeError("oops\nand more")))
    line = refused(capsys, "evaluate", folder)
    assert "internal error" in line and "KOLMO_TRACEBACK=1" in line and "TypeError: oops and more" in line
    monkeypatch.setenv("KOLMO_TRACEBACK", "1")
    with pytest.raises(TypeError):
        cli.main(["evaluate", str(folder)])
    monkeypatch.setattr(case, "load", faulty(MemoryError()))
    assert "out of memory" in refused(capsys, "evaluate", folder)


# ------------------------------------------------------------------ TOML

LONG_KEY = ".".join("a" * 20_000) + " = 1"
BAD_TOML: dict[str, tuple[bytes, str]] = {
    "depth bomb": (b"a = " + b"[" * 100_000, "nested too deeply"),
    "depth bomb of tables": (b"a = " + b"{a = " * 20_000, "nested too deeply"),
    "key of many parts": (LONG_KEY.encode(), "line 1: more than 32 dots"),
    "key of many numbers": (b"\n" + ".".join("1" * 20_000).encode() + b" = 1", "line 2: more than 32 dots"),
    "table of many parts": (f"[{'.'.join('a' * 20_000)}]".encode(), "line 1: more than 32 dots"),
    "quoted parts": (b'"\\"".' * 20_000 + b"a = 1", "line 1: more than 32 dots"),
    "too long": (b"#" * (toml.LONGEST + 1), "more than 262144 bytes"),
    "hexadecimal integer": (b"[network]\nwidth = 0x" + b"F" * 10_000, "width has an integer of more"),
    "integer for a float": (b"[network]\nhorizon = 0x" + b"F" * 10_000, "horizon has an integer"),
    "decimal integer": (b"[network]\nwidth = " + b"9" * 10_000, "not valid TOML"),
    "integer in an array": (b"[control]\ncells = [0x" + b"F" * 99 + b"]", "cells has an integer"),
    "duplicate key": (b"[run]\nseed = 1\nseed = 2", "not valid TOML: Cannot overwrite"),
    "utf-16": ("[run]\nseed = 1".encode("utf-16"), "line 1: not UTF-8"),
    "latin-1": ("[run]\n# \N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"), "line 2: not UTF-8"),
    "NaN": (b"[network]\nhorizon = nan", "horizon is nan, expected a positive number"),
    "negative zero": (b"[network]\nhorizon = -0.0", "horizon is -0.0, expected a positive number"),
    "date": (b"[run]\nseed = 1979-05-27", "seed is datetime.date(1979, 5, 27), expected an integer"),
    "noise beyond the data": (b"[data]\nnoise = 1e308", "data.noise: 1e+308 is not a number from 0 to 100"),
    "schedule of another length": (
        b"[noise]\nkind = 'bernoulli_dropout'\nkeep = [0.5, 0.6]", "2 values, the network has 40 layers"
    ),
    "odd branches": (b"[network]\nwidth = 5\n[noise]\nkind = 'shake_shake'", "an odd number"),
    "no mesh left": (b"[control]\niterations = [" + b"2, " * 40 + b"]", "mesh would have 0 cells"),
    "activation of another type": (b"[network]\nactivation = ['tanh']", "activation is ['tanh'], expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOML)
def test_bad_settings_are_refused_before_the_folder_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_TOML[name]
    (tmp_path / "c.toml").write_bytes(content)
    assert message in refused(
        capsys, "reproduce", "--config", tmp_path / "c.toml", "--out", tmp_path / "out", "--quiet"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.toml"]


def test_long_schedules_are_no_bombs(tmp_path: Path) -> None:
    """Dots of numbers do not count: ten thousand of them on a line are read."""
    path = tmp_path / "c.toml"
    path.write_text(f"a = [{', '.join(['0.5', '-1.25e-3'] * 5000)}]")
    assert len(toml.read(path)["a"]) == 10_000


def test_negative_zero_noise_is_no_noise() -> None:
    """numpy refuses to scale by -0.0."""
    found = data.synthetic("moons", 20, -0.0, 0)
    assert torch.equal(found.points, data.synthetic("moons", 20, 0.0, 0).points)


# ------------------------------------------------------------------ CSV

HEADER = b"x1,x2,label\n"
BAD_CSV: dict[str, tuple[bytes, str]] = {
    "NUL": (HEADER + b"0,1,0\n0,\x001,1\n", "line 3: a NUL byte"),
    "latin-1": (HEADER + b"0,1,0\n0,\xe9,1\n", "line 3: not UTF-8 text"),
    "utf-16": ("x1,x2,label\n0,1,0\n".encode("utf-16"), "line 1: not UTF-8 text"),
    "long line": (HEADER + b"0," * 600_000, "line 2: longer than 1048576 bytes"),
    "underscores": (HEADER + b"0,1_0,0\n1,1,1\n", "line 2: '1_0' is not a number"),
    "other digits": (HEADER + "0,\N{ARABIC-INDIC DIGIT THREE},0\n".encode(), "line 2: '"),
    "old line ends": (HEADER.replace(b"\n", b"\r") + b"0,1,0\r", "line 1: cannot be read as CSV: new-line"),
    "unclosed quote": (HEADER + b'0,1,0\n"0,1,1\n0,1,0\n', "line 4: cannot be read as CSV: unexpected end"),
    "line of a label": (HEADER + b"0,1,0\n\n0,1,7\n", "line 4: label '7', expected 0 or 1"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_tables_name_the_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD_CSV[name]
    (folder / "points.csv").write_bytes(content)
    assert f"{folder / 'points.csv'}, {message}" in refused(capsys, "evaluate", folder)


def test_quotes_and_windows_lines_are_read(tmp_path: Path) -> None:
    """As R and spreadsheets write them."""
    path = tmp_path / "points.csv"
    path.write_bytes(b'\xef\xbb\xbf"x1","label"\r\n"0.5",1\r\n-0.5,"0"\r\n')
    assert data.from_csv(path).points.tolist() == [[0.5], [-0.5]]


def test_a_hundred_million_rows_are_refused_from_their_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1e8 rows in a file with holes: refused without being read, with the estimate."""
    path = folder / "points.csv"
    path.write_bytes(HEADER + b"0.25,0.5,1\n" * 6000)
    os.truncate(path, 11 * 10**8)
    tracemalloc.start()
    line = refused(capsys, "evaluate", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "about 1e+08 rows in 1.02 GiB, at most 1000000 rows" in line
    assert peak < 20 * 2**20


def test_rows_beyond_the_limit_stop_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first lines made the estimate too small."""
    monkeypatch.setattr(data, "MOST_POINTS", 50)
    path = tmp_path / "points.csv"
    path.write_bytes(HEADER + b"0,1,0\n1,0,1\n" * 25)
    assert len(data.from_csv(path)) == 50
    path.write_bytes(HEADER + b"0,1,0\n1,0,1\n" * 26)
    with pytest.raises(InputError, match="51 rows of 3 numbers, at most 50 rows"):
        data.from_csv(path)


def test_rows_take_little_memory_while_they_are_read(tmp_path: Path) -> None:
    """24 bytes a row of three numbers, and the tensors made of them."""
    path = tmp_path / "points.csv"
    path.write_bytes(HEADER + b"0.25,0.5,1\n0.5,0.25,0\n" * 25_000)
    tracemalloc.start()
    assert len(data.from_csv(path)) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 50_000
