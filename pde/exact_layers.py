"""What the exact recursion needs of a network's layers, and the general way to it: the noise's own outcomes.

torch has the increments and their dependence on the weights, kernels the spline at the departure points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from kolmo import threads
from kolmo.loss import Loss
from kolmo.network import LayeredNetwork
from kolmo.noise.base import Outcomes
from kolmo.pde.spline import TensorSpline, gather, scatter

#: nodes of one piece of work, and the most pieces: each has accumulators of its own, and sums that do not
#: depend on the number of threads
_PIECE, _PIECES = 8192, 8
#: points of the general way at once
_CHUNK = 8192
#: departure points whose terminal loss is held at once
TERMINAL = 400_000

#: the outcomes of a layer at points (Q, d)
Increments = Callable[[LayeredNetwork, int, Tensor], Outcomes]
#: the processor's arrays, or a device's tensors
Values = TypeVar("Values")
#: what is kept of u_{k+1} as layer k sees it
Behind = TypeVar("Behind")


@dataclass
class Stage:
    """u_{k+1} on the grid as layer k sees it: coefficients (size, 2) and nodal values (nodes, 2)."""

    coefficients: np.ndarray
    nodal: np.ndarray


class Layers(ABC, Generic[Values, Behind]):
    """One network's layers: from the value function behind a layer to the one before it, and back."""

    @abstractmethod
    def stage(self, nodal: Values) -> Behind:
        """What is kept of u with these nodal values (nodes, 2)."""

    @abstractmethod
    def expectation(self, layer: int, stage: Behind | None) -> Values:
        """u_layer at the nodes, or at the data for layer 0: shape (N, 2). No stage: behind it is Phi."""

    @abstractmethod
    def transposed(self, layer: int, stage: Behind | None, cotangent: Values) -> Values:
        """dJ/du_{layer+1} at the nodes from dJ/du_layer (N, 2); adds to the gradient."""

    @abstractmethod
    def gradient(self) -> list[Tensor]:
        """The derivatives by the network's parameters that require them, when all layers are transposed."""


