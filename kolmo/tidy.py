"""Results as tidy CSV: one line a value, with columns table, row, column, value.

    lines = pandas.read_csv("tables.csv").query("table == 'networks'")
    lines.pivot(index="row", columns="column", values="value")

A run's `tables.csv` has the tables that it prints, cell by cell as printed, the claims, and behind them the
numbers of results.json at full precision: there `table` is the name at the top, `column` the last one, and
`row` what is between them, joined by slashes. Series longer than SERIES stay in results.json alone, and so do
seconds: two runs with the same settings have the same file.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kolmo.experiments.claims import Claim
from kolmo.files import write_text

if TYPE_CHECKING:
    from kolmo.experiments.binary_classification import BinaryClassification
    from kolmo.experiments.study import Study

NAME = "tables.csv"
#: entries of the longest list that is written
SERIES = 100
#: what wall times are called
_CLOCK = "seconds"
_COLUMNS = ("table", "row", "column", "value")

#: table, row, column, value
Line = tuple[str, str, str, Any]


def of_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[Line]:
    """A printed table, cell by cell; a row is named by as many of its first cells as tell all rows apart."""
    keys = next((n for n in range(1, len(columns)) if len({tuple(r[:n]) for r in rows}) == len(rows)), 1)
    for row in rows:
        name = ", ".join(str(cell) for cell in row[:keys])
        for column, cell in zip(columns[keys:], row[keys:], strict=True):
            if column != _CLOCK:
                yield title, name, column, cell


def of_results(content: dict[str, Any]) -> Iterator[Line]:
    """The numbers in nested dictionaries and lists, at full precision; texts are left out."""
    for path, value in _leaves(content, ()):
        table, *between = path
        yield table, "/".join(between[:-1]), between[-1] if between else "", value


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == _CLOCK:
                continue
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        if len(value) <= SERIES:
            for index, inner in enumerate(value):
                yield from _leaves(inner, (*path, str(index)))
    elif isinstance(value, (bool, int, float, np.generic)):
        yield path, value


def text(lines: Iterable[Line]) -> str:
    """The CSV; a float with as many digits as give it back exactly, what is not finite as nan and inf."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for table, row, column, value in lines:
        writer.writerow((table, row, column, _cell(value)))
    return stream.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "" if value is None else str(value)


def of_claims(claims: Sequence[Claim]) -> Iterator[Line]:
    """What was measured and expected, and whether it holds."""
    for claim in claims:
        for column in ("measured", "expected", "holds"):
            yield "claims", claim.claim, column, getattr(claim, column)


def of_study(study: Study) -> Iterator[Line]:
    """The tables of an experiment and its numbers."""
    for title, columns, rows in study.tables():
        yield from of_table(title, columns, rows)
    yield from of_results(study.results())


def of_run(run: BinaryClassification) -> Iterator[Line]:
    """The main job's numbers: networks, cross-checks, conditions of the optimum; the four ways' verdicts."""
    checks = {f"{line.network}/{line.quantity}": line.as_dict() for line in run.lines}
    four = {name: found.as_dict() for name, found in run.comparisons.items()}
    numbers = {"networks": run.measured, "checks": checks, "comparisons": four, "optimality": run.optimality}
    yield from of_results(numbers)
    for name, found in run.comparisons.items():
        yield "comparisons", name, "verdict", found.verdict[0]
        for estimator, reason in found.refused.items():
            yield "comparisons", f"{name}/refused", estimator, reason


def beside(write: Callable[..., None], lines: Callable[[Any], Iterable[Line]]) -> Callable[..., None]:
    """`write(what, claims, folder, ...)` of a run, with tables.csv before it: results.json stays last."""

    def both(what: Any, claims: list[Claim], folder: Path, **more: Any) -> None:
        write_text(folder / NAME, text([*lines(what), *of_claims(claims)]))
        write(what, claims, folder, **more)

    return both
