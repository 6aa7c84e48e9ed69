"""All differences between dolfinx 0.5 and 0.11, and nothing else.

Every function takes what the newest version takes and does what the installed one needs.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

#: the oldest version whose interface this module knows
OLDEST = (0, 5)


def version() -> tuple[int, ...]:
    """The installed dolfinx as numbers, (0, 5, 2) say."""
    import dolfinx

    return tuple(int(n) for n in re.findall(r"\d+", dolfinx.__version__)[:3])


@lru_cache(maxsize=1)
def unavailable() -> str | None:
    """Why dolfinx cannot be used, or None where it can."""
    if importlib.util.find_spec("dolfinx") is None:
        return "it is not installed for this Python"
    try:
        import dolfinx.fem.petsc
        import petsc4py.PETSc
    except (ImportError, RuntimeError, OSError) as error:
        return f"importing it failed ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    if version() < OLDEST:
        return f"version {dolfinx.__version__} is older than {'.'.join(map(str, OLDEST))}"
    if np.issubdtype(petsc4py.PETSc.ScalarType, np.complexfloating):
        return "its PETSc is a complex build, a real one is needed"
    return None


def create_mesh(comm: Any, points: np.ndarray, cells: np.ndarray) -> Any:
    """A simplicial mesh from global arrays on rank 0 (others pass empty ones)."""
    import ufl
    from dolfinx import mesh

    dim = points.shape[1]
    cell = {1: "interval", 2: "triangle", 3: "tetrahedron"}[dim]
    if version() < (0, 7):
        domain = ufl.Mesh(ufl.VectorElement("Lagrange", cell, 1, dim=dim))
    else:
        import basix.ufl

        domain = ufl.Mesh(basix.ufl.element("Lagrange", cell, 1, shape=(dim,)))
    names = inspect.signature(mesh.create_mesh).parameters
    element = "e" if "e" in names else "domain"
    return mesh.create_mesh(comm, cells, **{"x": points, element: domain})


def linear_space(mesh: Any) -> Any:
    """P1 functions on the mesh."""
    from dolfinx import fem

    if hasattr(fem, "functionspace"):
        return fem.functionspace(mesh, ("Lagrange", 1))
    return fem.FunctionSpace(mesh, ("Lagrange", 1))


def vector_space(mesh: Any) -> Any:
    """P1 vector fields on the mesh, as many components as dimensions."""
    from dolfinx import fem

    if hasattr(fem, "functionspace"):
        return fem.functionspace(mesh, ("Lagrange", 1, (mesh.geometry.dim,)))
    return fem.VectorFunctionSpace(mesh, ("Lagrange", 1))


def constant_space(mesh: Any, size: int) -> Any:
    """Vectors of this size, constant on each cell."""
    from dolfinx import fem

    if hasattr(fem, "functionspace"):
        return fem.functionspace(mesh, ("DG", 0, (size,)))
    return fem.VectorFunctionSpace(mesh, ("DG", 0), dim=size)


def colliding_cells(mesh: Any, points: np.ndarray) -> Any:
    """Adjacency list: the cells of this process that contain each of points (M, 3)."""
    from dolfinx import geometry

    dim = mesh.topology.dim
    if hasattr(geometry, "bb_tree"):
        candidates = geometry.compute_collisions_points(geometry.bb_tree(mesh, dim), points)
    else:
        candidates = geometry.compute_collisions(geometry.BoundingBoxTree(mesh, dim), points)
    return geometry.compute_colliding_cells(mesh, candidates, points)


@contextmanager
def xdmf_writer(mesh: Any, path: Path) -> Iterator[Callable[[Any, float], None]]:
    """Write the mesh, then functions with their times, to an XDMF file and its HDF5 neighbour."""
    from dolfinx import io

    with io.XDMFFile(mesh.comm, str(path), "w") as file:
        file.write_mesh(mesh)
        yield file.write_function


def cell_geometry(mesh: Any) -> np.ndarray:
    """Geometry nodes of each cell on this process, ghosts included, shape (E, d + 1)."""
    several = getattr(mesh.geometry, "dofmaps", None)
    # a list since 0.10 (where `dofmap` is deprecated), a method before
    dofmap = mesh.geometry.dofmap if several is None or callable(several) else several[0]
    if isinstance(dofmap, np.ndarray):
        return dofmap
    return np.asarray(dofmap.array).reshape(len(dofmap), -1)


def cell_dofs(space: Any) -> np.ndarray:
    """Degrees of freedom of each cell on this process, ghosts included, shape (E, d + 1)."""
    dofmap = space.dofmap.list
    if isinstance(dofmap, np.ndarray):
        return dofmap
    return np.asarray(dofmap.array).reshape(len(dofmap), -1)


def assemble_matrix(form: Any) -> Any:
    """The form's PETSc matrix."""
    from dolfinx.fem import petsc

    matrix = petsc.assemble_matrix(form)
    matrix.assemble()
    return matrix


def assemble_owned_vector(form: Any, size: int) -> np.ndarray:
    """A linear form's values on this process's nodes, contributions of all processes added."""
    from dolfinx.fem import petsc
    from petsc4py import PETSc

    vector = petsc.assemble_vector(form)
    vector.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
    result = vector.array[:size].copy()
    vector.destroy()
    return result
