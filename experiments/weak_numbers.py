r"""The two numbers that `weak_order` compares, each with its own numerical error.

J of the chain by its exact recursion, refined until a finer grid hardly changes it; J of a modified
equation by the backward Kolmogorov equation on meshes extrapolated to spacing zero. Boxes are judged by
wider ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kolmo.pde import BackwardKolmogorov
from kolmo.pde.exact import ExactRecursion
from kolmo.pde.propagator import Explicit
from kolmo.problem import Problem


@dataclass(frozen=True)
class Numerics:
    """How the numbers of one dimension are made.

    half_width: R of the box. meshes, grids: cells per direction, taken in turn until the error meets `aim`
    (units of the loss). All data lie on nodes of every mesh, as interpolation errors do not extrapolate.
    """

    half_width: float
    meshes: tuple[int, ...]
    grids: tuple[int, ...]
    aim: float
    depths: tuple[int, ...]


FULL = {
    1: Numerics(6.0, (48, 96, 192, 384, 768, 1536), (192, 384, 768, 1536, 3072), 2e-7, (5, 10, 20, 40, 80)),
    2: Numerics(2.5, (40, 60, 80, 120, 160), (60, 80, 120, 160), 5e-7, (5, 10, 20, 40)),
}
SMALL = {1: Numerics(6.0, (48, 96, 192, 384, 768, 1536), (192, 384, 768), 1e-6, (5, 10, 20, 40))}
#: the box is judged by one wider by this factor, spacing kept, on the first mesh and grid
_WIDER = 1.25
#: points of a Gauss rule, and of the one that its error is judged by
_GAUSS = (9, 7)


@dataclass(frozen=True)
class Value:
    """J by one method; what its grid, its box and its Gauss rule may be off by, in units of the loss."""

    value: float
    cells: int
    grid_error: float
    box_error: float
    quadrature_error: float = 0.0

    @property
    def error(self) -> float:
        return self.grid_error + self.box_error + self.quadrature_error


def exact_value(problem: Problem, numerics: Numerics) -> Value:
    """J of the chain on the first grid that hardly differs from the one before."""

    def value(cells: int, half_width: float = numerics.half_width, gauss: int = _GAUSS[0]) -> float:
        recursion = ExactRecursion(problem, cells=cells, half_width=half_width, gauss=gauss, limit=False)
        return float(recursion.expected_loss())

    first = numerics.grids[0]
    result, change, cells = _refined(value, numerics.grids, 1, numerics.aim)
    coarse = value(first)
    box = abs(value(round(_WIDER * first), _WIDER * numerics.half_width) - coarse)
    return Value(result, cells, change, box, abs(value(first, gauss=_GAUSS[1]) - coarse))


def modified_value(problem: Problem, numerics: Numerics, order: int, backend: str) -> Value:
    """J of the modified equation, three meshes in a row extrapolated, as soon as that hardly changes."""
    many = Explicit(cap=10**6)  # a stable step is always taken: these equations are small

    def value(cells: int, half_width: float = numerics.half_width) -> float:
        keys: dict[str, Any] = {"order": order, "backend": backend, "propagator": many, "limit": False}
        return float(BackwardKolmogorov(problem, cells=cells, half_width=half_width, **keys).expected_loss())

    first = numerics.meshes[0]
    result, change, cells = _refined(value, numerics.meshes, 3, numerics.aim)
    box = abs(value(round(_WIDER * first), _WIDER * numerics.half_width) - value(first))
    return Value(result, cells, change, box)


def _refined(
    value: Callable[[int], float], cells: Sequence[int], terms: int, aim: float
) -> tuple[float, float, int]:
    """Extrapolated value, its last change, the cells reached: finer and finer until the change meets `aim`.

    The change is taken for the error as it is: no order of convergence is trusted.
    """
    values: list[float] = []
    latest, change, count = math.nan, math.inf, 0
    while change > aim and count < len(cells):
        values.append(value(cells[count]))
        count += 1
        if count >= terms:
            before, latest = latest, extrapolated(cells[count - terms : count], values[-terms:])
            change = abs(latest - before) if count > terms else math.inf
    return latest, change, cells[count - 1]


def extrapolated(cells: Sequence[int], values: Sequence[float]) -> float:
    """The polynomial in cells^-2 through the values, at 0: errors in n^-2, n^-4, ... are removed."""
    squares = np.array(cells, dtype=float) ** -2.0
    weights = [np.prod([o / (o - s) for o in np.delete(squares, i)]) for i, s in enumerate(squares)]
    return float(np.dot(weights, values))
