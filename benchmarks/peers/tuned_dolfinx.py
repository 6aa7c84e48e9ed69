r"""The same equation in dolfinx by somebody who knows where its time goes.

Coefficients are P1 functions, filled from numpy at the nodes once a layer, so that forms hold no network; the
generator is assembled once a layer and used for both sides of Crank-Nicolson, the mass matrix once;

    (M - dt/2 K) u_new = (M + dt/2 K) u_old

is solved by GMRES with ILU, started at u_old, for each class. Value only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kolmo.benchmarks.peers import MissingPeerError, Task
from kolmo.benchmarks.peers.tutorial_dolfinx import box, containing
from kolmo.pde import dolfinx_compat as compat


class TunedDolfinx:
    """Mesh, forms and solver of one task; `cells` intervals a direction, `steps` in time a layer."""

    def __init__(self, task: Task, cells: int, steps: int = 1) -> None:
        reason = compat.unavailable()
        if reason is not None:
            raise MissingPeerError(f"dolfinx: {reason}")
        import ufl
        from dolfinx import fem
        from dolfinx.fem import petsc
        from petsc4py import PETSc

        self.task, self.steps = task, steps
        self.domain = box(task.dim, cells, task.half_width)
        functions = compat.linear_space(self.domain)
        self.b = [fem.Function(functions) for _ in range(task.dim)]
        self.a = [fem.Function(functions) for _ in range(task.dim)]
        u, v = ufl.TrialFunction(functions), ufl.TestFunction(functions)
        form = 0
        for i, (b, a) in enumerate(zip(self.b, self.a, strict=True)):
            form = form + ((b - 0.5 * a.dx(i)) * v - 0.5 * a * v.dx(i)) * u.dx(i)
        self.form = fem.form(form * ufl.dx)
        self.mass = compat.assemble_matrix(fem.form(u * v * ufl.dx))
        self.K = petsc.create_matrix(self.form)
        self.u, self.right = self.mass.createVecs()
        self.solver = PETSc.KSP().create(self.domain.comm)
        self.solver.setType("gmres")
        self.solver.getPC().setType("ilu")
        self.solver.setTolerances(rtol=1e-7)
        self.solver.setInitialGuessNonzero(True)
        self.nodes = functions.tabulate_dof_coordinates()[:, : task.dim].copy()
        inner = np.clip((task.half_width - abs(self.nodes)) / (0.2 * task.half_width), 0, 1)
        self.taper = inner**2 * (3 - 2 * inner)
        self.terminal = [task.loss(self.nodes, label) for label in (0, 1)]
        points = np.zeros((len(task.points), 3))
        points[:, : task.dim] = task.points
        self.points, self.cells = points, containing(self.domain, points)
        self.values = fem.Function(functions)

    def coefficients(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Drift and the diagonal of the diffusion at the nodes, each (Q, d)."""
        task = self.task
        W, V = task.W[layer], task.V[layer]
        z = np.tanh(self.nodes @ W.T + task.b[layer])
        f = z @ V.T
        drift = f - 0.5 * task.step * ((1 - z * z) * (f @ W.T)) @ V.T
        drift = np.where(drift * self.nodes > 0, self.taper * drift, drift)
        return drift, task.step * (1 - task.keep) / task.keep * (self.taper * f) ** 2

    def value(self) -> float:
        """J: march both classes from the terminal loss to time 0 and average over the data."""
        from dolfinx.fem import petsc

        states = [terminal.copy() for terminal in self.terminal]
        dt = self.task.step / self.steps
        for layer in reversed(range(self.task.layers)):
            for functions, values in zip((self.b, self.a), self.coefficients(layer), strict=True):
                for i, function in enumerate(functions):
                    function.x.array[:] = values[:, i]
            self.K.zeroEntries()
            petsc.assemble_matrix(self.K, self.form)
            self.K.assemble()
            left, right = self.mass.copy(), self.mass.copy()
            left.axpy(-0.5 * dt, self.K)
            right.axpy(0.5 * dt, self.K)
            self.solver.setOperators(left)
            for state in states:
                self.u.array[:] = state
                for _ in range(self.steps):
                    right.mult(self.u, self.right)
                    self.solver.solve(self.right, self.u)
                state[:] = self.u.array
            left.destroy()
            right.destroy()
        at = np.concatenate([self._at(state) for state in states], axis=1)
        return float(at[np.arange(len(at)), self.task.labels].mean())

    def _at(self, state: np.ndarray) -> Any:
        self.values.x.array[:] = state
        return self.values.eval(self.points, self.cells)
