r"""Jets: a network's field, its Jacobian and its second derivatives at many points, for many layers at once.

What the modified equation asks a network for. In closed form for the built-in block; any other block has
`network.AutomaticJet`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kolmo.activation import Activation
from kolmo.errors import InputError
from kolmo.field import field_and_advection

if TYPE_CHECKING:
    from kolmo.network import ResidualNetwork

#: what a shake-shake noise says to a network without two branches
NO_BRANCHES = "noise: shake-shake needs a block of two branches; give the network `branches`"


class Jet(ABC):
    """Values and derivatives of a vector field at points, for a range of layers."""

    value: Tensor
    """f, shape (L, Q, d)."""
    layers: range
    """The numbers of the layers."""
    depth: int
    """L of the whole network, for strengths that vary with depth."""

    @abstractmethod
    def directional(self, direction: Tensor) -> Tensor:
        """(grad f) v for v of shape (L, Q, d): shape (L, Q, d)."""

    def advection(self) -> Tensor:
        """(grad f) f, shape (L, Q, d)."""
        return self.directional(self.value)

    @abstractmethod
    def jacobian(self) -> Tensor:
        """(grad f)_ij = d f_i / d x_j, shape (L, Q, d, d)."""

    @abstractmethod
    def second(self, matrix: Tensor) -> Tensor:
        """D : hess f for symmetric matrices D, (d, d) or one a layer (L, d, d): shape (L, Q, d)."""

    def hidden_units(self) -> tuple[Tensor, Tensor]:
        """Hidden units z (L, Q, m) and output weights V (L, d, m) of f = V z.

        Raises InputError where the block is not of that kind.
        """
        raise InputError("noise: hidden units need the block V sigma(W x + b), this network has another")

    def branches(self) -> tuple[Tensor, Tensor]:
        """The two branches f1, f2 of f = (f1 + f2)/2, each (L, Q, d); raises InputError without any."""
        raise InputError(NO_BRANCHES)


class ScaledJet(Jet):
    """The jet of factors_k f(., theta_k), factors (L,)."""

    def __init__(self, jet: Jet, factors: Tensor) -> None:
        self._jet, self._factors = jet, factors[:, None, None]
        self.layers, self.depth = jet.layers, jet.depth
        self.value = self._factors * jet.value

    def advection(self) -> Tensor:
        return self._factors.square() * self._jet.advection()

    def directional(self, direction: Tensor) -> Tensor:
        return self._factors * self._jet.directional(direction)

    def jacobian(self) -> Tensor:
        return self._factors[..., None] * self._jet.jacobian()

    def second(self, matrix: Tensor) -> Tensor:
        return self._factors * self._jet.second(matrix)

    def hidden_units(self) -> tuple[Tensor, Tensor]:
        z, V = self._jet.hidden_units()
        return z, self._factors * V

    def branches(self) -> tuple[Tensor, Tensor]:
        first, second = self._jet.branches()
        return self._factors * first, self._factors * second


class TwoLayerJet(Jet):
    """The jet of V sigma(W x + b) in closed form.

    grad f = V diag(sigma') W,   D : hess f = V (sigma'' * diag(W D W^T)).
    """

    def __init__(
        self, sigma: Activation, W: Tensor, b: Tensor, V: Tensor, x: Tensor, layers: range, depth: int
    ) -> None:
        self._sigma, self._W, self._V = sigma, W, V
        self.layers, self.depth = layers, depth
        self._pre = torch.baddbmm(b[:, None, :], x.expand(len(W), *x.shape), W.transpose(1, 2))
        self._hidden = sigma.value(self._pre)
        self.value = self._hidden @ V.transpose(1, 2)
        self._slope: Tensor | None = None

    @property
    def slope(self) -> Tensor:
        """sigma'(W x + b), shape (L, Q, m)."""
        if self._slope is None:
            self._slope = self._sigma.first(self._pre, self._hidden)
        return self._slope

    def directional(self, direction: Tensor) -> Tensor:
        return (self.slope * (direction @ self._W.transpose(1, 2))) @ self._V.transpose(1, 2)

    def jacobian(self) -> Tensor:
        columns = [
            (self.slope * self._W[:, None, :, j]) @ self._V.transpose(1, 2) for j in range(self._W.shape[2])
        ]
        return torch.stack(columns, dim=-1)

    def second(self, matrix: Tensor) -> Tensor:
        curvature = self._sigma.second(self._pre, self._hidden)
        matrices = matrix.expand(len(self._W), *matrix.shape[-2:])
        weights = torch.einsum("lmi,lij,lmj->lm", self._W, matrices, self._W)
        return (curvature * weights[:, None, :]) @ self._V.transpose(1, 2)

    def hidden_units(self) -> tuple[Tensor, Tensor]:
        return self._hidden, self._V

    def branches(self) -> tuple[Tensor, Tensor]:
        return halves(self._hidden, self._V)


class CompiledJet(Jet):
    """The jet of V tanh(W x + b) at fixed points: f and (grad f) f compiled, the rest `TwoLayerJet`'s."""

    def __init__(self, network: ResidualNetwork, x: Tensor, layers: slice) -> None:
        self.layers, self.depth = range(network.depth)[layers], network.depth
        weights = (network.W[layers], network.b[layers], network.V[layers])
        self.value, self._advection = field_and_advection(*weights, np.ascontiguousarray(x.numpy().T))
        self._make = partial(network.jet, x, layers)
        self._plain: Jet | None = None

    @property
    def plain(self) -> Jet:
        """What is not compiled."""
        if self._plain is None:
            self._plain = self._make()
        return self._plain

    def advection(self) -> Tensor:
        return self._advection

    def directional(self, direction: Tensor) -> Tensor:
        return self.plain.directional(direction)

    def jacobian(self) -> Tensor:
        return self.plain.jacobian()

    def second(self, matrix: Tensor) -> Tensor:
        return self.plain.second(matrix)

    def hidden_units(self) -> tuple[Tensor, Tensor]:
        return self.plain.hidden_units()

    def branches(self) -> tuple[Tensor, Tensor]:
        return self.plain.branches()


def halves(hidden: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """2 V_1 z_1 and 2 V_2 z_2 for the first and second half of the units."""
    width = hidden.shape[-1]
    if width % 2:
        raise InputError(
            f"noise: shake-shake halves the hidden units, the network has {width}: an odd number"
        )
    half = width // 2
    parts = (slice(half), slice(half, None))
    first, second = (2 * hidden[..., p] @ V[..., p].transpose(-1, -2) for p in parts)
    return first, second
