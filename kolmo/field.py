r"""The field f = V tanh(W x + b) and its advection (grad f) f at fixed points, compiled, with their gradient.

    f_i = sum_j V_ij z_j,   z_j = tanh(W_j . x + b_j),
    g_i = sum_j V_ij s_j t_j,   s_j = 1 - z_j^2,   t_j = W_j . f

are what drift and diffusion of most modified equations are made of, and where much of the time of a
differentiable equation goes: fused over blocks of points that stay in cache. On the nodes of a grid
exp(-2 (W_j . x + b_j)) is a product over the axes, so that a unit costs one division and no exponential.
Tested against `jet.TwoLayerJet`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kolmo import threads
from kolmo.kernel import aligned, kernel

#: points of a block: a few rows of them and the hidden units stay in cache
_BLOCK = 400
#: bound on |W_j . x + b_j| up to which the factors of its exponential are far from overflow
_SEPARABLE = 150.0


@kernel
def _exponential(y):  # type: ignore[no-untyped-def]
    """exp(y) = 2^n (Q + P) / (Q - P) for |y| < 700: the two factors' sum and difference, and 2^n.

    Source of the rational function: Moshier, Cephes mathematical library, exp.
    """
    n = np.floor(y * 1.4426950408889634 + 0.5)
    # log 2 in two parts: the first times n is exact
    r = (y - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
    square = r * r
    P = r * ((1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 1.0)
    Q = 3.00198505138664455042e-6 * square + 2.52448340349684104192e-3
    Q = (Q * square + 2.27265548208155028766e-1) * square + 2.0
    return Q + P, Q - P, np.int64((np.int64(n) + 1023) << 52).view(np.float64)


@kernel
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh to 3e-16, without a branch: loops over it are vectorised. One division: (1 - e) / (1 + e)."""
    above, below, power = _exponential(-2.0 * min(abs(x), 20.0))
    above *= power
    t = (below - above) / (below + above)
    return t if x > 0 else (-t if x < 0 else x)  # a nan stays one


# Loops over points take the hidden units by fours, which halves what they load: `kernel_weights` pads them.
# `dims` is a tuple of d entries: its length is a constant to the compiler, which drops what is not there.
# Rows of components beyond d are never looked at. Indices are unsigned: numba's test for negative ones would
# keep the loops from being vectorised.


@kernel
def _units(dims, W, b, points, start, size, units):  # type: ignore[no-untyped-def]
    for j in range(np.uint64(len(b))):
        w0, w1, w2, bias = W[j, 0], W[j, 1], W[j, 2], b[j]
        for q in range(size):
            total = bias + w0 * points[0, start + q]
            if len(dims) > 1:
                total += w1 * points[1, start + q]
            if len(dims) > 2:
                total += w2 * points[2, start + q]
            units[j, q] = tanh(total)


@kernel
def _factors(dims, W, b, points, outer, inner):  # type: ignore[no-untyped-def]
    """exp(-2 (W x + b)) at grid points (3, Q) as outer (m, lines) times inner (m, points of a line).

    False, and nothing done, where one might overflow or is not finite.
    """
    line, last = np.uint64(inner.shape[1]), np.uint64(len(dims) - 1)
    for j in range(len(b)):
        bound = abs(b[j])
        for i in range(len(dims)):
            bound += abs(W[j, i]) * max(abs(points[i, 0]), abs(points[i, -1]))
        if not bound <= _SEPARABLE:
            return False
    for j in range(np.uint64(len(b))):
        for q in range(np.uint64(outer.shape[1])):
            total = b[j]
            for i in range(last):
                total += W[j, i] * points[i, q * line]
            above, below, power = _exponential(-2.0 * total)
            outer[j, q] = power * above / below
        factor = -2.0 * W[j, last]
        for q in range(line):
            above, below, power = _exponential(factor * points[last, q])
            inner[j, q] = power * above / below
    return True


@kernel
def _grid_units(outer, inner, first, lines, units):  # type: ignore[no-untyped-def]
    # of whole lines of the grid; two units share a division
    line = np.uint64(inner.shape[1])
    for j in range(np.uint64(0), np.uint64(len(inner)), np.uint64(2)):
        i = j + np.uint64(1)
        for k in range(lines):
            one, two, start = outer[j, first + k], outer[i, first + k], k * line
            for q in range(line):
                e, d = 1.0 + one * inner[j, q], 1.0 + two * inner[i, q]
                below = 2.0 / (e * d)
                units[j, start + q] = below * d - 1.0
                units[i, start + q] = below * e - 1.0


