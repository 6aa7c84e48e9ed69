r"""Tapered drift and diffusion at the nodes, compiled, where the field decides them (see `multiplicative`).

    b = beta f + gamma (grad f) f,   a = alpha diag(f_i^2) or alpha f f^T,   then the taper of `boundary`,

layer by layer, when the march asks for a layer and when the adjoint has its derivatives: what is computed is
still in cache as it is used, and but for f nothing is kept. With more than one thread the next layer is
computed beside the march. Tested against `modified_equation` and `Taper`, which all other noises go through.
"""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
from torch import Tensor

from kolmo import field, threads
from kolmo.kernel import kernel
from kolmo.multiplicative import Multiplicative
from kolmo.network import ResidualNetwork
from kolmo.pde.boundary import Taper
from kolmo.pde.pool import Pool
from kolmo.profile import section


class Nodes:
    """Nodes (Q, d) with their taper; line: nodes in a line of the grid that they are, or 0, see `field`."""

    def __init__(self, points: np.ndarray, taper: Taper, line: int) -> None:
        rows, chi, damping = taper.fixed
        self.points, self.line = field.kernel_points(rows), line
        self.fixed = (self.points, line, chi, damping)
        self.dim, self.count = rows.shape
        self.pool = Pool()


class NodalLayers:
    """One network's coefficients at the nodes, and the derivatives by its weights.

    adjoint: whether `pull` will be called. Weights are read once, here.
    """

    def __init__(
        self, network: ResidualNetwork, equation: Multiplicative, nodes: Nodes, adjoint: bool
    ) -> None:
        self.depth, self.nodes, self.adjoint = network.depth, nodes, adjoint
        self._diagonal = equation.diagonal
        self._width, self._dims = network.width, (0,) * nodes.dim
        self._given = (*field.kernel_weights(network.W, network.b, network.V), equation.scales)
        # of every layer the field, and the drift before the taper
        self._kept = nodes.pool.take(self.depth if adjoint else 0, 2, nodes.dim, nodes.count)
        self._gradient = tuple(np.zeros_like(w) for w in self._given[:3]) if adjoint else ()
        self._entries = nodes.dim if equation.diagonal else nodes.dim**2
        self._ahead: dict[int, Future[tuple[np.ndarray, np.ndarray]]] = {}
        self._behind: list[Future[None]] = []
        self._side_by_side = threads.count() > 1
        self._next = self.depth - 1

    def at(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Drift (Q, d) and diffusion (Q, d[, d]) of a layer, nodes contiguous."""
        with section("coefficients"):
            waited = self._ahead.pop(layer, None)
            if self._side_by_side and layer == self._next > 0:  # a march: the layer before is next
                self._next -= 1
                self._ahead[layer - 1] = threads.start(self._evaluate, layer - 1)
            return self._evaluate(layer) if waited is None else waited.result()

    def pull(self, layer: int, rows: np.ndarray) -> None:
        """Take the derivatives by a layer's coefficients, rows as of `empty`; they may be read later."""
        with section("network backward"):
            if self._side_by_side:
                self._behind.append(threads.start(self._differentiate, layer, rows))
            else:
                self._differentiate(layer, rows)

    def gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives by W (L, m, d), b (L, m) and V (L, d, m), when all layers are pulled."""
        with section("network backward"):
            for future in self._behind:
                future.result()
        self._behind.clear()
        found, self._gradient = self._gradient, tuple(np.zeros_like(w) for w in self._gradient)
        return field.weight_gradients(found, self._width, self.nodes.dim)

    def empty(self) -> np.ndarray:
        """Room for one layer's coefficients or their derivatives: rows of the drift, then the diffusion."""
        return self.nodes.pool.take(self.nodes.dim + self._entries, self.nodes.count)

    def shaped(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those rows as (Q, d) and (Q, d[, d])."""
        dim = self.nodes.dim
        diffusion = rows[dim:]
        if not self._diagonal:
            return rows[:dim].T, diffusion.reshape(dim, dim, -1).transpose(2, 0, 1)
        return rows[:dim].T, diffusion.T

    def _layer(self, layer: int) -> list[np.ndarray]:
        return [p[layer] for p in self._given]

    def _evaluate(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        rows, kept = self.empty(), self._kept[layer] if self.adjoint else self._room()
        _forward(self._dims, *self._layer(layer), *self.nodes.fixed, kept, rows)
        return self.shaped(rows)

    def _room(self) -> np.ndarray:
        """For the field of a layer, and its drift before the taper."""
        return self.nodes.pool.take(2, self.nodes.dim, self.nodes.count)

    def _differentiate(self, layer: int, rows: np.ndarray) -> None:
        into = [g[layer] for g in self._gradient]
        _backward(self._dims, *self._layer(layer), *self.nodes.fixed, self._kept[layer], rows, *into)


@kernel
def _forward(dims, W, b, V, scales, points, line, chi, damping, kept, rows):  # type: ignore[no-untyped-def]
    dim, count = len(dims), points.shape[1]
    full = len(rows) > 2 * dim
    f, free = kept[0], kept[1]
    g = np.empty((dim, count))
    field.evaluate(dims, W, b, V, points, line, f, g)
    beta, gamma, alpha = scales[0], scales[1], scales[2]
    for i in range(dim):
        x, c, value, through, old, new = points[i], chi[i], f[i], g[i], free[i], rows[i]
        for q in range(count):
            speed = beta * value[q] + gamma * through[q]
            old[q] = speed
            new[q] = c[q] * speed if speed * x[q] > 0 else speed
    for row in range(len(rows) - dim):
        i, j = (row // dim, row % dim) if full else (row, row)
        left, right, one, two, into = chi[i], chi[j], f[i], f[j], rows[dim + row]
        if i == j:
            damp, speeds = damping[i], rows[i]
            for q in range(count):
                into[q] = left[q] * left[q] * (alpha * (one[q] * one[q])) + damp[q] * abs(speeds[q])
        else:
            for q in range(count):
                into[q] = left[q] * right[q] * (alpha * (one[q] * two[q]))


@kernel
def _backward(dims, W, b, V, scales, points, line, chi, damping, kept, rows, d_W, d_bias, d_V):  # type: ignore[no-untyped-def]
    dim, count = len(dims), points.shape[1]
    full = len(rows) > 2 * dim
    f, free = kept[0], kept[1]
    d_f, d_g = np.empty((dim, count)), np.empty((dim, count))
    beta, gamma, alpha = scales[0], scales[1], scales[2]
    for i in range(dim):
        entry = dim + (i * (dim + 1) if full else i)
        x, c, damp, value, speeds = points[i], chi[i], damping[i], f[i], free[i]
        pull, spread, by_f, by_g = rows[i], rows[entry], d_f[i], d_g[i]
        for q in range(count):
            damped = damp[q] * spread[q]
            total = pull[q] + (damped if speeds[q] > 0 else -damped)
            if speeds[q] * x[q] > 0:
                total *= c[q]
            by_g[q] = gamma * total
            by_f[q] = beta * total + 2.0 * alpha * (c[q] * c[q]) * spread[q] * value[q]
    if full:
        for i in range(dim):
            for j in range(dim):
                if i != j:
                    left, right, other, into = chi[i], chi[j], f[j], d_f[i]
                    one, two = rows[dim + i * dim + j], rows[dim + j * dim + i]
                    for q in range(count):
                        into[q] += alpha * left[q] * right[q] * (one[q] + two[q]) * other[q]
    field.differentiate(dims, W, b, V, points, line, f, d_f, d_g, d_W, d_bias, d_V)
