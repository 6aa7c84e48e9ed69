"""Laws of one centred random number: how it is drawn, its variance, its points and weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kolmo.stream import Draws

#: points of a Gauss rule for one continuous number: exact for polynomials of degree 2 GAUSS - 1
GAUSS = 5


class Law(ABC):
    """One centred random number e; the units of a layer are independent copies of it."""

    @property
    @abstractmethod
    def variance(self) -> float:
        """E e^2."""

    @abstractmethod
    def draw(self, draws: Draws, units: int, shared: bool) -> Tensor:
        """Independent numbers, shape (samples, units); shared: alike within a batch."""

    @abstractmethod
    def points(self, gauss: int = GAUSS) -> tuple[np.ndarray, np.ndarray]:
        """Values and their probabilities: all of them, or a Gauss rule with `gauss` points."""


@dataclass(frozen=True)
class TwoPoint(Law):
    """scale (eta - p) with eta ~ B(p): variance scale^2 p (1-p); scale 1/p is dropout's eta/p - 1."""

    p: float
    scale: float

    @property
    def variance(self) -> float:
        return self.scale**2 * self.p * (1 - self.p)

    def draw(self, draws: Draws, units: int, shared: bool) -> Tensor:
        return self.scale * (draws.bernoulli(self.p, units, shared) - self.p)

    def points(self, gauss: int = GAUSS) -> tuple[np.ndarray, np.ndarray]:
        values, weights = self.scale * np.array([1 - self.p, -self.p]), np.array([self.p, 1 - self.p])
        return values[weights > 0], weights[weights > 0]


@dataclass(frozen=True)
class Normal(Law):
    """N(0, std^2); its points are those of Gauss and Hermite."""

    std: float

    @property
    def variance(self) -> float:
        return self.std**2

    def draw(self, draws: Draws, units: int, shared: bool) -> Tensor:
        return self.std * draws.normal(units, shared)

    def points(self, gauss: int = GAUSS) -> tuple[np.ndarray, np.ndarray]:
        if self.std == 0:
            return np.zeros(1), np.ones(1)
        values, weights = np.polynomial.hermite_e.hermegauss(gauss)
        return self.std * values, weights / weights.sum()


@dataclass(frozen=True)
class Uniform(Law):
    """U(-half_width, half_width), variance half_width^2 / 3; its points are those of Gauss and Legendre."""

    half_width: float

    @property
    def variance(self) -> float:
        return (self.half_width / math.sqrt(3)) ** 2

    def draw(self, draws: Draws, units: int, shared: bool) -> Tensor:
        return self.half_width * (2 * draws.uniform(units, shared) - 1).to(draws.stream.dtype)

    def points(self, gauss: int = GAUSS) -> tuple[np.ndarray, np.ndarray]:
        if self.half_width == 0:
            return np.zeros(1), np.ones(1)
        values, weights = np.polynomial.legendre.leggauss(gauss)
        return self.half_width * values, weights / 2
