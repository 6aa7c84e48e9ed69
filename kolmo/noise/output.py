"""Noise on a block's output: none, masks and continuous factors for each component, Gaussian injection."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import LinearNoise, Noise, Outcomes
from kolmo.noise.law import GAUSS, Law, Normal, Uniform
from kolmo.noise.masks import Masked
from kolmo.noise.schedule import strength
from kolmo.noise.structure import Diagonal, Structure
from kolmo.stream import Draws


class NoNoise(Noise):
    """Increment h f: m = f, C = D = 0. The network is forward Euler for x' = f(x, theta(t))."""

    kind = "none"

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        return network.time_step * network.block(layer, x)

    def outcomes(self, network: LayeredNetwork, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        base = network.step * network.block(layer, x)
        return Outcomes(base, base.new_zeros(*base.shape, 1), np.zeros((1, 1)), np.ones(1))


class BernoulliDropout(Masked):
    r"""Increment h f * eta / p with eta_i ~ B(p), independent per component.

    m = f, C = (1-p)/p diag(f_i^2), D = 0. In torch: x + h * F.dropout(f(x), 1 - keep).
    keep: probability p in (0, 1], or a schedule. Source: Sun, Tao, Du, 1812.00174.
    """

    kind = "bernoulli_dropout"

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value)


class GaussianDropout(LinearNoise):
    r"""Increment h f * (1 + s xi) with xi_i ~ N(0, 1), independent per component.

    m = f, C = s^2 diag(f_i^2), D = 0. In torch: x + h * f(x) * (1 + std * torch.randn_like(x)).
    std: s >= 0, dimensionless, or a schedule. Source: Srivastava et al., JMLR 15 (2014).
    """

    kind = "gaussian_dropout"

    def __init__(self, std: Any) -> None:
        self.std = strength(std, "noise.std")

    strength = "std"

    def variance_at(self, strengths: Tensor) -> Tensor:
        return strengths.square()

    def strength_of(self, variance: float) -> float:
        return math.sqrt(variance)

    def law(self, layer: int, depth: int) -> Law:
        return Normal(self.std.at(layer, depth))

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value)

    def settings(self) -> dict[str, Any]:
        return {"std": self.std.settings}


class UniformNoise(LinearNoise):
    r"""Increment h f * U(1-s, 1+s), independent per component.

    m = f, C = s^2/3 diag(f_i^2), D = 0. In torch: x + h * f(x) * torch.empty_like(x).uniform_(1 - s, 1 + s).
    half_width: s >= 0, dimensionless, or a schedule. Source: Sun, Tao, Du, 1812.00174.
    """

    kind = "uniform_noise"

    def __init__(self, half_width: Any) -> None:
        self.half_width = strength(half_width, "noise.half_width")

    strength = "half_width"

    def variance_at(self, strengths: Tensor) -> Tensor:
        return strengths.square() / 3

    def strength_of(self, variance: float) -> float:
        return math.sqrt(3 * variance)

    def law(self, layer: int, depth: int) -> Law:
        return Uniform(self.half_width.at(layer, depth))

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(jet.value)

    def settings(self) -> dict[str, Any]:
        return {"half_width": self.half_width.settings}


class GaussianInjection(LinearNoise):
    r"""Increment h f + sqrt(h) s xi with xi ~ N(0, I): m = f, C = 0, D = s^2 I.

    In torch: x + h * f(x) + h**0.5 * std * torch.randn_like(x). std: strength s >= 0, length per
    square root of time, or a schedule. Source: EnResNet, Wang, Yuan, Shi, Osher, 1811.10745.
    """

    kind = "gaussian_injection"
    diffusive = True

    def __init__(self, std: Any) -> None:
        self.std = strength(std, "noise.std")

    strength = "std"

    def variance_at(self, strengths: Tensor) -> Tensor:
        return strengths.square()

    def strength_of(self, variance: float) -> float:
        return math.sqrt(variance)

    def law(self, layer: int, depth: int) -> Law:
        return Normal(self.std.at(layer, depth))

    def spread(self, jet: Jet) -> Structure:
        return Diagonal(torch.ones_like(jet.value))

    def settings(self) -> dict[str, Any]:
        return {"std": self.std.settings}
