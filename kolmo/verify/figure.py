"""What a check yields: figures, each against the range that it is expected in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Figure:
    """One measured number and the closed range [low, high] in which it has to lie.

    what: is measured, in words. measured: nan where it could not be (`what` then says why).
    """

    what: str
    measured: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low <= self.measured <= self.high  # false for nan

    @property
    def expected(self) -> str:
        """The range as a table shows it."""
        if self.low == 0:
            return f"<= {self.high:.2g}"
        if math.isinf(self.high):
            return f">= {self.low:.3g}"
        return f"{self.low:.4g} to {self.high:.4g}"

    def as_dict(self, check: str) -> dict[str, Any]:
        """The figure for JSON; null for a number that is none."""
        finite = math.isfinite(self.measured)
        return {
            "check": f"{check}: {self.what}",
            "measured": self.measured if finite else None,
            "expected": self.expected,
            "holds": self.holds,
        }


#: a check: the name of a finite-element backend in, figures out, one after the other
Check = Callable[[str], Iterator[Figure]]


def below(what: str, measured: float, bound: float) -> Figure:
    """|measured| at most `bound`."""
    return Figure(what, abs(float(measured)), 0.0, bound)


def around(what: str, measured: float, expected: float, tolerance: float) -> Figure:
    """measured within `tolerance` of what is expected."""
    return Figure(what, float(measured), expected - tolerance, expected + tolerance)


def order(sizes: ArrayLike, errors: ArrayLike) -> float:
    """The slope of log |error| over log size, by least squares."""
    floor = np.finfo(float).tiny  # an error of exactly 0 is no order
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(np.abs(errors), floor)), 1)[0])
