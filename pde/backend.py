"""Which finite-element backend there is, and spaces made with it."""

from __future__ import annotations

from kolmo.errors import InputError, MissingBackendError
from kolmo.pde.mesh import Mesh, box_mesh
from kolmo.pde.space import Space
from kolmo.text import nearest

BACKENDS = ("auto", "dolfinx", "skfem")


def resolve(backend: str) -> str:
    """'dolfinx' or 'skfem' for a requested backend; 'auto' takes dolfinx where it is installed.

    Raises MissingBackendError where a backend asked for by name is absent.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: {backend!r} is unknown{nearest(backend, BACKENDS)}")
    if backend == "skfem":
        return backend
    from kolmo.pde.dolfinx_compat import unavailable

    reason = unavailable()
    if reason is None:
        return "dolfinx"
    if backend == "dolfinx":
        raise MissingBackendError(
            f"backend: dolfinx was asked for but {reason}; install it (Debian, Ubuntu: apt-get install "
            "python3-dolfinx-real; conda: conda install -c conda-forge fenics-dolfinx) or use --backend skfem"
        )
    return "skfem"


def make_space(backend: str, dim: int, cells: int, half_width: float) -> Space:
    """P1 on the Kuhn mesh of [-R, R]^d with the backend asked for."""
    return space_on(backend, box_mesh(dim, cells, half_width))


def space_on(backend: str, mesh: Mesh) -> Space:
    """P1 on any mesh of a box centred at the origin."""
    if resolve(backend) == "skfem":
        from kolmo.pde.skfem_space import SkfemSpace

        return SkfemSpace(mesh)
    from kolmo.pde.dolfinx_space import dolfinx_space

    return dolfinx_space(mesh)
