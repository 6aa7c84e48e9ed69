"""Bernoulli dropout on a block's output."""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.checks import bernoulli, probability


class BernoulliDropout(Noise):
    r"""Increment h f * eta / p with eta_i ~ B(p), independent per component.

    m = f, C = (1-p)/p diag(f_i^2), D = 0. In torch: x + h * F.dropout(f(x), 1 - keep).
    keep: probability p in (0, 1]. Source: Sun, Tao, Du, 1812.00174.
    """

    kind = "bernoulli_dropout"

    def __init__(self, keep: float) -> None:
        self.keep = probability(keep)

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        mask = bernoulli(self.keep, tuple(x.shape), x, generator) * network.step
        return network.block(layer, x) * mask

    def covariance(self, jet: Jet) -> Tensor | None:
        return (1 - self.keep) / self.keep * jet.value.square()

    def settings(self) -> dict[str, float]:
        return {"keep": self.keep}
