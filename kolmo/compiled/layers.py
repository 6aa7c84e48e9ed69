r"""One layer of the chain for a block of samples, an array row for each component: x is (d, n).

The activations are 1 - s / (1 + exp(s y)): tanh for s = 2, the logistic function for s = 1. A layer keeps

    r_j = 1 / (1 + exp(s (W x + b)_j)),     z_j = 1 - s r_j,     z_j' = s^2 r_j (1 - r_j),

so that V z = sum_j V_j - s sum_j V_j r_j. Two units share a division. `zero`, a tuple of d zeros, makes d a
constant to the compiler, and weights that do not change along a loop are read into such tuples before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.cpython.unsafe import tuple as tuples

from kolmo.compiled.elementary import exp2, normal_quantile
from kolmo.compiled.jit import inline, kernel, part
from kolmo.compiled.philox import unit_interval, words
from kolmo.philox import PARTS

#: a tuple with one entry replaced
tuple_setitem: Any = tuples.tuple_setitem

#: on what the random numbers of a layer act: f_i, f as a whole, z_j, V_ij, or nothing: they are added
NONE, OUTPUT, BLOCK, HIDDEN, CONNECT, ADDED = range(6)
#: laws of the random numbers
TWO_POINT, UNIFORM, NORMAL = range(3)


class Layers(NamedTuple):
    """A network's weights as kernels read them, and the noise of each layer."""

    units: Any
    """(L, m, 1 + 4d), m even: s b_j and s W_j in powers of two, V_j, -s V_j, W_j for each hidden unit."""
    sums: Any
    """sum_j V_j, (L, d)."""
    scale: Any
    """s."""
    step: Any
    """h."""
    structure: int
    law: int
    numbers: int
    """Random numbers of a layer and sample."""
    values: Any
    """(L, 2): the number of a dropped and of a kept unit, or 0 and the factor of a number of unit width."""
    thresholds: Any
    """(L,), uint32: words up to it keep a unit."""
    ratio: Any
    """(L,): m = ratio f."""


class Address(NamedTuple):
    """Which random numbers: rows first, ..., first + rows - 1 of a stream's table."""

    seed: Any
    """uint64."""
    flip: Any
    """uint32 that words are combined with by exclusive or: all ones mirror the numbers."""
    first: int
    rows: int


@kernel
def pack(W, b, V, factor, scale, units, sums):  # type: ignore[no-untyped-def]
    # weights (double) into units and sums; factor: s log2(e)
    depth, width, d = W.shape
    for k in range(depth):
        for i in range(d):
            total = 0.0
            for j in range(width):
                total += V[k, i, j]
            sums[k, i] = total
        for j in range(width):
            units[k, j, 0] = factor * b[k, j]
            for i in range(d):
                units[k, j, 1 + i] = factor * W[k, j, i]
                units[k, j, 1 + d + i] = V[k, i, j]
                units[k, j, 1 + 2 * d + i] = -scale * V[k, i, j]
                units[k, j, 1 + 3 * d + i] = W[k, j, i]


@inline
def entries(zero, units, k, j, start):  # type: ignore[no-untyped-def]
    found = zero
    for i in range(len(zero)):
        found = tuple_setitem(found, i, units[k, j, start + i])
    return found


@inline
def _affine(zero, b, w, x, s):  # type: ignore[no-untyped-def]
    total = b
    for i in range(len(zero)):
        total += w[i] * x[i, s]
    return total


@part
def activate(zero, units, k, j, x, n, out, slot, row, c):  # type: ignore[no-untyped-def]
    # r of units j and j + 1 into rows `row` and `row` + 1
    b0, b1 = units[k, j, 0], units[k, j + 1, 0]
    w0, w1 = entries(zero, units, k, j, 1), entries(zero, units, k, j + 1, 1)
    for s in range(n & ~15):
        e0 = c.one + exp2(_affine(zero, b0, w0, x, s), c.units, c)
        e1 = c.one + exp2(_affine(zero, b1, w1, x, s), c.units, c)
        shared = c.one / (e0 * e1)
        out[slot, row, s] = shared * e1
        out[slot, row + 1, s] = shared * e0


@inline
def _add(zero, total, s, v0, t0, v1, t1):  # type: ignore[no-untyped-def]
    for i in range(len(zero)):
        total[i, s] += v0[i] * t0 + v1[i] * t1


@part
def _add_units(zero, units, k, j, x, n, total, c):  # type: ignore[no-untyped-def]
    # `activate` and `_collect` in one, for those who do not ask for r
    b0, b1 = units[k, j, 0], units[k, j + 1, 0]
    w0, w1 = entries(zero, units, k, j, 1), entries(zero, units, k, j + 1, 1)
    start = 1 + 2 * len(zero)
    v0, v1 = entries(zero, units, k, j, start), entries(zero, units, k, j + 1, start)
    for s in range(n & ~15):
        e0 = c.one + exp2(_affine(zero, b0, w0, x, s), c.units, c)
        e1 = c.one + exp2(_affine(zero, b1, w1, x, s), c.units, c)
        shared = c.one / (e0 * e1)
        _add(zero, total, s, v0, shared * e1, v1, shared * e0)


