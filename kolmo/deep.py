r"""Very deep residual networks on a regression problem, and the gradient flow of their weights.

    h_{k+1} = h_k + 1/L V_k gelu(W_k h_k),   k = 0..L-1,        loss = mean_ij (h_L(x_i) - y_i)_j^2,
    dZ_k/dt = -L dloss/dZ_k,                                    Z_k = (W_k, V_k).

The factor L gives every layer a speed of O(1). Weights that begin as samples of a curve, Z_k(0) = Z(k/L, 0),
stay so: Z_k(t) = Z(k/L, t) + O(1/L), and the network stays a neural ODE. Gradient descent with the learning
rate L * step is explicit Euler on the flow. The network is `ResidualNetwork` without biases; here L may be
2^14, so features alone are kept and hidden units computed again on the way back.

Source: Marion, Wu, Sander, Biau, 2309.01213; sizes, data and starts are those of its experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kolmo import memory
from kolmo.errors import InputError, NonFiniteError

_gelu, _gelu_backward = torch.nn.functional.gelu, torch.ops.aten.gelu_backward
#: layers whose hidden units are held at once on the way back
_CHUNK = 32


@dataclass
class Weights:
    """Z_k = (W_k, V_k) of all layers: W (L, m, d), V (L, d, m), float64."""

    W: Tensor
    V: Tensor

    @property
    def depth(self) -> int:
        return len(self.W)

    def flat(self) -> Tensor:
        """All of them as one vector (2 L m d,)."""
        return torch.cat([self.W.reshape(-1), self.V.reshape(-1)])

    def like(self, flat: Tensor) -> Weights:
        """Weights of these shapes with the values of such a vector, which they share."""
        return Weights(flat[: self.W.numel()].view_as(self.W), flat[self.W.numel() :].view_as(self.V))

    def jumps(self) -> Tensor:
        """|Z_{k+1} - Z_k|, Frobenius, shape (L - 1,)."""
        squares = [(p[1:] - p[:-1]).square().sum(dim=(1, 2)) for p in (self.W, self.V)]
        return (squares[0] + squares[1]).sqrt()

    def distances(self, deeper: Weights) -> Tensor:
        """|Z_k - Z'_{k'}| at the same place k / L = k' / L', shape (L,); InputError unless L divides L'."""
        if deeper.depth % self.depth:
            raise InputError(f"depth: {deeper.depth} layers are no multiple of {self.depth}")
        every = deeper.depth // self.depth
        pairs = ((self.W, deeper.W), (self.V, deeper.V))
        squares = [(p - q[::every]).square().sum(dim=(1, 2)) for p, q in pairs]
        return (squares[0] + squares[1]).sqrt()


# where weights begin

#: (depth L, hidden units m, features d, seed) -> weights; InputError on a bad size, or one beyond memory
Start = Callable[[int, int, int, int], Weights]


def tied(depth: int, width: int, dim: int, seed: int) -> Weights:
    """One Gaussian W for all layers, V = 0: the network begins as the identity."""
    draw = _normal(depth, width, dim, seed, 1)
    return Weights(draw(width, dim).repeat(depth, 1, 1), torch.zeros(depth, dim, width, dtype=torch.float64))


def smooth(depth: int, width: int, dim: int, seed: int) -> Weights:
    """Z_k = Z(k/L) of random curves: Gaussian multiples of 1, cos(pi s), sin(pi s).

    Entries of W have variance 1 at every s, those of V standard deviation 1/m.
    """
    draw = _normal(depth, width, dim, seed, 2)
    s = math.pi * torch.arange(depth, dtype=torch.float64)[:, None, None] / depth

    def curve(rows: int, columns: int) -> Tensor:
        mean, cosine, sine = (math.sqrt(0.5) * draw(rows, columns) for _ in range(3))
        return mean + s.cos() * cosine + s.sin() * sine

    return Weights(curve(width, dim), curve(dim, width) / width)


def independent(depth: int, width: int, dim: int, seed: int) -> Weights:
    """A Gaussian W for each layer, V = 0: samples of no curve, for contrast."""
    draw = _normal(depth, width, dim, seed, 3)
    return Weights(draw(depth, width, dim), torch.zeros(depth, dim, width, dtype=torch.float64))


def _normal(depth: int, width: int, dim: int, seed: int, stream: int) -> Callable[..., Tensor]:
    """Draws Gaussian arrays, once the sizes are seen to fit."""
    for name, number in (("depth", depth), ("width", width), ("dim", dim)):
        if int(number) != number or number < 1:
            raise InputError(f"{name}: {number!r} is not a positive integer")
    needed = 8 * 6 * depth * width * dim  # weights, their gradient, and as much for what is done with them
    memory.require(needed, f"network: {depth} layers of {width} units in {dim} dimensions", "take fewer")
    generator = torch.Generator().manual_seed(10 * seed + stream)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


