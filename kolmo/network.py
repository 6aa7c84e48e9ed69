r"""Residual networks as layered vector fields.

A network is the field f(x, theta_k), k = 0..L-1, of the Markov chain

    X_{k+1} = X_k + h f(X_k, theta_k) + noise,     h = T / L,

with weights theta_k constant on [kh, (k+1)h). The modified equation asks for f, its
Jacobian and second derivatives at many points for all layers at once: a *jet*. The
built-in block f = V sigma(W x + b) has its jet in closed form; any other block gets it
from automatic differentiation, never from differences.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kolmo.activation import Activation
from kolmo.activation import activation as find_activation
from kolmo.errors import InputError


class Jet(ABC):
    """Values and derivatives of a vector field at points, for a range of layers."""

    value: Tensor
    """f, shape (L, Q, d)."""

    @abstractmethod
    def directional(self, direction: Tensor) -> Tensor:
        """(grad f) v for v of shape (L, Q, d): shape (L, Q, d)."""

    @abstractmethod
    def jacobian(self) -> Tensor:
        """(grad f)_ij = d f_i / d x_j, shape (L, Q, d, d)."""

    @abstractmethod
    def second(self, matrix: Tensor) -> Tensor:
        """D : hess f for one symmetric matrix D of shape (d, d): shape (L, Q, d)."""


class LayeredNetwork(nn.Module, ABC):
    """Residual network on R^d with `depth` layers and horizon T; subclasses give `block`."""

    def __init__(self, dim: int, depth: int, horizon: float = 1.0) -> None:
        super().__init__()
        for name, number in (("dim", dim), ("depth", depth)):
            if int(number) != number or number < 1:
                raise InputError(f"network.{name}: {number!r} is not a positive integer")
        if not (math.isfinite(horizon) and horizon > 0):
            raise InputError(f"network.horizon: {horizon!r} is not a positive number")
        self.dim, self.depth, self.horizon = int(dim), int(depth), float(horizon)

    #: whether grad f exists and is differentiable, as order 2 demands
    twice_differentiable: bool = True

    @property
    def step(self) -> float:
        """h = T / L, in units of time."""
        return self.horizon / self.depth

    @abstractmethod
    def block(self, layer: int, x: Tensor) -> Tensor:
        """f(x, theta_layer) for x of shape (..., d): shape (..., d)."""

    def blocks(self, x: Tensor) -> Tensor:
        """f(x, theta_k) of every layer for x of shape (Q, d): shape (L, Q, d)."""
        return torch.stack([self.block(k, x) for k in range(self.depth)])

    def jet(self, x: Tensor, layers: slice = slice(None)) -> Jet:
        """The field and its derivatives at x (Q, d), for a slice of layers."""
        return AutomaticJet(self, x, range(self.depth)[layers])

    def forward(self, x: Tensor) -> Tensor:
        """Features X_L of the noiseless network, shape (..., d)."""
        for k in range(self.depth):
            x = x + self.step * self.block(k, x)
        return x

    def step_size(self) -> Tensor:
        """h |V_k W_k|_F of each layer where the block has such weights, shape (L,).

        It bounds h |grad f|, the number that decides whether a modified equation describes
        the chain. The general bound used here is h times the largest Jacobian on a sample
        of the unit cube [-2, 2]^d.
        """
        sample = 4 * torch.quasirandom.SobolEngine(self.dim, seed=0).draw(256).to(torch.float64) - 2
        jacobian = self.jet(sample).jacobian()
        return self.step * torch.linalg.matrix_norm(jacobian).amax(dim=1)


class AutomaticJet(Jet):
    """A jet by forward-mode automatic differentiation, for blocks without a closed form."""

    def __init__(self, network: LayeredNetwork, x: Tensor, layers: range) -> None:
        self._network, self._x, self._layers = network, x, layers
        self.value = torch.stack([network.block(k, x) for k in layers])

    def directional(self, direction: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.func.jvp(lambda x, k=k: self._network.block(k, x), (self._x,), (v,))[1]
                for k, v in zip(self._layers, direction, strict=True)
            ]
        )

    def jacobian(self) -> Tensor:
        basis = torch.eye(self._x.shape[-1], dtype=self._x.dtype, device=self._x.device)
        columns = [self.directional(e.expand(len(self._layers), *self._x.shape)) for e in basis]
        return torch.stack(columns, dim=-1)

    def second(self, matrix: Tensor) -> Tensor:
        result = torch.zeros_like(self.value)
        basis = torch.eye(self._x.shape[-1], dtype=self._x.dtype, device=self._x.device)

        def along(k: int, left: Tensor, right: Tensor) -> Tensor:
            def first(x: Tensor) -> Tensor:
                return torch.func.jvp(lambda z: self._network.block(k, z), (x,), (left.expand_as(x),))[1]

            return torch.func.jvp(first, (self._x,), (right.expand_as(self._x),))[1]

        for i, left in enumerate(basis):
            for j, right in enumerate(basis):
                if float(matrix[i, j]) != 0:
                    layers = torch.stack([along(k, left, right) for k in self._layers])
                    result = result + matrix[i, j] * layers
        return result


class ResidualNetwork(LayeredNetwork):
    """The block f(x, theta_k) = V_k sigma(W_k x + b_k), all layers in one batched call.

    Weights (float64): W (L, m, d), b (L, m), V (L, d, m); m = `width` hidden units.
    Initial weights are Gaussian with h |V W| well below the step that the modified
    equation needs, the same for the same `seed` (None: different every time, which several
    processes must not do). Raises InputError on a bad size.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        horizon: float = 1.0,
        activation: str = "tanh",
        seed: int | None = 0,
    ) -> None:
        super().__init__(dim, depth, horizon)
        if int(width) != width or width < 1:
            raise InputError(f"network.width: {width!r} is not a positive integer")
        self.width = int(width)
        self.activation: Activation = find_activation(activation)
        self.twice_differentiable = self.activation.twice_differentiable
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(int(seed))

        def normal(scale: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.W = normal(1 / math.sqrt(self.dim), self.depth, self.width, self.dim)
        self.b = normal(0.1, self.depth, self.width)
        self.V = normal(1 / self.width, self.depth, self.dim, self.width)

    @classmethod
    def from_weights(
        cls, W: Tensor, b: Tensor, V: Tensor, horizon: float = 1.0, activation: str = "tanh"
    ) -> ResidualNetwork:
        """A network with given weights W (L, m, d), b (L, m), V (L, d, m); raises InputError."""
        W, b, V = (torch.as_tensor(w, dtype=torch.float64) for w in (W, b, V))
        if W.ndim != 3 or 0 in W.shape:
            raise InputError(f"weights W: shape {tuple(W.shape)}, expected (layers, width, dim)")
        depth, width, dim = W.shape
        for name, weight, shape in (("b", b, (depth, width)), ("V", V, (depth, dim, width))):
            if tuple(weight.shape) != shape:
                raise InputError(f"weights {name}: shape {tuple(weight.shape)}, expected {shape} to match W")
        for name, weight in (("W", W), ("b", b), ("V", V)):
            if not bool(torch.isfinite(weight).all()):
                layer = int((~torch.isfinite(weight)).nonzero()[0, 0])
                raise InputError(f"weights {name}: a value of layer {layer} is not finite")
        network = cls(dim, width, depth, horizon, activation, seed=0)
        with torch.no_grad():
            for parameter, weight in ((network.W, W), (network.b, b), (network.V, V)):
                parameter.copy_(weight)
        return network

    def hidden(self, layer: int, x: Tensor) -> Tensor:
        """Hidden units z = sigma(W x + b) of a layer, shape (..., m)."""
        return self.activation.value(x @ self.W[layer].T + self.b[layer])

    def block(self, layer: int, x: Tensor) -> Tensor:
        return self.hidden(layer, x) @ self.V[layer].T

    def blocks(self, x: Tensor) -> Tensor:
        return self.jet(x).value

    def jet(self, x: Tensor, layers: slice = slice(None)) -> TwoLayerJet:
        return TwoLayerJet(self.activation, self.W[layers], self.b[layers], self.V[layers], x)

    def step_size(self) -> Tensor:
        return self.step * torch.linalg.matrix_norm(self.V @ self.W)


class TwoLayerJet(Jet):
    """The jet of V sigma(W x + b) in closed form.

    grad f = V diag(sigma') W,   D : hess f = V (sigma'' * diag(W D W^T)).
    """

    def __init__(self, sigma: Activation, W: Tensor, b: Tensor, V: Tensor, x: Tensor) -> None:
        self._sigma, self.W, self.V = sigma, W, V
        self._pre = torch.baddbmm(b[:, None, :], x.expand(len(W), *x.shape), W.transpose(1, 2))
        self.hidden = sigma.value(self._pre)
        """z = sigma(W x + b), shape (L, Q, m)."""
        self.value = self.hidden @ V.transpose(1, 2)
        self._slope: Tensor | None = None

    @property
    def slope(self) -> Tensor:
        """sigma'(W x + b), shape (L, Q, m)."""
        if self._slope is None:
            self._slope = self._sigma.first(self._pre, self.hidden)
        return self._slope

    def directional(self, direction: Tensor) -> Tensor:
        return (self.slope * (direction @ self.W.transpose(1, 2))) @ self.V.transpose(1, 2)

    def jacobian(self) -> Tensor:
        columns = [
            (self.slope * self.W[:, None, :, j]) @ self.V.transpose(1, 2) for j in range(self.W.shape[2])
        ]
        return torch.stack(columns, dim=-1)

    def second(self, matrix: Tensor) -> Tensor:
        curvature = self._sigma.second(self._pre, self.hidden)
        weights = torch.einsum("lmi,ij,lmj->lm", self.W, matrix, self.W)
        return (curvature * weights[:, None, :]) @ self.V.transpose(1, 2)
