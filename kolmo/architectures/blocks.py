r"""Residual blocks f_k on R^d as modules of their own; those on images are in `kolmo.images`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kolmo.activation import activation as find_activation
from kolmo.errors import InputError

if TYPE_CHECKING:
    from kolmo.network import LayeredNetwork


class TwoLayer(nn.Module):
    """f(x) = V sigma(W x + b) of x (..., d): W (m, d), b (m,), V (d, m), trainable, float64.

    Raises InputError on weights whose shapes do not fit.
    """

    def __init__(self, W: Tensor, b: Tensor, V: Tensor, activation: str = "tanh") -> None:
        super().__init__()
        W, b, V = (torch.as_tensor(w, dtype=torch.float64) for w in (W, b, V))
        if W.ndim != 2 or b.shape != W.shape[:1] or V.shape != W.T.shape:
            shapes = ", ".join(str(tuple(w.shape)) for w in (W, b, V))
            raise InputError(f"block: W, b, V of shapes {shapes}, expected (m, d), (m,), (d, m)")
        self.W, self.b, self.V = (nn.Parameter(w.clone()) for w in (W, b, V))
        self.activation = find_activation(activation)

    @classmethod
    def random(cls, dim: int, width: int, activation: str = "tanh", seed: int = 0) -> TwoLayer:
        """Gaussian weights of the sizes that `ResidualNetwork` begins with."""
        draw = torch.Generator().manual_seed(seed)

        def normal(scale: float, *shape: int) -> Tensor:
            return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)

        W, b = normal(1 / math.sqrt(dim), width, dim), normal(0.1, width)
        return cls(W, b, normal(1 / width, dim, width), activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation.value(x @ self.W.T + self.b) @ self.V.T


class Field(nn.Module):
    """A block without weights: f(x, t) of a function, at one time."""

    def __init__(self, function: Callable[[Tensor, float], Tensor], time: float = 0.0) -> None:
        super().__init__()
        self.function, self.time = function, time

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.time)


class Layer(nn.Module):
    """The block of one layer of a network on R^d, weights shared with it."""

    def __init__(self, network: LayeredNetwork, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, x: Tensor) -> Tensor:
        return self.network.block(self.number, x)


class Aggregated(nn.Module):
    """The sum of parallel blocks (Xie et al., Aggregated residual transformations, 1611.05431)."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        if not branches:
            raise InputError("block: no branches, expected one or more")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total
