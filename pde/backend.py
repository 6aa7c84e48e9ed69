"""Which finite-element backend there is, and spaces made with it.

`box`: the uniform mesh of a box with compiled kernels, always there and the fastest. `dolfinx`: any mesh, and
several processes. `skfem`: any mesh, always there. All give the same numbers (tested to rounding).
"""

from __future__ import annotations

import os
import sys

from kolmo.errors import InputError, MissingBackendError
from kolmo.pde.mesh import Mesh, box_mesh
from kolmo.pde.space import Space
from kolmo.text import nearest

BACKENDS = ("auto", "box", "dolfinx", "skfem")
#: what MPI launchers tell a process about their number
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


def resolve(backend: str) -> str:
    """'box', 'dolfinx' or 'skfem' for a requested backend.

    'auto' is 'box', and under MPI 'dolfinx'. Raises InputError on an unknown name and MissingBackendError
    where dolfinx is needed but absent.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: {backend!r} is unknown{nearest(backend, BACKENDS)}")
    if backend == "auto":
        return "dolfinx" if _several_processes() and not _missing() else "box"
    if backend == "dolfinx" and (reason := _missing()):
        raise MissingBackendError(
            f"backend: dolfinx was asked for but {reason}; install it (Debian, Ubuntu: apt-get install "
            "python3-dolfinx-real; conda: conda install -c conda-forge fenics-dolfinx) or use --backend box"
        )
    return backend


def make_space(backend: str, dim: int, cells: int, half_width: float) -> Space:
    """P1 on the Kuhn mesh of [-R, R]^d with the backend asked for."""
    if resolve(backend) == "box":
        from kolmo.pde.box_space import BoxSpace

        return BoxSpace(dim, cells, half_width)
    return space_on(backend, box_mesh(dim, cells, half_width))


def space_on(backend: str, mesh: Mesh) -> Space:
    """P1 on any mesh of a box centred at the origin; 'auto' takes dolfinx where it is installed."""
    if backend == "auto":
        backend = "skfem" if _missing() else "dolfinx"
    chosen = resolve(backend)
    if chosen == "box":
        raise InputError("backend: 'box' has a mesh of its own; take 'skfem' or 'dolfinx' for this one")
    if chosen == "skfem":
        from kolmo.pde.skfem_space import SkfemSpace

        return SkfemSpace(mesh)
    from kolmo.pde.dolfinx_space import dolfinx_space

    return dolfinx_space(mesh)


def _missing() -> str | None:
    """Why dolfinx is not there, None where it is."""
    from kolmo.pde.dolfinx_compat import unavailable

    return unavailable()


def _several_processes() -> bool:
    if "mpi4py.MPI" in sys.modules and sys.modules["mpi4py.MPI"].COMM_WORLD.size > 1:
        return True
    sizes = (os.environ.get(name, "1") for name in _LAUNCHERS)
    return any(size.isdigit() and int(size) > 1 for size in sizes)
