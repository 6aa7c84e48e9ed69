"""Fields of settings: each knows which values it takes, and how to say so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

Check = Callable[[Any], bool]


def setting(default: Any, check: Check, expected: str) -> Any:
    """A field that takes what passes the check; expected: in words."""
    return field(default=default, metadata={"check": check, "expected": expected})


def count(default: int, least: int = 1, most: int = 10**9) -> Any:
    """An integer from least to most."""
    return setting(default, lambda v: least <= v <= most, f"an integer from {least} to {most}")


def number(default: float, least: float = 0.0) -> Any:
    """A finite number from least on."""
    return setting(default, lambda v: least <= v < math.inf, f"a finite number >= {least:g}")


def positive(default: float) -> Any:
    """A finite number above 0."""
    return setting(default, lambda v: 0 < v < math.inf, "a positive number")
