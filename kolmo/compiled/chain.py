"""Which problems have compiled kernels, what those are given, and their losses as torch functions.

The kernels take networks V tanh(W x + b) (or the logistic function) in up to 3 dimensions, the noises of
`_STRUCTURES` with one number for each sample, and the logistic loss. Anything else is `None` here, and takes
torch. Both draw the same random numbers: their losses differ by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.activation import ACTIVATIONS
from kolmo.compiled import forward, layers, reverse
from kolmo.compiled.elementary import constants
from kolmo.compiled.forward import Points
from kolmo.compiled.layers import Address, Layers
from kolmo.compiled.reverse import Derivatives
from kolmo.loss import Logistic
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise.base import LinearNoise, Noise
from kolmo.noise.depth import StochasticDepth
from kolmo.noise.hidden import DropConnect, HiddenDropout
from kolmo.noise.law import Normal, TwoPoint, Uniform
from kolmo.noise.output import BernoulliDropout, GaussianDropout, GaussianInjection, NoNoise, UniformNoise
from kolmo.problem import Problem
from kolmo.stream import Stream, threshold

#: activations 1 - s / (1 + exp(s y)) and their s
SCALES = {"tanh": 2.0, "sigmoid": 1.0}
MOST_DIMENSIONS = 3
_STRUCTURES: dict[type[Noise], int] = {
    NoNoise: layers.NONE,
    BernoulliDropout: layers.OUTPUT,
    GaussianDropout: layers.OUTPUT,
    UniformNoise: layers.OUTPUT,
    StochasticDepth: layers.BLOCK,
    HiddenDropout: layers.HIDDEN,
    DropConnect: layers.CONNECT,
    GaussianInjection: layers.ADDED,
}


def has_kernels(problem: Problem, network: LayeredNetwork) -> bool:
    """Whether the chain of this network under the problem's noise and loss is compiled.

    Classes are compared, not their bases: a subclass may do anything.
    """
    return (
        type(network) is ResidualNetwork
        and network.dim <= MOST_DIMENSIONS
        and network.activation == ACTIVATIONS.get(network.activation.name)
        and network.activation.name in SCALES
        and type(problem.noise) in _STRUCTURES
        and not problem.noise.shared
        and type(problem.loss) is Logistic
    )


class CompiledChain:
    """The chain of a problem's noise and loss in a network for which `has_kernels`, as it is now.

    dtype: torch.float32 or torch.float64. Weights that change later are taken over by `refresh`.
    """

    def __init__(self, problem: Problem, network: ResidualNetwork, dtype: torch.dtype) -> None:
        self._name = str(dtype).removeprefix("torch.")
        kind, self.dtype = np.dtype(self._name).type, dtype
        self._constants, self._zero = constants(self._name), (kind(0),) * network.dim
        self._parameters = (network.W, network.b, network.V)
        depth, width, dim = network.W.shape
        self._factor, self._scale = (
            SCALES[network.activation.name] / math.log(2),
            SCALES[network.activation.name],
        )
        noise = noise_of(problem.noise, network)
        self._layers = Layers(
            units=np.zeros((depth, width + width % 2, 1 + 4 * dim), kind),
            sums=np.zeros((depth, dim), kind),
            reach=np.zeros((depth, 1 + dim), kind),
            scale=kind(self._scale),
            step=kind(network.step),
            **{key: v.astype(kind) if key in ("values", "ratio") else v for key, v in noise.items()},
        )
        assert isinstance(problem.loss, Logistic)
        labels = 2 * problem.data.labels.cpu().numpy() - 1
        self._points = Points(
            np.ascontiguousarray(problem.data.points.cpu().numpy().T.astype(kind)),
            (-problem.loss.scale * labels).astype(kind),
        )
        self.refresh()

    def refresh(self) -> None:
        """Take the weights as they are now."""
        weights = (p.detach().numpy().astype(np.float64, copy=False) for p in self._parameters)
        packed = self._layers.units, self._layers.sums, self._layers.reach
        layers.pack(*weights, self._factor, self._scale, *packed)

    def losses(self, stream: Stream) -> Tensor:
        """The loss of each of the stream's samples, shape (count,), differentiable once in the weights."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._parameters):
            return _Losses.apply(self, stream, *self._parameters)
        return self.values(stream)

    def values(self, stream: Stream) -> Tensor:
        """The same without derivatives."""
        out = np.empty(stream.count, self._name)
        for address, rows in addresses(stream):
            part = np.empty(address.rows, self._name)
            forward.losses(self._zero, self._layers, self._points, address, part, self._constants)
            out.reshape(-1, stream.batch)[rows] = part.reshape(-1, stream.batch)
        return torch.from_numpy(out)

    def gradient(self, stream: Stream, weights: np.ndarray, into: Derivatives) -> np.ndarray:
        """Losses (count,), and sum_n weights_n dloss_n/dtheta added to the derivatives."""
        out, table = np.empty(stream.count, self._name), weights.reshape(-1, stream.batch)
        for address, rows in addresses(stream):
            part = np.empty(address.rows, self._name)
            cotangent = np.ascontiguousarray(table[rows].reshape(-1), self._name)
            reverse.gradient(
                self._zero, self._layers, self._points, address, cotangent, part, into, self._constants
            )
            out.reshape(-1, stream.batch)[rows] = part.reshape(-1, stream.batch)
        return out

    def zeros(self) -> Derivatives:
        """Derivatives to add to."""
        return Derivatives(*(np.zeros(tuple(p.shape)) for p in self._parameters))


