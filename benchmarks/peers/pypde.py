r"""The backward Kolmogorov equation in py-pde, as its documentation has users write an equation of their own.

A `PDEBase` with an `evolution_rate` of py-pde's finite-difference operators on a `CartesianGrid`,

    u_s = sum_i b_i d_i u + 1/2 a_ii d_ii u,   s = T - t,

solved layer by layer by its Runge-Kutta solver, both classes as one `FieldCollection`. Coefficients of a
layer are evaluated once, by numpy. At the faces second derivatives vanish ("curvature": 0). The backend is
numpy: py-pde compiles its operators once, while its numba solver would compile every layer's equation anew,
for 14 seconds and more.

Cells are finite-difference cells, `cells` of them a direction; steps in time as few as are stable.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

from kolmo.benchmarks.peers import MissingPeerError, Task

#: what Runge-Kutta of order 4 keeps of its stability limits on the two axes, about 2.8
_STABLE = 2.0


def library() -> ModuleType:
    """py-pde's package. Its name, pde, is that of a folder of Kolmo's, which may stand first on the path."""
    try:
        path = importlib.metadata.distribution("py-pde").locate_file("pde/__init__.py")
    except importlib.metadata.PackageNotFoundError:
        raise MissingPeerError("py-pde: it is not installed (pip install 'kolmo[bench]')") from None
    found = sys.modules.get("pde")
    if found is not None and getattr(found, "__file__", None) == str(path):
        return found
    specification = importlib.util.spec_from_file_location("pde", str(path))
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["pde"] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules["pde"]
        raise MissingPeerError(f"py-pde: importing it failed ({type(error).__name__}: {error})") from error
    return module


class PyPDE:
    """Grid and terminal values of one task."""

    def __init__(self, task: Task, cells: int) -> None:
        pde = library()
        if not hasattr(pde.ScalarField, "apply_operator"):
            raise MissingPeerError(f"py-pde: version {pde.__version__} has no ScalarField.apply_operator")
        self.task, self.pde = task, pde
        R = task.half_width
        self.grid = pde.CartesianGrid([[-R, R]] * task.dim, cells)
        self.centres = self.grid.cell_coords.reshape(-1, task.dim)
        self.equation = _equation(pde, task.dim)
        inner = np.clip((R - abs(self.centres)) / (0.2 * R), 0, 1)
        self.taper = inner**2 * (3 - 2 * inner)
        self.spacing = 2 * R / cells

    def coefficients(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Drift and the diagonal of the diffusion at the centres, each (Q, d)."""
        task = self.task
        W, V = task.W[layer], task.V[layer]
        z = np.tanh(self.centres @ W.T + task.b[layer])
        f = z @ V.T
        drift = f - 0.5 * task.step * ((1 - z * z) * (f @ W.T)) @ V.T
        drift = np.where(drift * self.centres > 0, self.taper * drift, drift)
        return drift, task.step * (1 - task.keep) / task.keep * (self.taper * f) ** 2

    def value(self) -> float:
        """J: march both classes from the terminal loss to time 0 and average over the data."""
        pde, task, shape = self.pde, self.task, self.grid.shape
        state = pde.FieldCollection(
            [pde.ScalarField(self.grid, task.loss(self.centres, label).reshape(shape)) for label in (0, 1)]
        )
        for layer in reversed(range(task.layers)):
            drift, diffusion = self.coefficients(layer)
            self.equation.drift = [b.reshape(shape) for b in drift.T]
            self.equation.diffusion = [a.reshape(shape) for a in diffusion.T]
            rate = (abs(drift) / self.spacing + 2 * diffusion / self.spacing**2).sum(axis=1).max()
            steps = max(1, int(np.ceil(rate * task.step / _STABLE)))
            state = self.equation.solve(
                state,
                t_range=task.step,
                dt=task.step / steps,
                solver="runge-kutta",
                adaptive=False,
                tracker=None,
                backend="numpy",
            )
        total = 0.0
        for label in (0, 1):
            mine = task.points[task.labels == label]
            total += float(np.sum(state[label].interpolate(mine, bc={"curvature": 0})))
        return total / len(task.points)


def _equation(pde: ModuleType, dim: int) -> Any:
    """py-pde's class cannot be named before py-pde is imported."""

    class BackwardKolmogorov(pde.PDEBase):  # type: ignore[name-defined]
        """u_s = b . grad u + 1/2 a : hess u with coefficients on the grid."""

        drift: list[np.ndarray]
        diffusion: list[np.ndarray]

        def evolution_rate(self, state: Any, t: float = 0) -> Any:
            rates = []
            for u in state:
                rate = 0
                for axis, b, a in zip("xyz"[:dim], self.drift, self.diffusion, strict=True):
                    rate = rate + b * u.apply_operator(f"d_d{axis}", bc={"curvature": 0})
                    rate = rate + 0.5 * a * u.apply_operator(f"d2_d{axis}2", bc={"curvature": 0})
                rates.append(rate)
            return pde.FieldCollection(rates)

    return BackwardKolmogorov()
