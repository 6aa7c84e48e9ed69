"""Continuous multiplicative noise on a block's output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.checks import strength


class GaussianDropout(Noise):
    r"""Increment h f * (1 + s xi) with xi_i ~ N(0, 1), independent per component.

    m = f, C = s^2 diag(f_i^2), D = 0. In torch: x + h * f(x) * (1 + std * torch.randn_like(x)).
    std: s >= 0, dimensionless. Source: Srivastava et al., JMLR 15 (2014).
    """

    kind = "gaussian_dropout"

    def __init__(self, std: float) -> None:
        self.std = strength(std, "noise.std")

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return network.step * network.block(layer, x) * (1 + self.std * xi)

    def covariance(self, jet: Jet) -> Tensor | None:
        return self.std**2 * jet.value.square()

    def settings(self) -> dict[str, float]:
        return {"std": self.std}


class UniformNoise(Noise):
    r"""Increment h f * U(1-s, 1+s), independent per component.

    m = f, C = s^2/3 diag(f_i^2), D = 0. In torch: x + h * f(x) * torch.empty_like(x).uniform_(1 - s, 1 + s).
    half_width: s >= 0, dimensionless. Source: Sun, Tao, Du, 1812.00174.
    """

    kind = "uniform_noise"

    def __init__(self, half_width: float) -> None:
        self.half_width = strength(half_width, "noise.half_width")

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        factor = 1 + self.half_width * (2 * uniform - 1)
        return network.step * network.block(layer, x) * factor

    def covariance(self, jet: Jet) -> Tensor | None:
        return (self.half_width / math.sqrt(3)) ** 2 * jet.value.square()

    def settings(self) -> dict[str, float]:
        return {"half_width": self.half_width}
