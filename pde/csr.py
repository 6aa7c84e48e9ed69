"""Compiled sparse kernels of spaces on any mesh: products with both classes at once, and the map T.

Nodal values are (Q, 2) with the classes side by side, so that a neighbour is one cache line. The numbers
are those of scipy's products, which the tests compare them with.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import FINITE, bits, kernel, number

# Starts and columns are unsigned: a signed index might be negative, and numba's test for that takes as long
# as the products themselves.

_ONE = np.uint64(1)


@kernel
def _row(starts, columns, data, u, r, first, second):  # type: ignore[no-untyped-def]
    # (first, second) plus row r of A u for a matrix in compressed rows
    for k in range(np.uint64(starts[r]), np.uint64(starts[r + _ONE])):
        c, entry = columns[k], data[k]
        first += entry * u[c, 0]
        second += entry * u[c, 1]
    return first, second


@kernel
def product(starts, columns, data, u, out):  # type: ignore[no-untyped-def]
    """out (Q, 2) = A u."""
    for r in range(np.uint64(len(out))):
        out[r, 0], out[r, 1] = _row(starts, columns, data, u, r, 0.0, 0.0)


@kernel
def _scaled(starts, columns, data, scale, u, out):  # type: ignore[no-untyped-def]
    # out = scale (A u)
    for r in range(np.uint64(len(out))):
        first, second = _row(starts, columns, data, u, r, 0.0, 0.0)
        out[r, 0], out[r, 1] = scale[r] * first, scale[r] * second


@kernel
def _corrected(starts, columns, data, share, y, u, out):  # type: ignore[no-untyped-def]
    # out = share (y + A u)
    for r in range(np.uint64(len(out))):
        first, second = _row(starts, columns, data, u, r, y[r, 0], y[r, 1])
        out[r, 0], out[r, 1] = share * first, share * second


@kernel
def _solve_mass(starts, columns, defect, corrections, share, work, out):  # type: ignore[no-untyped-def]
    # out = share M_k^-1 y for work[0] = Ml^-1 y, by Horner's rule in I - Ml^-1 M (entries: defect)
    first, last = work[0], work[0]
    for k in range(corrections - 1):
        into = work[1 + k % 2]
        _corrected(starts, columns, defect, 1.0, first, last, into)
        last = into
    if corrections > 0:
        _corrected(starts, columns, defect, share, first, last, out)
    else:
        out[:] = share * first


@kernel
def stages(starts, columns, K, defect, inverse, corrections, dt, degree, u, found, work, out):  # type: ignore[no-untyped-def]
    """out (Q, 2) = w_0 of one substep from u = w_n for the degree n.

    found (4, Q, 2) gets the stages w_1, ..., w_n. work: (3, Q, 2).
    """
    count = np.uint64(len(u))
    found[degree - 1] = u
    for j in range(degree, 0, -1):
        after = found[j - 2] if j > 1 else out
        _scaled(starts, columns, K, inverse, found[j - 1], work[0])
        _solve_mass(starts, columns, defect, corrections, dt / j, work, after)
        for r in range(count):
            after[r, 0] += u[r, 0]
            after[r, 1] += u[r, 1]


@kernel
def forward(starts, columns, K, defect, inverse, corrections, dt, degree, rho, weights, work, out):  # type: ignore[no-untyped-def]
    """out (Q, 2): the density rho one substep later; fills the weights (4, Q, 2) that the cotangent needs.

    K: the entries of K^T. work: (3, Q, 2).
    """
    count, first = np.uint64(len(rho)), work[0]
    for r in range(count):
        for c in range(np.uint64(2)):
            out[r, c] = rho[r, c]
            first[r, c] = inverse[r] * rho[r, c]
    for stage in range(degree):
        _solve_mass(starts, columns, defect, corrections, dt / (stage + 1), work, weights[stage])
        product(starts, columns, K, weights[stage], first)
        for r in range(count):
            for c in range(np.uint64(2)):
                out[r, c] += first[r, c]
                first[r, c] *= inverse[r]


@kernel
def sensitivity(starts, columns, weights, states, degree, out):  # type: ignore[no-untyped-def]
    """out (entries,) = sum_n p_n[row] . u_n[column] for p, u (n, Q, 2), the first `degree` of them."""
    for n in range(degree):
        p, u = weights[n], states[n]
        for r in range(np.uint64(len(p))):
            first, second = p[r, 0], p[r, 1]
            for k in range(np.uint64(starts[r]), np.uint64(starts[r + _ONE])):
                c = columns[k]
                part = first * u[c, 0] + second * u[c, 1]
                out[k] = part + out[k] if n > 0 else part


@kernel
def mirrored(data, mirror, out):  # type: ignore[no-untyped-def]
    """out[k] = data[mirror[k]]."""
    for k in range(np.uint64(len(out))):
        out[k] = data[mirror[k]]


@kernel
def rate(starts, data, inverse):  # type: ignore[no-untyped-def]
    """max_r sum_s |A_rs| / Ml_r; nan where an entry is not finite."""
    largest, every = 0.0, 0.0
    for r in range(np.uint64(len(inverse))):
        total = 0.0
        for k in range(np.uint64(starts[r]), np.uint64(starts[r + _ONE])):
            total += abs(data[k])
        total *= inverse[r]
        every += total
        largest = max(largest, total)
    # a comparison alone would let a nan pass
    return largest if every <= FINITE else np.nan


@kernel
def entries(starts, nodes, blocks, coefficients, parts, out):  # type: ignore[no-untyped-def]
    """T (b, a): out[r] = sum over the blocks of entry r of one row of coefficients for each node.

    blocks (n, c), coefficients (Q, c); parts: a tuple of c entries: its length is a constant to the compiler.
    """
    for r in range(np.uint64(len(out))):
        total = 0.0
        for k in range(np.uint64(starts[r]), np.uint64(starts[r + _ONE])):
            q = nodes[k]
            for i in range(np.uint64(len(parts))):
                total += blocks[k, i] * coefficients[q, i]
        out[r] = total


@kernel
def pulled(starts, entry, blocks, cotangent, parts, out):  # type: ignore[no-untyped-def]
    """T^T: out (Q, c) = sum over the blocks of node q, from derivatives by the entries."""
    out[:] = 0.0
    for q in range(np.uint64(len(out))):
        for k in range(np.uint64(starts[q]), np.uint64(starts[q + _ONE])):
            pull = cotangent[entry[k]]
            for i in range(np.uint64(len(parts))):
                out[q, i] += blocks[k, i] * pull


@kernel
def overshoot(u, lower, upper):  # type: ignore[no-untyped-def]
    """How far u (Q, C) is beyond the bounds (C,) of its columns, 0 or more; inf where it is not finite."""
    worst = 0.0
    for c in range(u.shape[1]):
        low, high, total, beyond = lower[c], upper[c], 0.0, np.int64(0)
        for q in range(len(u)):
            value = u[q, c]
            total += value
            beyond = max(beyond, bits(max(value - high, low - value, 0.0)))
        # comparisons let a nan pass, sums do not
        if not abs(total) <= FINITE:
            return np.inf
        worst = max(worst, number(beyond))
    return worst


@kernel
def clip(u, lower, upper, out, kept):  # type: ignore[no-untyped-def]
    """out = u (Q, C) within the bounds (C,) of its columns; kept: where it was; returns how many were not."""
    outside = 0
    for c in range(u.shape[1]):
        low, high = lower[c], upper[c]
        for q in range(len(u)):
            value = u[q, c]
            inside = low <= value <= high
            out[q, c] = min(max(value, low), high)
            kept[q, c] = inside
            outside += not inside
    return outside


@kernel
def roughness(lumped, u, rest):  # type: ignore[no-untyped-def]
    """sum Ml |rest| / sum Ml |u - mean u| for u, rest (Q, C), the larger of the columns."""
    worst, volume = 0.0, lumped.sum()
    for c in range(u.shape[1]):
        total, rough, variation = 0.0, 0.0, 0.0
        for q in range(len(u)):
            total += lumped[q] * u[q, c]
        mean = total / volume
        for q in range(len(u)):
            rough += lumped[q] * abs(rest[q, c])
            variation += lumped[q] * abs(u[q, c] - mean)
        worst = max(worst, rough / max(variation, 2.2250738585072014e-308))
    return worst
