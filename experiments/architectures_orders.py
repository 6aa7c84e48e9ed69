r"""Observed orders: every architecture as a discretisation of x' = f(x, t), against the solution by scipy.

One-step networks hold a layer's weights at its middle, two-step networks at its beginning, where their f(x_n)
belongs.

- PolyNet cuts the Neumann series of backward Euler at F^2. What is cut is O(h^3) in a layer: on linear blocks
  the two differ by O(h^2) at the end, while both are of order 1. With f(0, t) != 0 its limit is another one,
  x' = f(x, t) + f(0, t).
- RevNet's halves read at one time are symplectic Euler, of order 1; half a step apart they are leap-frog, of
  order 2.
- LM-ResNet has the limit (1 + k) x' = f, and order 1 for |k| < 1. Of the family only leap-frog, k = 1, has no
  term with x'' and so order 2, given an x_1 that matches; from the Euler step it stays off by O(h). (At other
  k, order 2 takes f(x_{n-1}) too, with weight -(1 - k)/2, and f(x_n) with (3 + k)/2; k = 0 is the scheme of
  Adams and Bashforth.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from kolmo.architectures import (
    Discretisation,
    FractalNet,
    LMResNet,
    LMResNeXt,
    PolyNet,
    ResNet,
    RevNet,
    TwoLayer,
)
from kolmo.checkpoint import Checkpoint, Memo
from kolmo.experiments.architectures_field import SmoothField, flow
from kolmo.experiments.architectures_part import Table, fitted_order, order_claim, order_row
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress

DEPTHS, DEPTHS_QUICK = (8, 16, 32, 64, 128, 256), (16, 32, 64, 128)
#: what orders may be off by
WITHIN, WITHIN_QUICK = 0.1, 0.2
#: features (both halves of a RevNet), units of a block, points
DIM, UNITS, POINTS = 4, 6, 3
#: PolyNet's distance to x' = f where f(0) != 0, at least
FAR = 0.02

#: a reference solution, computed when it is asked for
End = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Row:
    """An architecture against one equation; error(L): largest distance of a feature after the last layer.

    order: what it should be; None where the network does not tend to the equation.
    """

    title: str
    equation: str
    order: int | None
    error: Callable[[int], float]


def run_network(network: Discretisation, points: np.ndarray, **options: Any) -> np.ndarray:
    """Features after the last layer, (Q, d)."""
    with torch.no_grad():
        return network(torch.from_numpy(points), **options).numpy()


class Orders:
    """Errors by title of a row, errors[title], over the depths."""

    name = "orders"

    def __init__(self, seed: int, quick: bool) -> None:
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.within = WITHIN_QUICK if quick else WITHIN
        self.rows = rows(seed)
        self.steps = len(self.rows)
        self.errors: dict[str, list[float]] = {}

    def run(self, memo: Memo, progress: Progress) -> None:
        for index, row in enumerate(self.rows):
            kept = memo.remember(f"order-{index}", partial(self._measured, row))
            self.errors[row.title] = kept
            progress.advance(f"{row.title}: {kept[-1]:.1e} at {self.depths[-1]} layers")

    def _measured(self, row: Row, checkpoint: Checkpoint) -> list[float]:
        return [row.error(depth) for depth in self.depths]

    @property
    def finished(self) -> bool:
        return len(self.errors) == len(self.rows)

    def slope(self, row: Row) -> float:
        """The fitted order; nan where the row is not done."""
        return fitted_order(self.depths, self.errors.get(row.title, []))

    def claims(self) -> list[Claim]:
        claims = []
        for row in self.rows:
            if row.title not in self.errors:
                continue
            if row.order is None:
                away = self.errors[row.title][-1]
                text = f"{row.title}: not {row.equation}, off by"
                claims.append(Claim(text, away, f">= {FAR:g}", away >= FAR))
            else:
                text = f"{row.title}: order against {row.equation}"
                claims.append(order_claim(text, self.slope(row), row.order, self.within))
        return claims

    def results(self) -> list[dict[str, Any]]:
        return [
            {
                "network": row.title, "equation": row.equation, "order": row.order,
                "depths": list(self.depths), "errors": self.errors[row.title], "slope": self.slope(row),
            }
            for row in self.rows if row.title in self.errors
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        columns = ["network", "against", *(f"L = {depth}" for depth in self.depths), "order"]
        lines = [
            order_row([row.title, row.equation], self.depths, self.errors.get(row.title, []))
            for row in self.rows
        ]
        return [("architectures as discretisations: largest error of a feature", columns, lines)]


def rows(seed: int) -> list[Row]:
    """Every architecture on fields and points drawn by the seed."""
    field = SmoothField.random(DIM, UNITS, [seed, 1])
    through = SmoothField.random(DIM, UNITS, [seed, 2], offset=False)
    first, second = (SmoothField.random(DIM // 2, UNITS, [seed, number]) for number in (3, 4))
    rng = np.random.default_rng([seed, 5])
    points = rng.uniform(-1, 1, (POINTS, DIM))
    matrix = rng.uniform(-1, 1, (DIM, DIM))

    @cache
    def limit(k: float) -> np.ndarray:
        return flow(lambda x, t: field(x, t) / (1 + k), points)

    @cache
    def limit_through() -> np.ndarray:
        return flow(through, points)

    @cache
    def limit_added() -> np.ndarray:
        return flow(lambda x, t: field(x, t) + field(np.zeros_like(x), t), points)

    def one_step(kind: type[Discretisation], field: SmoothField, end: End, depth: int) -> float:
        return distance(run_network(kind(field.blocks(depth, 0.5), 1 / depth), points), end())

    def linear(depth: int) -> float:
        eye = np.eye(DIM)
        implicit = points @ np.linalg.matrix_power(np.linalg.inv(eye - matrix / depth), depth).T
        block = TwoLayer(torch.from_numpy(matrix), torch.zeros(DIM), torch.eye(DIM), "identity")
        return distance(run_network(PolyNet([block] * depth, 1 / depth), points), implicit)

    def halves(x: np.ndarray, t: float) -> np.ndarray:
        p, q = np.split(x, 2, axis=1)
        return np.concatenate([first(q, t), second(p, t)], axis=1)

    def reversible(apart: bool, depth: int) -> float:
        """q is read half a step later than p, or at the same time."""
        h, half = 1 / depth, DIM // 2
        later = h / 2 if apart else 0.0
        # f at the middle of its step in p, g at that of its step in q
        blocks: list[nn.Module] = []
        for k in range(depth):
            blocks += [first.block((k + 0.5) * h), second.block((k + 0.5) * h + later)]
        begin, end = points.copy(), flow(halves, points)
        if apart:
            begin[:, half:] = flow(halves, points, end=later)[:, half:]
            end[:, half:] = flow(halves, points, end=1 + later)[:, half:]
        return distance(run_network(RevNet(blocks, h), begin), end)

    def two_step(k: float, exact: bool, depth: int) -> float:
        network = LMResNet(field.blocks(depth, 0.0), 1 / depth, k=k)
        options = {}
        if exact:
            x1 = flow(lambda x, t: field(x, t) / (1 + k), points, end=1 / depth)
            options["second"] = torch.from_numpy(x1)
        return distance(run_network(network, points, **options), limit(k))

    def aggregated(k: float, depth: int) -> float:
        network = LMResNeXt([branches(b) for b in field.blocks(depth, 0.0)], 1 / depth, k=k)
        return distance(run_network(network, points), limit(k))

    plain = partial(limit, 0.0)
    return [
        Row("ResNet", "x' = f", 1, partial(one_step, ResNet, field, plain)),
        Row("PolyNet, f(0) = 0", "x' = f", 1, partial(one_step, PolyNet, through, limit_through)),
        Row("PolyNet, f(0) != 0", "x' = f", None, partial(one_step, PolyNet, field, plain)),
        Row("PolyNet, limit f + f(0)", "x' = f + f(0)", 1, partial(one_step, PolyNet, field, limit_added)),
        Row("PolyNet, linear", "backward Euler", 2, linear),
        Row("FractalNet", "x' = f", 2, partial(one_step, FractalNet, field, plain)),
        Row("RevNet, at one time", "p' = f, q' = g", 1, partial(reversible, False)),
        Row("RevNet, staggered", "p' = f, q' = g", 2, partial(reversible, True)),
        Row("LM-ResNet, k = -0.3", "(1 + k) x' = f", 1, partial(two_step, -0.3, False)),
        Row("LM-ResNet, k = 0.5", "(1 + k) x' = f", 1, partial(two_step, 0.5, False)),
        Row("LM-ResNeXt, k = 0.5", "(1 + k) x' = f", 1, partial(aggregated, 0.5)),
        Row("LM-ResNet, k = 1", "(1 + k) x' = f", 1, partial(two_step, 1.0, False)),
        Row("LM-ResNet, k = 1, x_1 exact", "(1 + k) x' = f", 2, partial(two_step, 1.0, True)),
    ]  # fmt: skip


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference of two features."""
    return float(np.abs(found - exact).max())


def branches(block: TwoLayer) -> list[TwoLayer]:
    """Two blocks, half the units each, whose sum is the block."""
    half = len(block.b) // 2
    parts = (slice(half), slice(half, None))
    return [TwoLayer(block.W[p].detach(), block.b[p].detach(), block.V[:, p].detach()) for p in parts]
