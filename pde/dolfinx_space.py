r"""P1 spaces from FEniCS dolfinx.

One process: the mesh and numbering are dolfinx's, the generators are CSR matrices by the
map T, and `assemble` gives the same matrices from dolfinx forms. Several processes: forms
with P1 coefficient functions assemble PETSc matrices, and the derivative by the nodal
coefficients is itself a linear form,

    d/d(b_k)_i  of  p^T K u  =  int p phi_k d_i u dx,      and so on for a.

Every process holds its own nodes; network, march and gradient never see the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from kolmo.errors import InputError, NonFiniteError
from kolmo.pde import dolfinx_compat as compat
from kolmo.pde.mapped import MappedSpace, unpack
from kolmo.pde.mesh import Mesh
from kolmo.pde.skfem_space import basis, interpolation
from kolmo.pde.space import Generator, ShiftedSolver, Space, check_coefficients, components


def dolfinx_space(mesh: Mesh) -> Space:
    """P1 with dolfinx on all processes of MPI.COMM_WORLD."""
    from mpi4py import MPI

    return DolfinxSpace(mesh) if MPI.COMM_WORLD.size == 1 else DistributedSpace(mesh, MPI.COMM_WORLD)


class _Numbering:
    """A dolfinx mesh of the given arrays, its P1 space, and how nodes are numbered.

    vertex[i] is the number in `mesh` of local node i, ghosts last.
    """

    def __init__(self, mesh: Mesh, comm: Any) -> None:
        first = comm.rank == 0
        self.domain = compat.create_mesh(
            comm,
            mesh.points if first else np.empty((0, mesh.dim)),
            mesh.cells if first else np.empty((0, mesh.dim + 1), dtype=np.int64),
        )
        self.functions = compat.linear_space(self.domain)
        self.nodes = compat.cell_dofs(self.functions)
        self.map = self.functions.dofmap.index_map
        inputs = np.asarray(self.domain.geometry.input_global_indices)
        self.vertex = np.empty(self.map.size_local + self.map.num_ghosts, dtype=np.int64)
        self.vertex[self.nodes] = inputs[compat.cell_geometry(self.domain)]


def _generator_form(functions: Any, b: list[Any], a: dict[tuple[int, int], Any]) -> Any:
    """The bilinear form K for P1 functions b_i and a_ij (i <= j)."""
    import ufl

    u, v = ufl.TrialFunction(functions), ufl.TestFunction(functions)
    form = sum(b[i] * u.dx(i) * v for i in range(len(b)))
    for (i, j), value in a.items():
        for p, q in {(i, j), (j, i)}:
            form = form - 0.5 * (value * v.dx(p) + value.dx(p) * v) * u.dx(q)
    return form * ufl.dx


class DolfinxSpace(MappedSpace):
    """P1 on a mesh with dolfinx, one process."""

    backend = "dolfinx"

    def __init__(self, mesh: Mesh) -> None:
        from mpi4py import MPI

        self._numbering = _Numbering(mesh, MPI.COMM_SELF)
        super().__init__(mesh, mesh.points[self._numbering.vertex], self._numbering.nodes)

    def interpolation(self, points: np.ndarray) -> sp.csr_matrix:
        return interpolation(basis(self.mesh), self.half_width, points)[:, self._numbering.vertex].tocsr()

    def assemble(self, drift: np.ndarray, diffusion: np.ndarray) -> sp.csr_matrix:
        from dolfinx import fem

        functions = self._numbering.functions
        fields = _Fields(functions, self.dim, diagonal=False)
        fields.set(drift, diffusion, len(drift))
        matrix = compat.assemble_matrix(fem.form(_generator_form(functions, fields.b, fields.a)))
        starts, columns, values = matrix.getValuesCSR()
        result = sp.csr_matrix((values.copy(), columns.copy(), starts.copy()), shape=(len(drift),) * 2)
        matrix.destroy()
        return result

    def write_series(self, path: Path, times: np.ndarray, fields: Sequence[dict[str, np.ndarray]]) -> None:
        """Nodal fields, scalars (Q,) and vectors (Q, d), at every time, as XDMF with its numbers in HDF5."""
        from dolfinx import fem

        scalars = {name for name, values in fields[0].items() if values.ndim == 1}
        spaces = {True: self._numbering.functions, False: compat.vector_space(self._numbering.domain)}
        functions = {name: fem.Function(spaces[name in scalars], name=name) for name in fields[0]}
        with compat.xdmf_writer(self._numbering.domain, path) as write:
            for time, nodal in zip(times, fields, strict=True):
                for name, function in functions.items():
                    # both spaces number the nodes alike: one map of nodes to degrees of freedom
                    function.x.array[:] = nodal[name].ravel()
                    write(function, float(time))


class _Fields:
    """P1 coefficient functions b_i and a_ij of one layer."""

    def __init__(self, functions: Any, dim: int, diagonal: bool) -> None:
        from dolfinx import fem

        self.b = [fem.Function(functions) for _ in range(dim)]
        self.a = {pair: fem.Function(functions) for pair in components(dim, diagonal)}

    def set(self, drift: np.ndarray, diffusion: np.ndarray, owned: int) -> None:
        """Take nodal values of this process's nodes and fetch the ghosts'."""
        for i, function in enumerate(self.b):
            set_owned(function, drift[:, i], owned)
        for (i, j), function in self.a.items():
            set_owned(function, diffusion[:, i] if diffusion.ndim == 2 else diffusion[:, i, j], owned)


def set_owned(function: Any, values: np.ndarray, owned: int) -> None:
    """Write this process's nodal values and fetch the ghosts'."""
    function.x.array[:owned] = values
    function.x.scatter_forward()


class DistributedSpace(Space):
    """P1 on a mesh with dolfinx and PETSc, several processes."""

    backend = "dolfinx"

    def __init__(self, mesh: Mesh, comm: Any) -> None:
        import ufl
        from dolfinx import fem

        self.mesh, self._comm, self.processes = mesh, comm, comm.size
        self._numbering = _Numbering(mesh, comm)
        functions = self._numbering.functions
        self.owned = self._numbering.map.size_local
        self._points = mesh.points[self._numbering.vertex[: self.owned]]
        u, v = ufl.TrialFunction(functions), ufl.TestFunction(functions)
        self.mass_matrix = compat.assemble_matrix(fem.form(u * v * ufl.dx))
        self._right, self._left = self.mass_matrix.createVecs()
        self._lumped = self.product(self.mass_matrix, np.ones((self.owned, 1)))[:, 0]
        self._forms: dict[bool, tuple[_Fields, Any]] = {}
        self._sensitivities: dict[tuple[int, bool], Any] = {}

    @property
    def coefficient_points(self) -> np.ndarray:
        return self._points

    @property
    def lumped_mass(self) -> np.ndarray:
        return self._lumped

    def product(self, matrix: Any, u: np.ndarray, transpose: bool = False) -> np.ndarray:
        """A PETSc matrix, or its transpose, times every column of u."""
        multiply = matrix.multTranspose if transpose else matrix.mult
        result = np.empty_like(u)
        for column in range(u.shape[1]):
            self._right.array[:] = u[:, column]
            multiply(self._right, self._left)
            result[:, column] = self._left.array
        return result

    def mass(self, u: np.ndarray) -> np.ndarray:
        return self.product(self.mass_matrix, u)

    def interpolation(self, points: np.ndarray) -> sp.csr_matrix:
        everywhere = interpolation(basis(self.mesh), self.half_width, points).tocsc()
        return everywhere[:, self._numbering.vertex[: self.owned]].tocsr()

    def generator(self, drift: np.ndarray, diffusion: np.ndarray) -> DistributedGenerator:
        from dolfinx import fem

        bad = self.maximum(float(not (np.isfinite(drift).all() and np.isfinite(diffusion).all())))
        if bad:  # every process has to leave together
            check_coefficients(drift, diffusion, self._points)
            raise NonFiniteError("drift or diffusion is not finite: the weights are too large")
        diagonal = diffusion.ndim == 2
        if diagonal not in self._forms:
            fields = _Fields(self._numbering.functions, self.dim, diagonal)
            self._forms[diagonal] = (
                fields,
                fem.form(_generator_form(self._numbering.functions, fields.b, fields.a)),
            )
        fields, form = self._forms[diagonal]
        fields.set(drift, diffusion, self.owned)
        return DistributedGenerator(self, compat.assemble_matrix(form), diagonal)

    def assemble(self, drift: np.ndarray, diffusion: np.ndarray) -> sp.csr_matrix:
        raise InputError("assemble: a matrix on one process is asked for, this space has several")

    def sensitivity_form(self, columns: int, diagonal: bool) -> tuple[list[Any], list[Any], list[Any]]:
        """Linear forms of d/d(b, a) of sum_c p_c^T K u_c, with their functions p and u."""
        key = (columns, diagonal)
        if key not in self._sensitivities:
            import ufl
            from dolfinx import fem

            functions = self._numbering.functions
            p = [fem.Function(functions) for _ in range(columns)]
            u = [fem.Function(functions) for _ in range(columns)]
            k = ufl.TestFunction(functions)
            forms = [sum(p[c] * k * u[c].dx(i) for c in range(columns)) * ufl.dx for i in range(self.dim)]
            for i, j in components(self.dim, diagonal):
                form = 0
                for r, s in {(i, j), (j, i)}:
                    for c in range(columns):
                        form = form - 0.5 * (k * p[c].dx(r) + k.dx(r) * p[c]) * u[c].dx(s)
                forms.append(form * ufl.dx)
            self._sensitivities[key] = ([fem.form(f) for f in forms], p, u)
        return self._sensitivities[key]

    def pullback(self, cotangent: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        return unpack(cotangent, self.dim, diagonal)

    def sum(self, local: np.ndarray) -> np.ndarray:
        return self._comm.allreduce(local)

    def maximum(self, local: float) -> float:
        from mpi4py import MPI

        return self._comm.allreduce(local, op=MPI.MAX)


class DistributedGenerator(Generator):
    """K as a PETSc matrix."""

    def __init__(self, space: DistributedSpace, matrix: Any, diagonal: bool) -> None:
        self._space, self._matrix, self._diagonal = space, matrix, diagonal

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self._space.product(self._matrix, u)

    def transpose(self, p: np.ndarray) -> np.ndarray:
        return self._space.product(self._matrix, p, transpose=True)

    def rate(self) -> float:
        starts, _, values = self._matrix.getValuesCSR()
        sums = np.add.reduceat(np.abs(values), starts[:-1])
        return float((sums / self._space.lumped_mass).max())

    def sensitivity(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        space = self._space
        forms, ps, us = space.sensitivity_form(p.shape[1], self._diagonal)
        for column in range(p.shape[1]):
            set_owned(ps[column], p[:, column], space.owned)
            set_owned(us[column], u[:, column], space.owned)
        return np.stack([compat.assemble_owned_vector(form, space.owned) for form in forms], axis=1)

    def shifted(self, alpha: float) -> ShiftedSolver:
        matrix = self._space.mass_matrix.copy()
        matrix.axpy(-alpha, self._matrix)
        return _DirectSolver(self._space, matrix)


class _DirectSolver(ShiftedSolver):
    """PETSc's parallel LU (MUMPS)."""

    def __init__(self, space: DistributedSpace, matrix: Any) -> None:
        from petsc4py import PETSc

        self._solver = PETSc.KSP().create(matrix.comm)
        self._solver.setOperators(matrix)
        self._solver.setType("preonly")
        preconditioner = self._solver.getPC()
        preconditioner.setType("lu")
        preconditioner.setFactorSolverType("mumps")
        self._right, self._left = matrix.createVecs()

    def _each(self, solve: Any, y: np.ndarray) -> np.ndarray:
        result = np.empty_like(y)
        for column in range(y.shape[1]):
            self._right.array[:] = y[:, column]
            solve(self._right, self._left)
            if self._solver.getConvergedReason() < 0:
                raise NonFiniteError("the implicit step's matrix is singular (MUMPS failed)")
            result[:, column] = self._left.array
        return result

    def solve(self, y: np.ndarray) -> np.ndarray:
        return self._each(self._solver.solve, y)

    def solve_transpose(self, y: np.ndarray) -> np.ndarray:
        return self._each(self._solver.solveTranspose, y)
