r"""The exact recursion by torch, on the device of the network's weights: increments, splines and both passes.

For weights on an accelerator; kernels are the processor's. Nothing here waits for the device, and memory is
bounded whatever the number of nodes and outcomes: of a march only the values u_k at the nodes are kept, the
transposed pass computes each layer again. u at points is gathered from 4^d coefficients, those come of the
nodal values by dense products along each axis. The numbers are those of `exact_layers.GeneralLayers` to
rounding; on an accelerator sums may be taken in another order from run to run (atomic additions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kolmo.loss import Loss
from kolmo.network import LayeredNetwork
from kolmo.noise.base import Outcomes
from kolmo.pde.exact_layers import Increments, Layers, chunks, losses, pull_back
from kolmo.pde.recursion_collocation import elimination, solve
from kolmo.pde.spline import FACE, TensorSpline

#: points whose increments are held at once; numbers gathered at once, 2 * 4^d for each departure point
#: (128 MiB, and a pass holds a few such tensors)
POINTS, GATHERED = 2**16, 2**24
#: rows of a dense product along an axis; how far from a value coefficients depend on it to rounding: those k
#: nodes away by (2 - sqrt(3))^k
_ROWS, _REACH = 256, 32
#: powers of the place in a cell, each with its share in the four B-splines
_SPLINES = torch.tensor([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]], dtype=torch.float64) / 6


class _Collocation:
    """Coefficients along an axis from nodal values, as dense blocks of rows: a band is all of the inverse."""

    def __init__(self, cells: int, device: torch.device) -> None:
        height, width = min(cells + 3, _ROWS), min(cells + 1, _ROWS + 2 * _REACH)
        rows = np.arange(0, cells + 3, height)
        first = np.clip(rows - _REACH, 0, cells + 1 - width)
        blocks = np.zeros((len(rows), height, width))
        for block, row, column in zip(blocks, rows, first, strict=True):
            ones = np.eye(cells + 1, width + width % 2, -column)  # columns by twos, as `solve` takes them
            found = np.empty((ones.shape[1] // 2, cells + 3, 2))
            solve(ones, elimination(cells), found)
            part = found.transpose(1, 0, 2).reshape(cells + 3, -1)[row : row + height, :width]
            block[: len(part)] = part
        self._count, self._blocks = cells + 3, torch.from_numpy(blocks).to(device)
        self._columns = torch.from_numpy((first[:, None] + np.arange(width)).ravel()).to(device)

    def __call__(self, values: Tensor) -> Tensor:
        """(..., n + 1) to (..., n + 3)."""
        flat = values.reshape(-1, values.shape[-1]).T
        windows = flat.index_select(0, self._columns).unflatten(0, (len(self._blocks), -1))
        found = (self._blocks @ windows).flatten(0, 1)[: self._count]
        return found.T.reshape(*values.shape[:-1], -1)


class DeviceGrid:
    """A spline's grid on a device, with the data: made once for all layers and weights.

    fitted: what u is evaluated from, the two classes first: coefficients (2, size) and, where values are
    limited, the least and the largest nodal value of every cell (2, n^d).
    """

    def __init__(self, spline: TensorSpline, data: Tensor, device: torch.device) -> None:
        self.dim, self.cells, self._spacing = spline.dim, spline.cells, spline.spacing
        self._lower = -spline.half_width
        self._upper = self._lower + spline.spacing * spline.cells  # as the kernels have it
        self.nodes, self.data = torch.from_numpy(spline.nodes).to(device), data.to(device)
        self._collocation = _Collocation(spline.cells, device)
        places = np.indices((4,) * self.dim).reshape(self.dim, -1)
        self._taps = torch.from_numpy(self._strides(3) @ places).to(device)
        self._origin, self._cell = (torch.from_numpy(self._strides(more)).to(device) for more in (3, 0))
        self._powers = _SPLINES.to(device)

    def _strides(self, more: int) -> np.ndarray:
        """Of a flat array with n + more entries an axis, (d,)."""
        return (self.cells + more) ** np.arange(self.dim)[::-1]

    def fitted(self, nodal: Tensor, limit: bool) -> list[Tensor]:
        """From nodal values (nodes, 2), differentiable."""
        values = nodal.T.reshape(2, *[self.cells + 1] * self.dim)
        coefficients = values
        for _ in range(self.dim):  # the first axis goes behind the others: in the end all are in place again
            coefficients = self._collocation(coefficients.movedim(1, -1))
        found = [coefficients.reshape(2, -1)]
        for beyond in (torch.lt, torch.gt) if limit else ():
            # of equal corners the first is taken, as the kernels do: the last axis before the others
            ends = values
            for axis in range(self.dim, 0, -1):
                one, two = (ends.narrow(axis, start, self.cells) for start in (0, 1))
                ends = torch.where(beyond(two, one), two, one)
            found.append(ends.reshape(2, -1))
        return found

    def at(self, fitted: list[Tensor], y: Tensor) -> Tensor:
        """u at points y (..., d) projected onto the box, (..., 2), differentiable by y and what is fitted."""
        t = (y.clamp(self._lower, self._upper) - self._lower) / self._spacing
        # nan has no cell, and must not lead out of memory
        cell = (t.detach() + FACE).long().clamp(0, self.cells - 1)
        s, p = (t - cell)[..., None], self._powers
        taps = torch.addcmul(p[0], s, torch.addcmul(p[1], s, torch.addcmul(p[2], s, p[3])))
        index = (cell * self._origin).sum(-1).reshape(-1, 1) + self._taps
        u = _taken(fitted[0], index).reshape(2, len(index), *[4] * self.dim)
        for axis in reversed(range(self.dim)):
            u = (u * taps[..., axis, :].reshape(-1, *[1] * axis, 4)).sum(-1)
        if len(fitted) > 1:
            least, most = (_taken(ends, (cell * self._cell).sum(-1)) for ends in fitted[1:])
            u = torch.where(u < least, least, u)
            u = torch.where(u > most, most, u)
        return u.T.reshape(*y.shape[:-1], 2)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Entries of both rows, (2, entries)."""
    return values.gather(1, index.reshape(1, -1).expand(2, -1))


