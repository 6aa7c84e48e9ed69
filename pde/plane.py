r"""`stencil`'s maps between coefficients and K in the plane, fused: one pass over cubes, one over nodes.

A cube with lowest corner q has the triangles A = (q, q + N, q + N + 1) and B = (q, q + 1, q + N + 1), N nodes
in a line; F and S of `stencil`, kept for both, are 0 outside of the mesh. Slots of K are, in order, the
neighbours at 0, 1, N, N + 1, -N - 1, -N, -1. `parts` is a tuple with an entry for each component of the
diffusion, (a_00, a_11) or (a_00, a_11, a_01): its length is a constant to the compiler. Rows of `work` and K
have a margin of zeros before the first node, N + 1 or more. Source of the entries: `stencil`, which tests
compare with.
"""

from __future__ import annotations

import numpy as np

from kolmo.kernel import FINITE, bits, kernel, number

#: rows of `work`: F_0, F_1, S_00, S_11, S_01 of A, the same of B, and the mask
ROWS = 11


@kernel
def _triangles(parts, b, a, N, margin, c1, c2, work):  # type: ignore[no-untyped-def]
    one, up, margin = np.uint64(1), np.uint64(N), np.uint64(margin)
    across = up + one
    for q in range(np.uint64(b.shape[1]) - across):
        m, p = work[10, q + margin], q + margin
        x, y, z = a[0, q], a[0, q + up], a[0, q + one]
        far = a[0, q + across]
        X, Y, Z = a[1, q], a[1, q + up], a[1, q + one]
        Far = a[1, q + across]
        base0, base1 = b[0, q] + b[0, q + across], b[1, q] + b[1, q + across]
        A0 = c1 * (base0 + b[0, q + up]) - c2 * (y - x)
        A1 = c1 * (base1 + b[1, q + up]) - c2 * (Far - Y)
        B0 = c1 * (base0 + b[0, q + one]) - c2 * (far - z)
        B1 = c1 * (base1 + b[1, q + one]) - c2 * (Z - X)
        if len(parts) > 2:
            s, t, u, v = a[2, q], a[2, q + up], a[2, q + one], a[2, q + across]
            A0 -= c2 * (v - t)
            A1 -= c2 * (t - s)
            B0 -= c2 * (u - s)
            B1 -= c2 * (v - u)
            work[4, p] = m * c2 * (s + t + v)
            work[9, p] = m * c2 * (s + u + v)
        work[0, p], work[1, p], work[5, p], work[6, p] = m * A0, m * A1, m * B0, m * B1
        work[2, p], work[3, p] = m * c2 * (x + y + far), m * c2 * (X + Y + Far)
        work[7, p], work[8, p] = m * c2 * (x + z + far), m * c2 * (X + Z + Far)


@kernel
def assemble(parts, b, a, N, margin, c1, c2, inverse, work, K):  # type: ignore[no-untyped-def]
    """K (7, padded) from nodal b (2, Q) and packed a (2 or 3, Q); returns the rate, as `stencil`'s does.

    work: (ROWS, margin + Q or more), the mask in its last row.
    """
    _triangles(parts, b, a, N, margin, c1, c2, work)
    one, up, margin = np.uint64(1), np.uint64(N), np.uint64(margin)
    across = up + one
    largest, total = np.int64(0), 0.0
    for r in range(np.uint64(b.shape[1])):
        p = r + margin
        # cubes of which r is another corner than the lowest
        left, down, low = r + (margin - one), r + (margin - up), r + (margin - across)
        h0, h1 = c1 * b[0, r], c1 * b[1, r]
        m, m_left, m_down, m_low = work[10, p], work[10, left], work[10, down], work[10, low]
        k1 = (
            work[6, p] - work[5, p] + work[8, p] + m * (h1 - h0) + work[1, down] + work[3, down] + m_down * h1
        )
        k2 = (
            work[0, p] - work[1, p] + work[2, p] + m * (h0 - h1) + work[5, left] + work[7, left] + m_left * h0
        )
        k3 = work[1, p] + work[5, p] + m * (h0 + h1)
        k4 = -(work[0, low] + work[6, low] + m_low * (h0 + h1))
        k5 = work[2, down] - work[0, down] - m_down * h0
        k5 += work[6, low] - work[5, low] + work[7, low] + m_low * (h1 - h0)
        k6 = work[0, low] - work[1, low] + work[3, low] + m_low * (h0 - h1)
        k6 += work[8, left] - work[6, left] - m_left * h1
        if len(parts) > 2:
            k1 -= work[9, p] + work[4, down]
            k2 -= work[4, p] + work[9, left]
            k3 += work[4, p] + work[9, p]
            k4 += work[4, low] + work[9, low]
            k5 -= work[4, down] + work[9, low]
            k6 -= work[4, low] + work[9, left]
        diagonal = -(k1 + k2 + k3 + k4 + k5 + k6)
        K[0, p], K[1, p], K[2, p], K[3, p], K[4, p], K[5, p], K[6, p] = diagonal, k1, k2, k3, k4, k5, k6
        row = inverse[r] * (abs(diagonal) + abs(k1) + abs(k2) + abs(k3) + abs(k4) + abs(k5) + abs(k6))
        total += row
        largest = max(largest, bits(row))
    # a comparison alone would let a nan pass
    return number(largest) if total <= FINITE else np.nan


