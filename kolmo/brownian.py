r"""What torchsde is given for one layer: its equation, and a Brownian path addressed by sample.

Weights are constant within a layer. Its time is counted in steps of the finest path, tau = h / steps: with
s = t / tau the modified equation dX = b dt + a^{1/2} dW is

    dX = tau b ds + sqrt(tau) a^{1/2} dW,

and all times are whole numbers, so that no rounding adds a step. On unit step k, with independent normal
numbers xi and zeta of `stream`, addressed by (seed, sample, layer, unit),

    W_k = xi_k,     U_k = int (W_s - W_k) ds = xi_k / 2 + zeta_k / sqrt(12),

so Var W = 1, Var U = 1/3, Cov(W, U) = 1/2. Over steps a, ..., b - 1 increments add and the integrals do as

    W = sum_k W_k,     U = sum_k [ U_k + (b - 1 - k) W_k ]:

solvers of different step sizes see one and the same path. Source: Kloeden, Platen, Numerical solution
of stochastic differential equations, 1992, section 10.4.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torchsde import BaseBrownian, sdeint

from kolmo.errors import InputError
from kolmo.modified import drift
from kolmo.network import Jet
from kolmo.noise.structure import Structure
from kolmo.problem import Problem
from kolmo.stream import Draws


class LayerPath(BaseBrownian):
    """The path of every sample of `draws` over one layer: `steps` unit steps, `channels` components.

    Holds steps * channels numbers for each sample, twice as many with `integrals` (U is then known).
    """

    def __init__(self, draws: Draws, steps: int, channels: int, integrals: bool = False) -> None:
        count = draws.stream.count
        self._steps, self._size = steps, torch.Size((count, channels))

        def normal(draws: Draws) -> Tensor:
            """Numbers of each step, shape (steps, N, channels): what is summed is contiguous."""
            return draws.normal(steps * channels).reshape(count, steps, channels).transpose(0, 1).contiguous()

        self._increments = normal(draws)
        self._integrals: Tensor | None = None
        if integrals:
            self._integrals = 0.5 * self._increments + normal(draws.part(1)) / math.sqrt(12)

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
        W = self._increments[int(a) : int(b)]
        total = W.sum(dim=0)
        if not return_U or self._integrals is None:
            return total
        left = torch.arange(len(W) - 1, -1, -1, dtype=W.dtype, device=W.device)
        return total, self._integrals[int(a) : int(b)].sum(dim=0) + torch.tensordot(left, W, 1)

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


class LayerSDE:
    """One layer's equation as torchsde wants it: drift f = tau b, diffusion g = sqrt(tau) a^{1/2}.

    tau: the unit of time. point: any point (1, d). channels: r, the Brownian motions; 0 without noise.
    noise_type: see SDE.
    """

    sde_type = "ito"

    def __init__(self, problem: Problem, layer: int, order: int, tau: float, point: Tensor) -> None:
        self._network, self._noise, self._order, self._tau = problem.network, problem.noise, order, tau
        self._layer = slice(layer, layer + 1)
        self._values: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._last: tuple[Tensor, Jet] | None = None
        D = self._noise.diffusion(self._jet(point))
        self._D = D if D is not None and D.ndim == 3 else None  # constant in x
        self._injected = None if self._D is None else symmetric_root(self._D)[:, None]
        root = self._root(point)
        self.channels = root.shape[-1]
        constant = D is None or (D.ndim == 3 and order == 1)
        if constant and self._noise.covariance(self._jet(point)) is None:
            self.noise_type = "additive"
        elif root.ndim == 2:
            self.noise_type = "diagonal"
        else:
            self.noise_type = "scalar" if self.channels == 1 else "general"

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        """tau b at x (N, d): shape (N, d)."""
        return self._once("f", x, self._drift)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        """sqrt(tau) a^{1/2} at x (N, d): its diagonal (N, d), or columns (N, d, r)."""
        return self._once("g", x, self._root)

    def solve(self, x: Tensor, path: LayerPath, method: str, steps: int, dt: int) -> Tensor:
        """The state after all `steps` unit steps of the path, taken dt at a time: shape (N, d)."""
        # the derivative-free Milstein: torchsde's other one has the Jacobian of g transposed, which is
        # another matrix wherever g_i depends on more than x_i
        options = {"grad_free": True} if method == "milstein" else {}
        ts = torch.tensor([0.0, steps], dtype=x.dtype, device=x.device)
        # torchsde's objects refer to themselves and wait for the garbage collector: they get nothing to keep
        bm = weakref.proxy(path)
        end = sdeint(self, x, ts, bm=bm, method=method, dt=float(dt), options=options)[-1].clone()
        self._values.clear()
        self._last = None
        return end

    def _once(self, name: str, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """of(x), remembered: torchsde asks for the same stages again and again (srk: 10 times for 4)."""
        known = self._values.get((name, id(x)))
        if known is None:
            if len(self._values) == 8:  # the stages of one step of srk
                del self._values[next(iter(self._values))]
            known = self._values[name, id(x)] = (x, of(x))  # x is kept, or its id would be given away
        return known[1]

    def _jet(self, x: Tensor) -> Jet:
        if self._last is None or self._last[0] is not x:
            self._last = (x, self._network.jet(x, self._layer))
        return self._last[1]

    def _drift(self, x: Tensor) -> Tensor:
        return self._tau * drift(self._noise.mean(self._jet(x)), self._D, self._network.step, self._order)[0]

    def _root(self, x: Tensor) -> Tensor:
        jet, h, columns = self._jet(x), self._network.step, []
        C = self._noise.covariance(jet)
        if C is not None:
            full = isinstance(C, Tensor) and C.ndim == 4
            root = C.root() if isinstance(C, Structure) else symmetric_root(C) if full else C.sqrt()
            columns.append(math.sqrt(h * self._tau) * root)
        D = self._noise.diffusion(jet) if self._injected is None else self._D
        if D is not None:
            root = symmetric_root(D) if self._injected is None else self._injected
            if self._order == 2:
                root = root - 0.5 * h * self._noise.mean(jet).jacobian() @ root
            columns.append(math.sqrt(self._tau) * root.expand(1, *x.shape, -1))
        if len(columns) == 1 and columns[0].ndim == 3:
            return columns[0][0]
        columns = [torch.diag_embed(c) if c.ndim == 3 else c for c in columns]
        S = torch.cat([x.new_zeros(1, *x.shape, 0), *columns], dim=-1)[0]
        # of the law only S S^T matters: a square root needs fewer random numbers, where it is cheap
        return symmetric_root(S @ S.mT) if S.shape[-1] > S.shape[-2] and S.shape[-2] <= 2 else S


def symmetric_root(a: Tensor) -> Tensor:
    """The symmetric positive semidefinite root of symmetric positive semidefinite a (..., d, d)."""
    if a.shape[-1] == 1:
        return a.sqrt()
    if a.shape[-1] == 2:  # Cayley and Hamilton: (a + sqrt(det) I) / sqrt(trace + 2 sqrt(det))
        det = (a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]).clamp(min=0).sqrt()[..., None, None]
        trace = (a[..., 0, 0] + a[..., 1, 1])[..., None, None] + 2 * det
        root = a + det * torch.eye(2, dtype=a.dtype, device=a.device)
        return torch.where(trace > 0, root / trace.sqrt().clamp(min=1e-150), 0.0)
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