@kernel
def blocks(dims, W, b, points, line):  # type: ignore[no-untyped-def]
    """Whether units are products over the grid, points of a block (whole lines then), the factors."""
    m, count = len(b), points.shape[1]
    outer, inner = np.empty((m, count // line if line else 1)), np.empty((m, line))
    separable = line > 0 and _factors(dims, W, b, points, outer, inner)
    return separable, line * max(1, _BLOCK // line) if separable else _BLOCK, outer, inner


@kernel
def fill_units(dims, W, b, points, start, size, separable, outer, inner, units):  # type: ignore[no-untyped-def]
    """The hidden units (m, block) of a block of `size` points from `start` on."""
    if separable:
        line = np.uint64(inner.shape[1])
        _grid_units(outer, inner, start // line, size // line, units)
    else:
        _units(dims, W, b, points, start, size, units)


@kernel
def add_units(dims, V, units, size, f):  # type: ignore[no-untyped-def]
    for j in range(np.uint64(0), np.uint64(len(V)), np.uint64(4)):
        j1, j2, j3 = j + np.uint64(1), j + np.uint64(2), j + np.uint64(3)
        for q in range(size):
            z0, z1, z2, z3 = units[j, q], units[j1, q], units[j2, q], units[j3, q]
            f[0, q] += V[j, 0] * z0 + V[j1, 0] * z1 + V[j2, 0] * z2 + V[j3, 0] * z3
            if len(dims) > 1:
                f[1, q] += V[j, 1] * z0 + V[j1, 1] * z1 + V[j2, 1] * z2 + V[j3, 1] * z3
            if len(dims) > 2:
                f[2, q] += V[j, 2] * z0 + V[j1, 2] * z1 + V[j2, 2] * z2 + V[j3, 2] * z3


@kernel
def _through(dims, w, f, q, z):  # type: ignore[no-untyped-def]
    t = w[0] * f[0, q]
    if len(dims) > 1:
        t += w[1] * f[1, q]
    if len(dims) > 2:
        t += w[2] * f[2, q]
    return t * (1.0 - z * z)


@kernel
def _add_through(dims, W, V, units, size, f, g):  # type: ignore[no-untyped-def]
    # g += V s (W f): the advection, and with V, W exchanged its transpose
    for j in range(np.uint64(0), np.uint64(len(V)), np.uint64(4)):
        j1, j2, j3 = j + np.uint64(1), j + np.uint64(2), j + np.uint64(3)
        for q in range(size):
            t0, t1 = _through(dims, W[j], f, q, units[j, q]), _through(dims, W[j1], f, q, units[j1, q])
            t2, t3 = _through(dims, W[j2], f, q, units[j2, q]), _through(dims, W[j3], f, q, units[j3, q])
            g[0, q] += V[j, 0] * t0 + V[j1, 0] * t1 + V[j2, 0] * t2 + V[j3, 0] * t3
            if len(dims) > 1:
                g[1, q] += V[j, 1] * t0 + V[j1, 1] * t1 + V[j2, 1] * t2 + V[j3, 1] * t3
            if len(dims) > 2:
                g[2, q] += V[j, 2] * t0 + V[j1, 2] * t1 + V[j2, 2] * t2 + V[j3, 2] * t3


@kernel
def _add_gradient(dims, w, v, unit, points, start, f, g, y, d_w, d_v):  # type: ignore[no-untyped-def]
    # adds a unit's part of the gradient by w and v; returns that by its bias
    w0, w1, w2, v0, v1, v2 = w[0], w[1], w[2], v[0], v[1], v[2]
    dw0, dw1, dw2, dv0, dv1, dv2, db = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for q in range(np.uint64(len(unit))):
        s = 1.0 - unit[q] * unit[q]
        t, pull, down = w0 * f[0, q], v0 * g[0, q], v0 * y[0, q]
        if len(dims) > 1:
            t += w1 * f[1, q]
            pull += v1 * g[1, q]
            down += v1 * y[1, q]
        if len(dims) > 2:
            t += w2 * f[2, q]
            pull += v2 * g[2, q]
            down += v2 * y[2, q]
        down = s * (down - 2.0 * unit[q] * t * pull)
        pull *= s
        t *= s
        db += down
        dw0 += pull * f[0, q] + down * points[0, start + q]
        dv0 += t * g[0, q] + unit[q] * y[0, q]
        if len(dims) > 1:
            dw1 += pull * f[1, q] + down * points[1, start + q]
            dv1 += t * g[1, q] + unit[q] * y[1, q]
        if len(dims) > 2:
            dw2 += pull * f[2, q] + down * points[2, start + q]
            dv2 += t * g[2, q] + unit[q] * y[2, q]
    d_w[0] += dw0
    d_w[1] += dw1
    d_w[2] += dw2
    d_v[0] += dv0
    d_v[1] += dv1
    d_v[2] += dv2
    return db


@kernel
def copy_rows(source, start, size, rows):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        for q in range(size):
            rows[i, q] = source[i, start + q]


@kernel
def evaluate(dims, W, b, V, points, line, f, g):  # type: ignore[no-untyped-def]
    """f and g (d, Q) of one layer at points (3, Q) for weights W (m, 3), b (m,), V (m, 3).

    line: points in a line of the grid that the points are, last axis fastest; 0 where they are not.
    """
    m, count = len(b), points.shape[1]
    separable, block, outer, inner = blocks(dims, W, b, points, line)
    units, here, through = aligned(m, block), aligned(3, block), aligned(3, block)
    for start in range(np.uint64(0), np.uint64(count), np.uint64(block)):
        size = min(np.uint64(block), np.uint64(count) - start)
        fill_units(dims, W, b, points, start, size, separable, outer, inner, units)
        here[:] = 0.0
        add_units(dims, V, units, size, here)
        through[:] = 0.0
        _add_through(dims, W, V, units, size, here, through)
        for i in range(len(dims)):
            for q in range(size):
                f[i, start + q] = here[i, q]
                g[i, start + q] = through[i, q]


@kernel
def differentiate(dims, W, b, V, points, line, f, d_f, d_g, d_W, d_b, d_V):  # type: ignore[no-untyped-def]
    """Derivatives by one layer's weights from those by f and g, (d, Q) each; f is what `evaluate` gave."""
    m, count = len(b), points.shape[1]
    d_W[:] = 0.0
    d_b[:] = 0.0
    d_V[:] = 0.0
    separable, block, outer, inner = blocks(dims, W, b, points, line)
    units, here, pull, down = aligned(m, block), aligned(3, block), aligned(3, block), aligned(3, block)
    for start in range(np.uint64(0), np.uint64(count), np.uint64(block)):
        size = min(np.uint64(block), np.uint64(count) - start)
        # evaluated again: that takes less time than keeping the units
        fill_units(dims, W, b, points, start, size, separable, outer, inner, units)
        copy_rows(f, start, size, here)
        copy_rows(d_g, start, size, pull)
        copy_rows(d_f, start, size, down)
        # derivatives by the f in (grad f) f
        _add_through(dims, V, W, units, size, pull, down)
        for j in range(m):
            unit = units[j, :size]
            d_b[j] += _add_gradient(dims, W[j], V[j], unit, points, start, here, pull, down, d_W[j], d_V[j])


@kernel
def _evaluate_layers(dims, W, b, V, points, f, g):  # type: ignore[no-untyped-def]
    for k in range(len(b)):
        evaluate(dims, W[k], b[k], V[k], points, 0, f[k], g[k])


@kernel
def _differentiate_layers(dims, W, b, V, points, f, d_f, d_g, d_W, d_b, d_V):  # type: ignore[no-untyped-def]
    for k in range(len(b)):
        given = (points, 0, f[k], d_f[k], d_g[k])
        differentiate(dims, W[k], b[k], V[k], *given, d_W[k], d_b[k], d_V[k])


def kernel_weights(W: Tensor, b: Tensor, V: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights W (L, m, d), b (L, m), V (L, d, m) as the kernels take them: (L, m, 3), (L, m), (L, m, 3).

    With units that do nothing up to a multiple of four.
    """
    # three components always: the kernels name them
    more = (0, 3 - W.shape[2], 0, -W.shape[1] % 4)
    wide = pad(W.detach(), more), pad(b.detach(), more[2:]), pad(V.detach().transpose(1, 2), more)
    return tuple(w.contiguous().numpy() for w in wide)  # type: ignore[return-value]


def weight_gradients(found: tuple[np.ndarray, ...], width: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives that the kernels gave, in the shapes of W, b, V."""
    d_W, d_b, d_V = (torch.from_numpy(p)[:, :width] for p in found)
    return d_W[..., :dim], d_b, d_V[..., :dim].transpose(1, 2)


def kernel_points(rows: np.ndarray) -> np.ndarray:
    """Points (d, Q) as the kernels take them: (3, Q)."""
    return np.concatenate([rows, np.zeros((3 - len(rows), rows.shape[1]))])


class _FieldAndAdvection(torch.autograd.Function):
    """(W, b, V) -> f, g."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, b: Tensor, V: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
        layers, width, dim = W.shape
        weights = kernel_weights(W, b, V)
        f, g = np.empty((2, layers, dim, points.shape[1]))

        def part(some: slice) -> None:
            _evaluate_layers((0,) * dim, *(p[some] for p in weights), points, f[some], g[some])

        threads.each(part, threads.shares(layers))
        ctx.weights, ctx.points, ctx.f, ctx.width = weights, points, f, width
        return torch.from_numpy(f), torch.from_numpy(g)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_f: Tensor, d_g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        found = tuple(np.empty_like(p) for p in ctx.weights)
        rows = [d.contiguous().numpy() for d in (d_f, d_g)]
        layers, dim, _ = ctx.f.shape

        def part(some: slice) -> None:
            inputs = [p[some] for p in (*ctx.weights, ctx.f, *rows, *found)]
            _differentiate_layers((0,) * dim, *inputs[:3], ctx.points, *inputs[3:])

        threads.each(part, threads.shares(layers))
        return *weight_gradients(found, ctx.width, dim), None


def field_and_advection(W: Tensor, b: Tensor, V: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
    """f and (grad f) f at points (d, Q), d <= 3: both (L, Q, d), nodes contiguous; once differentiable.

    W (L, m, d), b (L, m), V (L, d, m): float64 on the CPU, contiguous.
    """
    f, g = _FieldAndAdvection.apply(W, b, V, kernel_points(points))
    return f.transpose(1, 2), g.transpose(1, 2)
