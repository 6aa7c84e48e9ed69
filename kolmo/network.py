r"""Residual networks as layered vector fields.

A network is the field f(x, theta_k), k = 0..L-1, of the Markov chain

    X_{k+1} = X_k + h f(X_k, theta_k) + noise,     h = T / L,

with weights theta_k constant on [kh, (k+1)h). The modified equation asks for f, its
Jacobian and second derivatives at many points for all layers at once: a *jet*. The
built-in block f = V sigma(W x + b) has its jet in closed form; any other block gets it
from automatic differentiation, never from differences.

The same blocks under other schemes than forward Euler, on R^d or on images, are `kolmo.architectures`,
`ResNet.of(network)` and its like; they are found here, too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kolmo import memory
from kolmo.activation import Activation
from kolmo.activation import activation as find_activation
from kolmo.architectures import (
    ARCHITECTURES,
    Discretisation,
    FractalNet,
    LMResNet,
    LMResNeXt,
    PolyNet,
    ResNet,
    RevNet,
)
from kolmo.errors import InfeasibleError, InputError
from kolmo.jet import NO_BRANCHES, CompiledJet, Jet, ScaledJet, TwoLayerJet, halves

__all__ = [
    "ARCHITECTURES",
    "AutomaticJet",
    "CompiledJet",
    "Discretisation",
    "FractalNet",
    "Jet",
    "LMResNeXt",
    "LMResNet",
    "LayeredNetwork",
    "PolyNet",
    "ResNet",
    "ResidualNetwork",
    "RevNet",
    "ScaledJet",
    "TwoLayerJet",
]


def _positive(name: str, number: float) -> int:
    if not (math.isfinite(number) and int(number) == number and number >= 1):
        raise InputError(f"network.{name}: {number!r} is not a positive integer")
    return int(number)


class LayeredNetwork(nn.Module, ABC):
    """Residual network on R^d with `depth` layers and horizon T; subclasses give `block`.

    horizon: a number, or a float64 tensor () that is a control when it requires gradients; it is no parameter
    of the module. Raises InputError on a bad size.
    """

    def __init__(self, dim: int, depth: int, horizon: float | Tensor = 1.0) -> None:
        super().__init__()
        self.dim, self.depth = _positive("dim", dim), _positive("depth", depth)
        if isinstance(horizon, Tensor) and (horizon.ndim > 0 or horizon.dtype != torch.float64):
            raise InputError(
                f"network.horizon: {horizon.dtype} of shape {tuple(horizon.shape)}, not a float64 tensor ()"
            )
        number = horizon.item() if isinstance(horizon, Tensor) else horizon
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"network.horizon: {number!r} is not a positive number")
        # in a tuple, or the module would count a tensor among its weights
        self._horizon = (horizon if isinstance(horizon, Tensor) else float(number),)

    #: whether grad f exists and is differentiable, as order 2 demands
    twice_differentiable: bool = True

    #: whether nodal jets hold no hidden values in memory
    compiled: bool = False

    @property
    def horizon(self) -> float:
        """T, in units of time. Raises InfeasibleError where a control of it is not positive."""
        kept = self._horizon[0]
        horizon = kept.item() if isinstance(kept, Tensor) else kept
        if not 0 < horizon < math.inf:
            raise InfeasibleError(f"network.horizon: the control has come to {horizon:.3g}, not positive")
        return horizon

    @property
    def step(self) -> float:
        """h = T / L, in units of time."""
        return self.horizon / self.depth

    @property
    def time_step(self) -> float | Tensor:
        """h, differentiable where the horizon is a control."""
        return self._horizon[0] / self.depth if self.controls else self.step

    @property
    def controls(self) -> tuple[Tensor, ...]:
        """The horizon where it is a control, else nothing."""
        return tuple(h for h in self._horizon if isinstance(h, Tensor) and h.requires_grad)

    @abstractmethod
    def block(self, layer: int, x: Tensor) -> Tensor:
        """f(x, theta_layer) for x of shape (..., d): shape (..., d)."""

    def blocks(self, x: Tensor) -> Tensor:
        """f(x, theta_k) of every layer for x of shape (Q, d): shape (L, Q, d)."""
        return torch.stack([self.block(k, x) for k in range(self.depth)])

    def jet(self, x: Tensor, layers: slice = slice(None)) -> Jet:
        """The field and its derivatives at x (Q, d), for a slice of layers."""
        return AutomaticJet(self, x, range(self.depth)[layers])

    def nodal_jet(self, x: Tensor, layers: slice = slice(None)) -> Jet:
        """The same jet for points that nothing is differentiated by, once differentiable in the weights."""
        return self.jet(x, layers)

    def branches(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The branches of a block f = (f1 + f2)/2, each (..., d); raises InputError without any."""
        raise InputError(NO_BRANCHES)

    def forward(self, x: Tensor) -> Tensor:
        """Features X_L of the noiseless network, shape (..., d)."""
        for k in range(self.depth):
            x = x + self.time_step * self.block(k, x)
        return x

    def step_size(self) -> Tensor:
        """h |V_k W_k|_F of each layer where the block has such weights, shape (L,).

        It bounds h |grad f|, the number that decides whether a modified equation describes
        the chain. The general bound used here is h times the largest Jacobian on a sample
        of the unit cube [-2, 2]^d.
        """
        sample = 4 * torch.quasirandom.SobolEngine(self.dim, seed=0).draw(256).to(torch.float64) - 2
        jacobian = self.jet(sample).jacobian()
        return self.time_step * torch.linalg.matrix_norm(jacobian).amax(dim=1)


