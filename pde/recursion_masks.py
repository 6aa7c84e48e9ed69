r"""Expectations of a cubic spline under Bernoulli masks in the plane, and their transpose.

A mask drops a component of the block or keeps it: a node moves by 0 or by s f_a along each axis. Along an
axis that is dropped the departure point is on a line of the grid, where the spline is one of the other axis
alone, with coefficients of that line's nodal values: four numbers of each class in place of sixteen. Where
both are dropped it is the node. Tested against `recursion_kernels`, which other noises go through.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import FINITE, kernel
from kolmo.pde.recursion_kernels import (
    add_limited,
    add_row,
    both_of,
    derivatives,
    limit,
    locate,
    row_of,
    splines,
)
from kolmo.pde.recursion_vectors import (
    differ,
    load2,
    load4,
    load8,
    number,
    pair_sum,
    plus_times,
    repeated,
    store,
    times,
    twice,
)

#: two axes, to the kernels of any dimension
_PLANE = (0, 0)
_0, _1, _2, _3, _4 = (np.uint64(n) for n in range(5))

# Arguments throughout: points (3, Q) and f (2, Q) of whole lines of the grid from its `line`-th on; shift,
# the number s, units of time; weights, the probabilities that neither axis is kept, the last, the first,
# both; `grid` as in `recursion_kernels`; c (size, 2), coefficients along both axes; first (n + 1, n + 3, 2),
# those along the first axis for each node of the last, and last (n + 1, n + 3, 2), those along the last axis
# for each node of the first: both empty where no axis is kept alone.


@kernel
def _cell(node, cells):  # type: ignore[no-untyped-def]
    # along an axis, as `locate` has it for a point that stays at a node
    return min(node, cells - _1)


@kernel
def _locate_line(points, f, start, size, shift, grid, cell, place, factor, taps):  # type: ignore[no-untyped-def]
    # departure points of a line's nodes: along the first axis, and from `size` on along the last
    locate(points[_0], f[_0], start, size, shift, grid, _0, cell, place, factor)
    locate(points[_1], f[_1], start, size, shift, grid, size, cell, place, factor)
    splines(place, taps)


@kernel
def expect(points, f, shift, weights, first, last, line, grid, c, bounds, nodal, out):  # type: ignore[no-untyped-def]
    """Expectations of both classes at the nodes of some lines, into out (Q, 2); False where f is not finite.

    bounds: of every cell, from `recursion_kernels.bound`, between which values are kept; or none.
    """
    cells, count = np.uint64(grid[2]), np.uint64(points.shape[1])
    size, row = cells + _1, cells + _3
    limited, alone = len(bounds) > 0, len(last) > 0
    cell, place, factor = np.empty(_2 * size, np.int64), np.empty(_2 * size), np.empty(_2 * size)
    taps = np.empty((_2 * size, 4))
    stay, only_last, only_first, go = weights
    finite = True
    for a in range(2):
        for q in range(count):
            finite &= abs(f[a, q]) <= FINITE
    if not finite:
        return False
    for start in range(_0, count, size):
        i = np.uint64(line) + start // size
        on = _cell(i, cells) * cells
        _locate_line(points, f, start, size, shift, grid, cell, place, factor, taps)
        for q in range(size):
            k, m = np.uint64(cell[q]), np.uint64(cell[size + q])
            across = twice(load4(taps, _4 * (size + q)))
            value = pair_sum(times(row_of(c, _2 * (k * row + m), _2 * row, taps, q), across))
            if limited:
                value = limit(value, bounds, k * cells + m)
            total = plus_times(times(value, go), load2(nodal, _2 * (i * size + q)), stay)
            if alone:
                value = pair_sum(times(load8(last, _2 * (i * row + m)), across))
                if limited:
                    value = limit(value, bounds, on + m)
                total = plus_times(total, value, only_last)
                value = pair_sum(times(load8(first, _2 * (q * row + k)), twice(load4(taps, _4 * q))))
                if limited:
                    value = limit(value, bounds, k * cells + _cell(q, cells))
                total = plus_times(total, value, only_first)
            store(out, _2 * (start + q), total)
    return True


@kernel
def _limited(value, kept, own, nodal, row, column, cells, pair, d_nodal):  # type: ignore[no-untyped-def]
    # seldom called, since arrays take long to hand over: what moves with the departure point of a
    # derivative `own` of both classes
    store(pair, _0, own)
    add_limited(_PLANE, nodal, row * (cells + _1) + column, cells, value, kept, pair, d_nodal)
    return load2(pair, _0)


@kernel
def expect_transposed(  # type: ignore[no-untyped-def]
    points, f, shift, weights, first, last, line, grid, c, bounds, nodal, cotangent,
    d_f, d_c, d_nodal, d_first, d_last,
):  # fmt: skip
    """Derivatives of sum(cotangent * expectations): into d_f (2, Q), lines of d_last, added to the rest."""
    cells, count = np.uint64(grid[2]), np.uint64(points.shape[1])
    size, row = cells + _1, cells + _3
    limited, alone = len(bounds) > 0, len(last) > 0
    cell, place, factor = np.empty(_2 * size, np.int64), np.empty(_2 * size), np.empty(_2 * size)
    taps, slopes, pair = np.empty((_2 * size, 4)), np.empty((_2 * size, 4)), np.empty(2)
    stay, only_last, only_first, go = weights
    for start in range(_0, count, size):
        i = np.uint64(line) + start // size
        on = _cell(i, cells)
        _locate_line(points, f, start, size, shift, grid, cell, place, factor, taps)
        derivatives(place, factor, slopes)
        if alone:
            d_last[i] = 0.0
        for q in range(size):
            k, m, n = np.uint64(cell[q]), np.uint64(cell[size + q]), _cell(q, cells)
            own, node = load2(cotangent, _2 * (start + q)), _2 * (i * size + q)
            store(d_nodal, node, plus_times(load2(d_nodal, node), own, stay))
            by_both, by_last, by_first = times(own, go), times(own, only_last), times(own, only_first)
            at, at_last, at_first = _2 * (k * row + m), _2 * (i * row + m), _2 * (q * row + k)
            first_taps, last_taps = twice(load4(taps, _4 * q)), twice(load4(taps, _4 * (size + q)))
            first_slopes = twice(load4(slopes, _4 * q))
            last_slopes = twice(load4(slopes, _4 * (size + q)))
            c_both, slope = both_of(c, at, _2 * row, taps, slopes, q)
            if alone:
                c_last, c_first = load8(last, at_last), load8(first, at_first)
            if limited:
                u = pair_sum(times(c_both, last_taps))
                kept = limit(u, bounds, k * cells + m)
                if differ(u, kept):
                    by_both = _limited(u, kept, by_both, nodal, k, m, cells, pair, d_nodal)
                if alone:
                    u_last = pair_sum(times(c_last, last_taps))
                    kept_last = limit(u_last, bounds, on * cells + m)
                    if differ(u_last, kept_last):
                        by_last = _limited(u_last, kept_last, by_last, nodal, on, m, cells, pair, d_nodal)
                    u_first = pair_sum(times(c_first, first_taps))
                    kept_first = limit(u_first, bounds, k * cells + n)
                    if differ(u_first, kept_first):
                        by_first = _limited(u_first, kept_first, by_first, nodal, k, n, cells, pair, d_nodal)
            pull = repeated(by_both)
            down_last = times(times(c_both, pull), last_slopes)
            pull = times(pull, last_taps)
            down_first = times(slope, pull)
            add_row(d_c, at, _2 * row, taps, q, pull)
            if alone:
                pull = repeated(by_last)
                down_last = plus_times(down_last, times(c_last, pull), last_slopes)
                store(d_last, at_last, plus_times(load8(d_last, at_last), last_taps, pull))
                pull = repeated(by_first)
                down_first = plus_times(down_first, times(c_first, pull), first_slopes)
                store(d_first, at_first, plus_times(load8(d_first, at_first), first_taps, pull))
            total = pair_sum(down_first)
            d_f[0, start + q] = number(total, _0) + number(total, _1)
            total = pair_sum(down_last)
            d_f[1, start + q] = number(total, _0) + number(total, _1)
