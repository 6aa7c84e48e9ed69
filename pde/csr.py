"""Compiled sparse kernels of spaces on any mesh: products with both classes at once, and the map T.

Nodal values are (Q, 2) with the classes side by side, so that a neighbour is one cache line. The numbers
are those of scipy's products, which the tests compare them with.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import FINITE, bits, kernel, number


@kernel
def product(starts, columns, data, u, out):  # type: ignore[no-untyped-def]
    """out (Q, 2) = A u for a matrix in compressed rows."""
    for r in range(len(out)):
        first, second = 0.0, 0.0
        for k in range(starts[r], starts[r + 1]):
            c, entry = columns[k], data[k]
            first += entry * u[c, 0]
            second += entry * u[c, 1]
        out[r, 0] = first
        out[r, 1] = second


@kernel
def solve_mass(starts, columns, defect, inverse, corrections, y, work):  # type: ignore[no-untyped-def]
    """M_k^-1 y by Horner's rule in I - Ml^-1 M (entries: defect), as one of the parts of work (3, Q, 2)."""
    first, last = work[0], work[0]
    for r in range(len(y)):
        first[r, 0] = inverse[r] * y[r, 0]
        first[r, 1] = inverse[r] * y[r, 1]
    for k in range(corrections):
        into = work[1 + k % 2]
        product(starts, columns, defect, last, into)
        for r in range(len(y)):
            into[r, 0] += first[r, 0]
            into[r, 1] += first[r, 1]
        last = into
    return last


@kernel
def stages(starts, columns, K, defect, inverse, corrections, dt, u):  # type: ignore[no-untyped-def]
    """The states w_1, ..., w_4 = u, w_0 of one substep from u (Q, 2): shape (5, Q, 2)."""
    count = len(u)
    found, work, y = np.empty((5, count, 2)), np.empty((3, count, 2)), np.empty((count, 2))
    found[3] = u
    for stage in range(4):
        before, after = found[3 - stage], found[2 - stage] if stage < 3 else found[4]
        product(starts, columns, K, before, y)
        moved = solve_mass(starts, columns, defect, inverse, corrections, y, work)
        share = dt / (4 - stage)
        for r in range(count):
            after[r, 0] = u[r, 0] + share * moved[r, 0]
            after[r, 1] = u[r, 1] + share * moved[r, 1]
    return found


@kernel
def forward(starts, columns, K_transposed, defect, inverse, corrections, dt, rho):  # type: ignore[no-untyped-def]
    """The density one substep later (Q, 2), and the weights (4, Q, 2) that the cotangent needs."""
    count = len(rho)
    weights, work = np.empty((4, count, 2)), np.empty((3, count, 2))
    y, out = rho.copy(), rho.copy()
    for stage in range(4):
        moved = solve_mass(starts, columns, defect, inverse, corrections, y, work)
        share = dt / (stage + 1)
        for r in range(count):
            weights[stage, r, 0] = share * moved[r, 0]
            weights[stage, r, 1] = share * moved[r, 1]
        product(starts, columns, K_transposed, weights[stage], y)
        for r in range(count):
            out[r, 0] += y[r, 0]
            out[r, 1] += y[r, 1]
    return out, weights


@kernel
def sensitivity(starts, columns, weights, states):  # type: ignore[no-untyped-def]
    """sum_n p_n[row] . u_n[column] for every entry, p, u (n, Q, 2): shape (entries,)."""
    found = np.zeros(len(columns))
    for n in range(len(weights)):
        p, u = weights[n], states[n]
        for r in range(len(starts) - 1):
            first, second = p[r, 0], p[r, 1]
            for k in range(starts[r], starts[r + 1]):
                c = columns[k]
                found[k] += first * u[c, 0] + second * u[c, 1]
    return found


@kernel
def entries(starts, nodes, blocks, coefficients, parts, out):  # type: ignore[no-untyped-def]
    """T (b, a): out[r] = sum over the blocks of entry r of one row of coefficients for each node.

    blocks (n, c), coefficients (Q, c); parts: a tuple of c entries: its length is a constant to the compiler.
    """
    for r in range(len(out)):
        total = 0.0
        for k in range(starts[r], starts[r + 1]):
            q = nodes[k]
            for i in range(len(parts)):
                total += blocks[k, i] * coefficients[q, i]
        out[r] = total


@kernel
def pulled(starts, entry, blocks, cotangent, parts, out):  # type: ignore[no-untyped-def]
    """T^T: out (Q, c) = sum over the blocks of node q, from derivatives by the entries."""
    out[:] = 0.0
    for q in range(len(out)):
        for k in range(starts[q], starts[q + 1]):
            pull = cotangent[entry[k]]
            for i in range(len(parts)):
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
