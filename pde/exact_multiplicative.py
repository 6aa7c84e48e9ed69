r"""Layers of the exact recursion where noise multiplies the block, compiled from the weights to the gradient.

Mean mu_k f and fluctuation sigma_k f e lead from x to x_a + s_a f_a(x), s_a = h mu_k + h sigma_k e_a with a
few values that are the same at all points: per node there is nothing but f itself, no torch and no
increments. Tested against `GeneralLayers`, which everything else goes through.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kolmo import field, threads
from kolmo.loss import Loss
from kolmo.network import ResidualNetwork
from kolmo.pde import recursion_field, recursion_kernels, recursion_masks
from kolmo.pde.exact_jumps import Jumps, terminal
from kolmo.pde.exact_layers import SplineLayers, Stage, pieces
from kolmo.pde.exact_masks import NONE, masked_stage, masked_stage_transposed, masks
from kolmo.pde.pool import Pool
from kolmo.pde.spline import TensorSpline


class _Points:
    """Points `rows` of x (N, d): coordinates (3, Q); line: how many make a line of the grid, or 0."""

    def __init__(self, rows: slice, x: np.ndarray, line: int) -> None:
        self.rows, self.line, self._dim = rows, line, x.shape[1]
        self.x = field.kernel_points(np.ascontiguousarray(x[rows].T))

    def of(self, values: np.ndarray) -> np.ndarray:
        """This part's (d, Q) of what is kept for all points, one part behind the other."""
        part = values[self._dim * self.rows.start : self._dim * self.rows.stop]
        return part.reshape(self._dim, -1)


class Grid:
    """What layers of one recursion share: parts of the nodes, the data, and memory that is used again."""

    def __init__(self, spline: TensorSpline, data: Tensor) -> None:
        self.spline, line = spline, spline.cells + 1
        # the one line of an axis may be cut anywhere
        cut = pieces(1, line) if spline.dim == 1 else pieces(line, line ** (spline.dim - 1))
        length = [p.stop - p.start if spline.dim == 1 else line for p in cut]
        self.nodes = [_Points(p, spline.nodes, n) for p, n in zip(cut, length, strict=True)]
        self.data = [_Points(slice(0, len(data)), data.numpy(), 0)]
        self.pool = Pool()

    def fields(self, layers: int) -> np.ndarray:
        """Room for f at the nodes, or the data, in some layers."""
        return self.pool.take(layers, self.spline.dim * max(len(self.spline.nodes), self.data[0].x.shape[1]))


