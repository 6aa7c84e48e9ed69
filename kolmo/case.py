"""Case directories: a network, its noise, loss and data on disk.

`problem.toml` (tables network, noise, loss, data), `points.csv` and `weights.npz` with
arrays W (L, m, d), b (L, m), V (L, d, m).
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import tomli_w
import torch

from kolmo import noise, toml
from kolmo.data import from_csv, to_csv
from kolmo.errors import InputError
from kolmo.files import write_atomically
from kolmo.loss import Logistic, Loss
from kolmo.network import ResidualNetwork
from kolmo.problem import Problem
from kolmo.text import nearest

_TABLES = {
    "network": ("weights", "activation", "horizon"),
    "noise": None,
    "loss": ("kind", "scale"),
    "data": ("points",),
}


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Arrays W, b, V of an npz file, never unpickled; raises InputError that names the array."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in ("W", "b", "V") if name not in archive.files]
            if missing:
                raise InputError(f"{path}: array {missing[0]} is missing; expected arrays W, b and V")
            arrays = {name: archive[name] for name in ("W", "b", "V")}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or 'not an npz file'}") from error
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an npz file of plain arrays") from error
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating) and not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"{path}: array {name} has type {array.dtype}, expected real numbers")
    return {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()}


def make_loss(settings: dict[str, object]) -> Loss:
    """The loss of a [loss] table (logistic, scale 4 by default)."""
    kind = settings.get("kind", "logistic")
    if kind != "logistic":
        raise InputError(f"loss.kind: {kind!r} is unknown{nearest(str(kind), ['logistic'])}")
    return Logistic(settings.get("scale", 4.0))  # type: ignore[arg-type]  # Logistic checks it


def load(directory: str | Path) -> Problem:
    """The problem in a case directory. Raises InputError that names the file and what is wrong."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: not a directory; expected a case with problem.toml and weights.npz")
    path = directory / "problem.toml"
    tables = toml.read(path)
    toml.check_keys(tables, _TABLES, str(path))
    sections = {name: toml.section(tables, name, str(path)) for name in _TABLES}
    for name, known in _TABLES.items():
        if known is not None:
            toml.check_keys(sections[name], known, f"{path}: [{name}]")
    network, data = sections["network"], sections["data"]
    files = {}
    for table, key, default in ((network, "weights", "weights.npz"), (data, "points", "points.csv")):
        files[key] = table.get(key, default)
        if not isinstance(files[key], str):
            raise InputError(f"{path}: {key} is {files[key]!r}, expected a file name")
    horizon = network.get("horizon", 1.0)
    if not isinstance(horizon, (int, float)):
        raise InputError(f"{path}: network.horizon is {horizon!r}, expected a positive number")
    weights = load_weights(directory / files["weights"])
    points = from_csv(directory / files["points"])
    try:
        model = ResidualNetwork.from_weights(
            **weights, horizon=horizon, activation=network.get("activation", "tanh")
        )
        return Problem(points, model, noise.from_settings(sections["noise"]), make_loss(sections["loss"]))
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error


def save(problem: Problem, directory: str | Path) -> None:
    """Write a problem as a case directory that `load` and `kolmo evaluate` read."""
    network = problem.network
    if not isinstance(network, ResidualNetwork):
        raise InputError("case: only the built-in residual block can be written as a case")
    if noise.KINDS.get(problem.noise.kind) is not type(problem.noise):
        raise InputError(f"case: noise {problem.noise.kind!r} is not one that problem.toml can name")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(network, name).detach().numpy() for name in ("W", "b", "V")}
    write_atomically(directory / "weights.npz", lambda file: np.savez(file, **arrays))
    to_csv(problem.data, directory / "points.csv")
    tables = {
        "network": {
            "weights": "weights.npz",
            "activation": network.activation.name,
            "horizon": network.horizon,
        },
        "noise": {"kind": problem.noise.kind, **problem.noise.settings()},
        "loss": {"kind": problem.loss.kind, **problem.loss.settings()},
        "data": {"points": "points.csv"},
    }
    write_atomically(directory / "problem.toml", lambda file: tomli_w.dump(tables, file))
