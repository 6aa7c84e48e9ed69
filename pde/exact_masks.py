"""Bernoulli masks in the plane: which layers have them, and a spline's coefficients along one axis alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kolmo.pde.exact_jumps import Jumps
from kolmo.pde.exact_layers import Stage
from kolmo.pde.spline import TensorSpline

#: what is zero, relative to the other number
_ROUNDING = 4 * np.finfo(float).eps
#: no coefficients along one axis
NONE = np.empty((0, 0, 2))


@dataclass(frozen=True)
class Masks:
    """Along each axis 0 or shift f_a is added; weights (4,) of neither, the last, the first alone, both."""

    shift: float
    weights: tuple[float, ...]

    @property
    def alone(self) -> bool:
        """Whether one axis is ever kept without the other."""
        return self.weights[1] + self.weights[2] > 0

    def given(self, stage: Stage) -> tuple[object, ...]:
        """As `recursion_masks` takes them, with what it needs along one axis."""
        if not self.alone:
            return self.shift, self.weights, NONE, NONE
        assert isinstance(stage, MaskedStage)
        return self.shift, self.weights, stage.first, stage.last


def masks(jumps: Jumps) -> Masks | None:
    """A layer's increments as masks; None in other dimensions, or where neither of two numbers is zero."""
    values = jumps.shifts.tolist()
    if len(values) != 2 or jumps.combinations.places.shape[1] != 2:
        return None
    subsets = jumps.combinations.subsets
    # the mean and a fluctuation cancel but for rounding
    for dropped, kept, weights in ((*values, subsets), (*values[::-1], subsets[::-1])):
        if abs(dropped) <= _ROUNDING * abs(kept):
            return Masks(kept, weights)
    return None


@dataclass
class MaskedStage(Stage):
    """With coefficients along one axis for each node of the other (n + 1, n + 3, 2): the first, the last."""

    first: np.ndarray
    last: np.ndarray


def masked_stage(spline: TensorSpline, nodal: np.ndarray) -> MaskedStage:
    """What layers with masks need of u with these nodal values (nodes, 2)."""
    first = spline.along(nodal)
    last = spline.along(_turned(nodal, spline.cells + 1))
    return MaskedStage(spline.along(first).reshape(-1, 2), nodal, first, last)


def masked_stage_transposed(
    spline: TensorSpline, d_coefficients: np.ndarray, d_first: np.ndarray, d_last: np.ndarray
) -> np.ndarray:
    """Derivatives by nodal values (nodes, 2) from those by a stage's coefficients."""
    n = spline.cells
    behind = spline.along_transposed(d_coefficients)
    behind += _turned(d_last, n + 1)
    result = spline.along_transposed(behind)
    result += _turned(spline.along_transposed(_turned(d_first, n + 1)), n + 1)
    return result.reshape(-1, 2)


def _turned(values: np.ndarray, rows: int) -> np.ndarray:
    """Its axes exchanged: (rows * M, 2) to (M, rows, 2)."""
    # both classes of a node move as one number
    pairs = values.reshape(rows, -1).view(np.complex128)
    return np.ascontiguousarray(pairs.T).view(np.float64).reshape(pairs.shape[1], rows, 2)
