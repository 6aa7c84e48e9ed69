r"""Expectations of a cubic spline where a layer multiplies its block by random numbers, and their transpose.

From a node x the layer leads to x_a + s f_a(x) along each axis a, s one of a few numbers that are the same at
all nodes: B-splines are evaluated once for each axis and number, whatever combinations of them there are. The
two classes of four neighbours are eight numbers in a row. Tested against `spline.gather` and `scatter`.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import FINITE, kernel
from kolmo.pde.recursion_vectors import (
    differ,
    high,
    larger,
    load2,
    load4,
    load8,
    low,
    number,
    pair_sum,
    plus_times,
    repeated,
    smaller,
    store,
    times,
    twice,
)
from kolmo.pde.spline import FACE

#: nodes whose departure points are located at once: what is known of them stays in the first cache
BLOCK = 64
#: powers 0 to 3 of the place in a cell in its four B-splines, and 0 to 2 in their derivatives
_SPLINES = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]).ravel() / 6
_SLOPES = np.array([[-1, 0, 1, 0], [2, -4, 2, 0], [-1, 3, -3, 1]]).ravel() / 2
_NONE = np.zeros(8)
_0, _1, _2, _3, _4, _8, _12 = (np.uint64(n) for n in (0, 1, 2, 3, 4, 8, 12))

# Arguments throughout: `dims`, a tuple of d entries, makes d a constant to the compiler; `grid` is the lower
# end of the box, the spacing and the cells of an axis; points (3, Q) and f (d, Q); shifts (K,) are the
# numbers s, units of time; a row of table (O, d) has an outcome's numbers as BLOCK (K a + k), k their places
# in shifts; weights (O,) the outcomes' probabilities; c (size, 2) the spline's coefficients.
# Indices are unsigned: numba's test for negative ones would keep loops from being vectorised.


@kernel
def locate(x, f, start, size, shift, grid, first, cell, place, factor):  # type: ignore[no-untyped-def]
    """Along one axis, for one number: cells, places in them, and what a derivative by f is multiplied by."""
    lower, spacing, cells = grid
    inverse, upper, last = 1.0 / spacing, lower + spacing * cells, cells - 1.0
    for q in range(size):
        y = x[start + q] + shift * f[start + q]
        factor[first + q] = shift * inverse if (lower <= y) & (y <= upper) else 0.0
        y = y if y < upper else upper
        y = y if y > lower else lower
        t = (y - lower) * inverse
        c = np.floor(t + FACE)
        c = c if c < last else last
        cell[first + q] = np.int64(c)
        place[first + q] = t - c


@kernel
def splines(place, taps):  # type: ignore[no-untyped-def]
    """The four B-splines at places (N,) in their cells, into taps (N, 4)."""
    p0, p1, p2, p3 = load4(_SPLINES, _0), load4(_SPLINES, _4), load4(_SPLINES, _8), load4(_SPLINES, _12)
    for k in range(np.uint64(len(place))):
        s = place[k]
        store(taps, _4 * k, plus_times(p0, plus_times(p1, plus_times(p2, p3, s), s), s))


@kernel
def derivatives(place, factor, slopes):  # type: ignore[no-untyped-def]
    """Their derivatives by f, into slopes (N, 4)."""
    p0, p1, p2 = load4(_SLOPES, _0), load4(_SLOPES, _4), load4(_SLOPES, _8)
    for k in range(np.uint64(len(place))):
        s = place[k]
        store(slopes, _4 * k, times(plus_times(p0, plus_times(p1, p2, s), s), factor[k]))


@kernel
def _locate_all(dims, points, f, shifts, grid, start, size, cell, place, factor, taps):  # type: ignore[no-untyped-def]
    values = np.uint64(len(shifts))
    for a in range(np.uint64(len(dims))):
        for v in range(values):
            first = (a * values + v) * np.uint64(BLOCK)
            locate(points[a], f[a], start, size, shifts[v], grid, first, cell, place, factor)
    splines(place, taps)


@kernel
def row_of(c, origin, stride, taps, k):  # type: ignore[no-untyped-def]
    """Four rows of eight coefficients, each times its B-spline."""
    total = times(load8(c, origin), taps[k, 0])
    total = plus_times(total, load8(c, origin + stride), taps[k, 1])
    total = plus_times(total, load8(c, origin + _2 * stride), taps[k, 2])
    return plus_times(total, load8(c, origin + _3 * stride), taps[k, 3])


@kernel
def limit(value, bounds, cell):  # type: ignore[no-untyped-def]
    """Both classes' value, kept within a cell's bounds."""
    return smaller(larger(value, load2(bounds, _4 * cell)), load2(bounds, _4 * cell + _2))


@kernel
def _find(dims, table, o, q, cell, cells):  # type: ignore[no-untyped-def]
    # of one outcome: where its first and its last axis are in the tables; the first of its coefficients, and
    # the first corner and the number of its cell
    i = k = table[o, 0] + q
    origin, node, corner = _0, _0, _0
    for a in range(np.uint64(len(dims))):
        k = table[o, a] + q
        here = np.uint64(cell[k])
        origin, node, corner = origin * (cells + _3) + here, node * (cells + _1) + here, corner * cells + here
    return i, k, _2 * origin, node, corner


@kernel
def expect(dims, points, f, shifts, table, weights, grid, c, bounds, out):  # type: ignore[no-untyped-def]
    """Expectations of both classes at points (3, Q), into out (Q, 2); False where f is not finite.

    bounds: of every cell, from `bound`, between which values are kept; or none.
    """
    count, entries = np.uint64(points.shape[1]), len(dims) * len(shifts) * BLOCK
    cells, limited = np.uint64(grid[2]), len(bounds) > 0
    stride = _2 * (cells + _3)
    plane = stride * (cells + _3)
    cell, place, factor = np.zeros(entries, np.int64), np.zeros(entries), np.empty(entries)
    taps = np.empty((entries, 4))
    finite = True
    for i in range(len(dims)):
        for q in range(count):
            finite &= abs(f[i, q]) <= FINITE
    if not finite:
        return False
    for start in range(_0, count, np.uint64(BLOCK)):
        size = min(np.uint64(BLOCK), count - start)
        _locate_all(dims, points, f, shifts, grid, start, size, cell, place, factor, taps)
        for q in range(size):
            total = load2(_NONE, _0)
            for o in range(np.uint64(len(weights))):
                i, k, origin, _, corner = _find(dims, table, o, q, cell, cells)
                if len(dims) == 1:
                    row = load8(c, origin)
                elif len(dims) == 2:
                    row = row_of(c, origin, stride, taps, i)
                else:
                    j = table[o, 1] + q
                    row = times(row_of(c, origin, stride, taps, j), taps[i, 0])
                    for r in range(_1, _4):
                        row = plus_times(row, row_of(c, origin + r * plane, stride, taps, j), taps[i, r])
                value = pair_sum(times(row, twice(load4(taps, _4 * k))))
                if limited:
                    value = limit(value, bounds, corner)
                total = plus_times(total, value, weights[o])
            store(out, _2 * (start + q), total)
    return True


@kernel
def _corner(dims, cells, line):  # type: ignore[no-untyped-def]
    # the first node of a line of cells
    if len(dims) == 3:
        return (line // cells * (cells + _1) + line % cells) * (cells + _1)
    return line * (cells + _1)


@kernel
def bound(dims, nodal, bounds):  # type: ignore[no-untyped-def]
    """Least and largest nodal value of both classes at each cell's corners: bounds (cells, 4)."""
    cells = np.uint64(round(len(bounds) ** (1.0 / len(dims))))
    next_line = _2 * (cells + _1)
    next_plane = next_line * (cells + _1)
    for line in range(np.uint64(len(bounds)) // cells):
        first, into = _2 * _corner(dims, cells, line), _4 * line * cells
        for k in range(cells):
            at = first + _2 * k
            least = most = load4(nodal, at)
            if len(dims) > 1:
                other = load4(nodal, at + next_line)
                least, most = smaller(least, other), larger(most, other)
            if len(dims) > 2:
                for more in (next_plane, next_plane + next_line):
                    other = load4(nodal, at + more)
                    least, most = smaller(least, other), larger(most, other)
            store(bounds, into + _4 * k, smaller(low(least), high(least)))
            store(bounds, into + _4 * k + _2, larger(low(most), high(most)))


@kernel
def both_of(c, origin, stride, taps, slopes, k):  # type: ignore[no-untyped-def]
    """`row_of`, and the same with the derivatives of the B-splines."""
    r0, r1 = load8(c, origin), load8(c, origin + stride)
    r2, r3 = load8(c, origin + _2 * stride), load8(c, origin + _3 * stride)
    row = plus_times(plus_times(times(r0, taps[k, 0]), r1, taps[k, 1]), r2, taps[k, 2])
    slope = plus_times(plus_times(times(r0, slopes[k, 0]), r1, slopes[k, 1]), r2, slopes[k, 2])
    return plus_times(row, r3, taps[k, 3]), plus_times(slope, r3, slopes[k, 3])


@kernel
def add_row(d_c, origin, stride, taps, k, row):  # type: ignore[no-untyped-def]
    """The transpose of `row_of`."""
    for i in range(_4):
        at = origin + i * stride
        store(d_c, at, plus_times(load8(d_c, at), row, taps[k, i]))


@kernel
def add_limited(dims, nodal, node, cells, value, kept, pair, d_nodal):  # type: ignore[no-untyped-def]
    """Both classes' derivatives `pair` by a value that was limited to `kept`, to where that comes from.

    It does not move with the departure point: `pair` keeps what still does. node: the cell's first corner.
    """
    for label in range(_2):
        of = number(kept, label)
        if number(value, label) != of:
            # that of a corner of its cell: the first that has it
            for i in range(1 << len(dims)):
                at, rest, step = node, i, _1
                for _ in range(len(dims)):
                    at += step * np.uint64(rest & 1)
                    rest >>= 1
                    step *= cells + _1
                if nodal[at, label] == of:
                    d_nodal[at, label] += pair[label]
                    break
            pair[label] = 0.0


@kernel
def expect_transposed(  # type: ignore[no-untyped-def]
    dims, points, f, shifts, table, weights, grid, c, bounds, nodal, cotangent, d_f, d_c, d_nodal
):
    """Derivatives of sum(cotangent * expectations): into d_f (d, Q), added to d_c and d_nodal."""
    count, entries = np.uint64(points.shape[1]), len(dims) * len(shifts) * BLOCK
    cells, limited = np.uint64(grid[2]), len(bounds) > 0
    stride = _2 * (cells + _3)
    plane = stride * (cells + _3)
    cell, place, factor = np.zeros(entries, np.int64), np.zeros(entries), np.zeros(entries)
    taps, slopes, pair = np.empty((entries, 4)), np.empty((entries, 4)), np.empty(2)
    for start in range(_0, count, np.uint64(BLOCK)):
        size = min(np.uint64(BLOCK), count - start)
        _locate_all(dims, points, f, shifts, grid, start, size, cell, place, factor, taps)
        derivatives(place, factor, slopes)
        for q in range(size):
            own = load2(cotangent, _2 * (start + q))
            all_own = repeated(own)
            total0 = total1 = total2 = load8(_NONE, _0)
            for o in range(np.uint64(len(weights))):
                i, k, origin, node, corner = _find(dims, table, o, q, cell, cells)
                j = k if len(dims) < 3 else table[o, 1] + q
                across = twice(load4(taps, _4 * k))
                if len(dims) == 1:
                    row = load8(c, origin)
                    slope = other = row
                elif len(dims) == 2:
                    row, slope = both_of(c, origin, stride, taps, slopes, i)
                    other = row
                else:
                    line, tilt = both_of(c, origin, stride, taps, slopes, j)
                    row, slope = times(line, taps[i, 0]), times(line, slopes[i, 0])
                    other = times(tilt, taps[i, 0])
                    for r in range(_1, _4):
                        line, tilt = both_of(c, origin + r * plane, stride, taps, slopes, j)
                        row, slope = plus_times(row, line, taps[i, r]), plus_times(slope, line, slopes[i, r])
                        other = plus_times(other, tilt, taps[i, r])
                pull = times(all_own, weights[o])
                if limited:
                    value = pair_sum(times(row, across))
                    kept = limit(value, bounds, corner)
                    if differ(value, kept):
                        store(pair, _0, times(own, weights[o]))
                        add_limited(dims, nodal, node, cells, value, kept, pair, d_nodal)
                        pull = repeated(load2(pair, _0))
                total0 = plus_times(total0, times(row, pull), twice(load4(slopes, _4 * k)))
                across = times(across, pull)
                if len(dims) == 1:
                    store(d_c, origin, plus_times(load8(d_c, origin), across, 1.0))
                elif len(dims) == 2:
                    total1 = plus_times(total1, slope, across)
                    add_row(d_c, origin, stride, taps, i, across)
                else:
                    total1, total2 = plus_times(total1, slope, across), plus_times(total2, other, across)
                    for r in range(_4):
                        add_row(d_c, origin + r * plane, stride, taps, j, times(across, taps[i, r]))
            last = len(dims) - 1
            store(pair, _0, pair_sum(total0))
            d_f[last, start + q] = pair[0] + pair[1]
            if len(dims) > 1:
                store(pair, _0, pair_sum(total1))
                d_f[0, start + q] = pair[0] + pair[1]
            if len(dims) > 2:
                store(pair, _0, pair_sum(total2))
                d_f[1, start + q] = pair[0] + pair[1]
