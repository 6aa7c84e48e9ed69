"""Noise inside a block: dropout on hidden units, DropConnect on output weights, shake-shake."""

from __future__ import annotations

from kolmo.network import Jet
from kolmo.noise.base import LinearNoise
from kolmo.noise.law import Law, Uniform
from kolmo.noise.masks import Masked
from kolmo.noise.structure import Entries, Factor, RankOne, Structure


class HiddenDropout(Masked):
    r"""Increment h V (z * eta / p) with eta_j ~ B(p) for every hidden unit z = sigma(W x + b).

    m = f, C = (1-p)/p V diag(z_j^2) V^T, D = 0. In torch: x + h * V(F.dropout(z, 1 - keep)).
    keep: probability p in (0, 1], or a schedule. Source: Srivastava et al., JMLR 15 (2014).
    """

    kind = "hidden_dropout"

    def spread(self, jet: Jet) -> Structure:
        z, V = jet.hidden_units()
        return Factor(V, z)


class DropConnect(Masked):
    r"""Increment h (V * eta / p) z with eta_ij ~ B(p) for every output weight.

    m = f, C = (1-p)/p diag_i(sum_j V_ij^2 z_j^2), D = 0. In torch: x + h * (F.dropout(V, 1 - keep) @ z),
    masks drawn anew for every sample. keep: probability p in (0, 1], or a schedule.
    Source: Wan et al., ICML 2013.
    """

    kind = "dropconnect"

    def spread(self, jet: Jet) -> Structure:
        z, V = jet.hidden_units()
        return Entries(V, z)


class ShakeShake(LinearNoise):
    r"""Increment h (alpha f1 + (1 - alpha) f2) with one alpha ~ U(0, 1) for each sample and layer.

    m = (f1 + f2)/2, C = (f1 - f2)(f1 - f2)^T / 12, D = 0. The two branches are the network's own
    (`LayeredNetwork.branches`); those of the built-in block are twice the first and the second half of
    its hidden units. In torch: a = torch.rand(len(x), 1); x + h * (a * f1(x) + (1 - a) * f2(x)).
    The noise of the forward pass, backward through the same alpha. Source: Gastaldi, 1705.07485.
    """

    kind = "shake_shake"

    def law(self, layer: int, depth: int) -> Law:
        return Uniform(0.5)

    def spread(self, jet: Jet) -> Structure:
        first, second = jet.branches()
        return RankOne(first - second)