class AutomaticJet(Jet):
    """A jet by forward-mode automatic differentiation, for blocks without a closed form."""

    def __init__(self, network: LayeredNetwork, x: Tensor, layers: range) -> None:
        self._network, self._x, self.layers, self.depth = network, x, layers, network.depth
        self.value = torch.stack([network.block(k, x) for k in layers])

    def directional(self, direction: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.func.jvp(lambda x, k=k: self._network.block(k, x), (self._x,), (v,))[1]
                for k, v in zip(self.layers, direction, strict=True)
            ]
        )

    def jacobian(self) -> Tensor:
        basis = torch.eye(self._x.shape[-1], dtype=self._x.dtype, device=self._x.device)
        columns = [self.directional(e.expand(len(self.layers), *self._x.shape)) for e in basis]
        return torch.stack(columns, dim=-1)

    def second(self, matrix: Tensor) -> Tensor:
        result = torch.zeros_like(self.value)
        basis = torch.eye(self._x.shape[-1], dtype=self._x.dtype, device=self._x.device)

        matrices = matrix.expand(len(self.layers), *matrix.shape[-2:])

        def along(k: int, left: Tensor, right: Tensor) -> Tensor:
            def first(x: Tensor) -> Tensor:
                return torch.func.jvp(lambda z: self._network.block(k, z), (x,), (left.expand_as(x),))[1]

            return torch.func.jvp(first, (self._x,), (right.expand_as(self._x),))[1]

        for i, left in enumerate(basis):
            for j, right in enumerate(basis):
                if bool((matrices[:, i, j] != 0).any()):
                    layers = torch.stack([along(k, left, right) for k in self.layers])
                    result = result + matrices[:, i, j, None, None] * layers
        return result

    def hidden_units(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self._network, ResidualNetwork):
            return super().hidden_units()
        hidden = torch.stack([self._network.hidden(k, self._x) for k in self.layers])
        return hidden, torch.stack([self._network.V[k] for k in self.layers])

    def branches(self) -> tuple[Tensor, Tensor]:
        pairs = [self._network.branches(k, self._x) for k in self.layers]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])


class ResidualNetwork(LayeredNetwork):
    """The block f(x, theta_k) = V_k sigma(W_k x + b_k), all layers in one batched call.

    Weights (float64): W (L, m, d), b (L, m), V (L, d, m); m = `width` hidden units.
    Initial weights are Gaussian with h |V W| well below the step that the modified
    equation needs, the same for the same `seed` (None: different every time, which several
    processes must not do). Raises InputError on a bad size, or one beyond memory.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        horizon: float | Tensor = 1.0,
        activation: str = "tanh",
        seed: int | None = 0,
    ) -> None:
        super().__init__(dim, depth, horizon)
        self.width = _positive("width", width)
        memory.require(
            memory.network(self.dim, self.width, self.depth),
            f"network: {self.depth} layers of {self.width} units in {self.dim} dimensions",
            "take fewer layers or units",
        )
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
        cls, W: Tensor, b: Tensor, V: Tensor, horizon: float | Tensor = 1.0, activation: str = "tanh"
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
        numbers = range(self.depth)[layers]
        return TwoLayerJet(
            self.activation, self.W[layers], self.b[layers], self.V[layers], x, numbers, self.depth
        )

    def nodal_jet(self, x: Tensor, layers: slice = slice(None)) -> Jet:
        return CompiledJet(self, x, layers) if self.compiled else self.jet(x, layers)

    @property
    def compiled(self) -> bool:  # type: ignore[override]
        plain = self.W.dtype == torch.float64 and self.W.device.type == "cpu"
        return plain and self.activation.name == "tanh" and self.dim <= 3

    def branches(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Twice what the first and the second half of the hidden units give."""
        first, second = halves(self.hidden(layer, x)[None], self.V[layer][None])
        return first[0], second[0]

    def step_size(self) -> Tensor:
        return self.time_step * torch.linalg.matrix_norm(self.V @ self.W)
