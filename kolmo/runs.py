"""Run folders: from its first moment one holds all that is needed to go on after kill -9.

`run.json` tells what it is a run of: the experiment, its complete configuration, and the versions it
was begun with. It is written first, in one piece; `config.toml` is the same configuration for people.
`checkpoint/` holds the parts that are done (see `kolmo.checkpoint`). `results.json` is written last, and
the checkpoint removed after it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kolmo import __version__
from kolmo import config as configuration
from kolmo.checkpoint import Memo
from kolmo.config import Config
from kolmo.device import resolve as resolve_device
from kolmo.errors import InputError, KolmoError
from kolmo.files import check_output, output_folder, sweep, write_json, write_text

#: file systems without locks (some on clusters) answer so: there nobody stops a second process
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass
class Run:
    """An open run folder; nobody else can open it before this `with` or this process ends."""

    folder: Path
    name: str
    quick: bool
    config: Config
    memo: Memo
    lock: int

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.lock)

    @property
    def there(self) -> bool:
        """Whether the folder still is what it was."""
        return (self.folder / "run.json").is_file()

    def conclude(self) -> None:
        """The run is finished and written: its checkpoint has served."""
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)  # left behind it harms nobody


def begin(folder: str | Path, overwrite: bool, name: str, quick: bool, config: Config) -> Run:
    """Make the folder of a new run. Raises InputError where it may not be reused or cannot be made."""
    folder = Path(folder)
    check_output(folder, overwrite)
    content = {
        "experiment": name,
        "quick": quick,
        "circumstances": _circumstances(config),
        "inputs": _inputs(config),
        "config": config.dumps(),
    }
    if folder.is_dir():
        lock = _lock(folder)
        # first what would make a run of the remains: results, then the parts
        (folder / "results.json").unlink(missing_ok=True)
        for part in (folder / "checkpoint").glob("*.npz"):
            part.unlink()
        sweep(folder)
        _tell(folder, content)
    else:
        _appear(folder, content)
        lock = _lock(folder)
    return Run(folder, name, quick, config, Memo(folder / "checkpoint"), lock)


def _appear(folder: Path, content: dict[str, Any]) -> None:
    """Make a folder that is a run's as soon as it is there."""
    parent = output_folder(folder.parent, overwrite=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            _tell(made, content)
            made.replace(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from error


def _tell(folder: Path, content: dict[str, Any]) -> None:
    """What the folder is a run of: first for us, then for people."""
    write_json(folder / "run.json", content)
    write_text(folder / "config.toml", content["config"])


def command(folder: str | Path, name: str) -> str:
    """What resumes a run, as one types it."""
    verb = "reproduce" if name == "binary_classification" else f"experiment {name}"
    return f"kolmo {verb} --resume {folder}"


def finished(folder: str | Path, name: str) -> dict[str, Any] | None:
    """results.json of a run that came to its end, else None; raises InputError unless it is one of `name`."""
    _begun(folder, name)
    path = Path(folder) / "results.json"
    results = _read(path, "status", "claims") if path.exists() else {"status": "not written"}
    return results if results["status"] == "finished" else None


def resume(folder: str | Path, name: str) -> Run:
    """Open the folder of a run that did not come to its end.

    Raises InputError where it is not a run of this experiment or was begun with other versions, where its
    settings or data have changed since, its checkpoint is damaged, or another process works on it.
    """
    folder, kept = Path(folder), _begun(folder, name)
    lock = _lock(folder)
    try:
        run = Run(folder, name, kept["quick"], _unchanged(folder, kept), Memo(folder / "checkpoint"), lock)
    except KolmoError:
        os.close(lock)
        raise
    sweep(folder)
    return run


def _unchanged(folder: Path, kept: dict[str, Any]) -> Config:
    """The settings of a run; raises InputError where something that its figures depend on has changed."""
    path = folder / "config.toml"
    if not path.exists():  # killed before it was written
        write_text(path, kept["config"])
    config = configuration.load(path)
    if config.dumps() != kept["config"]:
        raise InputError(f"{path}: changed since the run was begun; begin another with --config {path}")
    now, then = _circumstances(config), kept["circumstances"]
    for what in sorted({*now, *then}):
        here, before = now.get(what, "missing"), then.get(what, "missing")
        if here != before:
            raise InputError(f"{folder}: {what} is {here}, was {before} when the run was begun; begin anew")
    for file, digest in _inputs(config).items():
        if kept["inputs"].get(file) != digest:
            raise InputError(f"{file}: changed since the run in {folder} was begun; begin anew")
    return config


def _begun(folder: str | Path, name: str) -> dict[str, Any]:
    """run.json of a run of this experiment."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: not a directory; --resume takes the folder of an earlier run")
    kept = _read(folder / "run.json", "experiment", "quick", "circumstances", "inputs", "config")
    found = kept["experiment"]
    if found != name:
        raise InputError(f"{folder}: a run of {found}, not of {name}; take {command(folder, found)}")
    return kept


def _read(path: Path, *keys: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in keys}
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: not the folder of a run, it has no {path.name}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: damaged, not what a run writes there") from error


def _circumstances(config: Config) -> dict[str, str]:
    """What figures depend on besides the settings, as far as it can be told."""
    return {**versions(), "device": resolve_device(config.run.device)}


def _inputs(config: Config) -> dict[str, str]:
    """SHA-256 of the data files that a configuration names."""
    files = [path for path in (config.data.file, config.data.test_file) if path]
    try:
        return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _lock(folder: Path) -> int:
    """A lock on the folder that ends with this process, however it ends."""
    path = output_folder(folder / "checkpoint", overwrite=True) / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(lock)
            raise InputError(f"{folder}: another process is at work on this run") from error
    return lock


def versions() -> dict[str, str]:
    """What a run's figures are made with."""
    import scipy
    import skfem

    from kolmo.pde.dolfinx_compat import unavailable

    found = {
        "kolmo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-fem": skfem.__version__,
    }
    if unavailable() is None:
        import dolfinx

        found["dolfinx"] = dolfinx.__version__
    return found
