"""Tables of a page: claims, networks, cross-checks and the error budget, with verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kolmo.consistency import OneStep
from kolmo.experiments.claims import Claim
from kolmo.experiments.comparison import Comparison
from kolmo.experiments.crosscheck import Line
from kolmo.experiments.estimators import ESTIMATORS, SOURCES

#: verdicts that a reader must not miss
POOR = ("fails", "differ", "not explained")


@dataclass(frozen=True)
class Table:
    """A caption, the columns' names, and rows of texts, the first of which names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def shown(value: Any) -> str:
    """A cell as text: numbers with five digits, a dash for what there is not."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    return str(value)


def claims_table(claims: Sequence[Claim]) -> Table:
    """Every claim: measured, expected, and whether it holds."""
    rows = [[c.claim, "holds" if c.holds else "fails", shown(c.measured), shown(c.expected)] for c in claims]
    return Table("Claims, checked on this run", ["claim", "verdict", "measured", "expected"], rows)


def summary(claims: Sequence[Claim], status: str) -> str:
    """The verdict on all claims in one sentence."""
    if status != "finished":
        return f"This run was {status}: the page shows what was done before, and nothing is claimed."
    held = sum(c.holds for c in claims)
    if held == len(claims):
        return f"All {held} claims hold."
    return f"{held} of {len(claims)} claims hold, {len(claims) - held} fail."


def networks_table(measured: dict[str, dict[str, Any]]) -> Table:
    """One row for each trained network."""
    columns = [
        "network", "objective", "J by the equation", "J by the chain (±: 95%)", "loss, noise off",
        "test loss", "accuracy, training data", "accuracy, test data", "largest h |V W|",
    ]  # fmt: skip
    rows = []
    for name, m in measured.items():
        low, high = m["chain"]["interval"]
        rows.append(
            [
                name,
                f"{m['objective']:.4f}",
                f"{m['pde']['value']:.4f}",
                f"{m['chain']['value']:.4f} ± {(high - low) / 2:.0e}",
                f"{m['loss_without_noise']:.4f}",
                f"{m['test_loss']:.4f}",
                f"{m['train_accuracy']:.1%}",
                f"{m['test_accuracy']:.1%}",
                f"{m['largest_step']:.3f}",
            ]
        )
    return Table("Trained networks, under the noise unless said otherwise", columns, rows)


def cross_check_table(lines: Sequence[Line]) -> Table:
    """Equation against chain, value and gradient of every network."""
    rows = [
        [
            f"{x.network}, {x.quantity}",
            x.verdict.word,
            shown(x.pde),
            shown(x.chain),
            f"{abs(x.verdict.difference):.1e}",
            f"{x.verdict.tolerance:.1e}",
            x.verdict.reason,
        ]
        for x in lines
    ]
    columns = ["what", "verdict", "by the equation", "by the chain", "differ by", "may differ by", "because"]
    return Table("Cross-check (gradients: their norms, and the relative difference)", columns, rows)


def four_ways_table(comparisons: Mapping[str, Comparison]) -> Table:
    """J of every network by each estimator with its stated error, the verdict, and the largest z."""
    columns = ["network", "verdict", *(_WAYS[name] for name in ESTIMATORS), "largest z"]
    rows = []
    for name, found in comparisons.items():
        values = (_reached(found, estimator) for estimator in ESTIMATORS)
        rows.append([name, found.verdict[0], *values, f"{found.largest:.1f}"])
    return Table("J by four estimators (±: standard error, mesh, time and box, added up)", columns, rows)


def pairs_table(comparisons: Mapping[str, Comparison]) -> Table:
    """What is compared, pair by pair, then single steps of the network with the modified equation's."""
    columns = ["what", "verdict", "differ by", "may differ by", "z", "because"]
    rows = []
    for name, found in comparisons.items():
        for p in found.pairs:
            what = f"{name}, {_WAYS[p.first]} against {_WAYS[p.second]}"
            sizes = [f"{abs(p.difference):.1e}", f"{p.allowed:.1e}", f"{p.z:.1f}"]
            rows.append([what, "agree" if p.agree else "differ", *sizes, p.reason])
        if found.step is not None:
            word = "differ" if found.step.faults else "agree"
            because = "; ".join(found.step.faults) or _moments(found.step)
            rows.append([f"{name}, single steps", word, "-", "-", "-", because])
    return Table("The same pair by pair", columns, rows)


def _moments(step: OneStep) -> str:
    """Those that are larger than their sampling error."""
    found = {name: getattr(step, name) for name in ("drift", "correction", "covariance")}
    known = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if math.isfinite(value))
    return f"moments of the network over those of the modified equation: {known}"


def four_ways_summary(comparisons: Mapping[str, Comparison]) -> str:
    """The verdict on all networks in one sentence."""
    agree = sum(found.verdict[0] == "agree" for found in comparisons.values())
    refused = sum(len(found.refused) for found in comparisons.values())
    said = f"Four estimators: they agree for {agree} of {len(comparisons)} networks"
    if not refused:
        return f"{said}, none is refused."
    return f"{said}; {refused} {'estimate was' if refused == 1 else 'estimates were'} refused."


#: what each estimator is, above its column
_WAYS = {"pde": "equation", "chain": "chain", "sde": "SDE", "exact": "exact recursion"}


def _reached(found: Comparison, name: str) -> str:
    if name in found.refused:
        return f"refused: {found.refused[name]}"
    if name not in found.reached:
        return "-"
    one = found.reached[name]
    return f"{one.value:.5f} ± {one.standard_error + one.bound:.0e}"


def budget_table(measured: dict[str, dict[str, Any]], lines: Sequence[Line]) -> Table:
    """Estimated errors by source, and whether they explain the difference of the two values."""
    verdicts = {line.network: line.verdict for line in lines if line.quantity == "value"}
    rows = []
    for name, m in measured.items():
        sizes = {**m["pde"]["error"], "sampling": m["chain"]["error"]["sampling"]}
        verdict = verdicts.get(name)
        explained = "-" if verdict is None else "explained" if verdict.agree else "not explained"
        apart = abs(m["pde"]["value"] - m["chain"]["value"])
        rows.append([name, explained, f"{apart:.1e}", *(f"{sizes[source]:.1e}" for source in SOURCES)])
    columns = ["network", "difference", "|J_pde - J_chain|", *SOURCES]
    return Table("Error budget of J: estimates by source, absolute", columns, rows)


def study_tables(tables: Sequence[tuple[str, list[str], list[list[object]]]]) -> list[Table]:
    """The tables that an experiment prints."""
    return [
        Table(title, columns, [[shown(value) for value in row] for row in rows])
        for title, columns, rows in tables
        if rows
    ]
