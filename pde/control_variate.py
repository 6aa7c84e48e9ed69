r"""The value function's gradient along sampled paths: a control variate for Monte Carlo.

With u the value function, Phi(X_L) - u(X_0, 0) is a sum of martingale increments, and to first order
those are grad u(m_k, t_{k+1}) . (X_{k+1} - m_k), m_k = E[X_{k+1} | X_k]. Their sum has mean zero exactly,
for any u, so that subtracting it leaves J alone and only its variance depends on how good u is.
Source: Milstein, Tretyakov, Stochastic Numerics for Mathematical Physics, 2004, section 2.4.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kolmo.chain import ValueGradient
from kolmo.errors import InputError
from kolmo.pde.kolmogorov import BackwardKolmogorov, Solution


def value_gradient(equation: BackwardKolmogorov) -> ValueGradient:
    """grad u of a solved equation, for `Chain(control=...)`; the mesh must be a uniform tensor grid.

    Nodal gradients are central differences; between nodes they are multilinear, outside the box
    those of the nearest face. Raises InputError on another mesh, InfeasibleError where the equation is
    refused.
    """
    solution = equation.solve()
    grid = _GridGradient(solution, equation.space.half_width)

    def gradient(layer: int, x: Tensor, labels: Tensor) -> Tensor:
        return grid(layer + 1, x, labels)

    return gradient


class _GridGradient:
    """Nodal gradients of u at every layer, (L + 1, 2, n^d, d)."""

    def __init__(self, solution: Solution, half_width: float) -> None:
        points, dim = solution.points, solution.points.shape[1]
        count = round(len(points) ** (1 / dim))
        spacing = 2 * half_width / (count - 1)
        index = np.rint((points + half_width) / spacing).astype(int)
        if (
            count**dim != len(points)
            or np.abs(points - (index * spacing - half_width)).max() > 1e-9 * half_width
        ):
            raise InputError("control variate: the mesh is not a uniform tensor grid of the box")
        values = np.empty((len(solution.times), *(count,) * dim, 2))
        everywhere = (slice(None), *index.T)
        values[everywhere] = solution.value
        slopes = np.gradient(values, spacing, axis=tuple(range(1, dim + 1)), edge_order=2)
        stacked = np.stack([slopes] if dim == 1 else slopes, axis=-1)  # (L + 1, n.., 2, d)
        table = np.moveaxis(stacked, -2, 1).reshape(len(solution.times), -1, dim)
        self._table = torch.from_numpy(np.ascontiguousarray(table))  # rows: class, then node
        self._count, self._dim, self._half_width, self._spacing = count, dim, half_width, spacing
        corners = np.indices((2,) * dim).reshape(dim, -1).T
        self._corners = [tuple(int(c) for c in corner) for corner in corners]

    def __call__(self, level: int, x: Tensor, labels: Tensor) -> Tensor:
        """grad u_y at time level, points x (N, d) and labels (N,): shape (N, d)."""
        table = self._table[level].to(x)
        t = ((x + self._half_width) / self._spacing).clamp(0, self._count - 1)
        cell = t.long().clamp(max=self._count - 2)
        share = t - cell
        row = labels.to(x.device) * self._count**self._dim
        for axis in range(self._dim):
            row = row + cell[:, axis] * self._count ** (self._dim - 1 - axis)
        total = torch.zeros_like(x)
        for corner in self._corners:
            weight = torch.ones_like(x[:, 0])
            step = 0
            for axis, side in enumerate(corner):
                weight = weight * (share[:, axis] if side else 1 - share[:, axis])
                step += side * self._count ** (self._dim - 1 - axis)
            total = total + weight[:, None] * table[row + step]
        return total
