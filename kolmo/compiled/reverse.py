r"""Derivatives of the chain's losses by the weights, path by path: forward, then back by hand.

With f = V z, g = dloss/df and lambda = dloss/dx after a layer (MATHEMATICS section 1, the increment's own
derivatives; random numbers are constants):

    dloss/dz_j = sum_i V_ij g_i,     dloss/dy_j = z_j' dloss/dz_j,     lambda' = lambda + W^T dloss/dy,

where factors 1 + e belong to g (noise on the output or on the block) or to single terms (noise within it).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kolmo.compiled.elementary import softplus, softplus_slope
from kolmo.compiled.forward import blocks, noise_rows, start, work
from kolmo.compiled.jit import inline, kernel, part, reduction, reduction_inline
from kolmo.compiled.layers import BLOCK as WHOLE
from kolmo.compiled.layers import CONNECT, HIDDEN, OUTPUT, advance, entries, tuple_setitem

#: samples differentiated at once: the units of all their layers stay in the second cache
BLOCK = 320


class Derivatives(NamedTuple):
    """Sums over paths of the derivatives by W (L, m, d), b (L, m) and V (L, d, m), double."""

    W: Any
    b: Any
    V: Any


@inline
def _product(zero, v, g, s):  # type: ignore[no-untyped-def]
    total = v[0] * g[0, s]
    for i in range(1, len(zero)):
        total += v[i] * g[i, s]
    return total


@reduction_inline
def _plus(zero, total, rows, s, factor):  # type: ignore[no-untyped-def]
    for i in range(len(zero)):
        total = tuple_setitem(total, i, total[i] + rows[i, s] * factor)
    return total


@reduction_inline
def _plus_at(zero, total, rows, k, s, factor):  # type: ignore[no-untyped-def]
    for i in range(len(zero)):
        total = tuple_setitem(total, i, total[i] + rows[k, i, s] * factor)
    return total


@inline
def _pull(zero, rows, s, w0, y0, w1, y1):  # type: ignore[no-untyped-def]
    for i in range(len(zero)):
        rows[i, s] += w0[i] * y0 + w1[i] * y1


@reduction
def _units(zero, units, k, j, r, e, hidden, states, g, back, n, scale, derivatives, c):  # type: ignore[no-untyped-def]
    # two units of a layer: their share of the derivatives, and of lambda into back
    d, real = len(zero), derivatives.b.shape[1]
    v0, v1 = entries(zero, units, k, j, 1 + d), entries(zero, units, k, j + 1, 1 + d)
    w0, w1 = entries(zero, units, k, j, 1 + 3 * d), entries(zero, units, k, j + 1, 1 + 3 * d)
    b0, b1, dv0, dv1, dw0, dw1 = c.zero, c.zero, zero, zero, zero, zero
    for s in range(n & ~15):
        r0, r1 = r[k, j, s], r[k, j + 1, s]
        z0, z1 = c.one - scale * r0, c.one - scale * r1
        t0, t1 = _product(zero, v0, g, s), _product(zero, v1, g, s)
        if hidden:
            q0, q1 = c.one + e[k, j, s], c.one + e[k, j + 1, s]
            z0, z1, t0, t1 = q0 * z0, q1 * z1, q0 * t0, q1 * t1
        y0, y1 = t0 * (scale * scale * r0 * (c.one - r0)), t1 * (scale * scale * r1 * (c.one - r1))
        b0 += y0
        b1 += y1
        dv0, dv1 = _plus(zero, dv0, g, s, z0), _plus(zero, dv1, g, s, z1)
        dw0, dw1 = _plus_at(zero, dw0, states, k, s, y0), _plus_at(zero, dw1, states, k, s, y1)
        _pull(zero, back, s, w0, y0, w1, y1)
    derivatives.b[k, j] += b0
    for i in range(d):
        derivatives.W[k, j, i] += dw0[i]
        derivatives.V[k, i, j] += dv0[i]
    if j + 1 < real:
        derivatives.b[k, j + 1] += b1
        for i in range(d):
            derivatives.W[k, j + 1, i] += dw1[i]
            derivatives.V[k, i, j + 1] += dv1[i]


@reduction
def _connect(zero, units, k, j, r, e, states, g, back, n, scale, slope, derivatives, c):  # type: ignore[no-untyped-def]
    # one unit whose every output weight has a random number
    width = units.shape[1]
    for s in range(n & ~15):
        slope[s] = c.zero
    for i in range(len(zero)):
        v, total = units[k, j, 1 + len(zero) + i], c.zero
        for s in range(n & ~15):
            pull = g[i, s] * (c.one + e[k, i * width + j, s])
            slope[s] += v * pull
            total += pull * (c.one - scale * r[k, j, s])
        derivatives.V[k, i, j] += total
    total = c.zero
    for s in range(n & ~15):
        slope[s] *= scale * scale * r[k, j, s] * (c.one - r[k, j, s])
        total += slope[s]
    derivatives.b[k, j] += total
    for i in range(len(zero)):
        w, total = units[k, j, 1 + 3 * len(zero) + i], c.zero
        for s in range(n & ~15):
            total += slope[s] * states[k, i, s]
            back[i, s] += w * slope[s]
        derivatives.W[k, j, i] += total


@part
def _layer(zero, layers, k, r, e, states, g, back, n, slope, derivatives, c):  # type: ignore[no-untyped-def]
    # back: lambda, from after layer k to before it
    structure, step = layers.structure, layers.step
    for i in range(len(zero)):
        if structure in (OUTPUT, WHOLE):
            row, ratio = i if structure == OUTPUT else 0, layers.ratio[k]
            for s in range(n & ~15):
                g[i, s] = step * (ratio + e[k, row, s]) * back[i, s]
        else:
            for s in range(n & ~15):
                g[i, s] = step * back[i, s]
    real = derivatives.b.shape[1]
    if structure == CONNECT:
        for j in range(real):
            _connect(zero, layers.units, k, j, r, e, states, g, back, n, layers.scale, slope, derivatives, c)
        return
    hidden = structure == HIDDEN
    for j in range(0, real, 2):
        _units(
            zero, layers.units, k, j, r, e, hidden, states, g, back, n, layers.scale, derivatives, c
        )  # fmt: skip


@kernel
def gradient(zero, layers, points, address, weights, out, derivatives, c):  # type: ignore[no-untyped-def]
    # the loss of each path into out (count,), and sum_n weights_n dloss_n added to the derivatives
    group, number, n = blocks(address, BLOCK)
    depth, width, kind = len(layers.units), layers.units.shape[1], layers.units.dtype
    x, total = work((len(zero), n), kind), work((len(zero), n), kind)
    states = work((depth, len(zero), n), kind)
    r, e = work((depth, width, n), kind), work((depth, noise_rows(zero, layers), n), kind)
    e[:] = 0
    margin, loss, pull = work((n,), kind), work((n,), kind), work((n,), kind)
    high, low = work((n,), np.uint32), work((n,), np.uint32)
    for _ in range(number):
        start(zero, points, 4 * group, n, x, margin)
        for k in range(depth):
            for i in range(len(zero)):
                for s in range(n & ~15):
                    states[k, i, s] = x[i, s]
            advance(zero, layers, k, address, group, n, x, total, r, e, k, 1, high, low, c)
        offset = 4 * group - address.first
        for s in range(n):
            # rows of the block that nobody asked for
            asked = 0 <= offset + s < address.rows
            pull[s] = weights[offset + s] if asked else c.zero
        for s in range(n & ~15):
            t = margin[s] * x[0, s]
            loss[s] = softplus(t, c)
            pull[s] *= margin[s] * softplus_slope(t, c)
        for s in range(max(0, -offset), min(n, address.rows - offset)):
            out[offset + s] = loss[s]
        for i in range(len(zero)):
            for s in range(n & ~15):
                x[i, s] = pull[s] if i == 0 else c.zero
        for k in range(depth - 1, -1, -1):
            _layer(zero, layers, k, r, e, states, total, x, n, pull, derivatives, c)
        group += n >> 2
