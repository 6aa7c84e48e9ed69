"""Triangulations of the box [-R, R]^d as plain arrays, shared by every backend."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from kolmo import memory
from kolmo.errors import InputError

#: cells per direction when the user does not say
DEFAULT_CELLS = {1: 256, 2: 96, 3: 32}


def check_dim(dim: int) -> None:
    """Raise InputError unless the equation is solved in this dimension."""
    if dim not in (1, 2, 3):
        raise InputError(
            f"dim: the Kolmogorov equation is solved in 1, 2 or 3 dimensions, not {dim}; "
            "the chain estimator takes any dimension"
        )


@dataclass(frozen=True)
class Mesh:
    """Simplices of a box: vertices (N, d) and cells (E, d + 1) of vertex numbers.

    `half_width` R is that of the bounding box, which has to be centred at the origin;
    `spacing` is the length of the shortest edge along an axis, or of the shortest edge.
    """

    points: np.ndarray
    cells: np.ndarray

    def __post_init__(self) -> None:
        points = np.ascontiguousarray(self.points, dtype=np.float64)
        cells = np.ascontiguousarray(self.cells, dtype=np.int64)
        if points.ndim != 2 or points.shape[1] not in (1, 2, 3):
            raise InputError(f"mesh: points have shape {points.shape}, expected (N, d) with d = 1, 2 or 3")
        dim = points.shape[1]
        if cells.ndim != 2 or cells.shape[1] != dim + 1:
            raise InputError(f"mesh: cells have shape {cells.shape}, expected (E, {dim + 1}) simplices")
        if cells.min() < 0 or cells.max() >= len(points):
            raise InputError(f"mesh: a cell names vertex {cells.max()}, there are {len(points)}")
        upper, lower = points.max(axis=0), points.min(axis=0)
        if not np.allclose(np.concatenate([upper, -lower]), upper[0], rtol=1e-10):
            raise InputError("mesh: the bounding box is not [-R, R]^d")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "cells", cells)

    @property
    def dim(self) -> int:
        return int(self.points.shape[1])

    @property
    def half_width(self) -> float:
        return float(self.points[:, 0].max())


def box_mesh(dim: int, cells: int, half_width: float) -> Mesh:
    """The Kuhn triangulation of [-R, R]^d: `cells` intervals a direction, d! simplices a cube.

    Translation invariant, so that consistent mass gives fourth-order dispersion on smooth
    transport. Raises InputError on d other than 1, 2, 3, cells < 2, R <= 0, or a mesh larger
    than memory.
    """
    check_dim(dim)
    if int(cells) != cells or cells < 2:
        raise InputError(f"cells: {cells!r} is not an integer >= 2")
    if not (np.isfinite(half_width) and half_width > 0):
        raise InputError(f"half_width: {half_width!r} is not a positive number")
    n = int(cells)
    memory.require(
        memory.mesh(dim, n), f"cells: a mesh of {n} cells a direction in {dim}-D", "take fewer cells"
    )
    axis = np.linspace(-half_width, half_width, n + 1)
    points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    stride = (n + 1) ** np.arange(dim - 1, -1, -1)
    corner = np.stack(np.meshgrid(*[np.arange(n)] * dim, indexing="ij"), axis=-1).reshape(-1, dim) @ stride
    simplices = []
    for order in permutations(range(dim)):
        path = np.concatenate([[0], np.cumsum(stride[list(order)])])
        simplices.append(corner[:, None] + path)
    return Mesh(points, np.stack(simplices, axis=1).reshape(-1, dim + 1))
