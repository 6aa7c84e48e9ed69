"""TOML files read into settings, with every unknown key named."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kolmo.errors import InputError
from kolmo.text import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(path: str | Path) -> dict[str, Any]:
    """The file's tables; raises InputError in one line where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def check_keys(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise InputError for the first key that is not known, with the nearest right one."""
    for key in table:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def section(tables: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The table called `name`, empty where absent; raises InputError where it is no table."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{where}: {name} is {table!r}, expected a table [{name}]")
    return dict(table)
