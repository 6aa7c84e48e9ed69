"""What the tests of hostile input share: the one line of a refusal, and a small case directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kolmo import Problem, ResidualNetwork, case, cli, data, noise


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused command prints, within five seconds."""
    start = time.perf_counter()
    assert cli.main([str(a) for a in arguments]) == 2
    assert time.perf_counter() - start < 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err


def small_case(path: Path) -> Path:
    """A case directory: 8 points, 3 layers of 4 units, dropout."""
    given = Problem(data.moons(8, seed=2), ResidualNetwork(2, 4, 3, seed=1), noise.BernoulliDropout(0.8))
    case.save(given, path)
    return path
