r"""One layer of the chain for a block of samples, an array row for each component: x is (d, n).

The activations are 1 - s / (1 + exp(s y)): tanh for s = 2, the logistic function for s = 1. A layer keeps

    r_j = 1 / (1 + exp(s (W x + b)_j)),     z_j = 1 - s r_j,     z_j' = s^2 r_j (1 - r_j),

so that V z = sum_j V_j - s sum_j V_j r_j. Two units share a division. Exponents are brought into range only
where weights and states let one leave it. `zero`, a tuple of d zeros, makes d a constant to the compiler, and
weights that do not change along a loop are read into such tuples before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.cpython.unsafe import tuple as tuples

from kolmo.compiled.elementary import halves, largest, normal_quantile
from kolmo.compiled.jit import inline, kernel, part
from kolmo.compiled.philox import unit_interval, words, words_of_two
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
    reach: Any
    """max_j of |s b_j| and of |s W_j| in powers of two, (L, 1 + d)."""
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
def pack(W, b, V, factor, scale, units, sums, reach):  # type: ignore[no-untyped-def]
    # weights (double) into units, sums and reach; factor: s log2(e)
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
        for i in range(1 + d):
            reach[k, i] = 0.0
            for j in range(width):
                size = abs(units[k, j, i])
                # nan stays
                reach[k, i] = size if size > reach[k, i] or size != size else reach[k, i]


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


@inline
def _halves(zero, b, w, x, s, wide, c):  # type: ignore[no-untyped-def]
    y = _affine(zero, b, w, x, s)
    if wide:
        y = -c.units if y < -c.units else y
        y = c.units if y > c.units else y
    return halves(y, c)


@inline
def _pair(zero, b0, w0, b1, w1, x, s, wide, c):  # type: ignore[no-untyped-def]
    # r of two units: B / (A + B), the quotients over a common denominator
    a0, r0 = _halves(zero, b0, w0, x, s, wide, c)
    a1, r1 = _halves(zero, b1, w1, x, s, wide, c)
    d0, d1 = a0 + r0, a1 + r1
    shared = c.one / (d0 * d1)
    return (r0 * d1) * shared, (r1 * d0) * shared


@part
def activate(zero, units, k, j, x, n, wide, out, slot, row, c):  # type: ignore[no-untyped-def]
    # r of units j and j + 1 into rows `row` and `row` + 1
    b0, b1 = units[k, j, 0], units[k, j + 1, 0]
    w0, w1 = entries(zero, units, k, j, 1), entries(zero, units, k, j + 1, 1)
    # two loops: a test within one would not become vector instructions
    if wide:
        for s in range(n & ~15):
            out[slot, row, s], out[slot, row + 1, s] = _pair(zero, b0, w0, b1, w1, x, s, True, c)
    else:
        for s in range(n & ~15):
            out[slot, row, s], out[slot, row + 1, s] = _pair(zero, b0, w0, b1, w1, x, s, False, c)


@inline
def _add(zero, total, s, v0, v1, pair):  # type: ignore[no-untyped-def]
    for i in range(len(zero)):
        # in this order each product is contracted with a sum
        total[i, s] = (total[i, s] + v0[i] * pair[0]) + v1[i] * pair[1]


@part
def _add_units(zero, units, k, j, x, n, wide, total, c):  # type: ignore[no-untyped-def]
    # `activate` and `_collect` in one, for those who do not ask for r
    b0, b1 = units[k, j, 0], units[k, j + 1, 0]
    w0, w1 = entries(zero, units, k, j, 1), entries(zero, units, k, j + 1, 1)
    start = 1 + 2 * len(zero)
    v0, v1 = entries(zero, units, k, j, start), entries(zero, units, k, j + 1, start)
    if wide:
        for s in range(n & ~15):
            _add(zero, total, s, v0, v1, _pair(zero, b0, w0, b1, w1, x, s, True, c))
    else:
        for s in range(n & ~15):
            _add(zero, total, s, v0, v1, _pair(zero, b0, w0, b1, w1, x, s, False, c))


@part
def _is_wide(zero, reach, k, x, n, c):  # type: ignore[no-untyped-def]
    # whether an exponent of a layer may be beyond c.units, or not a number
    most = reach[k, 0]
    for i in range(len(zero)):
        most += reach[k, 1 + i] * largest(x, i, n)
    return not most <= c.units


@part
def _collect(zero, units, k, j, r, slot, row, n, total):  # type: ignore[no-untyped-def]
    # total += -s V_j r_j of two units
    start = 1 + 2 * len(zero)
    v0, v1 = entries(zero, units, k, j, start), entries(zero, units, k, j + 1, start)
    for s in range(n & ~15):
        _add(zero, total, s, v0, v1, (r[slot, row, s], r[slot, row + 1, s]))


@part
def _collect_hidden(zero, units, k, j, r, e, slot, row, n, scale, total, c):  # type: ignore[no-untyped-def]
    # total += V_j (1 + e_j) z_j of two units
    start = 1 + len(zero)
    v0, v1 = entries(zero, units, k, j, start), entries(zero, units, k, j + 1, start)
    for s in range(n & ~15):
        t0 = (c.one + e[slot, j, s]) * (c.one - scale * r[slot, row, s])
        t1 = (c.one + e[slot, j + 1, s]) * (c.one - scale * r[slot, row + 1, s])
        _add(zero, total, s, v0, v1, (t0, t1))


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
def _row(zero, layers, number):  # type: ignore[no-untyped-def]
    # where a random number of a layer is kept: in DropConnect, a hidden unit of weight 0 makes rows longer
    if layers.structure != CONNECT:
        return number
    real = layers.numbers // len(zero)
    return number // real * layers.units.shape[1] + number % real


@part
def _keep(layers, k, address, n, words, e, slot, row):  # type: ignore[no-untyped-def]
    off, on = layers.values[k, 0], layers.values[k, 1]
    flip, most = address.flip, layers.thresholds[k]
    for s in range(n & ~15):
        e[slot, row, s] = on if words[s] ^ flip <= most else off


@part
def draw(zero, layers, k, address, group, n, e, slot, high, low):  # type: ignore[no-untyped-def]
    # the random numbers of a layer for n samples from 4 * group on, each into its row of e
    part, numbers, on = k * PARTS, layers.numbers, layers.values[k, 1]
    if layers.law == TWO_POINT:
        for unit in range(0, numbers - 1, 2):
            words_of_two(address.seed, part, unit, group, n, high, low)
            _keep(layers, k, address, n, high, e, slot, _row(zero, layers, unit))
            _keep(layers, k, address, n, low, e, slot, _row(zero, layers, unit + 1))
        if numbers & 1:
            words(address.seed, part, numbers - 1, group, n, high)
            _keep(layers, k, address, n, high, e, slot, _row(zero, layers, numbers - 1))
        return
    for unit in range(numbers):
        row = _row(zero, layers, unit)
        words_of_two(address.seed, part, 2 * unit, group, n, high, low)
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
    draw(zero, layers, k, address, group, n, e, slot, high, low)
    acts_inside = structure in (HIDDEN, CONNECT)
    for i in range(len(zero)):
        start = c.zero if acts_inside else layers.sums[k, i]
        for s in range(n & ~15):
            total[i, s] = start
    wide = _is_wide(zero, layers.reach, k, x, n, c)
    for j in range(0, width, 2):
        row = j * keep
        if not keep and not acts_inside:
            _add_units(zero, units, k, j, x, n, wide, total, c)
            continue
        activate(zero, units, k, j, x, n, wide, r, slot, row, c)
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
