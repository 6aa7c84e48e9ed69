r"""Derivatives of a finite-element function beyond its own order: quintic splines through its nodal values.

On the uniform grid of a box the spline's derivatives at the nodes are of sixth (first) and fourth (second)
order, while P1's own action of the generator is of second: their difference is what the mesh leaves out.
Source: Zienkiewicz, Zhu, Int. J. Numer. Meth. Engng 33 (1992), for the idea; de Boor for the splines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline

from kolmo.errors import InputError
from kolmo.pde.space import Space

_DEGREE = 5


class Recovery:
    """Splines through nodal values (Q, C) of a space whose nodes are a uniform tensor grid of its box.

    Raises InputError on any other mesh, one with fewer than 6 cells a direction, and under MPI.
    """

    def __init__(self, space: Space) -> None:
        if space.processes > 1:
            raise InputError("error budget: run it in one process, it needs all nodes at once")
        points, dim, half_width = space.coefficient_points, space.dim, space.half_width
        cells = round(len(points) ** (1 / dim)) - 1
        spacing = 2 * half_width / max(cells, 1)
        index = np.rint((points + half_width) / spacing).astype(int)
        uniform = (cells + 1) ** dim == len(points)
        if not uniform or np.abs(points - (index * spacing - half_width)).max() > 1e-9 * half_width:
            raise InputError("error budget: it needs a uniform tensor grid of the box, not this mesh")
        if cells <= _DEGREE:
            raise InputError(f"error budget: it needs more than {_DEGREE} cells a direction, not {cells}")
        self.dim, self.cells, self.half_width = dim, cells, half_width
        #: number of each node on the grid, in the order of `numpy.meshgrid(indexing="ij")`
        self.index = np.ravel_multi_index(tuple(index.T), (cells + 1,) * dim)
        self._spline, self._first, self._second = _splines(cells, half_width)

    def grid(self, nodal: np.ndarray) -> np.ndarray:
        """Nodal values (Q, C) as an array (n + 1, ..., n + 1, C)."""
        ordered = np.empty_like(nodal)
        ordered[self.index] = nodal
        return ordered.reshape(*(self.cells + 1,) * self.dim, nodal.shape[1])

    def generator(self, nodal: np.ndarray, drift: np.ndarray, diffusion: np.ndarray) -> np.ndarray:
        """b . grad u + 1/2 a : hess u at the nodes, (Q, C); drift (Q, d), diffusion (Q, d) or (Q, d, d)."""
        u = self.grid(nodal)
        slopes = [self._along(self._first, u, axis) for axis in range(self.dim)]
        total = np.zeros_like(nodal)
        for i in range(self.dim):
            total += drift[:, i, None] * self._nodal(slopes[i])
            variance = diffusion[:, i] if diffusion.ndim == 2 else diffusion[:, i, i]
            if variance.any():
                total += 0.5 * variance[:, None] * self._nodal(self._along(self._second, u, i))
            for j in range(i if diffusion.ndim == 3 else 0):
                total += diffusion[:, i, j, None] * self._nodal(self._along(self._first, slopes[i], j))
        return total

    def at(self, nodal: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The spline at points (P, d) inside the box: shape (P, C)."""
        value = self.grid(nodal)
        for axis in range(self.dim):
            basis = self._spline(points[:, axis])  # (P, n + 1)
            value = (
                np.tensordot(basis, value, axes=(1, 0))
                if axis == 0
                else np.einsum("pi,pi...->p...", basis, value)
            )
        return np.asarray(value)

    def slopes(self, nodal: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The spline's gradient at points (P, d) inside the box: shape (P, C, d)."""
        derivative, found = self._spline.derivative(1), []
        for direction in range(self.dim):
            value = self.grid(nodal)
            for axis in range(self.dim):
                basis = (derivative if axis == direction else self._spline)(points[:, axis])
                value = (
                    np.tensordot(basis, value, axes=(1, 0))
                    if axis == 0
                    else np.einsum("pi,pi...->p...", basis, value)
                )
            found.append(value)
        return np.stack(found, axis=-1)

    def _nodal(self, grid: np.ndarray) -> np.ndarray:
        return np.asarray(grid.reshape(-1, grid.shape[-1])[self.index])

    def _along(self, matrix: np.ndarray, grid: np.ndarray, axis: int) -> np.ndarray:
        return np.moveaxis(np.tensordot(matrix, grid, axes=(1, axis)), 0, axis)


@lru_cache(maxsize=4)
def _splines(cells: int, half_width: float) -> tuple[BSpline, np.ndarray, np.ndarray]:
    """The spline of each node's unit value, and its first and second derivatives at the nodes."""
    axis = np.linspace(-half_width, half_width, cells + 1)
    spline = make_interp_spline(axis, np.eye(cells + 1), k=_DEGREE)
    return spline, spline.derivative(1)(axis), spline.derivative(2)(axis)
