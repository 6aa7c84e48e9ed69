r"""The backward Kolmogorov equation the way dolfinx's tutorials solve a time-dependent problem.

    u_s = b . grad u + 1/2 a : hess u,   s = T - t,   u(s = 0) = loss of the label,

with the order-2 modified equation of dropout, b = f - h/2 (grad f) f and a = h (1 - p) / p diag(f_i^2), both
tapered at the faces, where the boundary conditions are natural. The network f is written in UFL with its
weights as constants. Time is Crank-Nicolson with one step a layer (two change J by 1e-5). At every step the
matrix is assembled and factorised by PETSc's LU (in 3-D: GMRES with ILU), and each class is one right-hand
side, assembled and solved.

The gradient is the discrete adjoint by transposed steps. With A u_new = B u_old it is A^T p = q,
q_new = B^T p, and dJ/dtheta collects p^T (dB u_old - dA u_new): a linear form that `ufl.derivative` finds
where the weights are a function which is constant over the mesh. States are stored, matrices are assembled
again.

The quadrature degree is chosen by hand. UFL's own estimate, for products of tanh and its derivatives, takes
14 times as long as degree 4 for the same J; degree 2 takes half as long, and J is again the same to 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kolmo.benchmarks.peers import MissingPeerError, Task
from kolmo.pde import dolfinx_compat as compat


class TutorialDolfinx:
    """Mesh, forms and solver of one task; `cells` intervals a direction. solver: 'lu' or 'gmres'."""

    def __init__(self, task: Task, cells: int, solver: str = "lu", degree: int = 4, steps: int = 1) -> None:
        reason = compat.unavailable()
        if reason is not None:
            raise MissingPeerError(f"dolfinx: {reason}")
        import ufl
        from dolfinx import fem
        from dolfinx.fem import petsc
        from petsc4py import PETSc

        self.task = task
        self.domain = box(task.dim, cells, task.half_width)
        self.functions = compat.linear_space(self.domain)
        self.W = fem.Constant(self.domain, np.zeros((task.width, task.dim)))
        self.b = fem.Constant(self.domain, np.zeros(task.width))
        self.V = fem.Constant(self.domain, np.zeros((task.dim, task.width)))
        self.dx = ufl.dx(domain=self.domain, metadata={"quadrature_degree": degree})
        trial, test = ufl.TrialFunction(self.functions), ufl.TestFunction(self.functions)
        self.steps, half = steps, 0.5 * task.step / steps
        self.u = [fem.Function(self.functions) for _ in (0, 1)]
        self.left = fem.form(trial * test * self.dx - half * self.generator(trial, test))
        self.right = [fem.form(u * test * self.dx + half * self.generator(u, test)) for u in self.u]
        self.matrix = petsc.create_matrix(self.left)
        self.solver = PETSc.KSP().create(self.domain.comm)
        self.solver.setOperators(self.matrix)
        if solver == "lu":
            self.solver.setType("preonly")
            self.solver.getPC().setType("lu")
        else:
            self.solver.setType("gmres")
            self.solver.setTolerances(rtol=1e-8)
            self.solver.getPC().setType("ilu")
        nodes = self.functions.tabulate_dof_coordinates()[:, : task.dim]
        self.terminal = [task.loss(nodes, label) for label in (0, 1)]
        self.points = np.zeros((len(task.points), 3))
        self.points[:, : task.dim] = task.points
        self.cells = containing(self.domain, self.points)
        self._adjoint: tuple[Any, ...] | None = None

    def generator(self, u: Any, v: Any, weights: tuple[Any, Any, Any] | None = None) -> Any:
        """The weak form of b . grad u + 1/2 a : hess u, tested with v."""
        import ufl

        task = self.task
        W, b, V = (self.W, self.b, self.V) if weights is None else weights
        x = ufl.SpatialCoordinate(self.domain)
        hidden = ufl.dot(W, x) + b
        f = ufl.dot(V, ufl.as_vector([ufl.tanh(hidden[i]) for i in range(task.width)]))
        drift = f - 0.5 * task.step * ufl.dot(ufl.grad(f), f)
        spread, R, axes = task.step * (1 - task.keep) / task.keep, task.half_width, range(task.dim)
        inner = [ufl.min_value((R - abs(x[i])) / (0.2 * R), 1.0) for i in axes]
        taper = [t**2 * (3 - 2 * t) for t in inner]
        drift = ufl.as_vector(
            [ufl.conditional(ufl.gt(drift[i] * x[i], 0), taper[i] * drift[i], drift[i]) for i in axes]
        )
        a = ufl.as_matrix([[spread * taper[i] ** 2 * f[i] ** 2 if i == j else 0 for j in axes] for i in axes])
        first = ufl.dot(drift - 0.5 * ufl.div(a), ufl.grad(u)) * v
        return (first - 0.5 * ufl.dot(ufl.dot(a, ufl.grad(u)), ufl.grad(v))) * self.dx

    def value(self) -> float:
        """J: march both classes from the terminal loss to time 0 and average over the data."""
        for u, terminal in zip(self.u, self.terminal, strict=True):
            u.x.array[:] = terminal
        for layer in self._layers():
            self._assemble(layer)
            for u, right in zip(self.u, self.right, strict=True):
                u.x.array[:] = self._solve(right)
        return self._mean()

    def gradient(self) -> tuple[float, np.ndarray]:
        """J and its gradient, the layers' W, b and V one after the other, shape (L, m d + m + d m)."""
        if self._adjoint is None:
            self._adjoint = self._adjoint_forms()
        theta, before, after, p, transposed, sensitivity = self._adjoint
        from dolfinx.fem import petsc

        task = self.task
        for u, terminal in zip(self.u, self.terminal, strict=True):
            u.x.array[:] = terminal
        states = [[u.x.array.copy() for u in self.u]]
        for layer in self._layers():
            self._assemble(layer)
            for u, right in zip(self.u, self.right, strict=True):
                u.x.array[:] = self._solve(right)
            states.append([u.x.array.copy() for u in self.u])
        value, q = self._mean(), self._initial()
        gradient = np.zeros((task.layers, theta.function_space.dofmap.index_map_bs))
        for layer in reversed(self._layers()):
            self._assemble(layer)
            theta.x.array.reshape(-1, gradient.shape[1])[:] = np.concatenate(
                [w[layer].ravel() for w in (task.W, task.b, task.V)]
            )
            new, old = states.pop(), states[-1]
            for c in (0, 1):
                p[c].x.array[:] = self._solve_transposed(q[c])
                before[c].x.array[:], after[c].x.array[:] = old[c], new[c]
                vector = petsc.assemble_vector(transposed[c])
                q[c] = vector.array.copy()
                vector.destroy()
            vector = petsc.assemble_vector(sensitivity)
            gradient[layer] += vector.array.reshape(-1, gradient.shape[1]).sum(axis=0)
            vector.destroy()
        return value, gradient

    def _adjoint_forms(self) -> tuple[Any, ...]:
        import ufl
        from dolfinx import fem

        task, half = self.task, 0.5 * self.task.step / self.steps
        size, d, m = 2 * task.width * task.dim + task.width, task.dim, task.width
        theta = fem.Function(compat.constant_space(self.domain, size))
        W = ufl.as_matrix([[theta[i * d + j] for j in range(d)] for i in range(m)])
        b = ufl.as_vector([theta[m * d + i] for i in range(m)])
        V = ufl.as_matrix([[theta[m * d + m + i * m + j] for j in range(m)] for i in range(d)])
        before, after, p = ([fem.Function(self.functions) for _ in (0, 1)] for _ in range(3))
        trial = ufl.TestFunction(self.functions)  # of B^T p: the other argument is p
        transposed = [fem.form(trial * q * self.dx + half * self.generator(trial, q)) for q in p]
        change = sum(half * self.generator(before[c] + after[c], p[c], (W, b, V)) for c in (0, 1))
        return theta, before, after, p, transposed, fem.form(ufl.derivative(change, theta))

    def _layers(self) -> list[int]:
        """The layer of every step, the last layer first."""
        return [k for k in reversed(range(self.task.layers)) for _ in range(self.steps)]

    def _assemble(self, layer: int) -> None:
        from dolfinx.fem import petsc

        self.W.value[:], self.b.value[:], self.V.value[:] = (
            w[layer] for w in (self.task.W, self.task.b, self.task.V)
        )
        self.matrix.zeroEntries()
        petsc.assemble_matrix(self.matrix, self.left)
        self.matrix.assemble()

    def _solve(self, form: Any) -> np.ndarray:
        from dolfinx.fem import petsc

        right = petsc.assemble_vector(form)
        solution = right.duplicate()
        self.solver.solve(right, solution)
        result = solution.array.copy()
        right.destroy()
        solution.destroy()
        return result

    def _solve_transposed(self, q: np.ndarray) -> np.ndarray:
        right, solution = self.matrix.createVecs()
        right.array[:] = q
        self.solver.solveTranspose(right, solution)
        result = solution.array.copy()
        right.destroy()
        solution.destroy()
        return result

    def _mean(self) -> float:
        labels = self.task.labels
        at = np.concatenate([u.eval(self.points, self.cells) for u in self.u], axis=1)
        return float(at[np.arange(len(labels)), labels].mean())

    def _initial(self) -> list[np.ndarray]:
        """dJ/du of both classes: the basis functions' values at each class's points."""
        dofs, corners = compat.cell_dofs(self.functions), self.functions.tabulate_dof_coordinates()
        d = self.task.dim
        q = [np.zeros(len(corners)) for _ in (0, 1)]
        for point, label, cell in zip(self.points[:, :d], self.task.labels, self.cells, strict=True):
            vertices = corners[dofs[cell], :d]
            inside = np.linalg.solve((vertices[1:] - vertices[0]).T, point - vertices[0])
            q[label][dofs[cell]] += np.array([1 - inside.sum(), *inside]) / len(self.points)
        return q


def box(dim: int, cells: int, half_width: float) -> Any:
    """A simplicial mesh of [-R, R]^d on this process."""
    from dolfinx import mesh
    from mpi4py import MPI

    lower, upper = [-half_width] * dim, [half_width] * dim
    if dim == 1:
        return mesh.create_interval(MPI.COMM_SELF, cells, [lower[0], upper[0]])
    create = mesh.create_rectangle if dim == 2 else mesh.create_box
    return create(MPI.COMM_SELF, [np.array(lower), np.array(upper)], [cells] * dim)


def containing(domain: Any, points: np.ndarray) -> np.ndarray:
    """The first cell that contains each of points (M, 3)."""
    found = compat.colliding_cells(domain, points)
    return np.array([found.links(i)[0] for i in range(len(points))], dtype=np.int32)
