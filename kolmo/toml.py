"""TOML files read into settings, with every unknown key named.

The parser trusts its input: thousands of nested brackets exhaust its stack, and it takes quadratic time
for a key of thousands of parts. Settings are small and flat, and what is not is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kolmo import reading
from kolmo.errors import InputError
from kolmo.text import nearest, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: bytes of the longest file: a schedule with ten thousand numbers fits
LONGEST = 2**18
#: dots in a line that are no number's: a key of as many parts is read in no time
_DOTS = 32
_NUMBER = re.compile(r"(?<![\w.-])[+-]?\d[\d_]*\.\d[\d_]*(?:[eE][+-]?\d+)?(?![\w.])")


def read(path: str | Path) -> dict[str, Any]:
    """The file's tables; raises InputError in one line where it cannot be read."""
    raw = reading.content(path, LONGEST, "settings")
    try:
        text = raw.decode()
        for number, line in enumerate(_NUMBER.sub("", text).split("\n"), start=1):
            if line.count(".") > _DOTS:
                raise InputError(f"{path}, line {number}: more than {_DOTS} dots, expected keys of few parts")
        tables = tomllib.loads(text)
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {number}: not UTF-8 text, expected TOML") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from error
    except InputError:
        raise
    except ValueError as error:  # TOMLDecodeError, and integers of more digits than Python reads
        raise InputError(f"{path}: not valid TOML: {error}") from error
    _check_integers(tables, path)
    return tables


def _check_integers(tables: dict[str, Any], path: str | Path) -> None:
    """TOML's integers have 64 bits; Python reads any, and fails to make a float of some."""
    todo: list[tuple[str, Any]] = list(tables.items())
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            todo += value.items()
        elif isinstance(value, list):
            todo += [(key, entry) for entry in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{path}: {key} has an integer of more than 64 bits")


def check_keys(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise InputError for the first key that is not known, with the nearest right one."""
    for key in table:
        if key not in known:
            raise InputError(f"{where}: unknown key {shown(key)}{nearest(key, known)}")


def section(tables: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The table called `name`, empty where absent; raises InputError where it is no table."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{where}: {name} is {shown(table)}, expected a table [{name}]")
    return dict(table)
