r"""The modified equation: drift b and diffusion a of the SDE that the noisy network solves weakly.

Order 1:  b = m,   a = h C + D                                              weak error O(h)
Order 2:  b = m - h/2 [ (grad m) m + 1/2 D : hess m ],
          a = h C + (I - h/2 grad m) D (I - h/2 grad m)^T                   weak error O(h^2)

from matching the chain's one-step operator with exp(h L) through h^2, weights constant on
each layer. The product form of a equals D + hC - h/2 (grad m D + D grad m^T) to O(h^2) and
is positive semidefinite by construction. Source: Shardlow, BIT 46 (2006), for the method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import LayeredNetwork
from kolmo.noise.base import Noise


@dataclass(frozen=True)
class Coefficients:
    """Drift (L, Q, d), length per time; diffusion, length^2 per time: diagonal (L, Q, d) or
    full (L, Q, d, d), symmetric positive semidefinite."""

    drift: Tensor
    diffusion: Tensor


def check_order(network: LayeredNetwork, order: int) -> None:
    """Raise InputError unless a modified equation of this order exists for the network."""
    if order not in (1, 2):
        raise InputError(f"order: {order!r} is not 1 or 2")
    if order == 2 and not network.twice_differentiable:
        raise InputError("order: 2 needs a block with two derivatives, this activation has one; use order 1")


def modified_equation(
    network: LayeredNetwork, noise: Noise, points: Tensor, order: int = 2, layers: slice = slice(None)
) -> Coefficients:
    """Drift and diffusion at `points` (Q, d) for a slice of layers; differentiable in the weights.

    Raises InputError where the order does not exist for the block.
    """
    check_order(network, order)
    h = network.step
    jet = network.jet(points, layers)
    mean = noise.mean(jet)
    covariance = noise.covariance(jet)
    D = noise.diffusion(network.dim)
    drift = mean.value
    if order == 2:
        correction = mean.directional(mean.value)
        if D is not None:
            D = D.to(points)
            correction = correction + 0.5 * mean.second(D)
        drift = drift - 0.5 * h * correction
    if D is None:
        diffusion = torch.zeros_like(drift) if covariance is None else h * covariance
        return Coefficients(drift, diffusion)
    if order == 2:
        shift = torch.eye(network.dim).to(points) - 0.5 * h * mean.jacobian()
        diffusive = shift @ D @ shift.transpose(-1, -2)
    else:
        diffusive = D.to(points).expand(*drift.shape, network.dim)
    if covariance is None:
        return Coefficients(drift, diffusive)
    full = torch.diag_embed(covariance) if covariance.ndim == drift.ndim else covariance
    return Coefficients(drift, diffusive + h * full)
