"""Stochastic depth: whole blocks dropped at random."""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.checks import bernoulli, probability


class StochasticDepth(Noise):
    r"""Increment h f eta / p with one eta ~ B(p) for each sample and layer (inverted scaling).

    m = f, C = (1-p)/p f f^T, D = 0. In torch: x + h * f(x) * F.dropout(torch.ones(len(x), 1), 1 - keep).
    keep: survival probability p in (0, 1]. Source: Huang et al., 1603.09382.
    """

    kind = "stochastic_depth"

    def __init__(self, keep: float) -> None:
        self.keep = probability(keep)

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        mask = bernoulli(self.keep, (*x.shape[:-1], 1), x, generator) * network.step
        return network.block(layer, x) * mask

    def covariance(self, jet: Jet) -> Tensor | None:
        f = jet.value
        return (1 - self.keep) / self.keep * f[..., :, None] * f[..., None, :]

    def settings(self) -> dict[str, float]:
        return {"keep": self.keep}