def addresses(stream: Stream) -> Iterator[tuple[Address, slice]]:
    """Where a stream's random numbers are: rows of the table, and the stream's batches that draw them."""
    seed, batch = np.uint64(stream.seed), stream.batch
    first, count = stream.first // batch, stream.count // batch
    if not stream.antithetic:
        yield Address(seed, np.uint32(0), stream.first, stream.count), slice(None)
        return
    # a pair of batches draws the same rows, the odd one mirrored
    for side, flip in ((0, 0), (1, 0xFFFFFFFF)):
        rows = slice((side - first) % 2, None, 2)
        number = len(range(count)[rows])
        if number:
            pair = (first + rows.start) // 2
            yield Address(seed, np.uint32(flip), pair * batch, number * batch), rows


def noise_of(noise: Noise, network: ResidualNetwork) -> dict[str, Any]:
    """The fields of `Layers` that say what is drawn and what becomes of it, in double precision."""
    structure, depth = _STRUCTURES[type(noise)], network.depth
    numbers = {
        layers.NONE: 0,
        layers.BLOCK: 1,
        layers.HIDDEN: network.width,
        layers.CONNECT: network.dim * network.width,
    }.get(structure, network.dim)
    found: dict[str, Any] = {
        "structure": structure,
        "law": layers.TWO_POINT,
        "numbers": numbers,
        "values": np.zeros((depth, 2)),
        "thresholds": np.zeros(depth, np.uint32),
        "ratio": np.ones(depth),
    }
    if not isinstance(noise, LinearNoise):
        return found
    for k in range(depth):
        law = noise.law(k, depth)
        if isinstance(law, TwoPoint):
            most, (off, on) = threshold(law.p), (-law.scale * law.p, law.scale * (1 - law.p))
            # words up to 0 keep a unit at least: where none may, both values are that of a dropped one
            found["thresholds"][k], found["values"][k] = max(most - 1, 0), (off, on if most else off)
        elif isinstance(law, (Uniform, Normal)):
            found["law"] = layers.UNIFORM if isinstance(law, Uniform) else layers.NORMAL
            width = law.half_width if isinstance(law, Uniform) else law.std
            found["values"][k, 1] = width * (math.sqrt(network.step) if structure == layers.ADDED else 1.0)
    if isinstance(noise, StochasticDepth) and noise.scaling == "test_time":
        found["ratio"] = np.array([noise.keep.at(k, depth) for k in range(depth)])
    return found


class _Losses(torch.autograd.Function):
    """Losses of paths as a function of the weights; backwards, paths are simulated again."""

    @staticmethod
    def forward(ctx: Any, chain: CompiledChain, stream: Stream, *weights: Tensor) -> Tensor:
        ctx.chain, ctx.stream = chain, stream
        return chain.values(stream)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        found = ctx.chain.zeros()
        ctx.chain.gradient(ctx.stream, cotangent.numpy(), found)
        return (None, None, *(torch.from_numpy(g).to(ctx.chain.dtype) for g in found))
