"""What all Bernoulli masks share: the probability that a unit is kept, and the law of eta/p - 1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kolmo.noise.base import LinearNoise
from kolmo.noise.law import Law, TwoPoint
from kolmo.noise.schedule import probability


class Masked(LinearNoise):
    """Units times eta / p, eta ~ B(p). keep: p in (0, 1], or a schedule; raises InputError."""

    def __init__(self, keep: Any) -> None:
        self.keep = probability(keep)

    strength = "keep"

    def law(self, layer: int, depth: int) -> Law:
        p = self.keep.at(layer, depth)
        return TwoPoint(p, 1 / p)

    def strength_of(self, variance: float) -> float:
        return 1 / (1 + variance)

    def variance_at(self, strengths: Tensor) -> Tensor:
        return (1 - strengths) / strengths

    def settings(self) -> dict[str, Any]:
        return {"keep": self.keep.settings}
