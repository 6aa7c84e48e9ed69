r"""The one-sided taper that keeps the process in the box without a boundary condition.

    chi(x_i) = t^2 (3 - 2t),   t = clip((R - |x_i|) / (R (1 - r0)), 0, 1),   r0 = 0.8,
    b_i -> chi_i b_i only where b_i x_i > 0 (outward),   a_ij -> chi_i chi_j a_ij,
    then a_ii += 2 dx |b_i| chi_i (1 - chi_i),                 dx the mesh's spacing.

Normal drift and diffusion vanish at the faces, so they need no boundary condition (Fichera),
and the mass of the density is conserved exactly. Leaving the coefficients alone instead is
unstable where b points outward; tapering inward drift too biases J. A flow that turns along the box
is compressed there, and without diffusion P1 multiplies what it leaves unresolved by 30 to 200 a turn: the
last line damps that, in the taper's strip only and vanishing with the mesh.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.kernel import kernel
from kolmo.modified import Coefficients

#: r0: the taper acts outside r0 R
START = 0.8


def profile(points: Tensor, half_width: float) -> Tensor:
    """chi of each component of points (..., d): shape (..., d), 1 inside, 0 at the faces."""
    t = ((half_width - points.abs()) / (half_width * (1 - START))).clamp(0, 1)
    return t * t * (3 - 2 * t)


class Taper:
    """The taper at given points, differentiable in the coefficients.

    points (Q, d); half_width: R of the box; spacing: of the mesh. Lengths.
    """

    def __init__(self, points: np.ndarray, half_width: float, spacing: float) -> None:
        rows = np.ascontiguousarray(points.T)
        chi = profile(torch.from_numpy(rows), half_width).numpy()
        self.fixed = (rows, chi, 2 * spacing * chi * (1 - chi))

    def __call__(self, coefficients: Coefficients) -> Coefficients:
        """Drift (L, Q, d) and diffusion (L, Q, d[, d]) with their outward normal parts tapered, damped."""
        drift, diffusion = coefficients.drift, coefficients.diffusion
        found = _Tapered.apply(drift.transpose(1, 2), diffusion.flatten(2).transpose(1, 2), self.fixed)
        return Coefficients(found[0].transpose(1, 2), found[1].transpose(1, 2).reshape(diffusion.shape))

    def by_torch(self, coefficients: Coefficients) -> Coefficients:
        """The same by torch's own operations: differentiable as often as the coefficients are."""
        points, chi, damping = (torch.from_numpy(rows.T) for rows in self.fixed)
        b, a = coefficients.drift, coefficients.diffusion
        drift = torch.where(b * points > 0, chi * b, b)
        damped = damping * drift.abs()
        if a.ndim == 3:
            return Coefficients(drift, chi * chi * a + damped)
        return Coefficients(drift, chi[:, :, None] * chi[:, None, :] * a + torch.diag_embed(damped))


class _Tapered(torch.autograd.Function):
    """Rows (L, d, Q) and (L, d, Q) or (L, d d, Q), tapered."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, a: Tensor, fixed: tuple[np.ndarray, ...]) -> tuple[Tensor, Tensor]:
        rows = [v.detach().contiguous().numpy() for v in (b, a)]
        found = [np.empty_like(v) for v in rows]
        _forward(*fixed, *rows, *found)
        ctx.fixed, ctx.b = fixed, rows[0]
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_b: Tensor, d_a: Tensor) -> tuple[Tensor, Tensor, None]:
        rows = [v.contiguous().numpy() for v in (d_b, d_a)]
        found = [np.empty_like(v) for v in rows]
        _backward(*ctx.fixed, ctx.b, *rows, *found)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1]), None


@kernel
def _forward(points, chi, damping, b, a, b_out, a_out):  # type: ignore[no-untyped-def]
    layers, dim, _ = b.shape
    full = a.shape[1] > dim
    for k in range(layers):
        for i in range(dim):
            x, c, old, new = points[i], chi[i], b[k, i], b_out[k, i]
            for q in range(len(x)):
                new[q] = c[q] * old[q] if old[q] * x[q] > 0 else old[q]
        for row in range(a.shape[1]):
            i, j = (row // dim, row % dim) if full else (row, row)
            left, right, before, after = chi[i], chi[j], a[k, row], a_out[k, row]
            for q in range(len(before)):
                after[q] = left[q] * right[q] * before[q]
            if i == j:
                damp, speed = damping[i], b_out[k, i]
                for q in range(len(before)):
                    after[q] += damp[q] * abs(speed[q])


@kernel
def _backward(points, chi, damping, b, d_b, d_a, b_out, a_out):  # type: ignore[no-untyped-def]
    layers, dim, _ = b.shape
    full = d_a.shape[1] > dim
    for k in range(layers):
        for i in range(dim):
            x, c, old, pull, new = points[i], chi[i], b[k, i], d_b[k, i], b_out[k, i]
            damp, spread = damping[i], d_a[k, i * (dim + 1) if full else i]
            for q in range(len(x)):
                total = pull[q] + (damp[q] * spread[q] if old[q] > 0 else -damp[q] * spread[q])
                new[q] = c[q] * total if old[q] * x[q] > 0 else total
        for row in range(d_a.shape[1]):
            i, j = (row // dim, row % dim) if full else (row, row)
            left, right, before, after = chi[i], chi[j], d_a[k, row], a_out[k, row]
            for q in range(len(before)):
                after[q] = left[q] * right[q] * before[q]
