"""Admissible sets of controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kolmo.errors import InputError


@dataclass(frozen=True)
class Box:
    """|theta_i| <= radius, the set on which the optimisers project."""

    radius: float = 5.0

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise InputError(f"admissible radius: {self.radius!r} is not positive")

    def project(self, theta: np.ndarray) -> np.ndarray:
        """The nearest admissible point."""
        return np.clip(theta, -self.radius, self.radius)

    def blocked(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Components that sit on the boundary with the descent direction pointing out."""
        return (theta >= self.radius) & (gradient < 0) | (theta <= -self.radius) & (gradient > 0)

    def residual(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """theta - P(theta - gradient): zero at a stationary point."""
        return theta - self.project(theta - gradient)
