r"""The Kuhn triangulation of a uniform grid as a stencil, and compiled maps between coefficients and K.

Every vertex has the same neighbours q + offset[s], s = 1..S-1 (offset[0] = 0), those of a set of
coordinates all up or all down by one cell: 3, 7 or 15 entries a row in 1, 2 or 3-D. A simplex is a path
v_0, ..., v_d from a cube's lowest corner to its highest along the directions p_1, ..., p_d, and its basis has
g_s = (e_{p_s} - e_{p_{s+1}}) / dx (without the absent e_{p_0}, e_{p_{d+1}}), so that with

    F = c1 sum_k b_k - c2 sum_m [a(v_m) - a(v_{m-1})] e_{p_m},     S = c2 sum_k a_k,
    c1 = |e| / ((d+1)(d+2) dx),     c2 = |e| / (2 (d+1) dx^2)

the entries of `space` are, in units of dx, K_rs = sum_e (F + c1 b_r) . g_s - g_r . S g_s: a few additions of
shifted rows. All arrays have one row for each component, nodes contiguous, the last axis fastest.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from kolmo.kernel import FINITE, kernel
from kolmo.pde.pool import LINE, zeros

#: cubes of a block: its rows stay in cache
_BLOCK = 512


class Stencil:
    """Numbering and constants of a box of `cells` intervals a direction of length `spacing`.

    offsets (S,): of neighbours in flat numbering. margin: the largest or a bit more, and width: of padded
    rows, both whole cache lines. paths (d!, d + 2): directions
    p_0..p_{d+1} of each kind of simplex, d for the absent ones; nodes (d!, d + 1): its vertices' offsets;
    slots (d!, d + 1, d + 1): the stencil entry of each pair of its vertices. valid (.,): 1 where a node is
    the lowest corner of a cube, 0 at the upper ends of the axes, up to the last cube.
    """

    def __init__(self, dim: int, cells: int, spacing: float) -> None:
        self.dim, self.cells, self.spacing = dim, cells, spacing
        self.count = (cells + 1) ** dim
        stride = (cells + 1) ** np.arange(dim - 1, -1, -1)
        ups = [int(stride @ [(mask >> i) & 1 for i in range(dim)]) for mask in range(1, 2**dim)]
        self.offsets = np.array([0, *sorted(ups), *sorted(-up for up in ups)])
        reach = int(self.offsets.max())
        self.margin = reach + -reach % LINE
        self.width = self.count + -self.count % LINE + 2 * self.margin
        where = {int(offset): s for s, offset in enumerate(self.offsets)}
        orders = list(permutations(range(dim)))
        self.paths = np.array([[dim, *order, dim] for order in orders])
        self.nodes = np.array([np.concatenate([[0], np.cumsum(stride[list(order)])]) for order in orders])
        self.slots = np.array([[[where[int(s - r)] for s in v] for r in v] for v in self.nodes])
        lowest = np.zeros((cells + 1,) * dim)
        lowest[(slice(cells),) * dim] = 1
        self.valid = np.ascontiguousarray(lowest.reshape(-1)[: self.count - reach])
        volume = spacing**dim / math.factorial(dim)
        self.c1 = volume / ((dim + 1) * (dim + 2) * spacing)
        self.c2 = volume / (2 * (dim + 1) * spacing**2)
        self._pattern(volume)

    def _pattern(self, volume: float) -> None:
        """The mass: constant in the interior, listed at the boundary; and which neighbours exist."""
        d, n = self.dim, self.dim + 1
        mass = np.zeros((len(self.offsets), self.count))
        cubes = np.flatnonzero(self.valid)
        for nodes, slots in zip(self.nodes, self.slots, strict=True):
            for r in range(n):
                for s in range(n):
                    weight = volume * (1 + (r == s)) / (n * (d + 2))
                    np.add.at(mass[slots[r, s]], cubes + nodes[r], weight)
        self.mass = mass
        self.lumped = mass.sum(axis=0)
        self.inverse = 1 / self.lumped
        # I - Ml^-1 M: its row in the interior, and where and what it is elsewhere
        defect = -mass * self.inverse
        defect[0] += 1
        grid = np.zeros((self.cells + 1,) * d, dtype=bool)
        grid[(slice(1, -1),) * d] = True
        inside = grid.reshape(-1)
        self.boundary = np.flatnonzero(~inside)
        self.defect_boundary = np.ascontiguousarray(defect[:, self.boundary].T)
        self.defect_inside = (
            np.ascontiguousarray(defect[:, np.flatnonzero(inside)[0]])
            if inside.any()
            else defect[:, 0].copy()
        )

    def table(self, diagonal: bool) -> np.ndarray:
        """Rows of the packed diffusion that hold a_ij, (d + 1, d + 1); an extra row where there is none."""
        d = self.dim
        count = d if diagonal else d * (d + 1) // 2
        table = np.full((d + 1, d + 1), count)
        pairs = [(i, i) for i in range(d)]
        if not diagonal:
            pairs += [(i, j) for i in range(d) for j in range(i + 1, d)]
        for row, (i, j) in enumerate(pairs):
            table[i, j] = table[j, i] = row
        return table

    def padded(self, rows: int) -> np.ndarray:
        """Zeros (rows, width): nodes between margins, so that neighbours of all nodes may be read."""
        return zeros(rows, self.width)


@kernel
def assemble(b, a, table, paths, nodes, slots, valid, margin, c1, c2, lumped, K):  # type: ignore[no-untyped-def]
    """K (S, padded) from nodal b (d, Q) and packed a (c, Q).

    Returns max_r sum_s |K_rs| / Ml_r, nan where an entry is not finite.
    """
    dim, packed, count = b.shape[0], a.shape[0], b.shape[1]
    F, H, S = np.zeros((dim, _BLOCK)), np.zeros((dim + 1, _BLOCK)), np.zeros((packed + 1, _BLOCK))
    K[:] = 0.0
    for first in range(0, len(valid), _BLOCK):
        size = min(_BLOCK, len(valid) - first)
        cube = valid[first : first + size]
        for t in range(paths.shape[0]):
            for i in range(dim):
                row = F[i, :size]
                row[:] = 0.0
                for k in range(dim + 1):
                    value = b[i, first + nodes[t, k] : first + nodes[t, k] + size]
                    for j in range(size):
                        row[j] += c1 * value[j]
                for m in range(1, dim + 1):
                    c = table[paths[t, m], i]
                    if c < packed:
                        upper = a[c, first + nodes[t, m] : first + nodes[t, m] + size]
                        lower = a[c, first + nodes[t, m - 1] : first + nodes[t, m - 1] + size]
                        for j in range(size):
                            row[j] -= c2 * (upper[j] - lower[j])
            for c in range(packed):
                row = S[c, :size]
                row[:] = 0.0
                for k in range(dim + 1):
                    value = a[c, first + nodes[t, k] : first + nodes[t, k] + size]
                    for j in range(size):
                        row[j] += c2 * value[j]
                for j in range(size):
                    row[j] *= cube[j]
            for r in range(dim + 1):
                start = first + nodes[t, r]
                for i in range(dim):
                    row, value, base = H[i, :size], b[i, start : start + size], F[i, :size]
                    for j in range(size):
                        row[j] = cube[j] * (base[j] + c1 * value[j])
                p0, p1 = paths[t, r], paths[t, r + 1]
                for s in range(dim + 1):
                    if s == r:
                        continue
                    q0, q1 = paths[t, s], paths[t, s + 1]
                    up, down = H[q0, :size], H[q1, :size]
                    s00, s01, s10, s11 = (
                        S[table[p0, q0], :size],
                        S[table[p0, q1], :size],
                        S[table[p1, q0], :size],
                        S[table[p1, q1], :size],
                    )
                    out = K[slots[t, r, s], margin + start : margin + start + size]
                    for j in range(size):
                        out[j] += up[j] - down[j] - (s00[j] - s01[j] - s10[j] + s11[j])
    rate, total = 0.0, 0.0
    sums = np.empty(_BLOCK)
    for first in range(0, count, _BLOCK):
        width = min(_BLOCK, count - first)
        diagonal, row, mass = K[0, margin + first : margin + first + width], sums[:width], lumped[first:]
        row[:] = 0.0
        for s in range(1, K.shape[0]):
            entry = K[s, margin + first : margin + first + width]
            for j in range(width):
                diagonal[j] -= entry[j]
            for j in range(width):
                row[j] += abs(entry[j])
        for j in range(width):
            row[j] = (row[j] + abs(diagonal[j])) / mass[j]
            total += row[j]
            rate = max(rate, row[j])
    # a comparison alone would let a nan pass
    return rate if total <= FINITE else np.nan


@kernel
def pullback(G, table, paths, nodes, slots, valid, c1, c2, d_b, d_a):  # type: ignore[no-untyped-def]
    """The transpose of `assemble`: derivatives by b (d, Q) and packed a (c, Q) from those by K's entries.

    G (S, Q): row 0 unused, entry s less the diagonal's, which is minus the others' sum.
    """
    dim, packed = d_b.shape[0], d_a.shape[0]
    F, H, S = np.zeros((dim, _BLOCK)), np.zeros((dim + 1, _BLOCK)), np.zeros((packed + 1, _BLOCK))
    g_all = np.empty(_BLOCK)
    d_b[:] = 0.0
    d_a[:] = 0.0
    for first in range(0, len(valid), _BLOCK):
        size = min(_BLOCK, len(valid) - first)
        cube = valid[first : first + size]
        g = g_all[:size]
        for t in range(paths.shape[0]):
            F[:] = 0.0
            S[:] = 0.0
            for r in range(dim + 1):
                start = first + nodes[t, r]
                H[:] = 0.0
                p0, p1 = paths[t, r], paths[t, r + 1]
                for s in range(dim + 1):
                    if s == r:
                        continue
                    q0, q1 = paths[t, s], paths[t, s + 1]
                    entry = G[slots[t, r, s], start : start + size]
                    for j in range(size):
                        g[j] = cube[j] * entry[j]
                    if q0 < dim:
                        _add(H[q0, :size], 1.0, g)
                    if q1 < dim:
                        _add(H[q1, :size], -1.0, g)
                    for c, sign in (
                        (table[p0, q0], -1.0),
                        (table[p0, q1], 1.0),
                        (table[p1, q0], 1.0),
                        (table[p1, q1], -1.0),
                    ):
                        if c < packed:
                            _add(S[c, :size], sign, g)
                for i in range(dim):
                    _add(d_b[i, start : start + size], c1, H[i, :size])
                    _add(F[i, :size], 1.0, H[i, :size])
            for i in range(dim):
                for k in range(dim + 1):
                    _add(d_b[i, first + nodes[t, k] : first + nodes[t, k] + size], c1, F[i, :size])
                for m in range(1, dim + 1):
                    c = table[paths[t, m], i]
                    if c < packed:
                        _add(d_a[c, first + nodes[t, m] : first + nodes[t, m] + size], -c2, F[i, :size])
                        _add(
                            d_a[c, first + nodes[t, m - 1] : first + nodes[t, m - 1] + size], c2, F[i, :size]
                        )
            for c in range(packed):
                for k in range(dim + 1):
                    _add(d_a[c, first + nodes[t, k] : first + nodes[t, k] + size], c2, S[c, :size])


@kernel
def _add(into, factor, row):  # type: ignore[no-untyped-def]
    for j in range(len(row)):
        into[j] += factor * row[j]
