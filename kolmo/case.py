"""Case directories: a network, its noise, loss and data on disk.

`problem.toml` (tables network, noise, loss, data), `points.csv` and `weights.npz` or
`weights.safetensors` with arrays W (L, m, d), b (L, m), V (L, d, m).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import tomli_w
import torch

from kolmo import noise, reading, toml, weights
from kolmo.data import from_csv, to_csv
from kolmo.errors import InputError
from kolmo.files import write_atomically
from kolmo.loss import Logistic, LogisticHead, Loss
from kolmo.modified import modified_equation
from kolmo.network import ResidualNetwork
from kolmo.problem import Problem
from kolmo.text import nearest, shown

#: the weights' file by format
_WEIGHTS = {"npz": "weights.npz", "safetensors": "weights.safetensors"}
_TABLES = {
    "network": ("weights", "activation", "horizon"),
    "noise": None,  # noise and loss know theirs
    "loss": None,
    "data": ("points",),
}


#: losses of [loss] by kind, and their keys
LOSSES: dict[str, tuple[Callable[..., Loss], tuple[str, ...]]] = {
    Logistic.kind: (Logistic, ("scale",)),
    LogisticHead.kind: (LogisticHead, ("weight", "bias")),
}


def make_loss(settings: dict[str, object]) -> Loss:
    """The loss of a [loss] table (logistic, scale 4 by default)."""
    kind = str(settings.get("kind", Logistic.kind))
    if kind not in LOSSES:
        raise InputError(f"loss.kind: {shown(kind)} is unknown{nearest(kind, LOSSES)}")
    make, known = LOSSES[kind]
    given = {name: value for name, value in settings.items() if name != "kind"}
    toml.check_keys(given, known, f"[loss] of kind {kind}")
    if kind == LogisticHead.kind and "weight" not in given:
        raise InputError("loss.weight: missing, expected a list of numbers, one a feature")
    return make(**given)


def load(directory: str | Path) -> Problem:
    """The problem in a case directory. Raises InputError that names the file and what is wrong."""
    directory = Path(directory)
    if not reading.is_folder(directory):
        raise InputError(f"{directory}: not a directory; expected a case with problem.toml and weights.npz")
    path = directory / "problem.toml"
    tables = toml.read(path)
    toml.check_keys(tables, _TABLES, str(path))
    sections = {name: toml.section(tables, name, str(path)) for name in _TABLES}
    for name, known in _TABLES.items():
        if known is not None:
            toml.check_keys(sections[name], known, f"{path}: [{name}]")
    network = sections["network"]
    horizon = network.get("horizon", 1.0)
    if not isinstance(horizon, (int, float)) or isinstance(horizon, bool):
        raise InputError(f"{path}: network.horizon is {shown(horizon)}, expected a positive number")
    activation = _text(network, "activation", "tanh", path)
    name = _text(network, "weights", _weights_there(directory), path)
    points = from_csv(directory / _text(sections["data"], "points", "points.csv", path))
    arrays = weights.load(directory / name)
    try:
        model = ResidualNetwork.from_weights(**arrays, horizon=horizon, activation=activation)
        found = Problem(points, model, noise.from_settings(sections["noise"]), make_loss(sections["loss"]))
        return checked(found)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error


def checked(problem: Problem) -> Problem:
    """The problem, once its noise was asked for its moments in every layer.

    Raises InputError where noise and network do not fit (schedules of another length, branches of an odd
    number of units), before anything was computed or written.
    """
    with torch.no_grad():
        modified_equation(problem.network, problem.noise, problem.data.points[:1], order=1)
    return problem


def _text(table: dict[str, object], key: str, default: str, path: Path) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"{path}: {key} is {shown(value)}, expected a text")
    return value


def _weights_there(directory: Path) -> str:
    """The name of the weights' file; two of them would leave open which one is meant."""
    found = [name for name in _WEIGHTS.values() if os.path.lexists(directory / name)]
    if len(found) > 1:
        raise InputError(f"{directory}: has {' and '.join(found)}, expected one of them")
    return found[0] if found else _WEIGHTS["npz"]


def save(problem: Problem, directory: str | Path, format: str = "npz") -> None:
    """Write a problem as a case directory that `load` and `kolmo evaluate` read.

    format: of the weights, 'npz' or 'safetensors'. Raises InputError where the directory holds weights
    in the other one: nobody could tell which are meant.
    """
    if format not in _WEIGHTS:
        raise InputError(f"format: {format!r} is unknown{nearest(format, _WEIGHTS)}")
    network = problem.network
    if not isinstance(network, ResidualNetwork):
        raise InputError("case: only the built-in residual block can be written as a case")
    if noise.KINDS.get(problem.noise.kind) is not type(problem.noise):
        raise InputError(f"case: noise {problem.noise.kind!r} is not one that problem.toml can name")
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made: {error.strerror}") from error
    there = _weights_there(directory)
    if there != _WEIGHTS[format] and os.path.lexists(directory / there):
        raise InputError(f"{directory}: has {there}; remove it before {_WEIGHTS[format]} is written")
    arrays = {name: getattr(network, name).detach().numpy() for name in weights.NAMES}
    write_atomically(directory / _WEIGHTS[format], lambda file: weights.save(arrays, file, format))
    to_csv(problem.data, directory / "points.csv")
    tables = {
        "network": {
            "weights": _WEIGHTS[format],
            "activation": network.activation.name,
            "horizon": network.horizon,
        },
        "noise": {"kind": problem.noise.kind, **problem.noise.settings()},
        "loss": {"kind": problem.loss.kind, **problem.loss.settings()},
        "data": {"points": "points.csv"},
    }
    write_atomically(directory / "problem.toml", lambda file: tomli_w.dump(tables, file))
