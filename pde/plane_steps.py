r"""`substep`'s sums over neighbours in the plane, with half of the loads that bound them.

With N = `line` nodes in a line, the neighbours of node q are q - 1, q + 1 and the pairs q - N - 1, q - N and
q + N, q + N + 1. The first of each is what node q - 1 had loaded as the second: a recurrence, which LLVM
vectorises by shifting registers. Most loads beside a node are spread over two cache lines and cost twice.

Values are named a, a1 below, c, b, c1 on and e, e1 above the node's line, capitals for the other class.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import kernel

_ONE = np.uint64(1)


@kernel
def apply(K, line, margin, scale, row, other, into, beside):  # type: ignore[no-untyped-def]
    """scale (Q,) times K of two padded rows, which share what is read of K."""
    up, after, far = margin + line, margin + _ONE, margin + line + _ONE
    down = margin - line
    a, c, e = row[down - _ONE], row[margin - _ONE], row[up]
    A, C, E = other[down - _ONE], other[margin - _ONE], other[up]
    for q in range(np.uint64(len(scale))):
        a1, b, c1, e1 = row[q + down], row[q + margin], row[q + after], row[q + far]
        A1, B, C1, E1 = other[q + down], other[q + margin], other[q + after], other[q + far]
        p = q + margin
        k1, k2, k3, k4, k5, k6 = K[1, p], K[2, p], K[3, p], K[4, p], K[5, p], K[6, p]
        one = k1 * (c1 - b) + k2 * (e - b) + k3 * (e1 - b) + k4 * (a - b) + k5 * (a1 - b) + k6 * (c - b)
        two = k1 * (C1 - B) + k2 * (E - B) + k3 * (E1 - B) + k4 * (A - B) + k5 * (A1 - B) + k6 * (C - B)
        into[p], beside[p] = scale[q] * one, scale[q] * two
        a, c, e, A, C, E = a1, b, e1, A1, B, E1


@kernel
def transpose(K, line, margin, row, other, into, beside):  # type: ignore[no-untyped-def]
    """K^T of two padded rows."""
    up, after, far = margin + line, margin + _ONE, margin + line + _ONE
    down, before = margin - line, margin - _ONE
    below = down - _ONE
    a, c, e = row[below], row[before], row[up]
    A, C, E = other[below], other[before], other[up]
    for q in range(np.uint64(len(into))):
        a1, b, c1, e1 = row[q + down], row[q + margin], row[q + after], row[q + far]
        A1, B, C1, E1 = other[q + down], other[q + margin], other[q + after], other[q + far]
        k0, k1, k2, k3 = K[0, q + margin], K[1, q + before], K[2, q + down], K[3, q + below]
        k4, k5, k6 = K[4, q + far], K[5, q + up], K[6, q + after]
        into[q] = k0 * b + k1 * c + k2 * a1 + k3 * a + k4 * e1 + k5 * e + k6 * c1
        beside[q] = k0 * B + k1 * C + k2 * A1 + k3 * A + k4 * E1 + k5 * E + k6 * C1
        a, c, e, A, C, E = a1, b, e1, A1, B, E1


#: I - Ml^-1 M in the plane: half of the node less a twelfth of the sum of its six neighbours
_CENTRE, _SIDE = 0.5, -1 / 12


@kernel
def _mend(line, margin, share, row, into):  # type: ignore[no-untyped-def]
    # from the interior's rows of I - Ml^-1 M to the boundary's, where a neighbour that shares m of a node's n
    # triangles has weight -m / 4 n; what was read in place of absent ones, the margin's zeros or the other
    # end of a line, is taken back
    side, lines, far = share * _SIDE, line - _ONE, line + _ONE
    first, last = margin, margin + line * line - _ONE
    for k in range(_ONE, lines):  # the lowest line and the highest
        p, q = first + k, last - k
        into[p] += side * (row[p + line] + row[p + far])
        into[q] += side * (row[q - line] + row[q - far])
    for k in range(_ONE, lines):  # both ends of the others
        p = first + k * line
        q = p + lines
        into[p] += side * ((row[p + _ONE] + row[p + far]) - (row[p - _ONE] + row[p - far]))
        into[q] += side * ((row[q - _ONE] + row[q - far]) - (row[q + _ONE] + row[q + far]))
    p, q = first, last
    into[p] += side * (0.5 * (row[p + _ONE] + row[p + line]) + 2.0 * row[p + far])
    into[q] += side * (0.5 * (row[q - _ONE] + row[q - line]) + 2.0 * row[q - far])
    p, q = first + lines, last - lines
    into[p] += side * (2.0 * (row[p - _ONE] + row[p + line]) - row[p + _ONE] - row[p + far])
    into[q] += side * (2.0 * (row[q + _ONE] + row[q - line]) - row[q - _ONE] - row[q - far])


@kernel
def defect(kept, line, margin, y, into):  # type: ignore[no-untyped-def]
    """into = kept y + (I - Ml^-1 M) y, padded rows with margins of zeros."""
    up, after, far, down = margin + line, margin + _ONE, margin + line + _ONE, margin - line
    a, c, e = y[down - _ONE], y[margin - _ONE], y[up]
    for q in range(line * line):
        a1, b, c1, e1 = y[q + down], y[q + margin], y[q + after], y[q + far]
        into[q + margin] = (kept + _CENTRE) * b + _SIDE * ((a + a1) + (c + c1) + (e + e1))
        a, c, e = a1, b, e1
    _mend(line, margin, 1.0, y, into)


@kernel
def correct(line, margin, share, base, y, row, into):  # type: ignore[no-untyped-def]
    """into = base + share (y + (I - Ml^-1 M) row), padded rows with margins of zeros."""
    up, after, far, down = margin + line, margin + _ONE, margin + line + _ONE, margin - line
    a, c, e = row[down - _ONE], row[margin - _ONE], row[up]
    for q in range(line * line):
        a1, b, c1, e1 = row[q + down], row[q + margin], row[q + after], row[q + far]
        total = y[q + margin] + _CENTRE * b + _SIDE * ((a + a1) + (c + c1) + (e + e1))
        into[q + margin] = base[q + margin] + share * total
        a, c, e = a1, b, e1
    _mend(line, margin, share, row, into)


@kernel
def sensitivity(weights, states, line, margin, G):  # type: ignore[no-untyped-def]
    """As `substep.sensitivity`, for an even number of rows."""
    up, after, far, down = margin + line, margin + _ONE, margin + line + _ONE, margin - line
    count = np.uint64(G.shape[1])
    G[:] = 0.0
    for n in range(0, len(weights), 2):  # by twos, which share G
        p, s, u, v = weights[n], weights[n + 1], states[n], states[n + 1]
        a, c, e = u[down - _ONE], u[margin - _ONE], u[up]
        A, C, E = v[down - _ONE], v[margin - _ONE], v[up]
        for q in range(count):
            x, y = p[q + margin], s[q + margin]
            a1, b, c1, e1 = u[q + down], u[q + margin], u[q + after], u[q + far]
            A1, B, C1, E1 = v[q + down], v[q + margin], v[q + after], v[q + far]
            G[1, q] += x * (c1 - b) + y * (C1 - B)
            G[2, q] += x * (e - b) + y * (E - B)
            G[3, q] += x * (e1 - b) + y * (E1 - B)
            G[4, q] += x * (a - b) + y * (A - B)
            G[5, q] += x * (a1 - b) + y * (A1 - B)
            G[6, q] += x * (c - b) + y * (C - B)
            a, c, e, A, C, E = a1, b, e1, A1, B, E1