def pieces(length: int, lines: int) -> list[slice]:
    """The nodes in at most 8 parts of whole lines of the grid: `lines` lines of `length` nodes."""
    count = min(_PIECES, lines, -(-lines * length // _PIECE))
    return [slice(a * length, b * length) for a, b in pairwise(lines * i // count for i in range(count + 1))]


def chunks(part: slice, size: int = _CHUNK) -> list[slice]:
    """A slice in parts of at most this length."""
    return [slice(i, min(i + size, part.stop)) for i in range(part.start, part.stop, size)]


class SplineLayers(Layers[np.ndarray, Stage]):
    """Layers by compiled kernels, on the processor."""

    _spline: TensorSpline

    def stage(self, nodal: np.ndarray) -> Stage:
        return Stage(self._spline.coefficients(nodal), nodal)


class GeneralLayers(SplineLayers):
    """Layers of any network and noise, by the outcomes of each layer at all points."""

    def __init__(
        self,
        network: LayeredNetwork,
        increments: Increments,
        loss: Loss,
        spline: TensorSpline,
        data: Tensor,
        limit: bool,
    ) -> None:
        self._network, self._increments, self._loss = network, increments, loss
        self._spline, self._limit = spline, limit
        self._data, self._nodes = data, torch.from_numpy(spline.nodes)
        self._parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self._total = [torch.zeros_like(p) for p in self._parameters]

    def expectation(self, layer: int, stage: Stage | None) -> np.ndarray:
        return self.at(layer, self._data if layer == 0 else self._nodes, stage)

    def at(self, layer: int, x: Tensor, stage: Stage | None) -> np.ndarray:
        """u_layer at points x (N, d), shape (N, 2)."""
        out = np.empty((len(x), 2))

        def chunk(part: slice) -> None:
            with torch.no_grad():
                o = self._increments(self._network, layer, x[part])
                if stage is None:
                    out[part] = terminal(self._loss, x[part], o).numpy()
                    return
            interpolate(self._spline, x[part].numpy(), o, stage, self._limit, out[part])

        threads.each(chunk, chunks(slice(0, len(x))))
        return out

    def transposed(self, layer: int, stage: Stage | None, cotangent: np.ndarray) -> np.ndarray:
        x = self._data if layer == 0 else self._nodes
        some = chunks(slice(0, len(x)))
        groups = [some[i::_PIECES] for i in range(min(_PIECES, len(some)))]
        results = threads.each(lambda group: self._group(layer, x, stage, cotangent, group), groups)
        for sums, _, _ in results:
            for total, part in zip(self._total, sums, strict=True):
                if part is not None:
                    total += part
        if stage is None:
            return np.zeros((0, 2))
        d_coefficients = np.sum([r[1] for r in results], axis=0)
        return self._spline.coefficients_transposed(d_coefficients) + np.sum([r[2] for r in results], axis=0)

    def _group(
        self, layer: int, x: Tensor, stage: Stage | None, cotangent: np.ndarray, parts: list[slice]
    ) -> tuple[list[Tensor | None], np.ndarray, np.ndarray]:
        """The gradient's share of some chunks, and the derivatives by coefficients and nodal values."""
        s = self._spline
        d_coefficients, d_nodal = np.zeros((s.size, 2)), np.zeros((len(s.nodes), 2))
        sums: list[Tensor | None] = [None] * len(self._parameters)
        for part in parts:
            found: tuple[Tensor | None, ...]
            with torch.enable_grad():
                o = self._increments(self._network, layer, x[part])
                if stage is None:
                    pulled = (terminal(self._loss, x[part], o) * torch.from_numpy(cotangent[part])).sum()
                    found = torch.autograd.grad(pulled, self._parameters, allow_unused=True)
                else:
                    base, factor = o.base.detach().numpy(), _plain(o.factor)
                    d_base, d_factor = np.zeros(base.shape), np.zeros(factor.shape)
                    scatter(
                        s.grid, x[part].numpy(), base, factor, o.table, o.weights, stage.coefficients,
                        stage.nodal, -s.half_width, s.spacing, s.cells, self._limit, cotangent[part],
                        d_base, d_factor, d_coefficients, d_nodal,
                    )  # fmt: skip
                    found = pull_back(
                        o, torch.from_numpy(d_base), torch.from_numpy(d_factor), self._parameters
                    )
            sums = [_added(a, b) for a, b in zip(sums, found, strict=True)]
        return sums, d_coefficients, d_nodal

    def gradient(self) -> list[Tensor]:
        found, self._total = self._total, [torch.zeros_like(p) for p in self._parameters]
        return found


def terminal(loss: Loss, x: Tensor, o: Outcomes) -> Tensor:
    """E[Phi_y(x + increment)] for both labels at x (N, d), shape (N, 2)."""
    table, weights = torch.from_numpy(o.table), torch.from_numpy(o.weights)
    total = x.new_zeros(len(x), 2)
    for some in chunks(slice(0, len(table)), max(1, TERMINAL // len(x))):
        moved = (x + o.base)[:, None] + torch.einsum("nar,or->noa", o.factor, table[some])
        total = total + torch.einsum("noc,o->nc", losses(loss, moved), weights[some])
    return total


def losses(loss: Loss, x: Tensor) -> Tensor:
    """Phi_y(x) for both labels at x (..., d), shape (..., 2)."""
    return torch.stack([loss(x, label) for label in (0, 1)], dim=-1)


def interpolate(
    s: TensorSpline, x: np.ndarray, o: Outcomes, stage: Stage, limit: bool, out: np.ndarray
) -> None:
    """E[u(x + increment)] at x (N, d) into out (N, 2)."""
    gather(
        s.grid, x, o.base.numpy(), _plain(o.factor), o.table, o.weights, stage.coefficients, stage.nodal,
        -s.half_width, s.spacing, s.cells, limit, out,
    )  # fmt: skip


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients, None for 0."""
    return a if b is None else (b if a is None else a + b)


def _plain(factor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(factor.detach().numpy())


def pull_back(
    o: Outcomes, d_base: Tensor, d_factor: Tensor, parameters: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Cotangents of base and factor to the parameters, None for 0."""
    pairs = [(o.base, d_base), (o.factor, d_factor)]
    pairs = [(tensor, cotangent) for tensor, cotangent in pairs if tensor.requires_grad]
    if not pairs:
        return (None,) * len(parameters)
    tensors, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(tensors, parameters, cotangents, allow_unused=True)
