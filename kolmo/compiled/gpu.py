r"""The chain as one Triton kernel: all layers of a block of paths in registers, random numbers made in place.

The words are those of `kolmo.philox`: a path's loss is torch's to single precision. Of a path nothing is
written but its loss; the gradient also keeps its states, draws the numbers again on the way back, and leaves
a sum of derivatives for each block, which torch adds. Formulas and names are those of `layers` and `reverse`.
Normal numbers are by PPND7 of Wichura, Applied Statistics 37 (1988), algorithm AS 241.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.compiled import layers
from kolmo.compiled.chain import SCALES, addresses, noise_of
from kolmo.compiled.layers import Address
from kolmo.loss import Logistic
from kolmo.network import ResidualNetwork
from kolmo.philox import PARTS
from kolmo.problem import Problem
from kolmo.stream import Stream

# without types of their own, and absent where there is no accelerator
triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

#: paths of a block; paths whose states the gradient keeps at once
ROWS, STATES = 256, 2**18

_OUTPUT, _BLOCK, _HIDDEN, _CONNECT, _ADDED, _TWO_POINT, _UNIFORM, _PARTS = (
    tl.constexpr(number)
    for number in (
        layers.OUTPUT, layers.BLOCK, layers.HIDDEN, layers.CONNECT, layers.ADDED,
        layers.TWO_POINT, layers.UNIFORM, PARTS,
    )
)  # fmt: skip


@triton.jit
def _words(seed, part, unit, group, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    # the word of each of the rows from 4 * group on
    index = group + tl.arange(0, ROWS // 4)
    c0, c1 = (index & 0xFFFFFFFF).to(tl.uint32), (index >> 32).to(tl.uint32)
    zero = tl.zeros_like(c0)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, (zero + part).to(tl.uint32), (zero + unit).to(tl.uint32))
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _quantile(k):  # type: ignore[no-untyped-def]
    # of u = k 2^-53, where 0 counts as 1/2; the smaller of u and 1 - u by whole numbers, which loses nothing
    q = (k - 4503599627370496).to(tl.float32) * 1.1102230246251565e-16
    smaller = tl.maximum(tl.minimum(k, 9007199254740992 - k).to(tl.float32), 0.5)
    r = tl.sqrt(-tl.log(smaller * 1.1102230246251565e-16))
    c = 0.180625 - q * q
    above = ((59.109374720 * c + 159.29113202) * c + 50.434271938) * c + 3.3871327179
    below = ((67.187563600 * c + 78.757757664) * c + 17.895169469) * c + 1.0
    near, far = r - 1.6, r - 5.0
    tail = ((0.17023821103 * near + 1.3067284816) * near + 2.7568153900) * near + 1.4234372777
    tail = tail / ((0.12021132975 * near + 0.73700164250) * near + 1.0)
    end = ((0.017337203997 * far + 0.42868294337) * far + 3.0812263860) * far + 6.6579051150
    end = end / ((0.012258202635 * far + 0.24197894225) * far + 1.0)
    outer = tl.where(r > 5.0, end, tail)
    return tl.where(c >= 0.0, above / below * q, tl.where(q < 0.0, -outer, outer))


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    values, thresholds, k, unit, seed, flip, group, LAW: tl.constexpr, ROWS: tl.constexpr
):
    # the random number of one unit of layer k, for each row
    part = k * _PARTS
    on = tl.load(values + 2 * k + 1)
    if LAW == _TWO_POINT:
        word = _words(seed, part, unit, group, ROWS).to(tl.int64) ^ flip
        return tl.where(word <= tl.load(thresholds + k), on, tl.load(values + 2 * k))
    high = (_words(seed, part, 2 * unit, group, ROWS).to(tl.int64) ^ flip) >> 5
    low = (_words(seed, part, 2 * unit + 1, group, ROWS).to(tl.int64) ^ flip) >> 6
    number = high * 67108864 + low
    if LAW == _UNIFORM:
        return on * ((number - 4503599627370496).to(tl.float32) * 2.220446049250313e-16)
    return on * _quantile(number)


@triton.jit
def _draws(  # type: ignore[no-untyped-def]
    values, thresholds, k, unit, stride, seed, flip, group, DIM: tl.constexpr, D: tl.constexpr,
    LAW: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # those of units unit, unit + stride, ..., for each row and component
    column = tl.arange(0, D)[None, :]
    found = tl.zeros([ROWS, D], tl.float32)
    for i in tl.static_range(DIM):
        e = _draw(values, thresholds, k, unit + i * stride, seed, flip, group, LAW, ROWS)
        found = tl.where(column == i, e[:, None], found)
    return found


@triton.jit
def _factor(  # type: ignore[no-untyped-def]
    values, thresholds, ratios, k, seed, flip, group, DIM: tl.constexpr, D: tl.constexpr,
    STRUCTURE: tl.constexpr, LAW: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # what f is multiplied with
    if STRUCTURE == _OUTPUT:
        e = _draws(values, thresholds, k, k * 0, 1, seed, flip, group, DIM, D, LAW, ROWS)
        return tl.load(ratios + k) + e
    if STRUCTURE == _BLOCK:
        e = _draw(values, thresholds, k, k * 0, seed, flip, group, LAW, ROWS)
        return tl.load(ratios + k) + e[:, None] + tl.zeros([ROWS, D], tl.float32)
    return tl.full([ROWS, D], 1.0, tl.float32)


@triton.jit
def _weights(units, k, j, width, D: tl.constexpr):  # type: ignore[no-untyped-def]
    # b_j, W_j and V_j
    unit = units + (k * width + j) * (1 + 2 * D)
    column = tl.arange(0, D)[None, :]
    return tl.load(unit), tl.load(unit + 1 + column), tl.load(unit + 1 + D + column)


@triton.jit
def _advance(  # type: ignore[no-untyped-def]
    x, units, values, thresholds, ratios, k, width, scale, step, seed, flip, group, DIM: tl.constexpr,
    D: tl.constexpr, STRUCTURE: tl.constexpr, LAW: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # the state after layer k
    f = tl.zeros([ROWS, D], tl.float32)
    for j in range(width):
        b, w, v = _weights(units, k, j, width, D)
        z = 1.0 - scale / (1.0 + tl.exp(scale * (b + tl.sum(x * w, axis=1))))
        if STRUCTURE == _HIDDEN:
            z *= 1.0 + _draw(values, thresholds, k, j, seed, flip, group, LAW, ROWS)
        if STRUCTURE == _CONNECT:
            v = v * (1.0 + _draws(values, thresholds, k, j, width, seed, flip, group, DIM, D, LAW, ROWS))
        f += z[:, None] * v
    factor = _factor(values, thresholds, ratios, k, seed, flip, group, DIM, D, STRUCTURE, LAW, ROWS)
    x += step * factor * f
    if STRUCTURE == _ADDED:
        x += _draws(values, thresholds, k, k * 0, 1, seed, flip, group, DIM, D, LAW, ROWS)
    return x


@triton.jit(do_not_specialize=["seed", "flip", "first", "count"])
def _simulate(  # type: ignore[no-untyped-def]
    features, margins, units, values, thresholds, ratios, losses, pulls, states, partial, seed, flip,
    first, count, points, depth, width, scale, step, DIM: tl.constexpr, D: tl.constexpr,
    STRUCTURE: tl.constexpr, LAW: tl.constexpr, ROWS: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    # paths of rows first, ..., first + count - 1: their losses; with GRADIENT the derivatives of their sum
    # with weights `pulls` instead, a block's share into partial (blocks, L, m, 1 + 2D)
    program = tl.program_id(0)
    group = (first >> 2).to(tl.int64) + program * (ROWS // 4)
    row = 4 * group + tl.arange(0, ROWS)
    place = row - first
    asked = (place >= 0) & (place < count)
    point = row % points
    column = tl.arange(0, D)[None, :]
    x = tl.load(features + point[:, None] * D + column)
    margin = tl.load(margins + point)
    inside = (program * depth * ROWS + tl.arange(0, ROWS)[:, None]) * D + column
    for k in range(depth):
        if GRADIENT:
            tl.store(states + inside + k * ROWS * D, x)
        x = _advance(
            x, units, values, thresholds, ratios, k, width, scale, step, seed, flip, group,
            DIM, D, STRUCTURE, LAW, ROWS,
        )  # fmt: skip
    if GRADIENT:
        tl.debug_barrier()
    t = margin * tl.sum(tl.where(column == 0, x, 0.0), axis=1)
    e = tl.exp(-tl.abs(t))
    if not GRADIENT:
        # log(1 + e) by the series of its inverse tangent: log alone would lose small losses
        s = e / (2.0 + e)
        q = s * s
        tail = 2.0 * s * (1.0 + q * (0.33333157 + q * (0.20012455 + q * (0.13980303 + q * 0.14089162))))
        tl.store(losses + place, tl.where(t > 20.0, t, tl.maximum(t, 0.0) + tail), mask=asked)
    else:
        slope = tl.where(t > 20.0, 1.0, tl.where(t < 0.0, e, 1.0) / (1.0 + e))
        pull = tl.load(pulls + place, mask=asked, other=0.0) * margin * slope
        back = tl.where(column == 0, pull[:, None], 0.0)
        for past in range(depth):
            k = depth - 1 - past
            x = tl.load(states + inside + k * ROWS * D)
            factor = _factor(values, thresholds, ratios, k, seed, flip, group, DIM, D, STRUCTURE, LAW, ROWS)
            g = step * factor * back
            for j in range(width):
                b, w, v = _weights(units, k, j, width, D)
                r = 1.0 / (1.0 + tl.exp(scale * (b + tl.sum(x * w, axis=1))))
                z = 1.0 - scale * r
                curve = scale * scale * r * (1.0 - r)
                own = g
                if STRUCTURE == _HIDDEN:
                    noise = _draw(values, thresholds, k, j, seed, flip, group, LAW, ROWS)
                    own = g * (1.0 + noise)[:, None]
                if STRUCTURE == _CONNECT:
                    noises = _draws(values, thresholds, k, j, width, seed, flip, group, DIM, D, LAW, ROWS)
                    own = g * (1.0 + noises)
                y = curve * tl.sum(own * v, axis=1)
                back += y[:, None] * w
                unit = partial + ((program * depth + k) * width + j) * (1 + 2 * D)
                tl.store(unit, tl.sum(y))
                tl.store(unit + 1 + tl.arange(0, D), tl.sum(x * y[:, None], axis=0))
                tl.store(unit + 1 + D + tl.arange(0, D), tl.sum(own * z[:, None], axis=0))


class FusedChain:
    """The chain of a problem's noise and loss in a network for which `has_kernels`, in single precision.

    The network and the random numbers of its streams are on one device. Weights are taken as they are now.
    """

    def __init__(self, problem: Problem, network: ResidualNetwork) -> None:
        self._parameters = (network.W, network.b, network.V)
        self._device, (depth, width, dim) = network.W.device, network.W.shape
        self._shape, columns = (depth, width, dim), triton.next_power_of_2(dim)
        found = noise_of(problem.noise, network)

        def here(values: Any) -> Tensor:
            return torch.as_tensor(values).to(self._device, torch.float32).contiguous()

        def padded(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, columns - dim))

        assert isinstance(problem.loss, Logistic)
        W, b, V = (p.detach() for p in self._parameters)
        units = torch.cat([b[..., None], padded(W), padded(V.transpose(1, 2))], dim=-1)
        thresholds = torch.from_numpy(found["thresholds"].astype(np.int64)).to(self._device)
        self._arrays = (
            here(padded(problem.data.points)),
            here(-problem.loss.scale * (2 * problem.data.labels - 1)),
            here(units),
            here(found["values"]),
            thresholds,
            here(found["ratio"]),
        )
        self._sizes = (depth, width, SCALES[network.activation.name], network.step)
        self._constants = (dim, columns, found["structure"], found["law"], ROWS)

    def losses(self, stream: Stream) -> Tensor:
        """The loss of each of the stream's samples, shape (count,), differentiable once in the weights."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._parameters):
            return _Losses.apply(self, stream, *self._parameters)
        return self.values(stream)

    def values(self, stream: Stream) -> Tensor:
        """The same without derivatives."""
        table = torch.empty(stream.count // stream.batch, stream.batch, device=self._device)
        for address, batches in addresses(stream):
            losses = torch.empty(address.rows, device=self._device)
            self._run(address, losses, None, None, None)
            table[batches] = losses.reshape(-1, stream.batch)
        return table.reshape(-1)

    def gradient(self, stream: Stream, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sum_n weights_n dloss_n by W, b and V, in double precision; weights: (count,)."""
        depth, width, dim = self._shape
        columns = self._constants[1]
        total = torch.zeros(depth, width, 1 + 2 * columns, dtype=torch.float64, device=self._device)
        for address, batches in addresses(stream):
            pulls = weights.reshape(-1, stream.batch)[batches].reshape(-1).float().contiguous()
            for done in range(0, address.rows, STATES):
                part = pulls[done : done + STATES]
                some = address._replace(first=address.first + done, rows=len(part))
                blocks = _blocks(some)
                states = torch.empty(blocks, depth, ROWS, columns, device=self._device)
                partial = torch.empty(blocks, depth, width, 1 + 2 * columns, device=self._device)
                self._run(some, None, part, states, partial)
                total += partial.double().sum(dim=0)
        b, W, V = total.split([1, columns, columns], dim=-1)
        return W[..., :dim], b[..., 0], V[..., :dim].transpose(1, 2)

    def _run(self, address: Address, losses: Any, pulls: Any, states: Any, partial: Any) -> None:
        features = self._arrays[0]
        _simulate[(_blocks(address),)](
            *self._arrays, losses, pulls, states, partial,
            int(address.seed), int(address.flip), address.first, address.rows, len(features),
            *self._sizes, *self._constants, losses is None,
        )  # fmt: skip


def _blocks(address: Address) -> int:
    """Blocks that hold all rows: the first begins with a group of four that share their words."""
    return int(triton.cdiv(address.first % 4 + address.rows, ROWS))


class _Losses(torch.autograd.Function):
    """Losses of paths as a function of the weights; backwards, paths are simulated again."""

    @staticmethod
    def forward(ctx: Any, chain: FusedChain, stream: Stream, *weights: Tensor) -> Tensor:
        ctx.chain, ctx.stream = chain, stream
        return chain.values(stream)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        return (None, None, *(g.float() for g in ctx.chain.gradient(ctx.stream, cotangent)))
