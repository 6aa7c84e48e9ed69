r"""Spaces on one process: K.data = T (b, a) with a fixed sparse map T.

K is linear in the nodal drift and diffusion, so all of assembly is one sparse product per
layer, and the derivative of anything by (b, a) is T^T of its derivative by K's entries.
On a simplex e in R^d with P1 basis phi_k, gradients g_k and volume |e|, the integrals are

    int phi_k phi_r (g_s)_i             = |e| (1 + delta_kr) / ((d+1)(d+2)) (g_s)_i
    -1/2 int phi_k (g_r)_i (g_s)_j      = -|e| / (2 (d+1)) (g_r)_i (g_s)_j
    -1/2 int (g_k)_i (g_s)_j phi_r      = -|e| / (2 (d+1)) (g_k)_i (g_s)_j

The tests assemble the same matrices by each backend's own forms and quadrature.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from kolmo.errors import InputError, NonFiniteError
from kolmo.pde import csr
from kolmo.pde.mesh import Mesh
from kolmo.pde.propagator import ExplicitSteps
from kolmo.pde.space import Generator, ShiftedSolver, Space, check_coefficients, components


class MappedSpace(Space):
    """A space whose generators are T applied to nodal coefficients, as CSR matrices.

    points (Q, d) and nodes (E, d + 1): the P1 nodes and the cells' nodes in the backend's
    own numbering.
    """

    def __init__(self, mesh: Mesh, points: np.ndarray, nodes: np.ndarray) -> None:
        self.mesh = mesh
        self._points = points
        self._nodes = nodes.astype(np.int64)
        count, n = len(points), nodes.shape[1]
        pairs = (self._nodes[:, :, None] * count + self._nodes[:, None, :]).ravel()
        pattern, slots = np.unique(pairs, return_inverse=True)
        self._slots = slots.reshape(len(nodes), n, n)
        self.rows = (pattern // count).astype(np.int32)
        self.columns = (pattern % count).astype(np.int32)
        self._starts = np.searchsorted(self.rows, np.arange(count + 1)).astype(np.int32)
        vertices = np.concatenate([np.ones((len(nodes), 1, n)), points[nodes].transpose(0, 2, 1)], axis=1)
        self._volume = np.abs(np.linalg.det(vertices)) / math.factorial(self.dim)
        if not self._volume.min() > 0:
            raise InputError(f"mesh: cell {int(self._volume.argmin())} has no volume")
        self._gradients = np.linalg.inv(vertices)[:, :, 1:]
        self._moment = (1 + np.eye(n)) / ((self.dim + 1) * (self.dim + 2))  # int phi_k phi_r / |e|
        mass = self._volume[:, None, None] * self._moment
        self.mass_matrix = self.matrix(np.bincount(self._slots.ravel(), mass.ravel()))
        self._lumped = np.asarray(self.mass_matrix.sum(axis=1)).ravel()
        identity = (self.rows == self.columns).astype(float)
        self._defect = self.matrix(identity - self.mass_matrix.data / self._lumped[self.rows])
        # the pattern is symmetric: where entry (s, r) stands, for each entry (r, s)
        self.mirror = np.lexsort((self.rows, self.columns))
        self._maps: dict[bool, sp.bsr_matrix] = {}
        self._transposed: dict[bool, sp.bsr_matrix] = {}

    @property
    def sparse(self) -> tuple[np.ndarray, ...]:
        """What compiled substeps take of the pattern and the mass."""
        return self._starts, self.columns, self._defect.data, 1 / self._lumped

    def _map(self, diagonal: bool) -> sp.bsr_matrix:
        """T: one row per entry of K, one block of coefficients (drift, diffusion) per node."""
        if diagonal not in self._maps:
            g, volume, n = self._gradients, self._volume, self.dim + 1
            keys = (
                self._slots[:, :, :, None] * np.int64(len(self._points)) + self._nodes[:, None, None, :]
            ).ravel()
            unique, where = np.unique(keys, return_inverse=True)
            where = where.ravel()

            def merged(local: np.ndarray) -> np.ndarray:  # local: (E, r, s, k)
                return np.bincount(where, np.broadcast_to(local, (len(volume), n, n, n)).ravel())

            columns = [
                merged(volume[:, None, None, None] * self._moment[:, None, :] * g[:, None, :, None, i])
                for i in range(self.dim)
            ]
            weight = -volume[:, None, None, None] / (2 * (self.dim + 1))
            for i, j in components(self.dim, diagonal):
                local = np.zeros(())
                for p, q in {(i, j), (j, i)}:
                    test = g[:, :, None, None, p] + g[:, None, None, :, p]
                    local = local + weight * test * g[:, None, :, None, q]
                columns.append(merged(local))
            starts = np.searchsorted(unique, np.arange(len(self.rows) + 1) * np.int64(len(self._points)))
            shape = (len(self.rows), len(columns) * len(self._points))
            blocks = np.stack(columns, axis=1)[:, None, :]
            nodes = (unique % len(self._points)).astype(np.int32)
            self._maps[diagonal] = sp.bsr_matrix((blocks, nodes, starts.astype(np.int32)), shape=shape)
            self._transposed[diagonal] = self._maps[diagonal].T.tobsr()
        return self._maps[diagonal]

    def matrix(self, data: np.ndarray) -> sp.csr_matrix:
        """The CSR matrix with this space's pattern and the given entries."""
        shape = (len(self._points), len(self._points))
        return sp.csr_matrix((data, self.columns, self._starts), shape=shape)

    @property
    def coefficient_points(self) -> np.ndarray:
        return self._points

    @property
    def lumped_mass(self) -> np.ndarray:
        return self._lumped

    def mass(self, u: np.ndarray) -> np.ndarray:
        return self.mass_matrix @ u

    def mass_defect(self, u: np.ndarray) -> np.ndarray:
        return self._defect @ u

    def roughness(self, u: np.ndarray) -> float:
        return float(csr.roughness(self._lumped, u, self._defect @ u))

    def generator(self, drift: np.ndarray, diffusion: np.ndarray) -> MappedGenerator:
        check_coefficients(drift, diffusion, self._points)
        diagonal = diffusion.ndim == 2
        pairs = components(self.dim, diagonal)
        packed = diffusion if diagonal else np.stack([diffusion[:, i, j] for i, j in pairs], axis=1)
        T, data, coefficients = self._map(diagonal), np.empty(len(self.rows)), np.hstack([drift, packed])
        blocks, parts = T.data.reshape(len(T.indices), -1), (0,) * coefficients.shape[1]
        csr.entries(T.indptr, T.indices, blocks, np.ascontiguousarray(coefficients), parts, data)
        return MappedGenerator(self, data)

    def pullback(self, cotangent: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        self._map(diagonal)
        T = self._transposed[diagonal]
        blocks, nodal = T.data.reshape(len(T.indices), -1), np.empty((len(self._points), T.blocksize[0]))
        csr.pulled(T.indptr, T.indices, blocks, cotangent, (0,) * nodal.shape[1], nodal)
        return unpack(nodal, self.dim, diagonal)


def unpack(nodal: np.ndarray, dim: int, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Columns (drift, then diffusion components) of (Q, .) as (Q, d) and (Q, d) or (Q, d, d)."""
    drift, packed = nodal[:, :dim], nodal[:, dim:]
    if diagonal:
        return drift, packed
    diffusion = np.empty((len(nodal), dim, dim))
    for (i, j), column in zip(components(dim, False), packed.T, strict=True):
        # one number stands for a_ij and a_ji: each gets half of its derivative
        diffusion[:, i, j] = diffusion[:, j, i] = column if i == j else 0.5 * column
    return drift, diffusion


class MappedGenerator(Generator):
    """K as a CSR matrix on the space's pattern."""

    def __init__(self, space: MappedSpace, data: np.ndarray) -> None:
        self._space = space
        self.matrix = space.matrix(data)
        self._transposed: sp.csr_matrix | None = None

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self.matrix @ u

    @property
    def transposed(self) -> sp.csr_matrix:
        """K^T."""
        if self._transposed is None:
            self._transposed = self._space.matrix(self.matrix.data[self._space.mirror])
        return self._transposed

    def transpose(self, p: np.ndarray) -> np.ndarray:
        return self.transposed @ p

    def rate(self) -> float:
        sums = np.add.reduceat(np.abs(self.matrix.data), self.matrix.indptr[:-1])
        return float((sums / self._space.lumped_mass).max())

    def sensitivity(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        return np.einsum("rc,rc->r", p[self._space.rows], u[self._space.columns])

    def explicit(self, dt: float, count: int, corrections: int) -> MappedSteps:
        return MappedSteps(self._space, self, dt, count, corrections)

    def shifted(self, alpha: float) -> ShiftedSolver:
        return FactorisedSolver(self._space.mass_matrix - alpha * self.matrix)


class MappedSteps(ExplicitSteps):
    """Substeps of the explicit propagator with two columns, compiled."""

    def __init__(
        self, space: MappedSpace, generator: MappedGenerator, dt: float, count: int, corrections: int
    ) -> None:
        super().__init__(space, generator, dt, count, corrections)
        self._matrix = generator
        starts, columns, defect, inverse = space.sparse
        self._pattern, self._scheme = (starts, columns), (defect, inverse, corrections, dt)

    def backward(self, u: np.ndarray) -> np.ndarray:
        return self.record(u)[0] if u.shape[1] == 2 else super().backward(u)

    def record(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = csr.stages(*self._pattern, self._matrix.matrix.data, *self._scheme, np.ascontiguousarray(u))
        return found[4].copy(), found

    def forward(self, rho: np.ndarray) -> np.ndarray:
        return self._forward(rho)[0] if rho.shape[1] == 2 else super().forward(rho)

    def adjoint(self, rho: np.ndarray, record: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if record.ndim == 2:
            record = self.record(record)[1]
        density, weights = self._forward(rho)
        return density, csr.sensitivity(*self._pattern, weights, record[:4])

    def _forward(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data = self._matrix.transposed.data
        return csr.forward(*self._pattern, data, *self._scheme, np.ascontiguousarray(rho))


class FactorisedSolver(ShiftedSolver):
    """A sparse LU factorisation (SuperLU)."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        try:
            self._lu = spla.splu(matrix.tocsc())
        except RuntimeError as error:
            raise NonFiniteError(f"the implicit step's matrix is singular ({error})") from error

    def solve(self, y: np.ndarray) -> np.ndarray:
        return self._lu.solve(y)

    def solve_transpose(self, y: np.ndarray) -> np.ndarray:
        return self._lu.solve(y, trans="T")
