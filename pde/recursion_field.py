"""The field f = V tanh(W x + b) of one layer at fixed points, and its derivatives by the weights, compiled.

`kolmo.field` without the advection, which the recursion has no use for: a third of the time.
"""

from __future__ import annotations

import numpy as np

from kolmo.field import add_units, blocks, copy_rows, fill_units
from kolmo.kernel import kernel


@kernel
def evaluate(dims, W, b, V, points, line, f):  # type: ignore[no-untyped-def]
    """f (d, Q) at points (3, Q); weights and `line` as in `kolmo.field.evaluate`."""
    m, count = len(b), points.shape[1]
    separable, block, outer, inner = blocks(dims, W, b, points, line)
    units, here = np.empty((m, block)), np.empty((3, block))
    for start in range(np.uint64(0), np.uint64(count), np.uint64(block)):
        size = min(np.uint64(block), np.uint64(count) - start)
        fill_units(dims, W, b, points, start, size, separable, outer, inner, units)
        here[:] = 0.0
        add_units(dims, V, units, size, here)
        for i in range(len(dims)):
            for q in range(size):
                f[i, start + q] = here[i, q]


@kernel
def _pulled(dims, v0, v1, v2, y, q):  # type: ignore[no-untyped-def]
    total = v0 * y[0, q]
    if len(dims) > 1:
        total += v1 * y[1, q]
    if len(dims) > 2:
        total += v2 * y[2, q]
    return total


@kernel
def _add_gradient(dims, V, units, points, y, size, j, d_W, d_b, d_V):  # type: ignore[no-untyped-def]
    # adds the part of two units, which load points and y but once
    i = j + np.uint64(1)
    v0, v1, v2, u0, u1, u2 = V[j, 0], V[j, 1], V[j, 2], V[i, 0], V[i, 1], V[i, 2]
    dw0, dw1, dw2, dv0, dv1, dv2, db = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    ew0, ew1, ew2, ev0, ev1, ev2, eb = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for q in range(size):
        z, w = units[j, q], units[i, q]
        down, under = _pulled(dims, v0, v1, v2, y, q), _pulled(dims, u0, u1, u2, y, q)
        down *= 1.0 - z * z
        under *= 1.0 - w * w
        db += down
        eb += under
        dv0 += z * y[0, q]
        ev0 += w * y[0, q]
        dw0 += down * points[0, q]
        ew0 += under * points[0, q]
        if len(dims) > 1:
            dv1 += z * y[1, q]
            ev1 += w * y[1, q]
            dw1 += down * points[1, q]
            ew1 += under * points[1, q]
        if len(dims) > 2:
            dv2 += z * y[2, q]
            ev2 += w * y[2, q]
            dw2 += down * points[2, q]
            ew2 += under * points[2, q]
    d_b[j] += db
    d_b[i] += eb
    for a, dw, dv, ew, ev in ((0, dw0, dv0, ew0, ev0), (1, dw1, dv1, ew1, ev1), (2, dw2, dv2, ew2, ev2)):
        d_W[j, a] += dw
        d_V[j, a] += dv
        d_W[i, a] += ew
        d_V[i, a] += ev


@kernel
def differentiate(dims, W, b, V, points, line, d_f, d_W, d_b, d_V):  # type: ignore[no-untyped-def]
    """Derivatives by the weights, from those by f (d, Q)."""
    m, count = len(b), points.shape[1]
    d_W[:] = 0.0
    d_b[:] = 0.0
    d_V[:] = 0.0
    separable, block, outer, inner = blocks(dims, W, b, points, line)
    units, here, down = np.empty((m, block)), np.empty((3, block)), np.empty((3, block))
    for start in range(np.uint64(0), np.uint64(count), np.uint64(block)):
        size = min(np.uint64(block), np.uint64(count) - start)
        fill_units(dims, W, b, points, start, size, separable, outer, inner, units)
        copy_rows(points, start, size, here)
        copy_rows(d_f, start, size, down)
        for j in range(np.uint64(0), np.uint64(m), np.uint64(2)):
            _add_gradient(dims, V, units, here, down, size, j, d_W, d_b, d_V)
