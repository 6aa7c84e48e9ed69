r"""The field f = V tanh(W x + b) and its advection (grad f) f at fixed points, compiled, with their gradient.

    f_i = sum_j V_ij z_j,   z_j = tanh(W_j . x + b_j),
    g_i = sum_j V_ij s_j t_j,   s_j = 1 - z_j^2,   t_j = W_j . f

are what drift and diffusion of most modified equations are made of, and where much of the time of a
differentiable equation goes: fused over blocks of points that stay in cache. Tested against
`network.TwoLayerJet`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kolmo import threads
from kolmo.kernel import kernel

#: points of a block: a few rows of them and the hidden units stay in cache
_BLOCK = 256
#: hidden units (numbers) that a gradient may keep; beyond, they are evaluated again
_KEPT = 8_000_000


@kernel
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh to 3e-16, without a branch: loops over it are vectorised.

    (1 - e) / (1 + e) with e = exp(-2 |x|) = 2^n (Q + r P) / (Q - r P), P and Q in r^2: one division in all.
    Source of the rational function: Moshier, Cephes mathematical library, exp.
    """
    y = -2.0 * min(abs(x), 20.0)
    n = np.floor(y * 1.4426950408889634 + 0.5)
    # log 2 in two parts: the first times n is exact
    r = (y - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
    square = r * r
    P = r * ((1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 1.0)
    Q = 3.00198505138664455042e-6 * square + 2.52448340349684104192e-3
    Q = (Q * square + 2.27265548208155028766e-1) * square + 2.0
    power = np.int64((np.int64(n) + 1023) << 52).view(np.float64)
    below, above = Q - P, power * (Q + P)
    t = (below - above) / (below + above)
    return t if x > 0 else (-t if x < 0 else x)  # a nan stays one


# Loops over points. `dims` is a tuple of d entries: its length is a constant to the compiler, which drops
# what is not there. Rows of components beyond d are never looked at.


@kernel
def _unit(dims, w, b, x0, x1, x2, unit):  # type: ignore[no-untyped-def]
    for q in range(len(unit)):
        total = b + w[0] * x0[q]
        if len(dims) > 1:
            total += w[1] * x1[q]
        if len(dims) > 2:
            total += w[2] * x2[q]
        unit[q] = tanh(total)


@kernel
def _add_unit(dims, v, unit, f0, f1, f2):  # type: ignore[no-untyped-def]
    v0, v1, v2 = v[0], v[1], v[2]
    for q in range(len(unit)):
        f0[q] += v0 * unit[q]
        if len(dims) > 1:
            f1[q] += v1 * unit[q]
        if len(dims) > 2:
            f2[q] += v2 * unit[q]


@kernel
def _add_through(dims, w, v, unit, f0, f1, f2, g0, g1, g2):  # type: ignore[no-untyped-def]
    # g += v (1 - unit^2) (w . f): a unit's part of the advection, and with v, w exchanged of its transpose
    w0, w1, w2, v0, v1, v2 = w[0], w[1], w[2], v[0], v[1], v[2]
    for q in range(len(unit)):
        t = w0 * f0[q]
        if len(dims) > 1:
            t += w1 * f1[q]
        if len(dims) > 2:
            t += w2 * f2[q]
        t *= 1.0 - unit[q] * unit[q]
        g0[q] += v0 * t
        if len(dims) > 1:
            g1[q] += v1 * t
        if len(dims) > 2:
            g2[q] += v2 * t


@kernel
def _unit_gradient(dims, w, v, unit, x0, x1, x2, f0, f1, f2, g0, g1, g2, y0, y1, y2, d_w, d_v):  # type: ignore[no-untyped-def]
    # adds a unit's part of the gradient by w and v; returns that by its bias
    w0, w1, w2, v0, v1, v2 = w[0], w[1], w[2], v[0], v[1], v[2]
    dw0, dw1, dw2, dv0, dv1, dv2, db = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for q in range(len(unit)):
        s = 1.0 - unit[q] * unit[q]
        t, pull, down = w0 * f0[q], v0 * g0[q], v0 * y0[q]
        if len(dims) > 1:
            t += w1 * f1[q]
            pull += v1 * g1[q]
            down += v1 * y1[q]
        if len(dims) > 2:
            t += w2 * f2[q]
            pull += v2 * g2[q]
            down += v2 * y2[q]
        down = s * (down - 2.0 * unit[q] * t * pull)
        pull *= s
        t *= s
        db += down
        dw0 += pull * f0[q] + down * x0[q]
        dv0 += t * g0[q] + unit[q] * y0[q]
        if len(dims) > 1:
            dw1 += pull * f1[q] + down * x1[q]
            dv1 += t * g1[q] + unit[q] * y1[q]
        if len(dims) > 2:
            dw2 += pull * f2[q] + down * x2[q]
            dv2 += t * g2[q] + unit[q] * y2[q]
    d_w[0] += dw0
    d_w[1] += dw1
    d_w[2] += dw2
    d_v[0] += dv0
    d_v[1] += dv1
    d_v[2] += dv2
    return db


@kernel
def evaluate(dims, W, b, V, points, f, g, z):  # type: ignore[no-untyped-def]
    """f and g (L, d, Q) at points (3, Q) for weights W (L, m, 3), b (L, m), V (L, m, 3).

    z: where the hidden units (L, m, Q) are kept, or of no points, to keep none.
    """
    layers, m = b.shape
    count, keep = points.shape[1], z.shape[2] > 0
    scratch, work = np.empty((m, _BLOCK)), np.empty((6, _BLOCK))
    for k in range(layers):
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            stop = start + size
            # rows are cut one by one: numba knows those to be contiguous, rows of a cut matrix it does not
            x0, x1, x2 = points[0, start:stop], points[1, start:stop], points[2, start:stop]
            f0, f1, f2 = work[0, :size], work[1, :size], work[2, :size]
            g0, g1, g2 = work[3, :size], work[4, :size], work[5, :size]
            work[:] = 0.0
            for j in range(m):
                unit = z[k, j, start:stop] if keep else scratch[j, :size]
                _unit(dims, W[k, j], b[k, j], x0, x1, x2, unit)
                _add_unit(dims, V[k, j], unit, f0, f1, f2)
            for j in range(m):
                unit = z[k, j, start:stop] if keep else scratch[j, :size]
                _add_through(dims, W[k, j], V[k, j], unit, f0, f1, f2, g0, g1, g2)
            for i in range(len(dims)):
                f[k, i, start:stop] = work[i, :size]
                g[k, i, start:stop] = work[3 + i, :size]


@kernel
def differentiate(dims, W, b, V, points, f, z, d_f, d_g, d_W, d_b, d_V):  # type: ignore[no-untyped-def]
    """Derivatives by the weights from those by f and g, (L, d, Q) each; f and z are what `evaluate` gave."""
    layers, m = b.shape
    count, kept = points.shape[1], z.shape[2] > 0
    d_W[:] = 0.0
    d_b[:] = 0.0
    d_V[:] = 0.0
    scratch, work = np.empty((m, _BLOCK)), np.zeros((9, _BLOCK))
    for k in range(layers):
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            stop = start + size
            x0, x1, x2 = points[0, start:stop], points[1, start:stop], points[2, start:stop]
            f0, f1, f2 = work[0, :size], work[1, :size], work[2, :size]
            g0, g1, g2 = work[3, :size], work[4, :size], work[5, :size]
            y0, y1, y2 = work[6, :size], work[7, :size], work[8, :size]
            for i in range(len(dims)):
                work[i, :size] = f[k, i, start:stop]
                work[3 + i, :size] = d_g[k, i, start:stop]
                work[6 + i, :size] = d_f[k, i, start:stop]
            for j in range(m):
                unit = z[k, j, start:stop] if kept else scratch[j, :size]
                if not kept:
                    _unit(dims, W[k, j], b[k, j], x0, x1, x2, unit)
                # derivatives by the f in (grad f) f
                _add_through(dims, V[k, j], W[k, j], unit, g0, g1, g2, y0, y1, y2)
            rows = (x0, x1, x2, f0, f1, f2, g0, g1, g2, y0, y1, y2)
            for j in range(m):
                unit = z[k, j, start:stop] if kept else scratch[j, :size]
                d_b[k, j] += _unit_gradient(dims, W[k, j], V[k, j], unit, *rows, d_W[k, j], d_V[k, j])


class _FieldAndAdvection(torch.autograd.Function):
    """(W, b, V) -> f, g."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, b: Tensor, V: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
        layers, m, dim = W.shape
        # three components always: the kernels name them
        more = (0, 3 - dim)
        tensors = [pad(W.detach(), more), b.detach(), pad(V.detach().transpose(1, 2), more).contiguous()]
        weights, count = [p.numpy() for p in tensors], points.shape[1]
        f, g = np.empty((2, layers, dim, count))
        keep = any(ctx.needs_input_grad) and layers * m * count <= _KEPT
        z = np.empty((layers, m, count if keep else 0))

        def part(some: slice) -> None:
            evaluate((0,) * dim, *(p[some] for p in weights), points, f[some], g[some], z[some])

        threads.each(part, threads.shares(layers))
        ctx.weights, ctx.points, ctx.f, ctx.z = weights, points, f, z
        return torch.from_numpy(f), torch.from_numpy(g)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_f: Tensor, d_g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        found = [np.empty_like(p) for p in ctx.weights]
        rows = [d.contiguous().numpy() for d in (d_f, d_g)]
        layers, dim, _ = ctx.f.shape

        def part(some: slice) -> None:
            inputs = [p[some] for p in (*ctx.weights, ctx.f, ctx.z, *rows, *found)]
            differentiate((0,) * dim, *inputs[:3], ctx.points, *inputs[3:])

        threads.each(part, threads.shares(layers))
        d_W, d_b, d_V = (torch.from_numpy(p) for p in found)
        return d_W[..., :dim], d_b, d_V[..., :dim].transpose(1, 2), None


def field_and_advection(W: Tensor, b: Tensor, V: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
    """f and (grad f) f at points (d, Q), d <= 3: both (L, Q, d), nodes contiguous; once differentiable.

    W (L, m, d), b (L, m), V (L, d, m): float64 on the CPU, contiguous.
    """
    points = np.concatenate([points, np.zeros((3 - len(points), points.shape[1]))])
    f, g = _FieldAndAdvection.apply(W, b, V, points)
    return f.transpose(1, 2), g.transpose(1, 2)
