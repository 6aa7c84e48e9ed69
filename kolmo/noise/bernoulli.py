"""Bernoulli dropout on a block's output."""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise


class BernoulliDropout(Noise):
    r"""Increment h f * eta / p with eta_i ~ B(p), independent per component.

    m = f, C = (1-p)/p diag(f_i^2), D = 0. In torch: x + h * F.dropout(f(x), 1 - keep).
    keep: probability p in (0, 1]. Source: Sun, Tao, Du, 1812.00174.
    """

    kind = "bernoulli_dropout"

    def __init__(self, keep: float) -> None:
        if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not 0 < keep <= 1:
            raise InputError(f"noise.keep: {keep!r} is not a probability in (0, 1]")
        self.keep = float(keep)

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        mask = (uniform < self.keep).to(x.dtype) * (network.step / self.keep)
        return network.block(layer, x) * mask

    def covariance(self, jet: Jet) -> Tensor | None:
        return (1 - self.keep) / self.keep * jet.value.square()

    def settings(self) -> dict[str, float]:
        return {"keep": self.keep}
