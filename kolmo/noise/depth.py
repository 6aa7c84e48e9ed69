"""Stochastic depth: whole blocks dropped at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import Jet, ScaledJet
from kolmo.noise.base import LinearNoise
from kolmo.noise.law import Law, TwoPoint
from kolmo.noise.masks import Masked
from kolmo.noise.structure import RankOne, Structure
from kolmo.text import nearest

_SCALINGS, _PER = ("inverted", "test_time"), ("sample", "batch")


class StochasticDepth(Masked):
    r"""A block is kept with probability p: one eta ~ B(p) for each sample (or batch) and layer.

    scaling 'inverted': increment h f eta / p, m = f, C = (1-p)/p f f^T; 'test_time' (as published):
    increment h f eta, m = p f, C = p (1-p) f f^T. per 'sample', or 'batch': all points of one pass over
    the data share eta, which leaves J alone and makes its estimate noisier. D = 0.
    In torch: x + h * f(x) * F.dropout(torch.ones(len(x), 1), 1 - keep), or torch.ones(1, 1) per batch.
    keep: survival probability p in (0, 1], or a schedule; {last = 0.5} is the published linear decay.
    Source: Huang et al., 1603.09382.
    """

    kind = "stochastic_depth"

    def __init__(self, keep: Any, scaling: str = "inverted", per: str = "sample") -> None:
        super().__init__(keep)
        for name, value, known in (("scaling", scaling, _SCALINGS), ("per", per, _PER)):
            if value not in known:
                raise InputError(f"noise.{name}: {value!r} is unknown{nearest(str(value), known)}")
        self.scaling, self.per = scaling, per
        self.shared = per == "batch"

    def mean(self, jet: Jet) -> Jet:
        if self.scaling == "inverted":
            return jet
        kept = [self.keep.at(k, jet.depth) for k in jet.layers]
        return ScaledJet(jet, torch.tensor(kept, dtype=torch.float64).to(jet.value))

    def strength_of(self, variance: float) -> float:
        if self.scaling == "inverted":
            return super().strength_of(variance)
        return LinearNoise.strength_of(self, variance)  # the mean depends on the strength, too

    def variance_at(self, strengths: Tensor) -> Tensor:
        if self.scaling == "inverted":
            return super().variance_at(strengths)
        return strengths * (1 - strengths)

    def mean_at(self, strengths: Tensor) -> Tensor | None:
        return None if self.scaling == "inverted" else strengths

    def law(self, layer: int, depth: int) -> Law:
        if self.scaling == "inverted":
            return super().law(layer, depth)
        return TwoPoint(self.keep.at(layer, depth), 1.0)

    def spread(self, jet: Jet) -> Structure:
        return RankOne(jet.value)

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if self.scaling != "inverted":
            given["scaling"] = self.scaling
        if self.per != "sample":
            given["per"] = self.per
        return given
