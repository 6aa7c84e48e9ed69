r"""Modified equations that the field alone decides, found from the noise's own formulas.

Where the mean is a multiple of the block and the fluctuation the block times independent numbers, one for
each component or one for all (dropout, continuous factors, stochastic depth, no noise), every layer has

    b = beta f + gamma (grad f) f,    a = alpha diag(f_i^2)  or  alpha f f^T

with three numbers. They are read off by handing the noise and `modified.drift` a jet that stands for f and
(grad f) f, and allows for nothing but multiples and sums of them; whatever needs more is not of this kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import modified
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import LinearNoise, Noise
from kolmo.noise.structure import Diagonal, RankOne


@dataclass(frozen=True)
class Multiplicative:
    """beta, gamma (time), alpha (time) of the layers, as columns of `scales` (L, 3); diagonal: a's form."""

    scales: np.ndarray
    diagonal: bool


def multiplicative(
    network: LayeredNetwork, noise: Noise, order: int = 2, correction: float = 1.0
) -> Multiplicative | None:
    """The modified equation as three numbers a layer, see `modified_equation`; None where it needs more.

    Raises InputError where the order does not exist for the block.
    """
    modified.check_order(network, order)
    h, layers = network.step, network.depth
    jet = _Symbols(layers)
    try:
        diffusion = noise.diffusion(jet)
        drift: Any = modified.drift(noise.mean(jet), diffusion, correction * h, order)
        spread: Any = noise.covariance(jet)
        if diffusion is not None:
            return None
        alpha = np.zeros(layers) if spread is None else h * _root(spread, layers) ** 2
        columns = [_column(drift.field, layers), _column(drift.advection, layers), alpha]
    except Exception:  # a noise of one's own may do anything with a jet; a fault of its own shows again there
        return None
    return Multiplicative(np.stack(columns, axis=1), not isinstance(spread, RankOne))


@dataclass(frozen=True)
class Multiples:
    """Mean mean_k f and spread spread_k f of the layers, both (L,); diagonal: a number for each component."""

    mean: np.ndarray
    spread: np.ndarray
    diagonal: bool


def multiples(noise: LinearNoise, layers: int) -> Multiples | None:
    """A linear noise's mean and spread as multiples of the block; None where they are not."""
    jet = _Symbols(layers)
    try:
        spread: Any = noise.spread(jet)
        columns = _multiple(noise.mean(jet).value, layers), _root(spread, layers)
    except Exception:  # as above
        return None
    return Multiples(*columns, isinstance(spread, Diagonal))


class _BeyondError(Exception):
    """A formula asked for more than multiples of the block."""


def _root(spread: Any, layers: int) -> np.ndarray:
    """What the block is multiplied by in a spread of it, (L,)."""
    if type(spread) not in (Diagonal, RankOne):
        raise _BeyondError
    return _multiple(spread.entries if isinstance(spread, Diagonal) else spread.v, layers)


def _multiple(block: Any, layers: int) -> np.ndarray:
    """A multiple of the block alone, (L,)."""
    if not isinstance(block, _Block) or bool((block.advection != 0).any()):
        raise _BeyondError
    return _column(block.field, layers)


def _column(numbers: Tensor, layers: int) -> np.ndarray:
    return np.asarray(numbers.expand(layers, 1, 1)[:, 0, 0].numpy())


class _Block:
    """x f + y (grad f) f at all points, with numbers x, y a layer: tensors (L, 1, 1) or (1, 1, 1)."""

    def __init__(self, field: Tensor, advection: Tensor) -> None:
        self.field, self.advection = field, advection

    def __mul__(self, factor: Any) -> _Block:
        constant = isinstance(factor, (int, float)) or (
            isinstance(factor, Tensor) and (factor.ndim == 0 or factor.shape[1:] == (1, 1))
        )
        if not constant:
            raise _BeyondError
        return _Block(factor * self.field, factor * self.advection)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> _Block:
        if not isinstance(other, _Block):
            raise _BeyondError
        return _Block(self.field + other.field, self.advection + other.advection)

    def __sub__(self, other: Any) -> _Block:
        return self + -1.0 * other

    def __getattr__(self, name: str) -> Any:
        raise _BeyondError

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.mul and isinstance(args[1], cls):
            return args[1] * args[0]
        if function is Tensor.to:  # of its kind: float64 on the CPU
            return args[0]
        raise _BeyondError


class _Symbols(Jet):
    """The jet whose value is the field's symbol; of derivatives there is none but the advection."""

    value: Any

    def __init__(self, layers: int) -> None:
        self.layers, self.depth = range(layers), layers
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        self.value, self._advection = _Block(one, 0 * one), _Block(0 * one, one)

    def advection(self) -> Any:
        return self._advection

    def directional(self, direction: Tensor) -> Tensor:
        raise _BeyondError

    def jacobian(self) -> Tensor:
        raise _BeyondError

    def second(self, matrix: Tensor) -> Tensor:
        raise _BeyondError

    def hidden_units(self) -> tuple[Tensor, Tensor]:
        raise _BeyondError

    def branches(self) -> tuple[Tensor, Tensor]:
        raise _BeyondError
