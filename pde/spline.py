r"""Cubic splines on a uniform tensor grid of [-R, R]^d: what the exact recursion interpolates with.

u(x) = sum_i c_i prod_a B((x_a + R)/dx - i_a), B the cubic B-spline, coefficients from
collocation at the nodes (rows [1 4 1]/6) and the not-a-knot condition at both ends of each axis.
Values have two columns, the classes. `gather` and `scatter` evaluate expectations of u at
departure points and their exact transpose; both release the interpreter lock. Source: de Boor, A
Practical Guide to Splines, 1978; the limiter: Bermejo, Staniforth, Mon. Weather Rev. 120 (1992).
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from kolmo.pde.recursion_collocation import elimination, solve, solve_transposed

#: a departure point this close to a face, in cells, lies in the cell behind it, whatever its rounding:
#: limited values differ from cell to cell, and components that a mask drops leave points on faces
FACE = 1e-9

_jit = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})


class TensorSpline:
    """Grid and collocation: n cells a direction, n + 1 nodes and n + 3 coefficients on each axis."""

    def __init__(self, dim: int, cells: int, half_width: float) -> None:
        self.dim, self.cells, self.half_width = dim, cells, half_width
        self.spacing = 2 * half_width / cells
        axis = np.linspace(-half_width, half_width, cells + 1)
        self.nodes = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
        self._elimination = elimination(cells)
        self.size = (cells + 3) ** dim
        #: tells the kernels the dimension
        self.grid = np.empty((0,) * dim)

    def coefficients(self, values: np.ndarray) -> np.ndarray:
        """Coefficients (size, 2) of the spline with these values (nodes, 2)."""
        # an axis that is solved goes behind the others: after d of them all are in place again
        for _ in range(self.dim):
            values = self.along(values)
        return values.reshape(-1, 2)

    def coefficients_transposed(self, cotangent: np.ndarray) -> np.ndarray:
        """The transpose of `coefficients`: (size, 2) to (nodes, 2)."""
        for _ in range(self.dim):
            cotangent = self.along_transposed(cotangent)
        return cotangent.reshape(-1, 2)

    def along(self, values: np.ndarray) -> np.ndarray:
        """Coefficients along the first of values' axes (n + 1, M, 2), which goes behind the others."""
        return self._solved(values, solve, self.cells + 1, self.cells + 3)

    def along_transposed(self, cotangent: np.ndarray) -> np.ndarray:
        """The transpose, that axis again going behind: (n + 3, M, 2) to (M, n + 1, 2)."""
        return self._solved(cotangent, solve_transposed, self.cells + 3, self.cells + 1)

    def _solved(self, values: np.ndarray, kernel: Callable[..., None], rows: int, into: int) -> np.ndarray:
        flat = np.ascontiguousarray(values).reshape(rows, -1)
        found = np.empty((flat.shape[1] // 2, into, 2))
        kernel(flat, self._elimination, found)
        return found


# Kernels for d = 1, 2, 3: `grid` is an empty array of d axes, which makes d a constant to the compiler.
# Closures over d would do as well, but numba compiles those anew in every process, and its cache grows.


@_jit
def _cell_of(z, lower, spacing, cells):  # type: ignore[no-untyped-def]
    # the cell that holds z (projected onto the box), and the four B-splines there
    upper = lower + spacing * cells
    t = (min(max(z, lower), upper) - lower) / spacing
    cell = max(0, min(int(t + FACE), cells - 1))  # nan has no cell, and must not lead out of memory
    s = t - cell
    r = 1.0 - s
    w1 = (4.0 - 6.0 * s * s + 3.0 * s * s * s) / 6.0
    w2 = (4.0 - 6.0 * r * r + 3.0 * r * r * r) / 6.0
    return cell, s, r * r * r / 6.0, w1, w2, s * s * s / 6.0


@_jit
def _locate(grid, y, lower, spacing, cells, clamped, weights, slopes):  # type: ignore[no-untyped-def]
    # projects y onto the box; origin of its cell, weights (4^d) and their derivatives (d, 4^d)
    upper = lower + spacing * cells
    origin = 0
    corner = 0
    size = 1
    weights[0] = 1.0
    for b in range(grid.ndim):
        slopes[b, 0] = 1.0
    for a in range(grid.ndim):
        clamped[a] = not (lower <= y[a] <= upper)
        cell, s, w0, w1, w2, w3 = _cell_of(y[a], lower, spacing, cells)
        r = 1.0 - s
        d0, d3 = -0.5 * r * r / spacing, 0.5 * s * s / spacing
        d1 = (1.5 * s * s - 2.0 * s) / spacing
        d2 = (2.0 * r - 1.5 * r * r) / spacing
        for i in range(size - 1, -1, -1):
            w = weights[i]
            weights[4 * i], weights[4 * i + 1] = w * w0, w * w1
            weights[4 * i + 2], weights[4 * i + 3] = w * w2, w * w3
            for b in range(grid.ndim):
                w = slopes[b, i]
                if a == b:
                    slopes[b, 4 * i], slopes[b, 4 * i + 1] = w * d0, w * d1
                    slopes[b, 4 * i + 2], slopes[b, 4 * i + 3] = w * d2, w * d3
                else:
                    slopes[b, 4 * i], slopes[b, 4 * i + 1] = w * w0, w * w1
                    slopes[b, 4 * i + 2], slopes[b, 4 * i + 3] = w * w2, w * w3
        size *= 4
        origin = origin * (cells + 3) + cell
        corner = corner * (cells + 1) + cell
    return origin, corner


@_jit
def _weigh(grid, y, lower, spacing, cells, weights):  # type: ignore[no-untyped-def]
    # the same without derivatives
    origin = 0
    corner = 0
    size = 1
    weights[0] = 1.0
    for a in range(grid.ndim):
        cell, _, w0, w1, w2, w3 = _cell_of(y[a], lower, spacing, cells)
        for i in range(size - 1, -1, -1):
            w = weights[i]
            weights[4 * i], weights[4 * i + 1] = w * w0, w * w1
            weights[4 * i + 2], weights[4 * i + 3] = w * w2, w * w3
        size *= 4
        origin = origin * (cells + 3) + cell
        corner = corner * (cells + 1) + cell
    return origin, corner


@_jit
def _offsets(grid, stride, base, count):  # type: ignore[no-untyped-def]
    # flat index of each of base^d neighbours relative to the first
    found = np.zeros(count, np.int64)
    for i in range(count):
        rest, power = i, 1
        for _ in range(grid.ndim):
            found[i] += (rest % base) * power
            rest //= base
            power *= stride
    return found


@_jit
def _bounds(nodal, corner, near):  # type: ignore[no-untyped-def]
    # where the smallest and largest nodal value of a cell are, for both classes
    lo0 = hi0 = lo1 = hi1 = corner
    for i in range(len(near)):
        j = corner + near[i]
        if nodal[j, 0] < nodal[lo0, 0]:
            lo0 = j
        if nodal[j, 0] > nodal[hi0, 0]:
            hi0 = j
        if nodal[j, 1] < nodal[lo1, 1]:
            lo1 = j
        if nodal[j, 1] > nodal[hi1, 1]:
            hi1 = j
    return lo0, hi0, lo1, hi1


@_jit
def gather(  # type: ignore[no-untyped-def]
    grid, x, base, factor, table, weights, coefficients, nodal, lower, spacing, cells, limit, out
):
    taps, corners = 1 << (2 * grid.ndim), 1 << grid.ndim
    y, w = np.empty(grid.ndim), np.empty(taps)
    far, near = _offsets(grid, cells + 3, 4, taps), _offsets(grid, cells + 1, 2, corners)
    units = table.shape[1]
    for n in range(len(x)):
        total0 = total1 = 0.0
        for o in range(len(table)):
            for a in range(grid.ndim):
                y[a] = x[n, a] + base[n, a]
                for r in range(units):
                    y[a] += factor[n, a, r] * table[o, r]
            origin, corner = _weigh(grid, y, lower, spacing, cells, w)
            value0 = value1 = 0.0
            for i in range(taps):
                c = origin + far[i]
                value0 += w[i] * coefficients[c, 0]
                value1 += w[i] * coefficients[c, 1]
            if limit:
                lo0, hi0, lo1, hi1 = _bounds(nodal, corner, near)
                value0 = min(max(value0, nodal[lo0, 0]), nodal[hi0, 0])
                value1 = min(max(value1, nodal[lo1, 1]), nodal[hi1, 1])
            total0 += weights[o] * value0
            total1 += weights[o] * value1
        out[n, 0], out[n, 1] = total0, total1


@_jit
def scatter(  # type: ignore[no-untyped-def]
    grid, x, base, factor, table, weights, coefficients, nodal, lower, spacing, cells, limit,
    cotangent, d_base, d_factor, d_coefficients, d_nodal,
):  # fmt: skip
    taps, corners = 1 << (2 * grid.ndim), 1 << grid.ndim
    y, w, slopes = np.empty(grid.ndim), np.empty(taps), np.empty((grid.ndim, taps))
    clamped, d_y = np.empty(grid.ndim, np.bool_), np.empty(grid.ndim)
    far, near = _offsets(grid, cells + 3, 4, taps), _offsets(grid, cells + 1, 2, corners)
    units = table.shape[1]
    for n in range(len(x)):
        if cotangent[n, 0] == 0.0 and cotangent[n, 1] == 0.0:
            continue
        for o in range(len(table)):
            for a in range(grid.ndim):
                y[a] = x[n, a] + base[n, a]
                for r in range(units):
                    y[a] += factor[n, a, r] * table[o, r]
            origin, corner = _locate(grid, y, lower, spacing, cells, clamped, w, slopes)
            g0, g1 = weights[o] * cotangent[n, 0], weights[o] * cotangent[n, 1]
            if limit:
                value0 = value1 = 0.0
                for i in range(taps):
                    c = origin + far[i]
                    value0 += w[i] * coefficients[c, 0]
                    value1 += w[i] * coefficients[c, 1]
                lo0, hi0, lo1, hi1 = _bounds(nodal, corner, near)
                # a limited value is a nodal one and does not move with the departure point
                if value0 < nodal[lo0, 0]:
                    d_nodal[lo0, 0] += g0
                    g0 = 0.0
                elif value0 > nodal[hi0, 0]:
                    d_nodal[hi0, 0] += g0
                    g0 = 0.0
                if value1 < nodal[lo1, 1]:
                    d_nodal[lo1, 1] += g1
                    g1 = 0.0
                elif value1 > nodal[hi1, 1]:
                    d_nodal[hi1, 1] += g1
                    g1 = 0.0
            for a in range(grid.ndim):
                d_y[a] = 0.0
            for i in range(taps):
                c = origin + far[i]
                d_coefficients[c, 0] += g0 * w[i]
                d_coefficients[c, 1] += g1 * w[i]
                pull = g0 * coefficients[c, 0] + g1 * coefficients[c, 1]
                for a in range(grid.ndim):
                    d_y[a] += slopes[a, i] * pull
            for a in range(grid.ndim):
                if not clamped[a]:
                    d_base[n, a] += d_y[a]
                    for r in range(units):
                        d_factor[n, a, r] += d_y[a] * table[o, r]
