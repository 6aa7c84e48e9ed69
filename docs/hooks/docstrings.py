"""Docstrings as Markdown: they are written to be read in a terminal.

Indented formulas are code blocks already. Examples get a fence, and what Markdown or HTML would take for
marks outside of code is escaped: <u, rho>, a * b, [0, T).
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_MARKS = re.compile(r"([*_\[\]])")


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self.on_object(obj=pkg)  # the package itself is no object of its own


def markdown(text: str) -> str:
    """A docstring as Markdown."""
    lines: list[str] = []
    example = block = False
    before = ""
    for line in text.splitlines():
        starts = line.lstrip().startswith(">>>")
        if starts and not example:
            lines += ["", "```pycon"]
            example = True
        elif example and not line.strip():
            lines.append("```")
            example = False
        block = (line.startswith("    ") and (block or not before.strip())) or (block and not line.strip())
        lines.append(line if example or block else _escaped(line))
        before = line
    return "\n".join([*lines, "```"] if example else lines)


def _escaped(line: str) -> str:
    """A line of prose; code between backticks stays."""
    parts = line.split("`")
    return "`".join(
        part if k % 2 else _MARKS.sub(r"\\\1", part).replace("<", "&lt;") for k, part in enumerate(parts)
    )
