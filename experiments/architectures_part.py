"""What the parts of the experiment `architectures` share: their interface, fitted orders, claims of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kolmo.checkpoint import Memo
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress

Table = tuple[str, list[str], list[list[object]]]

#: the deepest networks that an order is fitted to, at most
FITTED = 4


class Part(Protocol):
    """A part of the experiment, as the whole one sees it."""

    #: its name in results.json
    name: str
    #: how often `run` advances the progress, from the beginning
    steps: int

    def run(self, memo: Memo, progress: Progress) -> None:
        """All that is not done yet."""

    @property
    def finished(self) -> bool:
        """Whether `run` came to its end."""

    def claims(self) -> list[Claim]:
        """What was shown, as far as it is done."""

    def results(self) -> Any:
        """Figures for results.json, as far as they are done."""

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table to print."""


def fitted_order(depths: Sequence[int], errors: Sequence[float]) -> float:
    """Least-squares slope of log error over log h of the deepest networks; nan below two of them."""
    if len(errors) < 2:
        return math.nan
    chosen = slice(-FITTED, None)
    return -float(np.polyfit(np.log(depths[: len(errors)][chosen]), np.log(errors[chosen]), 1)[0])


def order_claim(title: str, slope: float, order: float, within: float) -> Claim:
    """That a fitted order is what it should be."""
    return Claim(title, slope, f"{order:.1f} +- {within:g}", abs(slope - order) <= within)


def orders_claim(title: str, slopes: Sequence[float], order: float, within: float) -> Claim:
    """The same of several, by the one that is farthest off."""
    return order_claim(title, max(slopes, key=lambda slope: abs(slope - order)), order, within)


def order_row(title: Sequence[object], depths: Sequence[int], errors: Sequence[float]) -> list[object]:
    """A row of a table: title cells, the error at every depth, the fitted order."""
    cells = [f"{error:.1e}" for error in errors]
    return [*title, *cells, *[""] * (len(depths) - len(cells)), f"{fitted_order(depths, errors):.2f}"]
