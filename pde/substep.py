r"""Compiled substeps of the explicit propagator on a stencil: Taylor polynomials, a corrected lumped mass.

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
from kolmo.pde import plane_steps


class Neighbours(NamedTuple):
    """Shifts of the neighbours, the vertex itself left out, and the rows of I - Ml^-1 M, for the kernels.

    near, far: tuples of shifts; far is read where `more`. inside: the interior row's entry of the vertex;
    near_inside, far_inside: those of its neighbours. boundary: vertices that have other rows, listed, with
    all shifts in `every`. zero: two padded rows. line: nodes in a line of the plane, 0 in other dimensions;
    `plane_steps` has the sums then.
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
    line: np.uint64


# Rows go in pairs, which share what is read of K.


@kernel
def _apply_all(K, shifts, margin, scale, row, other, into, beside):  # type: ignore[no-untyped-def]
    for q in range(np.uint64(len(scale))):
        one, two, a, b = 0.0, 0.0, row[q + margin], other[q + margin]
        for s in range(len(shifts)):
            entry = K[1 + s, q + margin]
            one += entry * (row[q + shifts[s]] - a)
            two += entry * (other[q + shifts[s]] - b)
        into[q + margin] = scale[q] * one
        beside[q + margin] = scale[q] * two


@kernel
def _apply_more(K, skip, shifts, margin, scale, row, other, start, next_to, into, beside):  # type: ignore[no-untyped-def]
    for q in range(np.uint64(len(scale))):
        one, two, a, b = 0.0, 0.0, row[q + margin], other[q + margin]
        for s in range(len(shifts)):
            entry = K[skip + s, q + margin]
            one += entry * (row[q + shifts[s]] - a)
            two += entry * (other[q + shifts[s]] - b)
        into[q + margin] = scale[q] * one + start[q + margin]
        beside[q + margin] = scale[q] * two + next_to[q + margin]


@kernel
def apply(K, near, scale, w, scratch, out):  # type: ignore[no-untyped-def]
    """out = scale (Q,) times K w, for w, scratch, out (C, padded), C even."""
    for c in range(0, len(out), 2):
        pair, result = (w[c], w[c + 1]), (out[c], out[c + 1])
        if near.line > 0:
            plane_steps.apply(K, near.line, near.margin, scale, *pair, *result)
        elif near.more:
            half = scratch[c], scratch[c + 1]
            _apply_all(K, near.near, near.margin, scale, *pair, *half)
            _apply_more(K, 1 + len(near.near), near.far, near.margin, scale, *pair, *half, *result)
        else:
            _apply_all(K, near.near, near.margin, scale, *pair, *result)


@kernel
def _transpose_all(K, shifts, margin, row, other, into, beside):  # type: ignore[no-untyped-def]
    twice = margin + margin
    for q in range(np.uint64(len(into))):
        entry = K[0, q + margin]
        one, two = entry * row[q + margin], entry * other[q + margin]
        for s in range(len(shifts)):
            entry = K[1 + s, q + (twice - shifts[s])]
            one += entry * row[q + (twice - shifts[s])]
            two += entry * other[q + (twice - shifts[s])]
        into[q], beside[q] = one, two


@kernel
def _transpose_more(K, skip, shifts, margin, row, other, start, next_to, into, beside):  # type: ignore[no-untyped-def]
    twice = margin + margin
    for q in range(np.uint64(len(into))):
        one, two = start[q], next_to[q]
        for s in range(len(shifts)):
            entry = K[skip + s, q + (twice - shifts[s])]
            one += entry * row[q + (twice - shifts[s])]
            two += entry * other[q + (twice - shifts[s])]
        into[q], beside[q] = one, two


@kernel
def transpose(K, near, p, scratch, out):  # type: ignore[no-untyped-def]
    """out (C, Q) = K^T p for p (C, padded), scratch (C, Q), C even."""
    for c in range(0, len(out), 2):
        pair, result = (p[c], p[c + 1]), (out[c], out[c + 1])
        if near.line > 0:
            plane_steps.transpose(K, near.line, near.margin, *pair, *result)
        elif near.more:
            half = scratch[c], scratch[c + 1]
            _transpose_all(K, near.near, near.margin, *pair, *half)
            _transpose_more(K, 1 + len(near.near), near.far, near.margin, *pair, *half, *result)
        else:
            _transpose_all(K, near.near, near.margin, *pair, *result)


@kernel
def _defect_part(weights, shifts, margin, centre, share, base, under, y, z, row, other, into, beside):  # type: ignore[no-untyped-def]
    for q in range(np.uint64(len(into)) - margin - margin):
        one = y[q + margin] + centre * row[q + margin]
        two = z[q + margin] + centre * other[q + margin]
        for s in range(len(shifts)):
            one += weights[s] * row[q + shifts[s]]
            two += weights[s] * other[q + shifts[s]]
        into[q + margin] = share * one + base[q + margin]
        beside[q + margin] = share * two + under[q + margin]


@kernel
def defect(near, base, share, y, r, scratch, out):  # type: ignore[no-untyped-def]
    """out = share (y + (I - Ml^-1 M) r) + base, all (C, padded), C even."""
    margin, centre = near.margin, near.inside
    if near.line > 0:
        for c in range(len(out)):
            plane_steps.correct(near.line, margin, share, base[c], y[c], r[c], out[c])
        return
    for c in range(0, len(out), 2):
        d = c + 1
        rows, given, end = (r[c], r[d]), (base[c], base[d], y[c], y[d]), (out[c], out[d])
        if near.more:
            zero, half = (near.zero[0], near.zero[1]), (scratch[c], scratch[d])
            few, many = (near.near_inside, near.near, margin), (near.far_inside, near.far, margin)
            _defect_part(*few, centre, 1.0, *zero, *given[2:], *rows, *half)
            _defect_part(*many, 0.0, share, *given[:2], *half, *rows, *end)
        else:
            _defect_part(near.near_inside, near.near, margin, centre, share, *given, *rows, *end)
        for k in range(len(near.boundary)):
            q = near.boundary[k]
            one, two = y[c, q + margin], y[d, q + margin]
            for s in range(len(near.every)):
                weight = near.listed[k, s]
                one += weight * r[c, q + near.every[s]]
                two += weight * r[d, q + near.every[s]]
            out[c, q + margin] = share * one + base[c, q + margin]
            out[d, q + margin] = share * two + base[d, q + margin]


