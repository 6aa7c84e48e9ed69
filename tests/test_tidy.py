"""Tidy CSV: every number of a table in a line of its own, none rounded, none lost."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import problem

from kolmo import case, tidy
from kolmo.cli import main


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


_NUMBERS = st.recursive(
    st.floats() | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('ab,"\n/é', min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(content=st.dictionaries(st.sampled_from(["networks", "checks"]), _NUMBERS))
def test_every_number_comes_back(content: dict[str, object]) -> None:
    """As many lines as numbers, in order, bit by bit, whatever the names are."""

    def numbers(value: object) -> list[object]:
        if isinstance(value, (dict, list)):
            inner = value.values() if isinstance(value, dict) else value
            return [n for v in inner for n in numbers(v)]
        return [value]

    lines = read(tidy.text(tidy.of_results(content)))
    for line, number in zip(lines, numbers(content), strict=True):
        if isinstance(number, bool):
            assert line["value"] == ("true" if number else "false")
        elif isinstance(number, float):
            assert np.array_equal(float(line["value"]), number, equal_nan=True)
        else:
            assert int(line["value"]) == number


def test_names() -> None:
    """First the table, last the column; long series, texts and wall times are left out."""
    content = {
        "networks": {"control": {"pde": {"value": np.float64(0.1)}, "interval": [1, 2]}},
        "curve": list(range(tidy.SERIES + 1)),
        "name": "text",
        "seconds": {"total": 3.0},
        "J": 0.25,
        "own": {"seconds": 1.0, "array": np.arange(2)},
    }
    assert list(tidy.of_results(content)) == [
        ("networks", "control/pde", "value", 0.1),
        ("networks", "control/interval", "0", 1),
        ("networks", "control/interval", "1", 2),
        ("J", "", "", 0.25),
        ("own", "array", "0", 0),
        ("own", "array", "1", 1),
    ]


def test_rows_of_a_table_are_told_apart() -> None:
    """By as many cells as it takes; what is left are the columns, but for the clock's."""
    rows = [["a", "one", 1, 0.5], ["a", "two", 2, 0.5], ["b", "one", 3, 0.5]]
    assert list(tidy.of_table("t", ["case", "method", "n", "seconds"], rows)) == [
        ("t", "a, one", "n", 1),
        ("t", "a, two", "n", 2),
        ("t", "b, one", "n", 3),
    ]
    assert [line[1] for line in tidy.of_table("t", ["seed", "x"], [[0, 1], [1, 1]])] == ["0", "1"]


def test_evaluate_and_compare_write_it(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    """--csv has the numbers of --json."""
    case.save(problem(1, depth=4), tmp_path / "case")
    short = [
        str(tmp_path / "case"),
        "--estimator",
        "pde,chain",
        "--paths",
        "2000",
        "--cells",
        "256",
        "--json",
    ]
    for command, table, row in (("evaluate", "estimates", "chain"), ("compare", "case", "estimates/chain")):
        path = tmp_path / f"{command}.csv"
        assert main([command, *short, "--csv", str(path)]) == 0
        told = json.loads(capsys.readouterr().out)
        estimates = told["estimates"] if command == "evaluate" else told["cases"]["case"]["estimates"]
        lines = {(x["table"], x["row"], x["column"]): x["value"] for x in read(path.read_text())}
        assert float(lines[table, row, "value"]) == estimates["chain"]["value"]
        assert int(lines[table, row, "paths"]) == 2000
    assert main(["compare", *short, "--csv", str(tmp_path / "no" / "file.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_has_it(tmp_path: Path) -> None:
    """tables.csv of an experiment: its printed table, its claims, and its numbers as in results.json."""
    out = tmp_path / "run"
    main(["experiment", "overfitting", "--quick", "--quiet", "--json", "--out", str(out)])
    results = json.loads((out / "results.json").read_text())
    lines = read((out / tidy.NAME).read_text())
    claimed = {x["row"]: x["value"] for x in lines if x["table"] == "claims" and x["column"] == "holds"}
    assert claimed == {c["claim"]: str(c["holds"]).lower() for c in results["claims"]}
    assert any(x["table"].startswith("test loss") for x in lines)
    numbers = {(x["row"], x["column"]): float(x["value"]) for x in lines if x["table"] == "losses"}
    assert numbers["0/stochastic", "test"] == results["losses"][0]["stochastic"]["test"]
