"""Tables and live progress on a terminal (rich); plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kolmo.experiments.claims import Claim

if TYPE_CHECKING:
    from kolmo.experiments.crosscheck import Line

#: least seconds between two lines of a stage in a log
LOG_INTERVAL = 5.0


@lru_cache(maxsize=2)
def console(stderr: bool = False) -> Console:
    """Standard output, or standard error for progress."""
    tty = sys.stdout.isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=not tty, width=None if tty else 100)


class LiveProgress:
    """A bar per stage on a terminal; plain lines in a log, of each finished stage and in a long one every
    LOG_INTERVAL seconds at most; nothing when quiet. A terminal that cannot move its cursor is a log."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = console(stderr=True)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=quiet or not self._live,
        )
        self._task: Any = None
        self._stage, self._note = "", ""
        self._done, self._total, self._told = 0, 0, 0.0

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self._bars.stop()

    def _finish(self) -> None:
        if self._task is not None:
            # an optimiser may stop before its limit: the bar should not wait for the rest
            self._bars.update(self._task, total=self._bars.tasks[self._task].completed or 1)
        if self._stage:
            self._log(self._note)
        self._stage = ""

    def _log(self, text: str) -> None:
        self._told = time.monotonic()
        if not self._quiet and not self._live:
            self._console.print(f"{self._stage}: {text}", markup=False)

    def start(self, stage: str, total: int) -> None:
        """A new stage of `total` steps."""
        self._finish()
        self._stage, self._note = stage, ""
        self._done, self._total, self._told = 0, total, time.monotonic()
        self._task = self._bars.add_task(stage, total=total, note="")

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Some steps of the stage are done."""
        self._note = note or self._note
        self._done += steps
        if time.monotonic() - self._told >= LOG_INTERVAL:
            self._log(f"{self._done}/{self._total} {self._note}".rstrip())
        self._bars.update(self._task, advance=steps, note=note)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    return str(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for index, column in enumerate(columns):
        text = any(isinstance(row[index], str) and len(row[index]) > 20 for row in rows)
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=not text)
    for row in rows:
        table.add_row(*(_number(value) for value in row))
    console().print(table)


def print_networks(measured: dict[str, dict[str, Any]]) -> None:
    """One row for each trained network."""
    columns = ["network", "objective", "J pde", "J chain", "+-", "noise off", "test J", "accuracy"]
    rows = [
        (
            name,
            f"{m['objective']:.4f}",
            f"{m['pde']['value']:.4f}",
            f"{m['chain']['value']:.4f}",
            f"{(m['chain']['interval'][1] - m['chain']['interval'][0]) / 2:.0e}",
            f"{m['loss_without_noise']:.4f}",
            f"{m['test_loss']:.4f}",
            f"{m['train_accuracy']:.3f}/{m['test_accuracy']:.3f}",
        )
        for name, m in measured.items()
    ]
    print_table("trained networks (J: loss under the noise, +-: 95%, accuracy: train/test)", columns, rows)


def print_lines(lines: Sequence[Line]) -> None:
    """The cross-check, one verdict a line; the stated error's parts are in results.json."""
    rows = [
        (
            x.network,
            x.quantity,
            x.pde,
            x.chain,
            f"{x.verdict.difference:.1e}",
            f"{x.verdict.tolerance:.1e}",
            x.verdict.word,
        )
        for x in lines
    ]
    columns = ("network", "quantity", "pde", "chain", "differ by", "stated", "verdict")
    print_table("cross-check (gradients: norms, and the relative difference)", columns, rows)


def print_optimality(found: dict[str, Any]) -> None:
    """Pontryagin's conditions of the control network in one line, verdict first."""
    if found["verdict"] == "refused":
        console().print(f"control, Pontryagin's conditions: refused, {found['reason']}")
        return
    relative = found["projected_gradient"] / found["relative_to"]
    curvatures = ", ".join(f"{value:.3g}" for value in found["eigenvalues"])
    console().print(
        f"control, Pontryagin's conditions: {found['verdict']}; projected gradient "
        f"{found['projected_gradient']:.1e}, {relative:.1e} of J's own; residual of a layer up to "
        f"{max(found['residual']):.1e}; H from {min(found['hamiltonian']):.4f} to "
        f"{max(found['hamiltonian']):.4f}; leading curvatures {curvatures}"
    )


def print_comparison(found: dict[str, dict[str, Any]], names: Sequence[str], what: str = "case") -> None:
    """One row for each case: J by each estimator, the largest z-score, the verdict; then reasons.

    what: a case is called.
    """
    rows = []
    for name, one in found.items():
        scores = [math.inf if p["z"] is None else p["z"] for p in one.get("pairs", [])]
        largest = f"{max(scores):.1f}" if scores else ""
        rows.append([name, *(_estimate(one, estimator) for estimator in names), largest, one["verdict"]])
    title = "J by each estimator (stated error in the last digit); z: what errors do not explain"
    print_table(title, [what, *names, "z", "verdict"], rows)
    for name, one in found.items():
        if one["verdict"] != "agree":
            console().print(f"{name}: {one['reason']}")
        for estimator, reason in one.get("refused", {}).items():
            console().print(f"{name}, {estimator} refused: {reason}")


def _estimate(one: dict[str, Any], name: str) -> str:
    if name in one.get("refused", {}):
        return "refused"
    if name not in one.get("estimates", {}):
        return ""
    found = one["estimates"][name]
    return _with_error(
        found["value"], found.get("standard_error", 0.0) + sum(found.get("error", {}).values())
    )


def _with_error(value: float, error: float) -> str:
    """0.1239(2) for 0.12391 +- 0.0002: the error, rounded up, in units of the last digit shown."""
    if not error > 0:
        return f"{value:.6f}"
    digits = max(0, min(9, -math.floor(math.log10(error))))
    return f"{value:.{digits}f}({math.ceil(error * 10**digits - 1e-9)})"


def print_claims(claims: Sequence[Claim]) -> None:
    """Claims with what was measured and expected."""
    rows = [(c.claim, c.measured, c.expected, "holds" if c.holds else "FAILS") for c in claims]
    print_table("claims", ("claim", "measured", "expected", ""), rows)
