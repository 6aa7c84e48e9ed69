"""P1 spaces from scikit-fem: the embedded backend, always there."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from skfem import Basis, ElementLineP1, ElementTetP1, ElementTriP1, MeshLine, MeshTet, MeshTri
from skfem.assembly import BilinearForm

from kolmo.errors import InputError
from kolmo.pde.mapped import MappedSpace
from kolmo.pde.mesh import Mesh

_FAMILY = {
    1: (MeshLine, ElementLineP1),
    2: (MeshTri, ElementTriP1),
    3: (MeshTet, ElementTetP1),
}


def basis(mesh: Mesh) -> Basis:
    """scikit-fem's P1 basis on the mesh, quadrature exact for products of three P1 functions."""
    mesh_class, element = _FAMILY[mesh.dim]
    arrays = np.ascontiguousarray(mesh.points.T), np.ascontiguousarray(mesh.cells.T)
    return Basis(mesh_class(*arrays, sort_t=False), element(), intorder=3)


class SkfemSpace(MappedSpace):
    """P1 on a mesh with scikit-fem (one process)."""

    backend = "skfem"

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh, mesh.points, mesh.cells)
        self._basis = basis(mesh)

    def interpolation(self, points: np.ndarray) -> sp.csr_matrix:
        return interpolation(self._basis, self.half_width, points)

    def assemble(self, drift: np.ndarray, diffusion: np.ndarray) -> sp.csr_matrix:
        basis, dim = self._basis, self.dim

        def generator(u: Any, v: Any, w: Any) -> np.ndarray:
            value = sum(w[f"b{i}"] * u.grad[i] * v for i in range(dim))
            for i in range(dim):
                for j in range(dim):
                    a = w[f"a{i}{j}"]
                    value = value - 0.5 * (a * u.grad[j] * v.grad[i] + a.grad[i] * u.grad[j] * v)
            return value

        fields = {f"b{i}": basis.interpolate(drift[:, i]) for i in range(dim)}
        for i in range(dim):
            for j in range(dim):
                fields[f"a{i}{j}"] = basis.interpolate(diffusion[:, i, j])
        return BilinearForm(generator).assemble(basis, **fields)


def interpolation(basis: Basis, half_width: float, points: np.ndarray) -> sp.csr_matrix:
    """Basis values at points (P, d), shape (P, vertices); raises InputError outside the box."""
    outside = (np.abs(points) > half_width).any(axis=1)
    if outside.any():
        where = ", ".join(f"{v:.3g}" for v in points[np.argmax(outside)])
        raise InputError(f"point ({where}) is outside the box of half width {half_width:.3g}")
    return basis.probes(np.ascontiguousarray(points.T)).tocsr()
