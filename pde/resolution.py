r"""J with an estimate of its mesh error: refined until the mesh resolves it, or refused.

Two signs are looked at, the larger is the estimate: the second-order extrapolation of the
difference to a mesh 2/3 as fine, |J_n - J_c| / ((n/c)^2 - 1), and the difference between the
clipped and the linear march on the fine mesh, which is large where the value function
oscillates below the mesh's reach, also when two meshes happen to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kolmo.errors import InfeasibleError, ResolutionError
from kolmo.pde.domain import choose_half_width
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.pde.mesh import DEFAULT_CELLS
from kolmo.pde.propagator import Propagator
from kolmo.problem import Problem

#: mesh error aimed at by refinement, and the largest one that is answered: absolute + relative
AIM = (5e-4, 0.01)
LIMIT = (2e-3, 0.02)
#: cells per direction beyond which a value is refused rather than refined
MOST_CELLS = {1: 2048, 2: 216, 3: 48}


@dataclass(frozen=True)
class ResolvedValue:
    """J by the Kolmogorov equation, its mesh error, and the equation it came from."""

    value: float
    mesh_error: float
    cells: int
    equation: BackwardKolmogorov

    @property
    def half_width(self) -> float:
        return self.equation.space.half_width


def resolve_value(
    problem: Problem,
    *,
    cells: int | None = None,
    order: int = 2,
    backend: str = "auto",
    propagator: str | Propagator = "explicit",
    half_width: float | None = None,
) -> ResolvedValue:
    """J on a mesh that resolves it.

    cells: take this mesh and no other; by default the dimension's default mesh, refined by
    3/2 until the estimate meets AIM. Raises ResolutionError (or another InfeasibleError) where the
    error stays above LIMIT, with the reason and the remedy.
    """
    dim = problem.network.dim
    if half_width is None:
        half_width = choose_half_width(problem)
    fixed, n = cells is not None, DEFAULT_CELLS[dim] if cells is None else cells

    def equation(count: int, limit: bool = True) -> BackwardKolmogorov:
        return BackwardKolmogorov(
            problem,
            cells=count,
            order=order,
            backend=backend,
            propagator=propagator,
            half_width=half_width,
            limit=limit,
        )

    coarse = _value(equation(max(2, round(2 * n / 3))))
    while True:
        fine = equation(n)
        value, linear = _value(fine), _value(equation(n, limit=False))
        estimate = _estimate(coarse, value, linear)
        size = abs(value) if value is not None else 0.0
        if value is not None and estimate <= AIM[0] + AIM[1] * size:
            return ResolvedValue(value, estimate, n, fine)
        finer = round(1.5 * n)
        # second order: the error falls by 4/9 with each refinement
        hopeless = estimate * (n / MOST_CELLS[dim]) ** 2 > 4 * (LIMIT[0] + LIMIT[1] * size)
        if fixed or finer > MOST_CELLS[dim] or (dim == 3 and hopeless):
            if value is not None and estimate <= LIMIT[0] + LIMIT[1] * size:
                return ResolvedValue(value, estimate, n, fine)
            raise _refusal(value, estimate, n, dim, fixed)
        coarse, n = value, finer


def _value(equation: BackwardKolmogorov) -> float | None:
    """J, or None where the mesh is too coarse for the guards."""
    try:
        with torch.no_grad():
            return float(equation.expected_loss())
    except InfeasibleError:
        return None


def _estimate(coarse: float | None, fine: float | None, linear: float | None) -> float:
    if coarse is None or fine is None or linear is None:
        return float("inf")
    return max(abs(fine - coarse) / (1.5**2 - 1), abs(fine - linear))


def _refusal(value: float | None, estimate: float, cells: int, dim: int, fixed: bool) -> ResolutionError:
    found = (
        f"the value function overshoots its bounds on {cells} cells a direction"
        if value is None or estimate == float("inf")
        else f"J = {value:.3g} on {cells} cells a direction has a mesh error of about {estimate:.1g}"
    )
    more = f"more cells (up to {MOST_CELLS[dim]} are tried when --cells is left out), " if fixed else ""
    return ResolutionError(
        f"the mesh does not resolve the network's features: {found}; take {more}smaller weights, "
        "or the chain estimator"
    )
