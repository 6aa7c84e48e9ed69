"""Gaussian noise injected after every block."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kolmo.network import LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.checks import strength


class GaussianInjection(Noise):
    """Increment h f + sqrt(h) s xi with xi ~ N(0, I): m = f, C = 0, D = s^2 I.

    std: strength s >= 0, length per square root of time. Source: EnResNet, Wang, Yuan, Shi,
    Osher, 1811.10745.
    """

    kind = "gaussian_injection"

    def __init__(self, std: float) -> None:
        self.std = strength(std, "noise.std")

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return network.step * network.block(layer, x) + (math.sqrt(network.step) * self.std) * xi

    def diffusion(self, dim: int) -> Tensor | None:
        return self.std**2 * torch.eye(dim, dtype=torch.float64)

    def settings(self) -> dict[str, float]:
        return {"std": self.std}
