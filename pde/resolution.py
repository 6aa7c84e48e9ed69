r"""J with the errors of its discretisation: refined until mesh, time and box resolve it, or refused.

The mesh term is the weighted residual (`residual`), cross-checked on a mesh 2/3 as fine: stated is the
largest of

    |eta_n|,   |(J_n + eta_n) - (J_c + eta_c)|,   (sum |rho| |residual|) / 20:

the leading error, what two meshes do not agree on once each is rid of it, and a share of the residuals
without their signs, which is large where the value function is folded finer than the mesh, also where
the signed sum happens to cancel and two meshes happen to agree. Where only a value is wanted, and not the
J whose gradient is had, J_n + eta_n may be taken: then the last two of these are its error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kolmo.errors import InfeasibleError, NonFiniteError, ResolutionError, StiffnessError
from kolmo.pde.domain import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, choose_half_width
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.pde.mesh import DEFAULT_CELLS, check_dim
from kolmo.pde.propagator import Explicit, Propagator
from kolmo.pde.residual import Marched, Residuals, linear_march, residuals
from kolmo.problem import Problem
from kolmo.validity import check_step

#: mesh error aimed at by refinement, and the largest one that is answered: absolute + relative
AIM = (5e-4, 0.01)
LIMIT = (2e-3, 0.02)
#: cells per direction beyond which a value is refused rather than refined
MOST_CELLS = {1: 2048, 2: 216, 3: 48}
#: the share of the residuals without signs that the mesh term is at least
UNSIGNED = 0.05
#: substeps of a layer that are allowed here: there is no optimiser to keep from stiff weights
_CAP = {1: 4096, 2: 256, 3: 128}
#: how much the box grows at a time, and how often at most, until its error meets the aim
_WIDER, _ENLARGEMENTS = 1.2, 6


@dataclass(frozen=True)
class Effort:
    """What a refinement may cost: seconds in all, bytes of one march's stored states."""

    seconds: float = float("inf")
    memory: float = 8 * 2**30


@dataclass(frozen=True)
class ResolvedValue:
    """J by the Kolmogorov equation, as it is or corrected, and the sizes of its errors of discretisation.

    richardson: |J_n - J_c| / ((n/c)^2 - 1), the second-order extrapolation from the coarser mesh, beside the
    stated mesh_error. exit_probability: that a path reaches the taper. stopped: why the aim was
    not met, empty where it was.
    """

    value: float
    mesh_error: float
    time_error: float
    domain_error: float
    exit_probability: float
    richardson: float
    cells: int
    equation: BackwardKolmogorov
    marched: Marched
    residuals: Residuals
    stopped: str = ""

    @property
    def half_width(self) -> float:
        return self.equation.space.half_width


@dataclass(frozen=True)
class _Solved:
    marched: Marched
    residuals: Residuals
    seconds: float

    @property
    def stored(self) -> int:
        """Bytes of the march's states."""
        return self.marched.trajectory.substeps * self.marched.trajectory.initial.nbytes


