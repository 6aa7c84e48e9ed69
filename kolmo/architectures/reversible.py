"""RevNet: two halves of the features that move each other, exactly invertible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kolmo.architectures.base import Discretisation, Perturbation
from kolmo.errors import InputError


class RevNet(Discretisation):
    r"""Leap-frog of two halves x = (p, q) of the features, blocks f_k of q and g_k of p in turn.

        p_{k+1} = p_k + h f_k(q_k),      q_{k+1} = q_k + h g_k(p_{k+1}).

    It discretises p' = f(q, t), q' = g(p, t): with order 1 where both halves are read at one time (symplectic
    Euler), with order 2 where q is half a step ahead of p (leap-frog proper).
    blocks: f_0, g_0, f_1, g_1, ..., each on half the features. axis: along which features are halved, -1 for
    (..., d), 1 for images. recompute: gradients from the output alone, layers inverted on the way back, and
    no layer's features are kept. It is for blocks that are functions of their input (dropout in a block is
    not, and batch normalisation counts its batches twice), in full precision, without perturb.
    Source: Gomez, Ren, Urtasun, Grosse, The reversible residual network, 1707.04585.
    """

    scheme, order = "leap-frog", 1
    per_layer = 2

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        step: float = 1.0,
        perturb: Perturbation | None = None,
        axis: int = -1,
        recompute: bool = False,
    ) -> None:
        super().__init__(blocks, step, perturb)
        if recompute and perturb is not None:
            raise InputError("RevNet.recompute: not together with perturb, whose masks would be drawn again")
        self.axis, self.recompute = axis, recompute

    def halves(self, x: Tensor) -> list[Tensor]:
        """p and q. Raises InputError on an odd number of features."""
        if x.shape[self.axis] % 2:
            raise InputError(f"RevNet: {x.shape[self.axis]} features, expected an even number")
        return list(x.chunk(2, dim=self.axis))

    def joined(self, halves: Sequence[Tensor]) -> Tensor:
        """x = (p, q)."""
        return torch.cat(list(halves), dim=self.axis)

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        p, q = self.halves(x)
        for k in range(self.depth):
            p = p + self.perturbed(2 * k, self.increment(2 * k, q))
            q = q + self.perturbed(2 * k + 1, self.increment(2 * k + 1, p))
            yield self.joined((p, q))

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            result: Tensor = _Recomputed.apply(self, x, *self.parameters())
            return result
        return super().forward(x)

    def inverse(self, x: Tensor) -> Tensor:
        """x_0 from x_L, exact but for rounding; a perturbation has to do again what it did forward."""
        p, q = self.halves(x)
        for k in reversed(range(self.depth)):
            q = q - self.perturbed(2 * k + 1, self.increment(2 * k + 1, p))
            p = p - self.perturbed(2 * k, self.increment(2 * k, q))
        return self.joined((p, q))


class _Recomputed(torch.autograd.Function):
    """x_L with its gradient: on the way back every layer's features are computed from the next one's."""

    @staticmethod
    def forward(ctx: Any, network: RevNet, x: Tensor, *parameters: Tensor) -> Tensor:
        features = x
        for after in network.layers(x):
            features = after
        ctx.network, ctx.parameters = network, parameters
        ctx.save_for_backward(features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        network: RevNet = ctx.network
        (features,) = ctx.saved_tensors
        halves, slopes = network.halves(features), network.halves(cotangent)
        totals: dict[Tensor, Tensor] = {}
        for number in reversed(range(len(network.blocks))):
            moved = number % 2  # block `number` moved this half by the other one
            weights = [w for w in network.blocks[number].parameters() if w.requires_grad]
            with torch.enable_grad():
                at = halves[1 - moved].detach().requires_grad_()
                increment = network.increment(number, at)
            if increment.requires_grad:
                found = torch.autograd.grad(increment, [at, *weights], slopes[moved], allow_unused=True)
                for target, slope in zip([at, *weights], found, strict=True):
                    if slope is not None:
                        totals[target] = totals[target] + slope if target in totals else slope
                if at in totals:
                    slopes[1 - moved] = slopes[1 - moved] + totals.pop(at)
            halves[moved] = halves[moved] - increment.detach()
        return None, network.joined(slopes), *(totals.get(w) for w in ctx.parameters)
