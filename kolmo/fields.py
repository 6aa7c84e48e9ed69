r"""Value function, density and penalty over time as files for ParaView and its like: `kolmo fields`.

At t_k the files hold, for both labels y,

    u_y,   rho_y,   drift b,   penalty = sum_y rho_y (1/2 a : hess u_y),

u_y(x, t) the expected final loss from x at time t; rho_y the density of class y per unit volume, its integral
the class's share of the data; b and a those of the layer that starts at t_k (at T: that ended there). The
penalty's integral over space and time is what the noise adds to J, to first order (see `explicit`). It is
K(0, a) u / Ml at the nodes, K the finite-element generator and Ml the lumped mass.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from kolmo import case
from kolmo.errors import InputError
from kolmo.files import output_folder
from kolmo.pde import BackwardKolmogorov, resolve_value
from kolmo.pde.space import Space

_CELLS = {1: "line", 2: "triangle", 3: "tetra"}
_COLLECTION = """<?xml version="1.0"?>
<VTKFile type="Collection" version="0.1">
<Collection>
{}
</Collection>
</VTKFile>
"""

#: nodal fields by name: (Q,) or, of a vector field, (Q, d)
Fields = dict[str, np.ndarray]


def command(options: argparse.Namespace) -> int:
    """Write the fields of a case on a mesh that resolves them. Raises KolmoError."""
    problem = case.load(options.case)
    layers = chosen_layers(problem.network.step, problem.network.depth, options.times)
    _need(options.backend)
    resolved = resolve_value(problem, cells=options.cells, order=options.order, backend=options.backend)
    folder = output_folder(options.out, options.overwrite)
    files = write_fields(resolved.equation, folder, layers)
    if options.json:
        times = [problem.network.step * layer for layer in layers]
        content = {
            "case": options.case,
            "cells": resolved.cells,
            "times": times,
            "files": list(map(str, files)),
        }
        print(json.dumps(content))
    else:
        print(f"written: {files[0]} ({len(layers)} times, {resolved.cells} cells a direction)")
    return 0


def chosen_layers(step: float, depth: int, times: str | None) -> list[int]:
    """The numbers k of the times t_k = k h nearest to those asked for, 't1,t2,..'; all where None.

    Raises InputError on what is no time between 0 and T.
    """
    if times is None:
        return list(range(depth + 1))
    layers = set()
    for text in times.split(","):
        try:
            time = float(text)
        except ValueError:
            raise InputError(f"--times: {text.strip()!r} is not a number") from None
        if not 0 <= time <= step * depth * (1 + 1e-12):
            raise InputError(f"--times: {time:g} is not between 0 and T = {step * depth:g}")
        layers.add(round(time / step))
    return sorted(layers)


def fields_of(equation: BackwardKolmogorov, layers: Sequence[int]) -> tuple[np.ndarray, list[Fields]]:
    """Times t_k (N,) of layers k = 0..L, and the fields at each, on the nodes. Raises InfeasibleError."""
    network, space = equation.problem.network, equation.space
    solution = equation.solve()
    with torch.no_grad():
        coefficients = equation.coefficients()
    found = []
    for k in layers:
        drift, diffusion = coefficients.at(min(k, network.depth - 1))
        value, density = solution.value[k], solution.density[k] / solution.lumped_mass[:, None]
        noise = space.generator(np.zeros_like(drift), diffusion).apply(value) / solution.lumped_mass[:, None]
        found.append(
            {
                **{f"u{label}": value[:, label] for label in (0, 1)},
                **{f"rho{label}": density[:, label] for label in (0, 1)},
                "penalty": (density * noise).sum(axis=1),
                "drift": drift,
            }
        )
    return solution.times[list(layers)], found


def write_fields(
    equation: BackwardKolmogorov, folder: str | Path, layers: Sequence[int] | None = None
) -> list[Path]:
    """Write the fields at t_k, k in `layers` (all by default), into a folder that exists; return the files.

    From dolfinx fields.xdmf and fields.h5 (one process); from the other backends fields.pvd and one VTU file
    a time, which need meshio. The first file is the one to open. Raises InputError and InfeasibleError.
    """
    folder, space = Path(folder), equation.space
    if space.processes > 1:
        raise InputError("fields: they are written by one process, this equation has several")
    _need(space.backend)
    numbers = range(equation.problem.network.depth + 1) if layers is None else layers
    times, fields = fields_of(equation, numbers)
    # in a folder of their own until they are whole
    with tempfile.TemporaryDirectory(prefix=".fields.", dir=folder) as scratch:
        names = (_xdmf if space.backend == "dolfinx" else _vtu)(space, Path(scratch), times, fields)
        for name in reversed(names):
            os.replace(Path(scratch) / name, folder / name)
    return [folder / name for name in names]


def _need(backend: str) -> None:
    if backend != "dolfinx" and find_spec("meshio") is None:
        raise InputError("fields: they need meshio; install it with: pip install 'kolmo[fields]'")


def _vtu(space: Space, folder: Path, times: np.ndarray, fields: list[Fields]) -> list[str]:
    import meshio

    mesh = space.mesh
    cells = [(_CELLS[space.dim], mesh.cells)]
    names, entries = [], []
    for number, (time, nodal) in enumerate(zip(times, fields, strict=True)):
        name = f"fields_{number:04d}.vtu"
        data = {key: _padded(values) if values.ndim == 2 else values for key, values in nodal.items()}
        meshio.Mesh(_padded(mesh.points), cells, point_data=data).write(folder / name, file_format="vtu")
        names.append(name)
        entries.append(f'<DataSet timestep="{float(time)!r}" part="0" file="{name}"/>')
    (folder / "fields.pvd").write_text(_COLLECTION.format("\n".join(entries)), encoding="utf-8")
    return ["fields.pvd", *names]


def _padded(rows: np.ndarray) -> np.ndarray:
    """Points or vectors (Q, d) as VTK has them: (Q, 3)."""
    return np.pad(rows, ((0, 0), (0, 3 - rows.shape[1])))


def _xdmf(space: Space, folder: Path, times: np.ndarray, fields: list[Fields]) -> list[str]:
    from kolmo.pde.dolfinx_space import DolfinxSpace

    assert isinstance(space, DolfinxSpace)
    space.write_series(folder / "fields.xdmf", times, fields)
    return ["fields.xdmf", "fields.h5"]