class MultiplicativeLayers(SplineLayers):
    """Layers of a two-layer tanh network whose noise multiplies the block.

    adjoint: whether derivatives will be asked for. Weights are read once, here.
    """

    def __init__(
        self,
        network: ResidualNetwork,
        layers: list[Jumps],
        loss: Loss,
        grid: Grid,
        limit: bool,
        adjoint: bool,
    ) -> None:
        self._network, self._layers, self._grid = network, layers, grid
        # the data are no nodes: the first layer has no use for masks
        self._masks = [None, *(masks(j) for j in layers[1:])]
        self._alone = any(m is not None and m.alone for m in self._masks)
        self._terminal = terminal(loss)
        self._spline = spline = grid.spline
        self._dims = (0,) * spline.dim
        self._box = (-spline.half_width, spline.spacing, float(spline.cells))
        self._weights = field.kernel_weights(network.W, network.b, network.V)
        self._bounds = grid.pool.take(spline.cells**spline.dim if limit else 0, 4)
        self._adjoint = adjoint
        self._fields = grid.fields(network.depth if adjoint else 1)

    def _layer(self, layer: int) -> tuple[list[_Points], list[np.ndarray], np.ndarray]:
        """Where a layer is evaluated, its weights, and room for its field."""
        points = self._grid.data if layer == 0 else self._grid.nodes
        return points, [w[layer] for w in self._weights], self._fields[layer if self._adjoint else 0]

    def stage(self, nodal: np.ndarray) -> Stage:
        return masked_stage(self._spline, nodal) if self._alone else super().stage(nodal)

    def _bound(self, stage: Stage) -> None:
        if len(self._bounds):
            recursion_kernels.bound(self._dims, stage.nodal, self._bounds)

    def expectation(self, layer: int, stage: Stage | None) -> np.ndarray:
        points, weights, fields = self._layer(layer)
        out, jumps, kept = np.empty((points[-1].rows.stop, 2)), self._layers[layer], self._masks[layer]
        if stage is not None:
            self._bound(stage)

        def part(p: _Points) -> bool:
            f = p.of(fields)
            recursion_field.evaluate(self._dims, *weights, p.x, p.line, f)
            if stage is None:
                out[p.rows] = self._terminal.expectation(p.x, f, jumps)
                return True
            given = (self._box, stage.coefficients, self._bounds)
            if kept is None:
                return bool(recursion_kernels.expect(self._dims, p.x, f, *jumps.given, *given, out[p.rows]))
            masked = (*kept.given(stage), p.rows.start // p.line)
            return bool(recursion_masks.expect(p.x, f, *masked, *given, stage.nodal, out[p.rows]))

        if not all(threads.each(part, points)):
            out[:] = np.nan
        return out

    def transposed(self, layer: int, stage: Stage | None, cotangent: np.ndarray) -> np.ndarray:
        points, weights, fields = self._layer(layer)
        jumps, kept, dims = self._layers[layer], self._masks[layer], self._dims
        d_fields = self._d_field
        alone = kept is not None and kept.alone
        sums, d_last = self._accumulators[: 3 if alone else 2], self._d_last if alone else NONE
        found = [w[:, layer] for w in self._gradient]
        if stage is not None:
            self._bound(stage)

        def part(number: int) -> None:
            p = points[number]
            f, d_f, into = p.of(fields), p.of(d_fields), [array[number] for array in sums]
            if stage is None:
                d_f[:] = self._terminal.transposed(p.x, f, jumps, cotangent[p.rows])
            else:
                for array in into:
                    array.fill(0.0)
                given = (self._box, stage.coefficients, self._bounds, stage.nodal, cotangent[p.rows], d_f)
                if kept is None:
                    recursion_kernels.expect_transposed(dims, p.x, f, *jumps.given, *given, *into)
                else:
                    masked = (*kept.given(stage), p.rows.start // p.line)
                    along = (*into[2:], d_last) if alone else (NONE, NONE)
                    recursion_masks.expect_transposed(p.x, f, *masked, *given, *into[:2], *along)
            recursion_field.differentiate(dims, *weights, p.x, p.line, d_f, *(w[number] for w in found))

        threads.each(part, range(len(points)))
        if stage is None:
            return np.zeros((0, 2))
        d_coefficients, d_nodal, *d_first = (_total(array[: len(points)]) for array in sums)
        if alone:
            result = masked_stage_transposed(self._spline, d_coefficients, d_first[0], d_last)
        else:
            result = self._spline.coefficients_transposed(d_coefficients)
        result += d_nodal
        return result

    @cached_property
    def _d_field(self) -> np.ndarray:
        return np.asarray(self._grid.fields(1)[0])

    @cached_property
    def _accumulators(self) -> list[np.ndarray]:
        """By coefficients, nodal values, those along the first axis: derivatives by parts of the nodes."""
        count, spline, take = len(self._grid.nodes), self._spline, self._grid.pool.take
        along = [(spline.cells + 1, spline.cells + 3, 2)] if self._alone else []
        return [take(count, *shape) for shape in ((spline.size, 2), (len(spline.nodes), 2), *along)]

    @cached_property
    def _d_last(self) -> np.ndarray:
        """Derivatives by coefficients along the last axis: each part of the nodes has lines of its own."""
        return self._grid.pool.take(self._spline.cells + 1, self._spline.cells + 3, 2)

    @cached_property
    def _gradient(self) -> list[np.ndarray]:
        """Derivatives by the kernels' weights, for every part of the nodes."""
        return [np.zeros((len(self._grid.nodes), *w.shape)) for w in self._weights]

    def gradient(self) -> list[Tensor]:
        network, whole = self._network, tuple(w.sum(axis=0) for w in self._gradient)
        found = field.weight_gradients(whole, network.width, network.dim)
        of = {id(p): g for p, g in zip((network.W, network.b, network.V), found, strict=True)}
        return [of.get(id(p), torch.zeros_like(p)) for p in network.parameters() if p.requires_grad]


def _total(parts: np.ndarray) -> np.ndarray:
    return np.asarray(parts[0] if len(parts) == 1 else parts.sum(axis=0))
