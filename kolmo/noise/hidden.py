"""Noise inside a block: dropout on hidden units, and DropConnect on the output weights."""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.checks import bernoulli, hidden_jet, probability, with_hidden_units


class HiddenDropout(Noise):
    r"""Increment h V (z * eta / p) with eta_j ~ B(p) for every hidden unit z = sigma(W x + b).

    m = f, C = (1-p)/p V diag(z_j^2) V^T, D = 0. In torch: x + h * V(F.dropout(z, 1 - keep)).
    keep: probability p in (0, 1]. Source: Srivastava et al., JMLR 15 (2014).
    """

    kind = "hidden_dropout"

    def __init__(self, keep: float) -> None:
        self.keep = probability(keep)

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        network = with_hidden_units(network, self.kind)
        hidden = network.hidden(layer, x)
        mask = bernoulli(self.keep, tuple(hidden.shape), x, generator)
        return network.step * ((hidden * mask) @ network.V[layer].T)

    def covariance(self, jet: Jet) -> Tensor | None:
        jet = hidden_jet(jet, self.kind)
        layers, dim, width = jet.V.shape
        products = (jet.V[:, :, None, :] * jet.V[:, None, :, :]).reshape(layers, dim * dim, width)
        full = jet.hidden.square() @ products.transpose(1, 2)
        return (1 - self.keep) / self.keep * full.reshape(*full.shape[:2], dim, dim)

    def settings(self) -> dict[str, float]:
        return {"keep": self.keep}


class DropConnect(Noise):
    r"""Increment h (V * eta / p) z with eta_ij ~ B(p) for every output weight.

    m = f, C = (1-p)/p diag_i(sum_j V_ij^2 z_j^2), D = 0. In torch: x + h * (F.dropout(V, 1 - keep) @ z),
    masks drawn anew for every sample. keep: probability p in (0, 1]. Source: Wan et al., ICML 2013.
    """

    kind = "dropconnect"

    def __init__(self, keep: float) -> None:
        self.keep = probability(keep)

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
        network = with_hidden_units(network, self.kind)
        V = network.V[layer]
        mask = bernoulli(self.keep, (len(x), *V.shape), x, generator)
        return network.step * torch.einsum("nij,nj->ni", V * mask, network.hidden(layer, x))

    def covariance(self, jet: Jet) -> Tensor | None:
        jet = hidden_jet(jet, self.kind)
        return (1 - self.keep) / self.keep * (jet.hidden.square() @ jet.V.square().transpose(1, 2))

    def settings(self) -> dict[str, float]:
        return {"keep": self.keep}
