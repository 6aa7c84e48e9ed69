r"""Coefficients of the cubic spline through given values, axis by axis, and the transposed map.

On an axis the interior rows are [1 4 1]/6; the not-a-knot condition makes the third coefficient from either
end a combination of three values, (8 v_1 - v_0 - v_2)/6, so that those in between solve a tridiagonal system
of constant rows, and the outer two follow from the first and the last rows.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import kernel
from kolmo.pde.recursion_vectors import load2, store

#: columns solved side by side, which stay in the first cache: rows of a power of two would share its sets
_COLUMNS = 44
_0, _1, _2, _3 = (np.uint64(n) for n in range(4))


def elimination(cells: int) -> np.ndarray:
    """What rows of [1 4 1] are multiplied by as they are eliminated, shape (cells + 1,); n - 3 are used."""
    factors = np.zeros(cells + 1)
    for j in range(3, cells):
        factors[j] = 1 / (4 - factors[j - 1])
    return factors


@kernel
def solve(values, factors, out):  # type: ignore[no-untyped-def]
    """Coefficients along the first axis of values (n + 1, 2 M), into the second of out (M, n + 3, 2)."""
    n, count = np.uint64(len(values)) - _1, np.uint64(values.shape[1])
    c = np.empty((n + _3, np.uint64(_COLUMNS)))
    for start in range(_0, count, np.uint64(_COLUMNS)):
        size = min(np.uint64(_COLUMNS), count - start)
        for q in range(size):
            p = start + q
            c[_2, q] = (8.0 * values[_1, p] - values[_0, p] - values[_2, p]) * (1.0 / 6.0)
            c[n, q] = (8.0 * values[n - _1, p] - values[n - _2, p] - values[n, p]) * (1.0 / 6.0)
        for j in range(_3, n):
            factor = factors[j]
            for q in range(size):
                c[j, q] = (6.0 * values[j - _1, start + q] - c[j - _1, q]) * factor
        for i in range(_3, n):
            j = n + _2 - i
            factor = factors[j]
            for q in range(size):
                c[j, q] -= factor * c[j + _1, q]
        for q in range(size):
            p = start + q
            c[_1, q] = 6.0 * values[_1, p] - 4.0 * c[_2, q] - c[_3, q]
            c[_0, q] = 6.0 * values[_0, p] - 4.0 * c[_1, q] - c[_2, q]
            c[n + _1, q] = 6.0 * values[n - _1, p] - 4.0 * c[n, q] - c[n - _1, q]
            c[n + _2, q] = 6.0 * values[n, p] - 4.0 * c[n + _1, q] - c[n, q]
        _put(c, start, size, out)


@kernel
def _put(rows, start, size, out):  # type: ignore[no-untyped-def]
    # columns of pairs become rows; both classes of a node move as one number
    length, columns = np.uint64(len(rows)), np.uint64(_COLUMNS)
    for q in range(size >> _1):
        into = ((start >> _1) + q) * length
        for j in range(length):
            store(out, _2 * (into + j), load2(rows, j * columns + _2 * q))


@kernel
def solve_transposed(cotangent, factors, out):  # type: ignore[no-untyped-def]
    """The transpose along the first axis: cotangent (n + 3, 2 M) into the second of out (M, n + 1, 2)."""
    n, count = np.uint64(len(cotangent)) - _3, np.uint64(cotangent.shape[1])
    c, v = np.empty((n + _3, np.uint64(_COLUMNS))), np.empty((n + _1, np.uint64(_COLUMNS)))
    for start in range(_0, count, np.uint64(_COLUMNS)):
        size = min(np.uint64(_COLUMNS), count - start)
        for j in range(n + _3):
            for q in range(size):
                c[j, q] = cotangent[j, start + q]
        for q in range(size):
            c[n + _1, q] -= 4.0 * c[n + _2, q]
            c[n, q] -= c[n + _2, q] + 4.0 * c[n + _1, q]
            c[n - _1, q] -= c[n + _1, q]
            c[_1, q] -= 4.0 * c[_0, q]
            c[_2, q] -= c[_0, q] + 4.0 * c[_1, q]
            c[_3, q] -= c[_1, q]
        for j in range(_3, n):
            factor = factors[j]
            for q in range(size):
                c[j + _1, q] -= factor * c[j, q]
        for i in range(_3, n):
            j = n + _2 - i
            factor = factors[j]
            for q in range(size):
                pull = c[j, q] * factor
                c[j, q] = pull
                c[j - _1, q] -= pull
        for q in range(size):
            v[_0, q], v[_1, q] = 6.0 * c[_0, q], 6.0 * c[_1, q]
            v[n - _1, q], v[n, q] = 6.0 * c[n + _1, q], 6.0 * c[n + _2, q]
        for j in range(_3, n):
            for q in range(size):
                v[j - _1, q] = 6.0 * c[j, q]
        for q in range(size):
            left, right = (1.0 / 6.0) * c[_2, q], (1.0 / 6.0) * c[n, q]
            v[_0, q] -= left
            v[_1, q] += 8.0 * left
            v[_2, q] -= left
            v[n - _2, q] -= right
            v[n - _1, q] += 8.0 * right
            v[n, q] -= right
        _put(v, start, size, out)
