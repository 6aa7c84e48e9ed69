"""The configuration of a run: TOML in, checked settings out, TOML again.

Every table is a dataclass; a key that is not one of its fields is an error that names the
nearest right one. `default.toml` and its neighbours in experiments/configs are complete.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import tomli_w

from kolmo import data, noise, sizes, toml
from kolmo.case import checked, make_loss
from kolmo.data import Dataset, from_csv
from kolmo.errors import InputError
from kolmo.images.settings import ImageSettings
from kolmo.network import ResidualNetwork
from kolmo.pde.mesh import DEFAULT_CELLS
from kolmo.problem import Problem
from kolmo.settings import count, number, positive, setting
from kolmo.text import nearest, shown

#: cells of the finest mesh that training uses, by dimension; each coarser one has 0.6 times as many
_FINEST = {1: 256, 2: 72, 3: 24}


@dataclass
class DataSettings:
    """[data]: a synthetic set by `kind`, or CSV files by `file` and `test_file`."""

    kind: str = ""
    train: int = count(200, 2, 10**6)
    test: int = count(4000, 2, 10**6)
    noise: float | None = None
    file: str = ""
    test_file: str = ""


@dataclass
class NetworkSettings:
    """[network]: V tanh(W x + b) in every layer."""

    width: int = count(16, 1, 4096)
    depth: int = count(40, 1, 10_000)
    horizon: float = positive(1.0)
    activation: str = "tanh"


@dataclass
class PenaltySettings:
    """[penalty]: weight_decay * h sum_k |theta_k|^2."""

    weight_decay: float = number(1e-2)


@dataclass
class ControlSettings:
    """[control]: meshes from coarse to fine, and L-BFGS iterations on each.

    cells: intervals per direction of each mesh; empty: by dimension, times `mesh_scale`,
    which also scales the mesh of the cross-check.
    """

    cells: list[int] = field(default_factory=list)
    iterations: list[int] = field(default_factory=lambda: [80, 20])
    mesh_scale: float = setting(1.0, lambda v: 0.1 <= v <= 10, "a number from 0.1 to 10")
    order: int = setting(2, lambda v: v in (1, 2), "1 or 2")
    tolerance: float = number(1e-5)
    radius: float = positive(5.0)

    def meshes(self, dim: int) -> list[int]:
        """Cells of each mesh in this dimension."""
        if self.cells:
            return self.cells
        finest = _FINEST[dim]
        count = len(self.iterations)
        return [round(self.mesh_scale * finest * 0.6 ** (count - 1 - k)) for k in range(count)]

    def check_cells(self, dim: int) -> int:
        """Cells of the cross-check's first mesh."""
        return round(self.mesh_scale * DEFAULT_CELLS[dim])


@dataclass
class StochasticSettings:
    """[stochastic]: Adam on the noisy chain; `paths` noise samples of every point a step."""

    steps: int = count(1500)
    paths: int = count(2, 1, 10**5)
    learning_rate: float = positive(0.02)


@dataclass
class NoiselessSettings:
    """[noiseless]: Adam without noise."""

    steps: int = count(800)
    learning_rate: float = positive(0.02)


@dataclass
class CheckSettings:
    """[check]: paths for J, for gradients and of the SDE, snapshots along each training, and tolerances.

    excess: what the control's objective may exceed the stochastic training's by, relative;
    agreement: of J_pde with J_chain, relative; largest_step: of h |V W| in the noisy networks; the
    cross-check of a noiseless network beyond it is shown but not counted.
    """

    paths: int = count(4_000_000, 1000)
    gradient_paths: int = count(200_000, 1000)
    sde_paths: int = count(20_000, 1000)
    snapshots: int = count(8, 0, 1000)
    excess: float = number(0.01)
    agreement: float = number(0.01)
    largest_step: float = number(0.3)


@dataclass
class RunSettings:
    """[run]"""

    seed: int = setting(0, lambda v: 0 <= v < 2**31, "an integer from 0 to 2^31 - 1")
    backend: str = "auto"
    device: str = "auto"