@kernel
def pullback(parts, G, N, margin, c1, c2, work, d_b, d_a):  # type: ignore[no-untyped-def]
    """The transpose of `assemble`: derivatives by b (2, Q) and packed a (2 or 3, Q), as `stencil`'s."""
    one, up, margin = np.uint64(1), np.uint64(N), np.uint64(margin)
    across = up + one
    count = np.uint64(G.shape[1])
    for q in range(count - across):
        p, far = q + margin, q + across
        m = work[10, p]
        g2, g3, g5, g1, g4, g6 = G[2, q], G[3, q], G[5, q + up], G[1, q + up], G[4, far], G[6, far]
        work[0, p], work[1, p] = m * (g2 - g5 - g4 + g6), m * (g3 + g1 - g2 - g6)
        work[2, p], work[3, p] = m * (g2 + g5), m * (g1 + g6)
        f1, f6, f2, f5 = G[1, q], G[6, q + one], G[2, q + one], G[5, far]
        work[5, p], work[6, p] = m * (g3 + f2 - f1 - f5), m * (f1 + f5 - f6 - g4)
        work[7, p], work[8, p] = m * (f2 + f5), m * (f1 + f6)
        if len(parts) > 2:
            work[4, p] = m * (g3 + g4 - g2 - g5 - g1 - g6)
            work[9, p] = m * (g3 + g4 - f1 - f6 - f2 - f5)
    for v in range(count):
        p = v + margin
        left, down, low = v + (margin - one), v + (margin - up), v + (margin - across)
        m, m_left, m_down, m_low = work[10, p], work[10, left], work[10, down], work[10, low]
        g1, g2, g3, g4, g5, g6 = G[1, v], G[2, v], G[3, v], G[4, v], G[5, v], G[6, v]
        A0, A0_down, A0_low = work[0, p], work[0, down], work[0, low]
        A1, A1_down, A1_low = work[1, p], work[1, down], work[1, low]
        B0, B0_left, B0_low = work[5, p], work[5, left], work[5, low]
        B1, B1_left, B1_low = work[6, p], work[6, left], work[6, low]
        rows0 = (m + m_left) * g2 + m * (g3 - g1) + m_low * (g6 - g4 - g5) - m_down * g5
        rows1 = (m + m_down) * g1 + m * (g3 - g2) + m_low * (g5 - g4 - g6) - m_left * g6
        d_b[0, v] = c1 * (rows0 + A0 + A0_down + A0_low + B0 + B0_left + B0_low)
        d_b[1, v] = c1 * (rows1 + A1 + A1_down + A1_low + B1 + B1_left + B1_low)
        sum0 = work[2, p] + work[2, down] + work[2, low] + work[7, p] + work[7, left] + work[7, low]
        sum1 = work[3, p] + work[3, down] + work[3, low] + work[8, p] + work[8, left] + work[8, low]
        d_a[0, v] = c2 * (sum0 + A0 - A0_down + B0_left - B0_low)
        d_a[1, v] = c2 * (sum1 + A1_down - A1_low + B1 - B1_left)
        if len(parts) > 2:
            both = work[4, p] + work[4, down] + work[4, low] + work[9, p] + work[9, left] + work[9, low]
            both += A0_down - A0_low + A1 - A1_down + B0 - B0_left + B1_left - B1_low
            d_a[2, v] = c2 * both
