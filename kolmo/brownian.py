r"""Brownian paths for torchsde whose numbers are addressed by (seed, sample, layer, unit).

A path covers one layer of the network in unit steps (time is counted in steps, so that it is exact in
floating point). On step k, with independent normal numbers xi and zeta,

    W_k = xi_k,     U_k = int (W_s - W_k) ds = xi_k / 2 + zeta_k / sqrt(12),

so Var W = 1, Var U = 1/3, Cov(W, U) = 1/2. Over steps a, ..., b - 1 increments add and the integrals do as

    W = sum_k W_k,     U = sum_k [ U_k + (b - 1 - k) W_k ]:

solvers of different step sizes see one and the same path. Source: Kloeden, Platen, Numerical solution
of stochastic differential equations, 1992, section 10.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchsde import BaseBrownian

from kolmo.errors import InputError
from kolmo.stream import Draws


class LayerPath(BaseBrownian):
    """The path of every sample of `draws` over one layer: `steps` unit steps, `channels` components.

    Holds steps * channels numbers for each sample, twice as many with `integrals` (U is then known).
    """

    def __init__(self, draws: Draws, steps: int, channels: int, integrals: bool = False) -> None:
        shape = (draws.stream.count, steps, channels)
        self._steps, self._size = steps, torch.Size((shape[0], channels))
        self._increments = draws.normal(steps * channels).reshape(shape)
        self._integrals: Tensor | None = None
        if integrals:
            zeta = draws.part(1).normal(steps * channels).reshape(shape)
            self._integrals = 0.5 * self._increments + zeta / math.sqrt(12)

    def __call__(
        self,
        ta: Tensor | float,
        tb: Tensor | float | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """W over [ta, tb], shape (N, channels), and U too where return_U.

        Raises InputError unless 0 <= ta < tb <= steps are whole, and where U was not prepared.
        """
        a, b = float(ta), math.nan if tb is None else float(tb)
        if not (a.is_integer() and b.is_integer() and 0 <= a < b <= self._steps):
            raise InputError(f"brownian: [{a}, {b}] is not a run of whole steps in [0, {self._steps}]")
        if return_A or (return_U and self._integrals is None):
            raise InputError(f"brownian: {'Levy areas are' if return_A else 'U is'} not known of this path")
        part = slice(int(a), int(b))
        W = self._increments[:, part]
        total = W.sum(dim=1)
        if not return_U or self._integrals is None:
            return total
        left = torch.arange(W.shape[1] - 1, -1, -1, dtype=W.dtype, device=W.device)[:, None]
        return total, (self._integrals[:, part] + left * W).sum(dim=1)

    def __repr__(self) -> str:
        return f"LayerPath(steps={self._steps}, size={tuple(self._size)})"

    @property
    def dtype(self) -> torch.dtype:
        return self._increments.dtype

    @property
    def device(self) -> torch.device:
        return self._increments.device

    @property
    def shape(self) -> torch.Size:
        return self._size

    @property
    def levy_area_approximation(self) -> str:
        return "none" if self._integrals is None else "space-time"