@dataclass
class Config:
    """Everything a run depends on."""

    data: DataSettings = field(default_factory=DataSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    noise: dict[str, Any] = field(default_factory=lambda: {"kind": "bernoulli_dropout", "keep": 0.8})
    loss: dict[str, Any] = field(default_factory=lambda: {"kind": "logistic", "scale": 4.0})
    penalty: PenaltySettings = field(default_factory=PenaltySettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    stochastic: StochasticSettings = field(default_factory=StochasticSettings)
    noiseless: NoiselessSettings = field(default_factory=NoiselessSettings)
    check: CheckSettings = field(default_factory=CheckSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def datasets(self) -> tuple[Dataset, Dataset]:
        """Training and test set. Raises InputError that names the key or file."""
        settings = self.data
        if settings.file:
            if settings.kind:
                raise InputError("[data]: both kind and file are given, expected one of them")
            train = from_csv(settings.file)
            test = from_csv(settings.test_file) if settings.test_file else train
            if test.dim != train.dim:
                raise InputError(
                    f"{settings.test_file}: {test.dim} features, {settings.file} has {train.dim}"
                )
        else:
            kind, seed = settings.kind or "moons", self.run.seed
            train = data.synthetic(kind, settings.train, settings.noise, seed)
            test = data.synthetic(kind, settings.test, settings.noise, seed + 1_000_003)
        sizes.check(self, train, test)
        return train, test

    def problem(self, train: Dataset) -> Problem:
        """The training problem with freshly drawn initial weights."""
        n = self.network
        network = ResidualNetwork(train.dim, n.width, n.depth, n.horizon, n.activation, seed=self.run.seed)
        return checked(Problem(train, network, noise.from_settings(self.noise), make_loss(self.loss)))

    def validated(self) -> Config:
        """This configuration, once every value has been looked at. Raises InputError."""
        c = self.control
        if not c.iterations:
            raise InputError("[control]: iterations is empty, expected one number for each mesh")
        if c.cells and len(c.cells) != len(c.iterations):
            raise InputError(
                f"[control]: cells has {len(c.cells)} entries and iterations {len(c.iterations)}, "
                "expected as many"
            )
        for name, values in (("cells", c.cells), ("iterations", c.iterations)):
            for value in values:
                if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= 4096:
                    raise InputError(
                        f"[control]: {name} has {shown(value)}, expected integers from 2 to 4096"
                    )
        noise.from_settings(self.noise)
        make_loss(self.loss)
        self.images.check()
        return self

    def dumps(self) -> str:
        """This configuration as TOML, complete; reading it gives the same configuration."""
        tables = {
            name: {k: v for k, v in table.items() if v is not None}
            for name, table in dataclasses.asdict(self).items()
        }
        return tomli_w.dumps(tables)


#: what `--quick` changes: the same claims, checked at looser figures in well under a minute
QUICK: dict[str, dict[str, Any]] = {
    "network": {"depth": 20},
    "control": {"cells": [], "mesh_scale": 0.7, "iterations": [40, 15]},
    "stochastic": {"steps": 400, "learning_rate": 0.05},
    "noiseless": {"steps": 250, "learning_rate": 0.05},
    "check": {
        "paths": 400_000,
        "gradient_paths": 100_000,
        "sde_paths": 10_000,
        "snapshots": 3,
        "excess": 0.05,
        "agreement": 0.03,
    },
    "images": {"placements": ["output", "between"], "rates": [0.5], "seeds": 3, "epochs": 20},
}


def shipped() -> dict[str, Path]:
    """The configurations that come with Kolmo, by name."""
    folder = Path(str(resources.files("kolmo.experiments") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(path: str | Path) -> Config:
    """Read a configuration; a shipped one also by its bare name. Raises InputError in one line.

    Relative paths of data are taken from the file's own folder.
    """
    known = shipped()
    if str(path) == "":
        raise InputError("--config: empty, expected a TOML file or the name of a shipped configuration")
    path = Path(path)
    if not os.path.exists(path) and str(path).removesuffix(".toml") in known:
        path = known[str(path).removesuffix(".toml")]
    elif not os.path.exists(path):
        raise InputError(f"{path}: no such file, nor a shipped configuration{nearest(str(path), known)}")
    tables = toml.read(path)
    config = Config()
    names = [f.name for f in dataclasses.fields(config)]
    toml.check_keys(tables, names, str(path))
    for name in names:
        section = toml.section(tables, name, str(path))
        if name in ("noise", "loss"):
            if section:
                setattr(config, name, section)
        else:
            _fill(getattr(config, name), section, f"{path}: [{name}]")
    for table, key in (("data", "file"), ("data", "test_file"), ("images", "folder")):
        value = getattr(getattr(config, table), key)
        if "\0" in value:
            raise InputError(f"{path}: [{table}]: {key} is {shown(value)}, expected a file name")
        if value and not Path(value).is_absolute():
            setattr(getattr(config, table), key, str(path.absolute().parent / value))
    try:
        return config.validated()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


#: types of settings in words
_KINDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    float | None: "a number",
    str: "a text",
    list[int]: "a list of integers",
    list[float]: "a list of numbers",
    list[str]: "a list of texts",
}


def _fill(settings: Any, section: dict[str, Any], where: str) -> None:
    """Set a dataclass's fields from a table, checking names, types and ranges."""
    fields = {f.name: f for f in dataclasses.fields(settings)}
    hints = get_type_hints(type(settings))
    toml.check_keys(section, fields, where)
    for key, value in section.items():
        if hints[key] in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        listed = get_origin(hints[key]) is list
        if not isinstance(value, list if listed else hints[key]) or isinstance(value, bool):
            raise InputError(f"{where}: {key} is {shown(value)}, expected {_KINDS[hints[key]]}")
        metadata = fields[key].metadata
        if metadata and not metadata["check"](value):
            raise InputError(f"{where}: {key} is {shown(value)}, expected {metadata['expected']}")
        setattr(settings, key, value)


def quick(config: Config) -> Config:
    """A small version of the same configuration."""
    for section, changes in QUICK.items():
        for key, value in changes.items():
            setattr(getattr(config, section), key, value)
    return config
