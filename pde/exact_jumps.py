"""Increments that are multiples of the block: which noises have them, and the loss behind the last one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kolmo.compiled.elementary import constants
from kolmo.loss import Logistic, Loss
from kolmo.multiplicative import Multiples, multiples
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise.base import LinearNoise, Noise, product_rule
from kolmo.noise.law import Law, Normal, TwoPoint, Uniform
from kolmo.noise.output import NoNoise
from kolmo.pde import recursion_logistic
from kolmo.pde.exact_layers import TERMINAL, chunks, losses
from kolmo.pde.recursion_kernels import BLOCK


@dataclass(frozen=True)
class Combinations:
    """All combinations of a layer's numbers: places (O, d) among the K values of each, weights (O,)."""

    places: np.ndarray
    weights: np.ndarray
    values: int

    @cached_property
    def table(self) -> np.ndarray:
        """The places as `recursion_kernels` take them."""
        return ((self.places + self.values * np.arange(self.places.shape[1])) * BLOCK).astype(np.uint64)

    @cached_property
    def first(self) -> np.ndarray:
        """Probabilities of the first component's values, shape (K,)."""
        return np.bincount(self.places[:, 0], self.weights, self.values)

    @cached_property
    def subsets(self) -> tuple[float, ...]:
        """In the plane: how probable the second of two values is of none, the last, the first, both axes."""
        return tuple(np.bincount(self.places @ [2, 1], self.weights, 4).tolist())


@dataclass(frozen=True)
class Jumps:
    """The increments s_a f_a of one layer, s_a one of `shifts` (K,), units of time."""

    shifts: np.ndarray
    combinations: Combinations

    @property
    def given(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `recursion_kernels` take them."""
        return self.shifts, self.combinations.table, self.combinations.weights


def jumps(network: LayeredNetwork, noise: Noise, gauss: int) -> list[Jumps] | None:
    """Those of every layer; None where the noise or the network is of another kind."""
    # by the very class: one derived from it may have any block
    if type(network) is not ResidualNetwork or not network.compiled:
        return None
    depth, dim = network.depth, network.dim
    own = getattr(noise.outcomes, "__func__", None)
    if own is NoNoise.outcomes:
        alone = Combinations(np.zeros((1, dim), dtype=int), np.ones(1), 1)
        return [Jumps(np.array([network.step]), alone)] * depth
    if own is not LinearNoise.outcomes or not isinstance(noise, LinearNoise):
        return None
    found = multiples(noise, depth)
    return None if found is None else _linear(network, noise, found, gauss)


def _linear(network: ResidualNetwork, noise: LinearNoise, factors: Multiples, gauss: int) -> list[Jumps]:
    means, spreads = network.step * factors.mean, noise.scale(network.step) * factors.spread
    result: list[Jumps] = []
    last: Law | None = None
    for layer in range(network.depth):
        law = noise.law(layer, network.depth)
        # most often there is but one; those of a user's own may not compare
        if type(law) not in (TwoPoint, Normal, Uniform) or law != last:
            values, weights = law.points(gauss)
            units = network.dim if factors.diagonal else 1
            places, products = product_rule(np.arange(len(values)), weights, units, noise.kind)
            places = np.broadcast_to(places, (len(products), network.dim))
            combinations, last = Combinations(places, products, len(values)), law
            shifts = means[:, None] + spreads[:, None] * values
        result.append(Jumps(shifts[layer], combinations))
    return result


class Terminal(ABC):
    """The loss behind the last layer, at points (3, Q) with the field f (d, Q) there."""

    @abstractmethod
    def expectation(self, x: np.ndarray, f: np.ndarray, jumps: Jumps) -> np.ndarray:
        """E[Phi_y] for both labels, shape (Q, 2)."""

    @abstractmethod
    def transposed(self, x: np.ndarray, f: np.ndarray, jumps: Jumps, cotangent: np.ndarray) -> np.ndarray:
        """The derivatives of sum(cotangent * E[Phi]) by f, shape (d, Q); cotangent (Q, 2)."""


def terminal(loss: Loss) -> Terminal:
    """The quickest way to a loss."""
    return _LogisticTerminal(loss) if type(loss) is Logistic else _AnyTerminal(loss)


class _LogisticTerminal(Terminal):
    def __init__(self, loss: Logistic) -> None:
        self._scale = loss.scale

    def expectation(self, x: np.ndarray, f: np.ndarray, jumps: Jumps) -> np.ndarray:
        out = np.empty((2, x.shape[1]))
        recursion_logistic.expect(*self._given(x, f, jumps), out)
        return out.T

    def transposed(self, x: np.ndarray, f: np.ndarray, jumps: Jumps, cotangent: np.ndarray) -> np.ndarray:
        d_f = np.zeros(f.shape)
        recursion_logistic.expect_transposed(
            *self._given(x, f, jumps), np.ascontiguousarray(cotangent.T), d_f[0]
        )
        return d_f

    def _given(self, x: np.ndarray, f: np.ndarray, jumps: Jumps) -> tuple[object, ...]:
        return x[0], f[0], jumps.shifts, jumps.combinations.first, self._scale, constants("float64")


class _AnyTerminal(Terminal):
    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def expectation(self, x: np.ndarray, f: np.ndarray, jumps: Jumps) -> np.ndarray:
        total = torch.zeros(x.shape[1], 2, dtype=torch.float64)
        with torch.no_grad():
            for y, _, weights in _departures(x, f, jumps):
                total += torch.einsum("qoc,o->qc", losses(self._loss, y), weights)
        return total.numpy()

    def transposed(self, x: np.ndarray, f: np.ndarray, jumps: Jumps, cotangent: np.ndarray) -> np.ndarray:
        total, given = np.zeros(f.shape), torch.from_numpy(cotangent)
        for y, shifts, weights in _departures(x, f, jumps):
            with torch.enable_grad():
                y.requires_grad_()
                pulled = torch.einsum("qoc,o,qc->", losses(self._loss, y), weights, given)
                (found,) = torch.autograd.grad(pulled, y)
            total += torch.einsum("qod,od->dq", found, shifts).numpy()
        return total


def _departures(x: np.ndarray, f: np.ndarray, jumps: Jumps) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Departure points (Q, O, d), their shifts (O, d) and weights (O,), some outcomes at a time."""
    start, moves = torch.from_numpy(x[: len(f)].T), torch.from_numpy(f.T)
    places, weights = jumps.combinations.places, torch.from_numpy(jumps.combinations.weights)
    for part in chunks(slice(0, len(places)), max(1, TERMINAL // len(start))):
        shifts = torch.from_numpy(jumps.shifts[places[part]])
        yield start[:, None] + moves[:, None] * shifts, shifts, weights[part]
