"""Admissible sets of controls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from kolmo.errors import InputError
from kolmo.network import LayeredNetwork


class Admissible(ABC):
    """A closed convex set of weights, onto which optimisers project."""

    @abstractmethod
    def project(self, theta: np.ndarray) -> np.ndarray:
        """The nearest admissible point."""

    @abstractmethod
    def blocked(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Components that sit on the boundary with the descent direction pointing out."""

    def residual(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """theta - P(theta - gradient): zero at a stationary point."""
        return theta - self.project(theta - gradient)


def _radius(name: str, radius: float) -> None:
    if not radius > 0:
        raise InputError(f"{name} radius: {radius!r} is not positive")


@dataclass(frozen=True)
class Box(Admissible):
    """|theta_i| <= radius, the set on which the optimisers project."""

    radius: float = 5.0

    def __post_init__(self) -> None:
        _radius("admissible", self.radius)

    def project(self, theta: np.ndarray) -> np.ndarray:
        return np.clip(theta, -self.radius, self.radius)

    def blocked(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return (theta >= self.radius) & (gradient < 0) | (theta <= -self.radius) & (gradient > 0)


class Interval(Admissible):
    """lower <= theta_i <= upper: numbers, or one for each control; infinite where there is no bound.

    Raises InputError where there is nothing between them.
    """

    def __init__(self, lower: ArrayLike = -np.inf, upper: ArrayLike = np.inf) -> None:
        self.lower, self.upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        if not (self.lower <= self.upper).all():
            raise InputError(f"interval: {lower!r} is not below {upper!r}")

    def project(self, theta: np.ndarray) -> np.ndarray:
        return np.clip(theta, self.lower, self.upper)

    def blocked(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return (theta >= self.upper) & (gradient < 0) | (theta <= self.lower) & (gradient > 0)


class Joint(Admissible):
    """A set of its own for each group of controls: the weights, the horizon, the noise's strengths, ...

    parts: (set, number of controls), in the order of the vector; the numbers sum to its length, else
    InputError.
    """

    def __init__(self, *parts: tuple[Admissible, int]) -> None:
        self._sets = [part for part, _ in parts]
        self._ends = np.cumsum([0, *(count for _, count in parts)])

    def project(self, theta: np.ndarray) -> np.ndarray:
        return np.concatenate([part.project(t) for part, t in zip(self._sets, self._cut(theta), strict=True)])

    def blocked(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        each = zip(self._sets, self._cut(theta), self._cut(gradient), strict=True)
        return np.concatenate([part.blocked(t, g) for part, t, g in each])

    def _cut(self, vector: np.ndarray) -> list[np.ndarray]:
        if len(vector) != self._ends[-1]:
            raise InputError(f"admissible: sets of {self._ends[-1]} controls, the vector has {len(vector)}")
        return [vector[a:b] for a, b in pairwise(self._ends)]


class Balls(Admissible):
    """|theta_k| <= radius, Euclidean, for the weights theta_k of every layer.

    network: says which weights belong to which layer: parameters have the layers on their first axis.
    Raises InputError where they do not.
    """

    def __init__(self, network: LayeredNetwork, radius: float) -> None:
        _radius("ball", radius)
        self.radius = float(radius)
        self._layer = layer_of_weights(network)

    def norms(self, theta: np.ndarray) -> np.ndarray:
        """|theta_k| of each layer (L,)."""
        return np.sqrt(np.bincount(self._layer, theta**2))

    def project(self, theta: np.ndarray) -> np.ndarray:
        scale = self.radius / np.maximum(self.norms(theta), self.radius)
        return theta * scale[self._layer]

    def blocked(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """All of a layer on its sphere whose descent is along the outward normal; others can slide."""
        size = np.bincount(self._layer, gradient**2)
        outward = -np.bincount(self._layer, theta * gradient)
        on_sphere = self.norms(theta) >= self.radius * (1 - 1e-12)
        along = outward >= (1 - 1e-12) * np.sqrt(size) * self.radius
        return (on_sphere & along & (size > 0))[self._layer]


def layer_of_weights(network: LayeredNetwork) -> np.ndarray:
    """The layer of every weight in the vector of all; InputError where a parameter has no layer axis."""
    found = []
    for name, parameter in network.named_parameters():
        if parameter.ndim == 0 or len(parameter) != network.depth:
            raise InputError(f"network: {name} has shape {tuple(parameter.shape)}, not the layers first")
        found.append(np.repeat(np.arange(network.depth), parameter.numel() // network.depth))
    return np.concatenate(found)
