"""Strengths that vary with depth: a constant, a line, stochastic depth's decay, or a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kolmo.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """A noise's strength in every layer.

    values: one number for all layers, or one for each. first, last: a line from layer 0 to
    layer L-1. last alone: a line from `neutral` (no noise) before layer 0 to `last` in layer L-1,
    so layer k has neutral + (k+1)/L (last - neutral): the linear decay of stochastic depth
    (Huang et al., 1603.09382).
    """

    name: str
    neutral: float
    values: tuple[float, ...] = ()
    first: float | None = None
    last: float = 0.0

    def at(self, layer: int, depth: int) -> float:
        """The strength in a layer; raises InputError where a list has not one entry for each layer."""
        if len(self.values) == 1:
            return self.values[0]
        if self.values:
            if len(self.values) != depth:
                raise InputError(f"{self.name}: {len(self.values)} values, the network has {depth} layers")
            return self.values[layer]
        if self.first is None:
            return self.neutral + (layer + 1) / depth * (self.last - self.neutral)
        return self.first + (layer / (depth - 1) if depth > 1 else 0.0) * (self.last - self.first)

    @property
    def settings(self) -> Any:
        """What problem.toml holds: a number, a list, or a table {first, last}."""
        if self.values:
            return self.values[0] if len(self.values) == 1 else list(self.values)
        table = {} if self.first is None else {"first": self.first}
        return {**table, "last": self.last}


def schedule(
    value: Any, name: str, neutral: float, valid: Callable[[float], bool], expected: str
) -> Schedule:
    """A schedule from what a user wrote; raises InputError that names the key.

    value: a number, a list of numbers (one for each layer), a table {first, last} or {last}, or a
    ready Schedule.
    """
    if isinstance(value, Schedule):
        value = value.settings

    def checked(number: Any) -> float:
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not valid(number):
            raise InputError(f"{name}: {number!r} is not {expected}")
        return float(number)

    if isinstance(value, Mapping):
        if "last" not in value or not set(value) <= {"first", "last"}:
            raise InputError(f"{name}: {dict(value)!r} is no schedule, expected keys first and last, or last")
        first = checked(value["first"]) if "first" in value else None
        return Schedule(name, neutral, first=first, last=checked(value["last"]))
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1:
        return Schedule(name, neutral, values=tuple(checked(v) for v in value))
    return Schedule(name, neutral, values=(checked(value),))


def probability(value: Any, name: str = "noise.keep") -> Schedule:
    """Probabilities in (0, 1]."""
    return schedule(value, name, 1.0, lambda v: 0 < v <= 1, "a probability in (0, 1]")


def strength(value: Any, name: str) -> Schedule:
    """Finite numbers >= 0."""
    return schedule(value, name, 0.0, lambda v: 0 <= v < float("inf"), "a finite number >= 0")
