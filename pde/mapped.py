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
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from kolmo.errors import InputError, NonFiniteError
from kolmo.pde import csr
from kolmo.pde.mesh import Mesh
from kolmo.pde.pool import Pool
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
        self._maps: dict[bool, _Map] = {}
        self.pool = Pool()
        #: the pattern, I - Ml^-1 M on it, 1 / Ml and the mirror as the kernels take them
        self.pattern = self._starts.astype(np.uint32), self.columns.astype(np.uint32)
        self.mass_parts = self._defect.data, 1 / self._lumped
        self._mirror = self.mirror.astype(np.uint32)

    def _map(self, diagonal: bool) -> _Map:
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
            self._maps[diagonal] = _Map(sp.bsr_matrix((blocks, nodes, starts.astype(np.int32)), shape=shape))
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
        if u.shape[1] != 2:
            return float(csr.roughness(self._lumped, u, self._defect @ u))
        rest = self.pool.take(*u.shape)
        csr.product(*self.pattern, self._defect.data, np.ascontiguousarray(u), rest)
        return float(csr.roughness(self._lumped, u, rest))

    def mirrored(self, data: np.ndarray) -> np.ndarray:
        """The entries of the transposed matrix."""
        out = self.pool.take(len(data))
        csr.mirrored(data, self._mirror, out)
        return out

    def generator(self, drift: np.ndarray, diffusion: np.ndarray) -> MappedGenerator:
        diagonal = diffusion.ndim == 2
        pairs = components(self.dim, diagonal)
        packed = diffusion if diagonal else np.stack([diffusion[:, i, j] for i, j in pairs], axis=1)
        T, data = self._map(diagonal), self.pool.take(len(self.rows))
        coefficients = np.ascontiguousarray(np.hstack([drift, packed]))
        csr.entries(*T.rows, coefficients, (0,) * T.parts, data)
        rate = float(csr.rate(self.pattern[0], data, self.mass_parts[1]))
        if not math.isfinite(rate):
            check_coefficients(drift, diffusion, self._points)
        return MappedGenerator(self, data, rate)

    def pullback(self, cotangent: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        T = self._map(diagonal)
        nodal = np.empty((len(self._points), T.parts))
        csr.pulled(*T.columns, cotangent, (0,) * T.parts, nodal)
        return unpack(nodal, self.dim, diagonal)


class _Map:
    """T by rows and by columns as the kernels take it: starts, other index, blocks (n, c). parts: c."""

    def __init__(self, matrix: sp.bsr_matrix) -> None:
        self.parts = matrix.blocksize[1]
        self.rows, self.columns = (
            (m.indptr.astype(np.uint32), m.indices.astype(np.uint32), m.data.reshape(len(m.indices), -1))
            for m in (matrix, matrix.T.tobsr())
        )


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
    """K on the space's pattern, by its entries."""

    def __init__(self, space: MappedSpace, data: np.ndarray, rate: float) -> None:
        self._space, self.data, self._rate = space, data, rate

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """K as a CSR matrix."""
        return self._space.matrix(self.data)

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self.matrix @ u

    @cached_property
    def transposed(self) -> np.ndarray:
        """The entries of K^T."""
        return self._space.mirrored(self.data)

    @cached_property
    def _transposed_matrix(self) -> sp.csr_matrix:
        return self._space.matrix(self.transposed)

    def transpose(self, p: np.ndarray) -> np.ndarray:
        return self._transposed_matrix @ p

    def rate(self) -> float:
        return self._rate

    def sensitivity(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        return np.einsum("rc,rc->r", p[self._space.rows], u[self._space.columns])

    def explicit(self, dt: float, count: int, corrections: int, degree: int) -> MappedSteps:
        return MappedSteps(self._space, self, dt, count, corrections, degree)

    def shifted(self, alpha: float) -> ShiftedSolver:
        return FactorisedSolver(self._space.mass_matrix - alpha * self.matrix)


class MappedSteps(ExplicitSteps):
    """Substeps of the explicit propagator with two columns, compiled."""

    def __init__(
        self,
        space: MappedSpace,
        generator: MappedGenerator,
        dt: float,
        count: int,
        corrections: int,
        degree: int,
    ) -> None:
        super().__init__(space, generator, dt, count, corrections, degree)
        self._mapped, self._entries = space, generator
        self._scheme = (*space.mass_parts, corrections, dt, degree)

    def backward(self, u: np.ndarray) -> np.ndarray:
        return self.record(u)[0] if u.shape[1] == 2 else super().backward(u)

    def record(self, u: np.ndarray) -> tuple[np.ndarray, Any]:
        if u.shape[1] != 2:
            return super().record(u)
        found, out = self._stages(u), np.empty(u.shape)
        given = (*self._mapped.pattern, self._entries.data, *self._scheme)
        csr.stages(*given, np.ascontiguousarray(u), found, self._work(u), out)
        return out, found

    def forward(self, rho: np.ndarray) -> np.ndarray:
        return self._forward(rho)[0] if rho.shape[1] == 2 else super().forward(rho)

    def adjoint(self, rho: np.ndarray, record: Any) -> tuple[np.ndarray, np.ndarray]:
        if rho.shape[1] != 2:
            return super().adjoint(rho, record)
        if record.ndim == 2:
            record = self.record(record)[1]
        density, weights = self._forward(rho)
        cotangent = self._mapped.pool.take(len(self._entries.data))
        csr.sensitivity(*self._mapped.pattern, weights, record, self.degree, cotangent)
        return density, cotangent

    def _forward(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights, out = self._stages(rho), np.empty(rho.shape)
        given = (*self._mapped.pattern, self._entries.transposed, *self._scheme)
        csr.forward(*given, np.ascontiguousarray(rho), weights, self._work(rho), out)
        return out, weights

    def _stages(self, u: np.ndarray) -> np.ndarray:
        """Room for those of one substep, whatever the degree."""
        return self._mapped.pool.take(4, *u.shape)

    def _work(self, u: np.ndarray) -> np.ndarray:
        return self._mapped.pool.take(3, *u.shape)


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
