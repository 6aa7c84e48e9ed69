"""No noise: the residual network is forward Euler for the ODE x' = f(x, theta(t))."""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo.network import LayeredNetwork
from kolmo.noise.base import Noise


class NoNoise(Noise):
    """Increment h f: m = f, C = D = 0."""

    kind = "none"

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        return network.step * network.block(layer, x)
