"""The README's code block is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The block runs as printed (with fewer paths), is at most ten lines, and leaves gradients."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    statements = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(statements) <= 10
    names: dict[str, object] = {}
    exec(blocks[0].replace("1_000_000", "20_000"), names)
    problem = names["problem"]
    assert all(float(p.grad.norm()) > 0 for p in problem.network.parameters())  # type: ignore[attr-defined]
    assert "standard_error" in capsys.readouterr().out
