"""The same problem as users of other libraries would write it from those libraries' own documentation.

Each peer is one script, stands by itself and takes a `Task`: arrays and numbers, nothing of Kolmo's but (for
dolfinx) the module of differences between versions. All solve for both classes, because J needs both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class MissingPeerError(Exception):
    """A peer's library is not installed, or is of a version that the peer is not for; one line."""


@dataclass(frozen=True)
class Task:
    """A residual network with dropout on the blocks' output, X <- X + h V tanh(W X + b) * mask / keep.

    points (M, d), labels (M,) in {0, 1}; W (L, m, d), b (L, m), V (L, d, m); h = horizon / L. The loss of
    label y is softplus(-scale (2 y - 1) x_1). half_width: R of the box [-R, R]^d in which equations are
    solved, their coefficients tapered towards its faces as Kolmo's are: all solve the same equation.
    """

    points: np.ndarray
    labels: np.ndarray
    W: np.ndarray
    b: np.ndarray
    V: np.ndarray
    horizon: float
    keep: float
    scale: float
    half_width: float

    @property
    def layers(self) -> int:
        return len(self.W)

    @property
    def dim(self) -> int:
        return int(self.points.shape[1])

    @property
    def width(self) -> int:
        return int(self.W.shape[1])

    @property
    def step(self) -> float:
        return self.horizon / self.layers

    def loss(self, x: np.ndarray, label: int) -> np.ndarray:
        """The terminal loss of one label at x (..., d): shape (...)."""
        return np.logaddexp(0.0, -self.scale * (2 * label - 1) * x[..., 0])
