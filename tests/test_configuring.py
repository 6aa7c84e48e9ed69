"""`kolmo config`: defaults that read back, a schema of all keys, verdicts on files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kolmo import cli, config, noise
from kolmo.configuring import schema


def test_defaults_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in config.shipped():
        assert cli.main(["config", "--defaults", name]) == 0
        path = tmp_path / f"{name}.toml"
        path.write_text(capsys.readouterr().out)
        assert config.load(path) == config.load(name)
        assert cli.main(["config", "--check", str(path)]) == 0
        assert capsys.readouterr().out.startswith(f"{path}: fine")


def test_the_schema_has_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--schema"]) == 0
    tables = json.loads(capsys.readouterr().out)["properties"]
    settings = dataclasses.asdict(config.Config())
    assert set(tables) == set(settings)
    types = {"integer": int, "number": (int, float), "string": str, "array": list, "boolean": bool}
    for name, table in settings.items():
        if name in ("noise", "loss"):
            continue
        assert set(tables[name]["properties"]) == set(table)
        for key, value in table.items():
            entry = tables[name]["properties"][key]
            assert value is None or (entry["default"] == value and isinstance(value, types[entry["type"]]))
    assert set(tables["noise"]["properties"]["kind"]["enum"]) == set(noise.KINDS)
    assert schema()["additionalProperties"] is False


def test_a_wrong_file_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("[network]\nwidht = 3\n")
    assert cli.main(["config", "--check", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wrong.toml: [network]: unknown key 'widht'; did you mean 'width'" in error
    assert cli.main(["config"]) == 2
    assert "expected one of --defaults, --schema and --check FILE" in capsys.readouterr().err


def test_a_checked_file_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[network]\nwidth = 3\n")
    assert cli.main(["config", "--check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["network"]["width"] == 3
