r"""The modified equation: drift b and diffusion a of the SDE that the noisy network solves weakly.

Order 1:  b = m,   a = h C + D                                              weak error O(h)
Order 2:  b = m - h/2 [ (grad m) m + 1/2 D : hess m ],
          a = h C + (I - h/2 grad m) D (I - h/2 grad m)^T                   weak error O(h^2)

from matching the chain's one-step operator with exp(h L) through h^2, weights constant on
each layer. The product form of a equals the plain one, D + hC - h/2 (grad m D + D grad m^T), to O(h^2)
and is positive semidefinite by construction; `indefinite` reports where the plain one is not.
Order 2 exists where D is zero or constant in x. Source: Shardlow, BIT 46 (2006), for the method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed


@dataclass(frozen=True)
class Coefficients:
    """Drift (L, Q, d), length per time; diffusion, length^2 per time: diagonal (L, Q, d) or
    full (L, Q, d, d), symmetric positive semidefinite."""

    drift: Tensor
    diffusion: Tensor

    def at(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """One layer's (Q, d) and (Q, d[, d]) as arrays, without derivatives."""
        return self.drift[layer].detach().numpy(), self.diffusion[layer].detach().numpy()


def check_order(network: LayeredNetwork, order: int) -> None:
    """Raise InputError unless a modified equation of this order exists for the network's blocks."""
    if order not in (1, 2):
        raise InputError(f"order: {order!r} is not 1 or 2")
    if order == 2 and not network.twice_differentiable:
        raise InputError("order: 2 needs a block with two derivatives, this activation has one; take order 1")


def modified_equation(
    network: LayeredNetwork,
    noise: Noise,
    points: Tensor,
    order: int = 2,
    layers: slice = slice(None),
    correction: float = 1.0,
    fixed: bool = False,
) -> Coefficients:
    """Drift and diffusion at `points` (Q, d) for a slice of layers; differentiable in the weights.

    correction: share of order 2's correction, by which its size can be probed. With 1/2 it is that of a
    network of twice the layers, each of half the step, whose noise keeps the diffusion h C.
    fixed: nothing is differentiated by the points, and once at most by the weights; quicker.
    Raises InputError where the order does not exist for the block or the noise.
    """
    check_order(network, order)
    h = network.time_step
    jet = network.nodal_jet(points, layers) if fixed else network.jet(points, layers)
    mean = noise.mean(jet)
    C = noise.covariance(jet)
    D = noise.diffusion(jet)
    if order == 2:
        _check_constant(D, noise)
    b = drift(mean, D, correction * h, order)
    if D is None:
        diffusion = torch.zeros_like(b) if C is None else h * packed(C)
        return Coefficients(b, diffusion)
    diffusive = D if D.ndim == 4 else D[:, None].expand(*b.shape, network.dim)
    if order == 2:
        shift = torch.eye(network.dim).to(points) - 0.5 * correction * h * mean.jacobian()
        diffusive = shift @ diffusive @ shift.transpose(-1, -2)
    if C is None:
        return Coefficients(b, diffusive)
    spread = packed(C)
    full = torch.diag_embed(spread) if spread.ndim == b.ndim else spread
    return Coefficients(b, diffusive + h * full)


def drift(mean: Jet, D: Tensor | None, h: float | Tensor, order: int) -> Tensor:
    """b of the modified equation at the points of the jet of m, shape (L, Q, d), length per time.

    D: the diffusive covariance, constant in x: (d, d) or (L, d, d), read at order 2 only; None for 0.
    """
    if order == 1:
        return mean.value
    correction = mean.advection()
    if D is not None:
        correction = correction + 0.5 * mean.second(D)
    return mean.value - 0.5 * h * correction


def _check_constant(D: Tensor | None, noise: Noise) -> None:
    if D is not None and D.ndim == 4:
        raise InputError(
            f"order: 2 does not exist for noise {noise.kind!r}: its diffusion varies with x, and a "
            "third-derivative term survives that no SDE has; take order 1"
        )


@dataclass(frozen=True)
class Indefinite:
    """Where the plain diffusion of order 2 has a negative eigenvalue.

    share: of the layers and points looked at. worst: the smallest eigenvalue, relative to the largest.
    """

    share: float
    worst: float


def indefinite(network: LayeredNetwork, noise: Noise, points: Tensor) -> Indefinite | None:
    """How far D + hC - h/2 (grad m D + D grad m^T) is from semidefinite at points (Q, d), None if it is.

    The modified equation uses the product form there (and everywhere): the two differ by O(h^2), so
    a diffusion that lost definiteness says that h |grad f| is too large for order 2 to be accurate.
    """
    with torch.no_grad():
        jet = network.jet(points)
        D = noise.diffusion(jet)
        if D is None:
            return None
        _check_constant(D, noise)
        mixed = noise.mean(jet).jacobian() @ D[:, None]
        plain = D[:, None] - 0.5 * network.step * (mixed + mixed.transpose(-1, -2))
        C = noise.covariance(jet)
        if C is not None:
            spread = packed(C)
            full = torch.diag_embed(spread) if spread.ndim == 3 else spread
            plain = plain + network.step * full
        eigenvalues = torch.linalg.eigvalsh(plain)
    lowest, largest = eigenvalues[..., 0], eigenvalues[..., -1].abs().clamp(min=1e-300)
    lost = lowest < -1e-12 * largest
    if not bool(lost.any()):
        return None
    return Indefinite(float(lost.double().mean()), float((lowest / largest)[lost].min()))
