r"""J with an estimate of its mesh error: refined until the mesh resolves it, or refused.

Two signs are looked at, the larger is the estimate: the second-order extrapolation of the
difference to a mesh 2/3 as fine, |J_n - J_c| / ((n/c)^2 - 1), and the difference between the
clipped and the linear march on the fine mesh, which is large where the value function
oscillates below the mesh's reach, also when two meshes happen to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kolmo.errors import InfeasibleError, NonFiniteError, ResolutionError, StiffnessError
from kolmo.pde.domain import choose_half_width
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.pde.mesh import DEFAULT_CELLS, check_dim
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
    refine: bool | None = None,
    order: int = 2,
    backend: str = "auto",
    propagator: str | Propagator = "explicit",
    half_width: float | None = None,
) -> ResolvedValue:
    """J on a mesh that resolves it.

    cells: the first mesh, by default the dimension's. refine: take meshes finer by 3/2 until
    the estimate meets AIM; by default where no cells are given, otherwise this mesh and no other.
    Raises ResolutionError where the error stays above LIMIT, with the reason and the remedy,
    NonFiniteError and DomainError where the weights are beyond any mesh.
    """
    dim = problem.network.dim
    check_dim(dim)
    if half_width is None:
        half_width = choose_half_width(problem)
    fixed = cells is not None if refine is None else not refine
    n = DEFAULT_CELLS[dim] if cells is None else cells

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
        value = _value(fine)
        linear = _value(equation(n, limit=False)) if isinstance(value, float) else value
        estimate = _estimate(coarse, value, linear)
        size = abs(value) if isinstance(value, float) else 0.0
        if isinstance(value, float) and estimate <= AIM[0] + AIM[1] * size:
            return ResolvedValue(value, estimate, n, fine)
        finer = round(1.5 * n)
        # at second order a cap this far away will not be reached: in 3-D each try is expensive
        hopeless = dim == 3 and estimate * (n / MOST_CELLS[dim]) ** 2 > 4 * (LIMIT[0] + LIMIT[1] * size)
        stiff = isinstance(value, (StiffnessError, NonFiniteError))  # a finer mesh is stiffer still
        if fixed or stiff or hopeless or finer > MOST_CELLS[dim]:
            if isinstance(value, float) and estimate <= LIMIT[0] + LIMIT[1] * size:
                return ResolvedValue(value, estimate, n, fine)
            raise _refusal(value, linear, estimate, n, dim, fixed)
        coarse, n = value, finer


def _value(equation: BackwardKolmogorov) -> float | InfeasibleError:
    """J, or the reason why this mesh has none."""
    try:
        with torch.no_grad():
            return float(equation.expected_loss())
    except InfeasibleError as refusal:
        return refusal


def _estimate(
    coarse: float | InfeasibleError, fine: float | InfeasibleError, linear: float | InfeasibleError
) -> float:
    if isinstance(coarse, float) and isinstance(fine, float) and isinstance(linear, float):
        return max(abs(fine - coarse) / (1.5**2 - 1), abs(fine - linear))
    return float("inf")


def _refusal(
    value: float | InfeasibleError,
    linear: float | InfeasibleError,
    estimate: float,
    cells: int,
    dim: int,
    fixed: bool,
) -> InfeasibleError:
    if isinstance(value, NonFiniteError):
        return value
    if isinstance(value, float) and isinstance(linear, float):
        size = "is not known" if estimate == float("inf") else f"is about {estimate:.1g}"
        found = f"on {cells} cells a direction J = {value:.3g}, but its mesh error {size}"
    else:
        found = f"on {cells} cells a direction, {value if isinstance(value, InfeasibleError) else linear}"
    more = f"more cells (up to {MOST_CELLS[dim]} are tried where none are given), " if fixed else ""
    return ResolutionError(
        f"the mesh does not resolve the network's features: {found}; take {more}smaller weights, "
        "or the chain estimator"
    )
