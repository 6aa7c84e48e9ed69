"""The code blocks of README are what they say; those of the docs: `test_docs`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(path: Path) -> list[str]:
    """The python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The block runs as printed (with fewer paths), is at most ten lines, and leaves gradients."""
    found = blocks(ROOT / "README.md")
    assert len(found) == 1
    statements = [line for line in found[0].splitlines() if line.strip()]
    assert len(statements) <= 10
    names: dict[str, object] = {}
    exec(found[0].replace("1_000_000", "20_000"), names)
    problem = names["problem"]
    assert all(float(p.grad.norm()) > 0 for p in problem.network.parameters())  # type: ignore[attr-defined]
    assert "standard_error" in capsys.readouterr().out


PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_a_noise_of_ones_own_takes_twenty_lines() -> None:
    """The docs' example: class and use in at most twenty lines of code."""
    block = next(b for p in PAGES for b in blocks(p) if "class SignFlips" in b)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