@kernel
def _solve(near, corrections, base, share, work, out):  # type: ignore[no-untyped-def]
    # out = base + share M_k^-1 y for work[2] = Ml^-1 y, by Horner's rule in I - Ml^-1 M; all padded
    first = work[2]
    last = first
    for k in range(corrections - 1):
        into = work[k % 2]
        if k == 0 and near.line > 0:
            for c in range(len(out)):
                plane_steps.defect(1.0, near.line, near.margin, first[c], into[c])
        else:
            defect(near, near.zero, 1.0, first, last, work[3], into)
        last = into
    if corrections > 0:
        defect(near, base, share, first, last, work[3], out)
    else:
        for c in range(len(out)):
            for q in range(out.shape[1]):
                out[c, q] = base[c, q] + share * first[c, q]


@kernel
def stages(K, inverse, near, corrections, dt, degree, u, found, work, out):  # type: ignore[no-untyped-def]
    """out (C, Q) = w_0 of one substep from u = w_n (C, Q) for the degree n.

    found: (4, C, padded) for the stages w_1, ..., w_n, or (2, C, padded) where they are not wanted.
    work: (5 or more, C, padded). C even.
    """
    margin = np.int64(near.margin)
    classes, count = u.shape
    kept = len(found) == 4
    source = degree - 1 if kept else 1
    for c in range(classes):
        row, into = u[c], found[source, c]
        for q in range(count):
            into[margin + q] = row[q]
    for j in range(
        degree, 0, -1
    ):  # w_j is in found[j - 1]; where they are not wanted, all but w_n in the first
        before, after = (j - 1, j - 2) if kept else (1 if j == degree else 0, 0)
        then = work[4] if j == 1 else found[after]
        apply(K, near, inverse, found[before], work[3], work[2])
        _solve(near, corrections, found[source], dt / j, work, then)
    for c in range(classes):
        row, into = work[4, c], out[c]
        for q in range(count):
            into[q] = row[margin + q]


@kernel
def forward(K, inverse, near, corrections, dt, degree, rho, weights, work, out):  # type: ignore[no-untyped-def]
    """out (C, Q): the density rho one substep later; fills the cotangent's weights (4, C, padded).

    work: (5 or more, C, padded); C even.
    """
    classes, count = rho.shape
    y, half = np.empty((classes, count)), np.empty((classes, count if near.more else 0))
    for c in range(classes):
        row, into, first = rho[c], out[c], work[2, c]
        for q in range(np.uint64(count)):
            into[q] = row[q]
            first[q + near.margin] = inverse[q] * row[q]
    for stage in range(degree):
        _solve(near, corrections, near.zero, dt / (stage + 1), work, weights[stage])
        transpose(K, near, weights[stage], half, y)
        for c in range(classes):
            row, into, first = y[c], out[c], work[2, c]
            for q in range(np.uint64(count)):
                into[q] += row[q]
                first[q + near.margin] = inverse[q] * row[q]


@kernel
def roughness(near, lumped, u, work):  # type: ignore[no-untyped-def]
    """sum Ml |(I - Ml^-1 M) u| / sum Ml |u - mean u| for u (C, Q), the larger of the rows.

    work: (5 or more, C, padded); C even.
    """
    worst, margin, count = 0.0, near.margin, np.uint64(len(lumped))
    for c in range(len(u)):
        row, into = u[c], work[0, c]
        for q in range(count):
            into[q + margin] = row[q]
        if near.line > 0:
            plane_steps.defect(0.0, near.line, margin, into, work[2, c])
    if near.line == 0:
        defect(near, near.zero, 1.0, near.zero, work[0], work[1], work[2])
    for c in range(len(u)):
        row, rest, volume, total, rough, variation = u[c], work[2, c], 0.0, 0.0, 0.0, 0.0
        for q in range(count):
            volume += lumped[q]
            total += lumped[q] * row[q]
        mean = total / volume
        for q in range(count):
            rough += lumped[q] * abs(rest[q + margin])
            variation += lumped[q] * abs(row[q] - mean)
        worst = max(worst, rough / max(variation, 2.2250738585072014e-308))
    return worst


@kernel
def sensitivity(weights, states, near, rows, G):  # type: ignore[no-untyped-def]
    """G (S, Q) = sum p_q (u_{q + offset_s} - u_q) over rows of padded p, u (n, .); row 0 is zero.

    rows: a tuple of n entries, n even, whose length is a constant to the compiler.
    """
    if near.line > 0:
        plane_steps.sensitivity(weights, states, near.line, near.margin, G)
        return
    count, margin, every = np.uint64(G.shape[1]), near.margin, near.every
    G[0] = 0.0
    for s in range(1, len(every), 2):  # by twos, which share the weights
        first, second, one, two = G[s], G[s + 1], every[s], every[s + 1]
        for q in range(count):
            total, other = 0.0, 0.0
            for n in range(len(rows)):
                weight, here = weights[n, q + margin], states[n, q + margin]
                total += weight * (states[n, q + one] - here)
                other += weight * (states[n, q + two] - here)
            first[q], second[q] = total, other
