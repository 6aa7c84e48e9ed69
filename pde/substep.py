r"""Compiled substeps of the explicit propagator on a stencil: Taylor-4 with a corrected lumped mass.

The same maps as `propagator`'s generic ones, which they are tested against, with states as rows (C, .), one
for each class, padded by `margin` on both sides. K's rows sum to zero, so K u = sum_s K_s (u_s - u_0).

Sums over neighbours are in one or two parts, each a tuple of `shifts` = margin + offset: a tuple's length is
a constant to the compiler, which unrolls up to eight entries and then vectorises over nodes. Indices are
unsigned: a signed one might be negative, and numba's test for that keeps loops from being vectorised.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kolmo.kernel import kernel


class Neighbours(NamedTuple):
    """Shifts of the neighbours, the vertex itself left out, and the rows of I - Ml^-1 M, for the kernels.

    near, far: tuples of shifts; far is read where `more`. inside: the interior row's entry of the vertex;
    near_inside, far_inside: those of its neighbours. boundary: vertices that have other rows, listed, with
    all shifts in `every`. zero: two padded rows.
    """

    margin: np.uint64
    near: tuple[np.uint64, ...]
    far: tuple[np.uint64, ...]
    more: bool
    inside: float
    near_inside: tuple[float, ...]
    far_inside: tuple[float, ...]
    boundary: np.ndarray
    listed: np.ndarray
    every: np.ndarray
    zero: np.ndarray


@kernel
def _apply_part(K, skip, shifts, margin, scale, start, row, result):  # type: ignore[no-untyped-def]
    for q in range(np.uint64(len(scale))):
        total, here = 0.0, row[q + margin]
        for s in range(len(shifts)):
            total += K[skip + s, q + margin] * (row[q + shifts[s]] - here)
        result[q + margin] = scale[q] * total + start[q + margin]


@kernel
def apply(K, near, scale, w, scratch, out):  # type: ignore[no-untyped-def]
    """out = scale (Q,) times K w, for w, scratch, out (C, padded)."""
    margin, zero = near.margin, near.zero[0]
    for c in range(len(out)):
        if near.more:
            _apply_part(K, 1, near.near, margin, scale, zero, w[c], scratch[c])
            _apply_part(K, 1 + len(near.near), near.far, margin, scale, scratch[c], w[c], out[c])
        else:
            _apply_part(K, 1, near.near, margin, scale, zero, w[c], out[c])


@kernel
def _transpose_part(K, skip, shifts, margin, start, row, result):  # type: ignore[no-untyped-def]
    twice = margin + margin
    for q in range(np.uint64(len(result))):
        total = start[q + margin]
        for s in range(len(shifts)):
            total += K[skip + s, q + (twice - shifts[s])] * row[q + (twice - shifts[s])]
        result[q] = total


@kernel
def transpose(K, near, p, scratch, out):  # type: ignore[no-untyped-def]
    """out (C, Q) = K^T p for p, scratch (C, padded)."""
    margin = near.margin
    for c in range(len(out)):
        row, first = p[c], scratch[c]
        for q in range(np.uint64(out.shape[1])):
            first[q + margin] = K[0, q + margin] * row[q + margin]
        _transpose_part(K, 1, near.near, margin, first, row, out[c])
        if near.more:
            for q in range(np.uint64(out.shape[1])):
                first[q + margin] = out[c, q]
            _transpose_part(K, 1 + len(near.near), near.far, margin, first, row, out[c])


@kernel
def _defect_part(weights, shifts, margin, centre, base, share, first, row, result):  # type: ignore[no-untyped-def]
    count = np.uint64(len(result)) - margin - margin
    for q in range(count):
        total = first[q + margin] + centre * row[q + margin]
        for s in range(len(shifts)):
            total += weights[s] * row[q + shifts[s]]
        result[q + margin] = share * total + base[q + margin]


@kernel
def defect(near, base, share, first, r, scratch, out):  # type: ignore[no-untyped-def]
    """out = share (first + (I - Ml^-1 M) r) + base, all (C, padded)."""
    margin, zero, centre = near.margin, near.zero[0], near.inside
    for c in range(len(out)):
        start, row, result, more = first[c], r[c], out[c], base[c]
        if near.more:
            half = scratch[c]
            _defect_part(near.near_inside, near.near, margin, centre, zero, 1.0, start, row, half)
            _defect_part(near.far_inside, near.far, margin, 0.0, more, share, half, row, result)
        else:
            _defect_part(near.near_inside, near.near, margin, centre, more, share, start, row, result)
        for k in range(len(near.boundary)):
            q = near.boundary[k]
            total = start[q + margin]
            for s in range(len(near.every)):
                total += near.listed[k, s] * row[q + near.every[s]]
            result[q + margin] = share * total + more[q + margin]


@kernel
def _solve(near, corrections, base, share, work, out):  # type: ignore[no-untyped-def]
    # out = base + share M_k^-1 y for work[2] = Ml^-1 y, by Horner's rule in I - Ml^-1 M; all padded
    first = work[2]
    last = first
    for k in range(corrections - 1):
        into = work[k % 2]
        defect(near, near.zero, 1.0, first, last, work[3], into)
        last = into
    if corrections > 0:
        defect(near, base, share, first, last, work[3], out)
    else:
        for c in range(len(out)):
            for q in range(out.shape[1]):
                out[c, q] = base[c, q] + share * first[c, q]


@kernel
def stages(K, inverse, near, corrections, dt, u, found):  # type: ignore[no-untyped-def]
    """Fill `found` with the states of one substep from u (C, Q); returns the place of w_0.

    found: zeros (5, C, padded), for w_1, ..., w_4 = u, w_0; or (3, C, padded) to keep none but the last.
    """
    margin = np.int64(near.margin)
    classes, count = u.shape
    work = np.zeros((4, classes, count + 2 * margin))
    # where w_4, ..., w_0 go
    places = (3, 2, 1, 0, 4) if len(found) == 5 else (0, 1, 2, 1, 2)
    found[places[0], :, margin : margin + count] = u
    for stage in range(4):
        now, then = places[stage], places[stage + 1]
        apply(K, near, inverse, found[now], work[3], work[2])
        _solve(near, corrections, found[places[0]], dt / (4 - stage), work, found[then])
    return places[4]


@kernel
def forward(K, inverse, near, corrections, dt, rho, weights):  # type: ignore[no-untyped-def]
    """The density one substep later (C, Q); fills the weights of the cotangent, zeros (4, C, padded)."""
    margin = np.int64(near.margin)
    classes, count = rho.shape
    work = np.zeros((4, classes, count + 2 * margin))
    y, out = rho.copy(), rho.copy()
    for stage in range(4):
        for c in range(classes):
            row, first = y[c], work[2, c, margin : margin + count]
            for q in range(count):
                first[q] = inverse[q] * row[q]
        _solve(near, corrections, near.zero, dt / (stage + 1), work, weights[stage])
        transpose(K, near, weights[stage], work[3], y)
        for c in range(classes):
            row, into = y[c], out[c]
            for q in range(count):
                into[q] += row[q]
    return out


@kernel
def sensitivity(weights, states, every, rows, G):  # type: ignore[no-untyped-def]
    """G (S, Q) = sum p_q (u_{q + offset_s} - u_q) over rows of padded p, u (n, .); row 0 is zero.

    every: all shifts (S,). rows: a tuple of n entries, whose length is a constant to the compiler.
    """
    count, margin = np.uint64(G.shape[1]), every[0]
    G[0] = 0.0
    for s in range(1, len(every)):
        into, shift = G[s], every[s]
        for q in range(count):
            total = 0.0
            for n in range(len(rows)):
                total += weights[n, q + margin] * (states[n, q + shift] - states[n, q + margin])
            into[q] = total
