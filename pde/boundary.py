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

import torch
from torch import Tensor

from kolmo.modified import Coefficients

#: r0: the taper acts outside r0 R
START = 0.8


def profile(points: Tensor, half_width: float) -> Tensor:
    """chi of each component of points (..., d): shape (..., d), 1 inside, 0 at the faces."""
    t = ((half_width - points.abs()) / (half_width * (1 - START))).clamp(0, 1)
    return t * t * (3 - 2 * t)


def taper(coefficients: Coefficients, points: Tensor, half_width: float, spacing: float) -> Coefficients:
    """Drift and diffusion at points (Q, d) with their outward normal parts tapered, damped in the strip.

    spacing: of the mesh, length.
    """
    chi = profile(points, half_width)
    drift, diffusion = coefficients.drift, coefficients.diffusion
    drift = torch.where(drift * points > 0, chi * drift, drift)
    damping = 2 * spacing * chi * (1 - chi) * drift.abs()
    if diffusion.ndim == drift.ndim:
        return Coefficients(drift, chi * chi * diffusion + damping)
    tapered = chi[:, :, None] * chi[:, None, :] * diffusion
    return Coefficients(drift, tapered + torch.diag_embed(damping))
