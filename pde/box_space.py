"""P1 on the Kuhn triangulation of a box, with compiled kernels in place of sparse matrices."""

from __future__ import annotations

import math
from threading import get_ident
from typing import Any

import numpy as np
import scipy.sparse as sp

from kolmo.errors import InputError
from kolmo.pde import plane, substep
from kolmo.pde import stencil as kernels
from kolmo.pde.mapped import FactorisedSolver, unpack
from kolmo.pde.mesh import Mesh, box_mesh
from kolmo.pde.pool import Pool
from kolmo.pde.propagator import ExplicitSteps
from kolmo.pde.space import Generator, ShiftedSolver, Space, check_coefficients, components
from kolmo.pde.stencil import Stencil


class BoxSpace(Space):
    """P1 on the uniform Kuhn mesh of [-R, R]^d (one process): the numbers of the other spaces, faster."""

    backend = "box"

    def __init__(self, dim: int, cells: int, half_width: float) -> None:
        self.mesh: Mesh = box_mesh(dim, cells, half_width)
        self.cells = cells
        self.stencil = Stencil(dim, cells, 2 * half_width / cells)
        self.pool = Pool()
        self._work: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.near = _neighbours(self.stencil)

    @property
    def coefficient_points(self) -> np.ndarray:
        return self.mesh.points

    @property
    def line(self) -> int:
        return self.cells + 1

    @property
    def lumped_mass(self) -> np.ndarray:
        return self.stencil.lumped

    def rows(self, *shape: int) -> np.ndarray:
        """Rows (*shape, .) of nodal values between margins of zeros; what the values are is left open."""
        return self.pool.take(*shape, self.stencil.width)

    def work(self) -> tuple[np.ndarray, np.ndarray]:
        """This thread's rows for the time of one call: those of `substep` (7, 2, .) and of `plane`."""
        found = self._work.get(get_ident())
        if found is None:
            s = self.stencil
            triangles = s.padded(plane.ROWS if self.dim == 2 else 1)
            triangles[-1, s.margin : s.margin + len(s.valid)] = s.valid
            found = self._work[get_ident()] = s.padded(14).reshape(7, 2, -1), triangles
        return found

    def padded(self, u: np.ndarray) -> np.ndarray:
        """u (Q, C) as rows (C, .) with margins of zeros, and one more row of zeros where C is odd."""
        rows = self.rows(u.shape[1] + u.shape[1] % 2)
        rows[u.shape[1] :] = 0.0
        rows[: u.shape[1], self.stencil.margin : self.stencil.margin + len(u)] = u.T
        return rows

    def mass(self, u: np.ndarray) -> np.ndarray:
        return self.lumped_mass[:, None] * (u - self.mass_defect(u))

    def mass_defect(self, u: np.ndarray) -> np.ndarray:
        rows = self.padded(u)
        zero, scratch, out = self.stencil.padded(len(rows)), self.rows(len(rows)), self.rows(len(rows))
        substep.defect(self.near, zero, 1.0, zero, rows, scratch, out)
        return self.inner(out)[:, : u.shape[1]]

    def inner(self, rows: np.ndarray) -> np.ndarray:
        """Padded rows (C, .) as nodal values (Q, C)."""
        margin = self.stencil.margin
        return rows[:, margin : margin + self.stencil.count].T

    def roughness(self, u: np.ndarray) -> float:
        if u.shape[1] != 2:
            return super().roughness(u)
        return float(substep.roughness(self.near, self.lumped_mass, rows_of(u), self.work()[0]))

    def interpolation(self, points: np.ndarray) -> sp.csr_matrix:
        R, n, dim = self.half_width, self.cells, self.dim
        outside = ~(np.abs(points) <= R).all(axis=1)
        if outside.any():
            where = ", ".join(f"{v:.3g}" for v in points[np.argmax(outside)])
            raise InputError(f"point ({where}) is outside the box of half width {R:.3g}")
        t = (points + R) / self.stencil.spacing
        cube = np.minimum(t.astype(np.int64), n - 1)
        stride = (n + 1) ** np.arange(dim - 1, -1, -1)
        # the simplex's path goes along the largest coordinate first; weights are their differences
        order = np.argsort(-(t - cube), axis=1, kind="stable")
        sorted_t = np.take_along_axis(t - cube, order, axis=1)
        levels = np.column_stack([np.ones(len(points)), sorted_t, np.zeros(len(points))])
        nodes = np.column_stack([cube @ stride, np.zeros((len(points), dim), dtype=np.int64)])
        nodes[:, 1:] = nodes[:, :1] + np.cumsum(stride[order], axis=1)
        rows = np.repeat(np.arange(len(points)), dim + 1)
        weights = levels[:, :-1] - levels[:, 1:]
        shape = (len(points), self.stencil.count)
        return sp.csr_matrix((weights.ravel(), (rows, nodes.ravel())), shape=shape)

    def generator(self, drift: np.ndarray, diffusion: np.ndarray) -> BoxGenerator:
        s, diagonal = self.stencil, diffusion.ndim == 2
        if diagonal:
            a = rows_of(diffusion)
        else:
            a = np.stack([diffusion[:, i, j] for i, j in components(self.dim, False)])
        K, b = self.rows(len(s.offsets)), rows_of(drift)
        if self.dim == 2:
            sizes = (self.cells + 1, s.margin, s.c1, s.c2, s.inverse, self.work()[1])
            rate = plane.assemble((0,) * len(a), b, a, *sizes, K)
        else:
            tables = (s.table(diagonal), s.paths, s.nodes, s.slots, s.valid)
            rate = kernels.assemble(b, a, *tables, s.margin, s.c1, s.c2, s.lumped, K)
        if not math.isfinite(rate):
            check_coefficients(drift, diffusion, self.mesh.points)
        return BoxGenerator(self, K, float(rate))

    def assemble(self, drift: np.ndarray, diffusion: np.ndarray) -> sp.csr_matrix:
        from kolmo.pde.skfem_space import SkfemSpace

        return SkfemSpace(self.mesh).assemble(drift, diffusion)

    def pullback(self, cotangent: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        s = self.stencil
        nodal = np.empty((self.dim + (self.dim if diagonal else self.dim * (self.dim + 1) // 2), s.count))
        self._pull(cotangent, nodal[: self.dim], nodal[self.dim :], diagonal)
        return unpack(nodal.T, self.dim, diagonal)

    def pull_into(self, cotangent: np.ndarray, drift: np.ndarray, diffusion: np.ndarray) -> None:
        if diffusion.ndim == 2:
            self._pull(cotangent, drift.T, diffusion.T, True)
        else:
            super().pull_into(cotangent, drift, diffusion)

    def _pull(self, cotangent: np.ndarray, d_b: np.ndarray, d_a: np.ndarray, diagonal: bool) -> None:
        s = self.stencil
        if self.dim == 2:
            sizes = (self.cells + 1, s.margin, s.c1, s.c2, self.work()[1])
            plane.pullback((0,) * len(d_a), cotangent, *sizes, d_b, d_a)
        else:
            tables = (s.table(diagonal), s.paths, s.nodes, s.slots, s.valid)
            kernels.pullback(cotangent, *tables, s.c1, s.c2, d_b, d_a)


def rows_of(u: np.ndarray) -> np.ndarray:
    """(Q, C) as contiguous rows (C, Q): without a copy where the columns already are."""
    return np.ascontiguousarray(u.T)


class BoxGenerator(Generator):
    """K as a stencil (S, padded nodes)."""

    def __init__(self, space: BoxSpace, K: np.ndarray, rate: float) -> None:
        self.space, self.K, self._rate = space, K, rate

    def apply(self, u: np.ndarray) -> np.ndarray:
        space, rows = self.space, self.space.padded(u)
        scratch, out = space.rows(len(rows)), space.rows(len(rows))
        substep.apply(self.K, space.near, np.ones(space.stencil.count), rows, scratch, out)
        return space.inner(out)[:, : u.shape[1]]

    def transpose(self, p: np.ndarray) -> np.ndarray:
        rows = self.space.padded(p)
        scratch, out = np.empty((2, len(rows), len(p)))
        substep.transpose(self.K, self.space.near, rows, scratch, out)
        return out[: p.shape[1]].T

    def rate(self) -> float:
        return self._rate

    def sensitivity(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        stencil = self.space.stencil
        G = np.empty((len(stencil.offsets), stencil.count))
        rows = (self.space.padded(p), self.space.padded(u))
        substep.sensitivity(*rows, self.space.near, (0,) * len(rows[0]), G)
        return G

    def explicit(self, dt: float, count: int, corrections: int, degree: int) -> BoxSteps:
        return BoxSteps(self.space, self, dt, count, corrections, degree)

    def shifted(self, alpha: float) -> ShiftedSolver:
        return FactorisedSolver(self.matrix(self.space.stencil.mass) - alpha * self.matrix(self.entries))

    @property
    def entries(self) -> np.ndarray:
        """K's entries (S, Q), without margins."""
        margin = self.space.stencil.margin
        return self.K[:, margin : margin + self.space.stencil.count]

    def matrix(self, entries: np.ndarray) -> sp.csr_matrix:
        """Entries (S, Q) as a sparse matrix."""
        stencil = self.space.stencil
        slots, rows = np.nonzero(stencil.mass)  # neighbours that exist
        columns = rows + stencil.offsets[slots]
        shape = (stencil.count, stencil.count)
        return sp.csr_matrix((entries[slots, rows], (rows, columns)), shape=shape)


class BoxSteps(ExplicitSteps):
    """Substeps of the explicit propagator, compiled for the two classes."""

    def __init__(
        self, space: BoxSpace, generator: BoxGenerator, dt: float, count: int, corrections: int, degree: int
    ) -> None:
        super().__init__(space, generator, dt, count, corrections, degree)
        self._box = space
        self._fixed = (generator.K, space.stencil.inverse, space.near, corrections, dt, degree)

    def backward(self, u: np.ndarray) -> np.ndarray:
        return self._taylor(u, self._box.work()[0][5:]) if u.shape[1] == 2 else super().backward(u)

    def forward(self, rho: np.ndarray) -> np.ndarray:
        return self._transposed(rho)[0] if rho.shape[1] == 2 else super().forward(rho)

    def record(self, u: np.ndarray) -> tuple[np.ndarray, Any]:
        if u.shape[1] != 2:
            return super().record(u)
        found = self._box.rows(4, 2)
        return self._taylor(u, found), found

    def adjoint(self, rho: np.ndarray, record: Any) -> tuple[np.ndarray, np.ndarray]:
        if rho.shape[1] != 2:
            return super().adjoint(rho, record)
        if record.ndim == 2:
            record = self.record(record)[1]
        density, weights = self._transposed(rho)
        stencil = self._box.stencil
        G = self._box.pool.take(len(stencil.offsets), stencil.count)
        # w_1 goes with the first weight, ..., w_n = u with the last
        width = record.shape[2]
        flat, states = (rows[: self.degree].reshape(-1, width) for rows in (weights, record))
        # the plane's kernel counts rows itself
        unrolled = (0,) * (0 if self._box.dim == 2 else len(flat))
        substep.sensitivity(flat, states, self._box.near, unrolled, G)
        return density, G

    def _taylor(self, u: np.ndarray, found: np.ndarray) -> np.ndarray:
        out = np.empty(u.shape[::-1])
        substep.stages(*self._fixed, rows_of(u), found, self._box.work()[0], out)
        return out.T

    def _transposed(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out, weights = np.empty(rho.shape[::-1]), self._box.rows(4, 2)
        substep.forward(*self._fixed, rows_of(rho), weights, self._box.work()[0], out)
        return out.T, weights


def _neighbours(stencil: Stencil) -> substep.Neighbours:
    every = (stencil.margin + stencil.offsets).astype(np.uint64)
    shifts, weights = tuple(every[1:]), tuple(float(w) for w in stencil.defect_inside[1:])
    # the compiler unrolls short sums only; an unused part may hold anything, and in the plane both are unused
    flat = stencil.dim == 2
    cut = 1 if flat else min(len(shifts), 7)
    return substep.Neighbours(
        margin=every[0],
        near=shifts[:cut],
        far=shifts[cut:] or shifts[:1],
        more=len(shifts) > cut and not flat,
        inside=float(stencil.defect_inside[0]),
        near_inside=weights[:cut],
        far_inside=weights[cut:] or weights[:1],
        boundary=stencil.boundary.astype(np.uint64),
        listed=stencil.defect_boundary,
        every=every,
        zero=stencil.padded(2),
        line=np.uint64(stencil.cells + 1 if flat else 0),
    )
