"""The harness of `test_fuzz.py`: examples under a clock, in a folder that is watched; and damage to bytes."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kolmo import cli

#: seconds that an example may take, and after which a call that no signal interrupts ends the process
LIMIT, KILL = 5.0, 60.0


class Hangs(BaseException):
    """Raised by the clock; no handler of Kolmo's takes it."""


def ring(*_: object) -> None:
    raise Hangs(f"more than {LIMIT:g} s")


def _listing(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every entry below a folder with its type, time and content."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            known = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (known.st_mode, known.st_mtime_ns, content)
    return found


def attempt(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command on input in `folder`; returns the exit code and its one line ("" after success)."""
    before = _listing(folder)
    out, error = io.StringIO(), io.StringIO()
    faulthandler.dump_traceback_later(KILL, exit=True)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.main(arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    said = error.getvalue()
    # verdicts are a table, refusals of single estimators among them
    compared = arguments[:1] == ("compare",) and out.getvalue() != ""
    assert code in ((0, 1, 2) if compared else (0, 2)), (code, said)
    assert _listing(folder) == before, "files were written or changed"
    if code == 0 or compared:
        return code, ""
    if "--json" in arguments and out.getvalue():
        assert said == ""
        return code, json.loads(out.getvalue())["error"]
    assert out.getvalue() == ""
    assert len(said.splitlines()) == 1 and said.endswith("\n"), said
    assert said.startswith("kolmo: ") and len(said) < 1000, said
    assert "Traceback" not in said and "internal error" not in said
    return code, said


def fuzz(examples: int, body: Callable[[Any, Path], None]) -> None:
    """Run body(draw, an empty folder) for as many examples."""

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(drawn: st.DataObject) -> None:
        with tempfile.TemporaryDirectory(prefix="kolmo-fuzz-") as folder:
            body(drawn.draw, Path(folder))

    run()


def sizes(quick: int, slow: int) -> pytest.MarkDecorator:
    """A few examples in the quick suite, thousands in the slow one."""
    both = [pytest.param(quick, id="quick"), pytest.param(slow, id="all", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("examples", both)


# ------------------------------------------------------------------ damage to bytes

TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b'"', b"'", b",", b";", b"=", b"[", b"]",
    b"{", b"nan", b"inf", b"-", b"1e999", b"9" * 400, b"[" * 3000, b"{a=" * 2000, b"a." * 3000,
    b"\x1b[31m", "\N{ARABIC-INDIC DIGIT THREE}".encode(), b"\xed\xa0\x80", b"1_0", b"PK\x03\x04",
    b"PK\x05\x06", b"\x93NUMPY", b"\xff" * 8, b"\x80\x04cos\nsystem\n", b"0" * 200_000,
]  # fmt: skip


def damage(draw: Any, content: bytes, most: int = 3) -> bytes:
    """Some bytes replaced, put in, cut out or cut off."""
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, 2**16)) * len(content) // 2**16  # pickles differ in length from run to run
        until = min(len(content), at + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8)))
        kind = draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
        if kind == "cut":
            content = content[:at]
        else:
            piece = b"" if kind == "delete" else piece
            content = content[:at] + piece + content[at if kind == "insert" else until :]
    return content
