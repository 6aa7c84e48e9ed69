"""What a run has found, as it is kept in results.json and printed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from kolmo.benchmarks.targets import TARGETS
from kolmo.benchmarks.timing import Timing, ratio


@dataclass
class Results:
    """Timings by case and contender, ratios by key, and why what is missing is missing."""

    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    scaling: dict[str, Any] = field(default_factory=dict)

    def add(self, case: str, timings: dict[str, Timing], absent: dict[str, str]) -> None:
        """The timings of a case, and the contenders that had none, as case/contender."""
        self.timings.setdefault(case, {}).update(timings)
        self.missing.update({f"{case}/{name}": reason for name, reason in absent.items()})

    def compare(self, key: str, case: str, above: str, below: str, note: str) -> None:
        """The ratio of two contenders of a case; where one is missing the key is, for the same reason.

        A key without a target is listed beside those that have one.
        """
        for name in (above, below):
            if name not in self.timings.get(case, {}):
                self.missing[key] = self.missing.get(f"{case}/{name}", f"{case}/{name} was not timed")
                return
        timings = self.timings[case]
        self.ratios[key], self.spreads[key] = ratio(timings[above], timings[below])
        self.notes[key] = note

    def others(self) -> list[str]:
        """Keys of ratios without a target."""
        return [key for key in self.ratios if key not in TARGETS]

    def error(self, case: str, name: str) -> str:
        """|J - J_ref| of a contender in words, for notes."""
        found = self.errors.get(case, {}).get(name)
        return "?" if found is None else f"{abs(found):.1e}"

    def ok(self, keys: list[str]) -> bool:
        """Whether every key was measured and met its target."""
        return all(key in self.ratios and TARGETS[key].met(self.ratios[key]) for key in keys)

    def as_json(self, keys: list[str]) -> dict[str, Any]:
        """The part of results.json that was measured. seconds are medians; numbers of 5 digits are enough."""
        table, shown = self.timings.items(), [*keys, *self.others()]
        return {
            "seconds": {c: {n: _short(t.median) for n, t in found.items()} for c, found in table},
            "quartiles": {
                c: {n: [_short(q) for q in t.quartiles] for n, t in found.items()} for c, found in table
            },
            "repetitions": {c: {n: len(t.seconds) for n, t in found.items()} for c, found in table},
            "memory_MiB": {
                c: {n: round(t.memory, 1) for n, t in found.items() if t.memory is not None}
                for c, found in table
            },
            "errors": {c: {n: _short(e) for n, e in found.items()} for c, found in self.errors.items()},
            "ratios": {key: _short(self.ratios[key]) for key in shown if key in self.ratios},
            "ratio_quartiles": {
                key: [_short(v) for v in self.spreads[key]] for key in shown if key in self.spreads
            },
            "targets": {
                key: {
                    "bound": "at least" if TARGETS[key].least else "at most",
                    "target": TARGETS[key].target,
                    "stretch": TARGETS[key].stretch,
                    "verdict": self.verdict(key),
                    "note": self.notes.get(key, ""),
                }
                for key in keys
            },
            "missing": self.missing,
            "scaling": self.scaling,
        }

    def verdict(self, key: str) -> str:
        return TARGETS[key].verdict(self.ratios[key]) if key in self.ratios else "missing"

    def ratio_rows(self, keys: list[str]) -> list[tuple[str, ...]]:
        """key, ratio, quartiles, target, stretch, verdict."""
        rows: list[tuple[str, ...]] = []
        for key in [*keys, *self.others()]:
            shown, spread = "-", ""
            if key in self.ratios:
                shown = f"{self.ratios[key]:.3g}"
            if key in self.spreads:
                spread = "{:.3g}..{:.3g}".format(*self.spreads[key])
            if key in TARGETS:
                target = TARGETS[key]
                rows.append((key, shown, spread, target.bound, f"{target.stretch:g}", self.verdict(key)))
            else:
                rows.append((key, shown, spread, "", "", ""))
        return rows

    def timing_rows(self) -> list[tuple[str, ...]]:
        """case, contender, median, quartiles, repetitions, memory, error of J."""
        rows: list[tuple[str, ...]] = []
        for case, found in self.timings.items():
            for name, t in found.items():
                low, high = t.quartiles
                memory = "" if t.memory is None else f"{t.memory:.0f}"
                error = self.errors.get(case, {}).get(name)
                rows.append(
                    (
                        case,
                        name,
                        seconds(t.median),
                        f"{seconds(low)}..{seconds(high)}",
                        str(len(t.seconds)),
                        memory,
                        "" if error is None else f"{error:+.1e}",
                    )
                )
        return rows


def seconds(value: float) -> str:
    """Three digits with a unit."""
    if value >= 1 or value == 0:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def _short(value: float) -> float:
    """Five significant digits."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in results.json")
    return float(f"{value:.5g}")
