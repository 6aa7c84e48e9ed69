"""Losses of the chain's paths, block by block."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kolmo.compiled.elementary import softplus
from kolmo.compiled.jit import kernel, part
from kolmo.compiled.layers import CONNECT, HIDDEN, advance

#: samples simulated at once: their features and a layer's units stay in the first cache
BLOCK = 1024
#: bytes of a cache line
_LINE = 64


class Points(NamedTuple):
    """Where paths start and what they are to reach: row n of a stream is a path of point n modulo M."""

    features: Any
    """(d, M)."""
    margins: Any
    """(M,): the loss is softplus(margin x_1)."""


@part
def blocks(address, largest):  # type: ignore[no-untyped-def]
    # groups of 4 rows share their words: the first group, the number of blocks, rows of each (of 16, which
    # vector units like)
    group = address.first >> 2
    count = address.first + address.rows - 4 * group
    number = (count + largest - 1) // largest
    return group, number, ((count + number - 1) // number + 15) // 16 * 16


@part
def noise_rows(zero, layers):  # type: ignore[no-untyped-def]
    # rows of random numbers in a layer, with those of the hidden unit that makes their number even
    width = layers.units.shape[1]
    if layers.structure == HIDDEN:
        return width
    return width * len(zero) if layers.structure == CONNECT else max(1, layers.numbers)


@part
def work(shape, kind):  # type: ignore[no-untyped-def]
    # an array from the start of a cache line on: a vector that crosses two lines takes two loads
    size = 1
    for length in shape:
        size *= length
    raw = np.empty(size + _LINE, kind)
    skip = (_LINE - raw.ctypes.data % _LINE) // raw.itemsize
    return raw[skip : skip + size].reshape(shape)


@part
def start(zero, points, row, n, x, margin):  # type: ignore[no-untyped-def]
    # features and margins of rows row, ..., row + n - 1
    count = len(points.margins)
    done, point = 0, row % count
    while done < n:
        size = min(n - done, count - point)
        for i in range(len(zero)):
            for s in range(size):
                x[i, done + s] = points.features[i, point + s]
        for s in range(size):
            margin[done + s] = points.margins[point + s]
        done += size
        point = 0


@kernel
def losses(zero, layers, points, address, out, c):  # type: ignore[no-untyped-def]
    # the loss of each path into out (count,)
    group, number, n = blocks(address, BLOCK)
    kind = layers.units.dtype
    x, total = work((len(zero), n), kind), work((len(zero), n), kind)
    r, e = work((1, 2, n), kind), work((1, noise_rows(zero, layers), n), kind)
    e[:] = 0
    margin, loss = work((n,), kind), work((n,), kind)
    high, low = work((n,), np.uint32), work((n,), np.uint32)
    for _ in range(number):
        start(zero, points, 4 * group, n, x, margin)
        for k in range(len(layers.units)):
            advance(zero, layers, k, address, group, n, x, total, r, e, 0, 0, high, low, c)
        for s in range(n & ~15):
            loss[s] = softplus(margin[s] * x[0, s], c)
        offset = 4 * group - address.first
        for s in range(max(0, -offset), min(n, address.rows - offset)):
            out[offset + s] = loss[s]
        group += n >> 2


@kernel
def moments(table):  # type: ignore[no-untyped-def]
    # mean of each column of a table (n, M), and the summed squares of what is beyond it, in double precision
    number, count = table.shape
    mean, square = np.zeros(count), np.zeros(count)
    for row in range(number):
        for i in range(count):
            mean[i] += table[row, i]
    for i in range(count):
        mean[i] /= number
    for row in range(number):
        for i in range(count):
            beyond = table[row, i] - mean[i]
            square[i] += beyond * beyond
    return mean, square
