"""What a visitor of the page can choose, its ranges, and the problem that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from kolmo import data, noise
from kolmo.errors import InputError
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.problem import Problem
from kolmo.text import nearest, shown

#: data sets of the plane, as `kolmo.data.KINDS` names them
DATA = ("moons", "circles", "blobs", "xor", "spirals")


def _gaussian_dropout(rate: float) -> Noise:
    """Its variance is that of Bernoulli dropout at this rate (Srivastava et al., JMLR 15, 2014)."""
    return noise.GaussianDropout(math.sqrt(rate / (1 - rate)))


#: noises by the name that the page shows, made of one number in [0, 1): the share of what is dropped, or
#: the strength s of an injection
NOISES: dict[str, Callable[[float], Noise]] = {
    "dropout, output": lambda rate: noise.BernoulliDropout(1 - rate),
    "dropout, hidden units": lambda rate: noise.HiddenDropout(1 - rate),
    "stochastic depth": lambda rate: noise.StochasticDepth(1 - rate),
    "Gaussian dropout": _gaussian_dropout,
    "Gaussian injection": noise.GaussianInjection,
}
#: strengths of the noise that the page's slider has, from none on
RATES = tuple(round(0.05 * k, 2) for k in range(15))

#: (least, most) of every number
RANGES: dict[str, tuple[float, float]] = {
    "points": (20, 400),
    "rate": (RATES[0], RATES[-1]),
    "depth": (4, 40),
    "width": (2, 16),
    "weight_decay": (0.0, 1.0),
    "cells": (16, 64),
    "iterations": (1, 200),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class Settings:
    """One lesson. Raises InputError, which names the setting, where one is not of its kind or range.

    data: of DATA. points: of the training set. noise: of NOISES. rate: the share that is dropped in training,
    or the strength of an injection. depth, width: layers and hidden units. weight_decay: its coefficient.
    cells: of the mesh, a direction. iterations: of L-BFGS, at most. seed: of data, weights and noise.
    """

    data: str = "moons"
    points: int = 100
    noise: str = "dropout, output"
    rate: float = 0.3
    depth: int = 10
    width: int = 8
    weight_decay: float = 1e-2
    cells: int = 32
    iterations: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("data", DATA), ("noise", NOISES)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise InputError(f"{name}: {shown(value)} is unknown{nearest(str(value), known)}")
        whole = {field.name for field in fields(self) if field.type == "int"}
        for name, (least, most) in RANGES.items():
            kind, words = (int, "an integer") if name in whole else ((int, float), "a number")
            value = getattr(self, name)
            right = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most
            if not right:
                raise InputError(f"{name}: {shown(value)} is not {words} from {least:g} to {most:g}")

    def problem(self) -> Problem:
        """Data, untrained network and noise, with the logistic loss."""
        return Problem(
            data.synthetic(self.data, self.points, None, self.seed),
            ResidualNetwork(dim=2, width=self.width, depth=self.depth, seed=self.seed),
            self.noise_at(self.rate),
        )

    def noise_at(self, rate: float) -> Noise:
        """The chosen noise at another rate in [0, 1)."""
        return NOISES[self.noise](rate)
