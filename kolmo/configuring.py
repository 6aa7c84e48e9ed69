"""`kolmo config`: what can be set, what it is by default, and whether a file is right."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any, get_args, get_origin, get_type_hints

from kolmo import noise
from kolmo.case import LOSSES
from kolmo.config import Config, load, shipped
from kolmo.errors import InputError

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def command(options: argparse.Namespace) -> int:
    """Print the defaults, the schema or the verdict on a file. Raises InputError on a bad file."""
    chosen = [name for name in ("defaults", "schema", "check") if getattr(options, name) is not None]
    if len(chosen) != 1:
        raise InputError("config: expected one of --defaults, --schema and --check FILE")
    if options.defaults is not None:
        defaults = load(options.defaults)
        if options.json:
            print(json.dumps({"name": options.defaults, "config": dataclasses.asdict(defaults)}))
        else:
            print(defaults.dumps(), end="")
    elif options.schema is not None:
        print(json.dumps(schema(), indent=1))
    else:
        settings = load(options.check)
        if options.json:
            print(json.dumps({"file": options.check, "config": dataclasses.asdict(settings)}))
        else:
            print(f"{options.check}: fine; what it leaves out has its default")
    return 0


def schema() -> dict[str, Any]:
    """A configuration's JSON Schema (2020-12): tables, keys, types, ranges in words, defaults."""
    tables: dict[str, Any] = {}
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        kind = hints[field.name]
        tables[field.name] = _table(kind) if dataclasses.is_dataclass(kind) else _kinds(field.name)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "configuration of a Kolmo run",
        "description": f"TOML; shipped: {', '.join(shipped())}",
        "type": "object",
        "properties": tables,
        "additionalProperties": False,
    }


def _kinds(name: str) -> dict[str, Any]:
    """A table whose other keys depend on its kind."""
    known = sorted(noise.KINDS if name == "noise" else LOSSES)
    page = "docs/noise.md" if name == "noise" else "docs/input.md"
    return {
        "type": "object",
        "description": f"keys of each kind: {page}",
        "properties": {"kind": {"type": "string", "enum": known}},
        "default": getattr(Config(), name),
    }


def _table(kind: Any) -> dict[str, Any]:
    hints, made = get_type_hints(kind), kind()
    keys = {}
    for field in dataclasses.fields(kind):
        entry = _type(hints[field.name])
        expected = field.metadata.get("expected")
        if expected:
            entry["description"] = expected
        default = getattr(made, field.name)
        if default is not None:
            entry["default"] = default
        keys[field.name] = entry
    summary = " ".join((kind.__doc__ or "").split())
    return {"type": "object", "description": summary, "properties": keys, "additionalProperties": False}


def _type(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is list:
        return {"type": "array", "items": {"type": _TYPES[get_args(hint)[0]]}}
    # TOML has no null: an optional key is left out
    kinds = [k for k in get_args(hint) or (hint,) if k is not type(None)]
    return {"type": _TYPES[kinds[0]]}
