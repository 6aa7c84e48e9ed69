r"""What a noise is: how one layer's increment is drawn, and its first two moments.

    increment = h G(x, theta_k, omega) + sqrt(h) Sigma xi,
    m = E[G],   C = Cov[G],   D = Sigma Sigma^T                 (MATHEMATICS section 1).

A noise of one's own gives `sample` and either `covariance` or `diffusion` (and `mean` where
E[G] is not f); the finite-element side needs nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kolmo.network import Jet, LayeredNetwork


class Noise(ABC):
    """Noise injected in every layer of a residual network."""

    #: name in problem.toml
    kind: str

    @abstractmethod
    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        """One increment of `layer` for each row of x (N, d), independent draws: shape (N, d)."""

    def mean(self, jet: Jet) -> Jet:
        """The jet of m = E[G]; the block itself unless the noise is biased."""
        return jet

    def covariance(self, jet: Jet) -> Tensor | None:
        """C = Cov[G], per unit step squared: diagonal (L, Q, d), full (L, Q, d, d) or None for 0."""
        return None

    def diffusion(self, dim: int) -> Tensor | None:
        """D = Sigma Sigma^T, length^2 per unit time: constant in x, shape (d, d), or None for 0."""
        return None

    def settings(self) -> dict[str, float]:
        """The keys of [noise] in problem.toml that make this noise again, without `kind`."""
        return {}