def resolve_value(
    problem: Problem,
    *,
    cells: int | None = None,
    refine: bool | None = None,
    order: int = 2,
    backend: str = "auto",
    propagator: str | Propagator = "explicit",
    half_width: float | None = None,
    aim: tuple[float, float] = AIM,
    effort: Effort | None = None,
    corrected: bool = False,
) -> ResolvedValue:
    """J on a mesh and in a box that resolve it.

    cells: the first mesh, by default the dimension's. refine: take meshes finer by 3/2 until
    the mesh and time errors meet `aim` (absolute, relative); by default where no cells are given,
    otherwise this mesh and no other. half_width: of the box; by default a pilot sample's, enlarged until
    the taper's weighted residual is small too. corrected: take J_n + eta_n for the value. Raises
    ResolutionError where the error stays above LIMIT, with the reason and the remedy, NonFiniteError,
    StepError and DomainError where the weights are beyond any mesh.
    """
    dim = problem.network.dim
    check_dim(dim)
    check_step(problem)
    effort = effort or Effort()
    fixed = cells is not None if refine is None else not refine
    n = DEFAULT_CELLS[dim] if cells is None else cells
    width = choose_half_width(problem) if half_width is None else half_width
    start = time.perf_counter()
    scheme = Explicit(cap=_CAP[dim]) if propagator == "explicit" else propagator

    def solve(count: int) -> _Solved | InfeasibleError:
        began = time.perf_counter()
        try:
            equation = BackwardKolmogorov(
                problem,
                cells=count,
                order=order,
                backend=backend,
                propagator=scheme,
                half_width=width,
                limit=False,
            )
            marched = linear_march(equation)
            return _Solved(marched, residuals(marched), time.perf_counter() - began)
        except InfeasibleError as refusal:
            return refusal

    box = (min(ABSOLUTE_TOLERANCE, aim[0]), min(RELATIVE_TOLERANCE, aim[1]))
    coarse = solve(_coarser(n))
    for _ in range(_ENLARGEMENTS if half_width is None else 0):
        if isinstance(coarse, InfeasibleError) or _meets(coarse.residuals.domain, box, coarse):
            break
        width, n = _WIDER * width, n if fixed else round(_WIDER * n)
        coarse = solve(_coarser(n))
    while True:
        fine = solve(n)
        found = fine if isinstance(fine, InfeasibleError) else _judge(fine, coarse, n, corrected)
        finer = round(1.5 * n)
        if isinstance(found, ResolvedValue):
            assert isinstance(fine, _Solved)
            if _meets(found.mesh_error + found.time_error, aim, fine):
                return found
            stopped = _stop(fine, effort, time.perf_counter() - start, finer, dim, fixed)
            # at second order a cap this far away will not be reached: in 3-D each try is expensive
            hopeless = found.mesh_error * (n / MOST_CELLS[dim]) ** 2 / 4
            if not stopped and dim == 3 and not _meets(hopeless, LIMIT, fine):
                stopped = f"{MOST_CELLS[dim]} cells a direction would not do"
            if stopped and _meets(found.mesh_error, LIMIT, fine):
                return ResolvedValue(**{**vars(found), "stopped": stopped})
        else:
            # a finer mesh is stiffer still, and in 3-D the few cells that can be added mend no such thing
            beyond = fixed or dim == 3 or finer > MOST_CELLS[dim]
            stopped = "refused" if beyond or isinstance(found, (StiffnessError, NonFiniteError)) else ""
        if stopped:
            raise _refusal(found, n, dim, fixed)
        coarse, n = fine, finer


def _coarser(cells: int) -> int:
    return round(2 * cells / 3)


def _meets(error: float, bound: tuple[float, float], solved: _Solved) -> bool:
    return abs(error) <= bound[0] + bound[1] * abs(solved.residuals.value)


def _judge(fine: _Solved, coarse: _Solved | InfeasibleError, cells: int, corrected: bool) -> ResolvedValue:
    found = fine.residuals
    leading = 0.0 if corrected else abs(found.mesh)
    # without a coarser mesh to check it nothing of the residuals is allowed to cancel
    mesh, richardson = max(leading, found.size), float("inf")
    if isinstance(coarse, _Solved):
        other = coarse.residuals
        ratio = cells / coarse.marched.recovery.cells
        richardson = abs(found.value - other.value) / (ratio**2 - 1)
        mesh = max(leading, abs(found.corrected - other.corrected), UNSIGNED * found.size)
    return ResolvedValue(
        found.corrected if corrected else found.value,
        mesh,
        abs(found.time),
        abs(found.domain),
        found.exit_probability,
        richardson,
        cells,
        fine.marched.equation,
        fine.marched,
        found,
    )


def _stop(fine: _Solved, effort: Effort, spent: float, finer: int, dim: int, fixed: bool) -> str:
    """Why there is no finer mesh after this one, or nothing."""
    if fixed:
        return "the mesh was given"
    if finer > MOST_CELLS[dim]:
        return f"{MOST_CELLS[dim]} cells a direction are the most"
    # nodes, and substeps that grow between linearly (transport) and quadratically (diffusion)
    growth = 1.5 ** (dim + 1.5)
    if spent + growth * fine.seconds > effort.seconds:
        return f"{finer} cells a direction would exceed the time allowed"
    if growth * fine.stored > effort.memory:
        return f"{finer} cells a direction would exceed the memory allowed"
    return ""


def _refusal(found: ResolvedValue | InfeasibleError, cells: int, dim: int, fixed: bool) -> InfeasibleError:
    if isinstance(found, NonFiniteError):
        return found
    if isinstance(found, ResolvedValue):
        reason = (
            f"on {cells} cells a direction J = {found.value:.3g}, but its mesh error is about "
            f"{found.mesh_error:.1g}"
        )
    else:
        reason = f"on {cells} cells a direction, {found}"
    more = f"more cells (up to {MOST_CELLS[dim]} are tried where none are given), " if fixed else ""
    return ResolutionError(
        f"the mesh does not resolve the network's features: {reason}; take {more}smaller weights, "
        "or the exact or chain estimator"
    )
