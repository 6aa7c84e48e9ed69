"""Words for messages: the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' where something close is known, otherwise the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of: {', '.join(names)}"


def shown(value: object, most: int = 60) -> str:
    """repr(value), shortened: what a file holds may be longer than a message ought to be."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 10]}...{text[-7:]}"


def one_line(message: object, most: int = 600) -> str:
    """A message as a terminal can show it: one line, no control characters, no endless names."""
    line = " ".join(str(message).split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= most else f"{line[: most - 200]} ... {line[-200:]}"