class DeviceLayers(Layers[Tensor, Tensor]):
    """Layers of any network and noise by torch; of u_{k+1} its nodal values are kept."""

    def __init__(
        self, network: LayeredNetwork, increments: Increments, loss: Loss, grid: DeviceGrid, limit: bool
    ) -> None:
        self._network, self._increments, self._loss = network, increments, loss
        self._grid, self._limit = grid, limit
        self._parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self._total = [torch.zeros_like(p) for p in self._parameters]

    def stage(self, nodal: Tensor) -> Tensor:
        return nodal

    def _points(self, layer: int) -> tuple[Tensor, list[slice]]:
        """Where a layer is evaluated, some at a time."""
        x = self._grid.data if layer == 0 else self._grid.nodes
        return x, chunks(slice(0, len(x)), POINTS)

    def _behind(self, fitted: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """u_{k+1} at points (..., d), shape (..., 2): the spline, or Phi where none is fitted."""
        return partial(self._grid.at, fitted) if fitted else partial(losses, self._loss)

    def _terms(self, x: Tensor, o: Outcomes, u: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """E[u(x + increment)] at x (N, d) in parts (N, 2) that add up to it, some outcomes at a time."""
        table, weights = (torch.from_numpy(v).to(x) for v in (o.table, o.weights))
        numbers = len(x) * 2 * 4**self._grid.dim
        for some in chunks(slice(0, len(table)), max(1, GATHERED // numbers)):
            y = (x + o.base)[:, None] + (o.factor @ table[some].T).transpose(1, 2)
            yield torch.einsum("noc,o->nc", u(y), weights[some])

    def expectation(self, layer: int, stage: Tensor | None) -> Tensor:
        x, parts = self._points(layer)
        with torch.no_grad():
            u = self._behind([] if stage is None else self._grid.fitted(stage, self._limit))
            found = []
            for part in parts:
                o = self._increments(self._network, layer, x[part])
                found.append(torch.stack([*self._terms(x[part], o, u)]).sum(dim=0))
            return torch.cat(found)

    def transposed(self, layer: int, stage: Tensor | None, cotangent: Tensor) -> Tensor:
        x, parts = self._points(layer)
        cotangent = torch.as_tensor(cotangent).to(x)
        with torch.enable_grad():
            nodal = x.new_zeros(0, 2) if stage is None else stage.detach().requires_grad_()
            fitted = [] if stage is None else self._grid.fitted(nodal, self._limit)
            leaves = [v.detach().requires_grad_() for v in fitted]
            pulls, u = [torch.zeros_like(v) for v in leaves], self._behind(leaves)
            for part in parts:
                o = self._increments(self._network, layer, x[part])
                base, factor = o.base.detach().requires_grad_(), o.factor.detach().requires_grad_()
                d_base, d_factor = torch.zeros_like(base), torch.zeros_like(factor)
                for term in self._terms(x[part], Outcomes(base, factor, o.table, o.weights), u):
                    found = torch.autograd.grad(term, [base, factor, *leaves], cotangent[part])
                    for total, share in zip([d_base, d_factor, *pulls], found, strict=True):
                        total += share
                shares = pull_back(o, d_base, d_factor, self._parameters)
                for total, weights in zip(self._total, shares, strict=True):
                    if weights is not None:
                        total += weights
            return nodal if stage is None else torch.autograd.grad(fitted, nodal, pulls)[0]

    def gradient(self) -> list[Tensor]:
        found, self._total = self._total, [torch.zeros_like(p) for p in self._parameters]
        return found