@part
def _collect(zero, units, k, j, r, slot, row, n, total):  # type: ignore[no-untyped-def]
    # total += -s V_j r_j of two units
    start = 1 + 2 * len(zero)
    v0, v1 = entries(zero, units, k, j, start), entries(zero, units, k, j + 1, start)
    for s in range(n & ~15):
        _add(zero, total, s, v0, r[slot, row, s], v1, r[slot, row + 1, s])


@part
def _collect_hidden(zero, units, k, j, r, e, slot, row, n, scale, total, c):  # type: ignore[no-untyped-def]
    # total += V_j (1 + e_j) z_j of two units
    start = 1 + len(zero)
    v0, v1 = entries(zero, units, k, j, start), entries(zero, units, k, j + 1, start)
    for s in range(n & ~15):
        t0 = (c.one + e[slot, j, s]) * (c.one - scale * r[slot, row, s])
        t1 = (c.one + e[slot, j + 1, s]) * (c.one - scale * r[slot, row + 1, s])
        _add(zero, total, s, v0, t0, v1, t1)


@part
def _collect_connect(zero, units, k, j, r, e, slot, row, n, scale, total, c):  # type: ignore[no-untyped-def]
    # total_i += V_ij (1 + e_ij) z_j of one unit
    width = units.shape[1]
    for i in range(len(zero)):
        v = units[k, j, 1 + len(zero) + i]
        for s in range(n & ~15):
            z = c.one - scale * r[slot, row, s]
            total[i, s] += v * (c.one + e[slot, i * width + j, s]) * z


@part
def draw(layers, k, address, group, n, unit, e, slot, row, high, low):  # type: ignore[no-untyped-def]
    # the random number of one unit for n samples from 4 * group on, into a row of e
    part = k * PARTS
    off, on = layers.values[k, 0], layers.values[k, 1]
    if layers.law == TWO_POINT:
        words(address.seed, part, unit, group, n, high)
        flip, most = address.flip, layers.thresholds[k]
        for s in range(n & ~15):
            e[slot, row, s] = on if high[s] ^ flip <= most else off
        return
    words(address.seed, part, 2 * unit, group, n, high)
    words(address.seed, part, 2 * unit + 1, group, n, low)
    if layers.law == UNIFORM:
        for s in range(n & ~15):
            e[slot, row, s] = on * (2.0 * unit_interval(high[s], low[s], address.flip) - 1.0)
    else:
        for s in range(n & ~15):
            u = max(unit_interval(high[s], low[s], address.flip), 2.0**-54)
            e[slot, row, s] = on * normal_quantile(u)


@part
def advance(zero, layers, k, address, group, n, x, total, r, e, slot, keep, high, low, c):  # type: ignore[no-untyped-def]
    # x becomes the state after layer k. r, e: rows of units and random numbers in `slot`; keep: 1 where each
    # unit has a row of r of its own, 0 where all share two
    units, structure, scale, width = layers.units, layers.structure, layers.scale, layers.units.shape[1]
    real = layers.numbers // len(zero)
    for number in range(layers.numbers):
        row = number // real * width + number % real if structure == CONNECT else number
        draw(layers, k, address, group, n, number, e, slot, row, high, low)
    acts_inside = structure in (HIDDEN, CONNECT)
    for i in range(len(zero)):
        start = c.zero if acts_inside else layers.sums[k, i]
        for s in range(n & ~15):
            total[i, s] = start
    for j in range(0, width, 2):
        row = j * keep
        if not keep and not acts_inside:
            _add_units(zero, units, k, j, x, n, total, c)
            continue
        activate(zero, units, k, j, x, n, r, slot, row, c)
        if structure == HIDDEN:
            _collect_hidden(zero, units, k, j, r, e, slot, row, n, scale, total, c)
        elif structure == CONNECT:
            for half in range(2):
                _collect_connect(zero, units, k, j + half, r, e, slot, row + half, n, scale, total, c)
        else:
            _collect(zero, units, k, j, r, slot, row, n, total)
    _move(zero, layers, k, n, x, total, e, slot)


@part
def _move(zero, layers, k, n, x, total, e, slot):  # type: ignore[no-untyped-def]
    structure, step = layers.structure, layers.step
    for i in range(len(zero)):
        row = i if structure in (OUTPUT, ADDED) else 0
        if structure in (OUTPUT, BLOCK):
            ratio = layers.ratio[k]
            for s in range(n & ~15):
                x[i, s] += step * (ratio + e[slot, row, s]) * total[i, s]
        elif structure == ADDED:
            for s in range(n & ~15):
                x[i, s] += step * total[i, s] + e[slot, row, s]
        else:
            for s in range(n & ~15):
                x[i, s] += step * total[i, s]
