"""What the command line shows where: terminals with and without colour, log files, shells, scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kolmo import cli, config, console
from kolmo.console import LiveProgress
from kolmo.parser import build

#: a table and a stage, as every command prints them, under several environments in turn
SHOW = """
import json, os, sys
from kolmo.console import LiveProgress, console, print_table
for environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    console.cache_clear()
    with LiveProgress(False) as progress:
        progress.start("stage", 2)
        progress.advance("J = 0.25")
    print_table("title", ["row", "value"], [["a", 0.25]])
    print("NEXT", flush=True)
"""
#: "set graphics" sequences
GRAPHICS = re.compile(r"\x1b\[([0-9;]*)m")


def shown(*environments: dict[str, str]) -> list[str]:
    """What SHOW prints on a terminal with these variables set, one after the other."""
    ours, theirs = pty.openpty()
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")}
    command = [sys.executable, "-c", SHOW, json.dumps(environments)]
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=plain)
    os.close(theirs)
    told = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        told += piece
    os.close(ours)
    assert child.wait() == 0, told
    return told.decode().split("NEXT")[: len(environments)]


def colours(text: str) -> set[str]:
    """The codes that set a colour."""
    codes = {code for found in GRAPHICS.findall(text) for code in found.split(";") if code}
    return {code for code in codes if re.fullmatch(r"3[0-8]|4[0-8]|9[0-7]|10[0-7]", code)}


def test_terminals_get_what_they_can_show() -> None:
    """A bar in colours; NO_COLOR (no-color.org): without; TERM=dumb: no escapes, lines as in a log."""
    usual, plain, dumb = shown({"TERM": "xterm-256color"}, {"NO_COLOR": "1"}, {"TERM": "dumb"})
    assert colours(usual)
    assert not colours(plain) and "\x1b" in plain
    assert "\x1b" not in dumb
    assert "stage: J = 0.25" in dumb and "title" in dumb


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines: of a long stage at most one in LOG_INTERVAL seconds, and its end."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    console.console.cache_clear()
    try:
        with LiveProgress(quiet=False) as progress:
            progress.start("long", 100)
            for step in range(100):
                clock[0] += 0.25  # exact in binary
                progress.advance(f"J = {step}")
            progress.start("short", 1)
            progress.advance("done")
    finally:
        console.console.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "long: 20/100 J = 19", "long: 40/100 J = 39", "long: 60/100 J = 59", "long: 80/100 J = 79",
        "long: 100/100 J = 99", "long: J = 99", "short: done",
    ]  # fmt: skip


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveProgress(quiet=True) as progress:
        progress.start("stage", 1)
        progress.advance("note")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["kolmo", "ev"], {"evaluate"}),
        (["kolmo", "experiment", "weak"], {"weak_order"}),
        (["kolmo", "evaluate", "--backend", ""], {"auto", "box", "dolfinx", "skfem"}),
        (["kolmo", "export", "--format", "o"], {"onnx"}),
        (["kolmo", "compare", "--jso"], {"--json"}),
    ],
    ids=["command", "experiment", "backend", "format", "option"],
)
def test_bash_completes(
    typed: list[str], offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script, sourced by bash, offers what may come next."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    words = " ".join(f"'{word}'" for word in typed)
    ask = f"""
        source {tmp_path}/completion.bash
        COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}
        $(complete -p kolmo | sed 's/.*-F \\([^ ]*\\).*/\\1/') kolmo '{typed[-1]}' '{typed[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    answer = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(answer.stdout.split()) == offered, answer.stderr


def test_completion_of_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "zhs"]) == 2
    assert "did you mean 'zsh'?" in capsys.readouterr().err


def test_every_command_that_prints_a_table_has_json() -> None:
    """But for explore, which serves a page, and completion, which prints a script."""
    parser = build()
    commands = next(a.choices for a in parser._actions if isinstance(a.choices, dict))
    without = {n for n, c in commands.items() if "--json" not in c._option_string_actions}
    assert without == {"explore", "completion"}


def test_defaults_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--defaults", "overfitting", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "overfitting"
    assert told["config"]["noise"] == config.load("overfitting").noise
