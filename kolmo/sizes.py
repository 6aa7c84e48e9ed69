"""What a configuration asks for, compared with memory before any of it is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kolmo import memory
from kolmo.data import Dataset
from kolmo.errors import InputError
from kolmo.pde.mesh import DEFAULT_CELLS

if TYPE_CHECKING:
    from kolmo.config import Config


def check(config: Config, train: Dataset, test: Dataset) -> None:
    """Raise InputError for what memory cannot hold, before any of it is computed."""
    n, dim = config.network, train.dim
    network = f"[network]: {n.depth} layers of {n.width} units"
    less = "take less of them"
    kept = memory.network(dim, n.width, n.depth, memory.PAIRS + 2 * config.check.snapshots)
    memory.require(kept, f"{network}, and [check] with {config.check.snapshots} snapshots of each", less)
    for name, training, paths in (
        ("stochastic", config.stochastic, config.stochastic.paths), ("noiseless", config.noiseless, 1),
    ):  # fmt: skip
        memory.require(
            memory.training(len(train), paths, dim, n.width, n.depth, training.steps),
            f"[{name}]: {training.steps} steps of {paths} paths from {len(train)} points and {network}",
            less,
        )
    points, check = max(len(train), len(test)), config.check
    paths = max(check.paths, check.gradient_paths, check.sde_paths)
    memory.require(
        memory.sample(points, paths, n.width), f"[check]: {paths} paths from {points} points", less
    )
    if dim not in DEFAULT_CELLS:
        return  # there is no mesh
    meshes = config.control.meshes(dim)
    if min(meshes) < 2:
        raise InputError(
            f"[control]: iterations has {len(meshes)} entries, the coarsest mesh would have "
            f"{min(meshes)} cells; take fewer"
        )
    cells = max(*meshes, config.control.check_cells(dim))
    memory.require(
        memory.equation(dim, cells, n.depth, n.width),
        f"[control]: {cells} cells a direction in {dim}-D and {network}",
        less,
    )