# the loss and its flow


@dataclass(frozen=True)
class Regression:
    """Points x and targets y, both (n, d), float64. Raises InputError on other shapes."""

    points: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape != self.targets.shape or 0 in self.points.shape:
            shapes = tuple(self.points.shape), tuple(self.targets.shape)
            raise InputError(f"regression: points {shapes[0]} and targets {shapes[1]}, expected (n, d) twice")

    @classmethod
    def drawn(cls, count: int, dim: int, seed: int) -> Regression:
        """Gaussian points and Gaussian targets, independent of each other."""
        generator = torch.Generator().manual_seed(10 * seed)
        points, targets = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
        return cls(points, targets)

    def loss(self, weights: Weights) -> float:
        """The mean squared error."""
        return float(self._forward(weights)[1].square().mean())

    def loss_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        """The loss and its gradient by all weights. Raises NonFiniteError where the loss is not finite."""
        L, (n, d) = weights.depth, self.points.shape
        features, residual = self._forward(weights)
        loss = float(residual.square().mean())
        if not math.isfinite(loss):
            raise NonFiniteError("the loss is not finite; take a smaller step")
        gradient = Weights(torch.empty_like(weights.W), torch.empty_like(weights.V))
        adjoint = residual * (2 / (n * d))  # of h_{k+1}, from the last layer to the first
        adjoints = self.points.new_empty(_CHUNK, n, d)
        for first in reversed(range(0, L, _CHUNK)):
            part = slice(first, min(first + _CHUNK, L))
            h, W, V = features[part], weights.W[part], weights.V[part]
            before = h @ W.transpose(1, 2)
            hidden, inner = _gelu(before), torch.empty_like(before)
            for k in reversed(range(len(h))):
                adjoints[k] = adjoint
                inner[k] = _gelu_backward(adjoint @ V[k], before[k])
                adjoint = torch.addmm(adjoint, inner[k], W[k], alpha=1 / L)
            torch.bmm(adjoints[: len(h)].transpose(1, 2), hidden, out=gradient.V[part])
            torch.bmm(inner.transpose(1, 2), h, out=gradient.W[part])
        gradient.W /= L
        gradient.V /= L
        return loss, gradient

    def velocity(self, weights: Weights) -> Callable[[Tensor], Tensor]:
        """The flow's right-hand side, flat weights -> -L dloss/dweights, for weights of these shapes."""

        def field(flat: Tensor) -> Tensor:
            return -weights.depth * self.loss_and_gradient(weights.like(flat))[1].flat()

        return field

    def least_ratio(self, weights: Weights) -> float:
        r"""mu(Z), the Polyak-Lojasiewicz ratio's lower bound at these weights, whatever the targets are.

        L |gradient|^2 / loss = 4/(n d) r.K r / r.r for residuals r, K = L sum_k J_k J_k^T the tangent kernel
        (n d, n d): mu is 4/(n d) times its smallest eigenvalue. While mu >= m, the loss falls as exp(-m t).
        """
        L, (n, d) = weights.depth, self.points.shape
        features, _ = self._forward(weights)
        kernel = self.points.new_zeros(n, d, n, d)
        jacobian = torch.eye(d, dtype=torch.float64).repeat(n, 1, 1)  # of h_L(x_i) by h_{k+1}(x_i)
        for k in reversed(range(L)):
            h, W, V = features[k], weights.W[k], weights.V[k]
            before = h @ W.T
            hidden = _gelu(before)
            inner = _gelu_backward(jacobian @ V, before[:, None, :].expand(n, d, -1))
            for factor, along in ((hidden, jacobian), (h, inner)):
                flat = along.reshape(n * d, -1)
                kernel += (flat @ flat.T).view(n, d, n, d) * (factor @ factor.T)[:, None, :, None] / L
            jacobian = jacobian + inner @ W / L
        return 4 / (n * d) * float(torch.linalg.eigvalsh(kernel.reshape(n * d, n * d))[0])

    def _forward(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """Features h_0..h_{L-1} (L, n, d), and h_L - y."""
        L, h = weights.depth, self.points
        features = h.new_empty(L, *h.shape)
        for k in range(L):
            features[k] = h
            h = torch.addmm(h, _gelu(h @ weights.W[k].T), weights.V[k].T, alpha=1 / L)
        return features, h - self.targets


def descend(regression: Regression, weights: Weights, step: float) -> float:
    """One step of explicit Euler on the flow, in place; the loss before it. Raises NonFiniteError."""
    loss, gradient = regression.loss_and_gradient(weights)
    weights.W.sub_(gradient.W, alpha=step * weights.depth)
    weights.V.sub_(gradient.V, alpha=step * weights.depth)
    return loss
