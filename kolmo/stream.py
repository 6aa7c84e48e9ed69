r"""Noise streams: random numbers addressed by (seed, sample, layer, unit).

The number of unit j of sample n in layer k does not depend on how samples are batched, chunked or spread
over threads, nor on the device, nor on how many units are drawn: words come from the counter-based generator
of `philox`. A mask takes one word of 32 bits, a uniform or normal number two. Masks and uniform numbers are
equal bit by bit everywhere; normal numbers are their images under the quantile function and agree to its
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kolmo import philox
from kolmo.compiled import philox as kernels
from kolmo.errors import InputError
from kolmo.philox import PARTS

_UNIT = 2.0**-53
_LARGEST = 2**32 - 1
_CPU = torch.device("cpu")


@lru_cache(maxsize=64)
def mix(*key: int) -> int:
    """A well-mixed 63-bit seed from a key such as (seed, purpose)."""
    # the length tells (0,) from (0, 0)
    sequence = np.random.SeedSequence([len(key), *(k % 2**63 for k in key)])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


def threshold(probability: float) -> int:
    """Words below it keep a unit: its share of 2^32 differs from the probability by at most 2^-33."""
    return round(probability * 2**32)


@dataclass(frozen=True)
class Stream:
    """The random numbers of samples first, ..., first + count - 1.

    seed: 63 bits. batch: samples that pass the network together, for noise shared by a batch. antithetic:
    odd batches mirror the words of the even batch before them (u -> 1 - u).
    """

    seed: int
    first: int
    count: int
    batch: int = 1
    antithetic: bool = False
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.first % self.batch or self.count % self.batch:
            raise InputError(
                f"stream: samples {self.first} to {self.first + self.count} are not whole batches of "
                f"{self.batch}"
            )

    def layer(self, number: int) -> Draws:
        """The numbers of one layer."""
        return Draws(self, number * PARTS)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a stream's samples in one layer (and part of it)."""

    stream: Stream
    key: int

    def part(self, number: int) -> Draws:
        """The numbers of one of several noises in the same layer, independent of the others."""
        if not 0 <= number < PARTS:
            raise InputError(f"noise: {number} parts in one layer, at most {PARTS} have streams")
        return replace(self, key=self.key + number)

    def uniform(self, units: int, shared: bool = False) -> Tensor:
        """Numbers k 2^-53 in [0, 1), shape (samples, units); shared: one row for each batch."""
        return self._table(units, shared, uniform=True)

    def bernoulli(self, probability: float, units: int, shared: bool = False) -> Tensor:
        """Masks: 1 with the probability (see `threshold`), else 0, shape (samples, units)."""
        kept = self._table(units, shared, uniform=False) < threshold(probability)
        return kept.to(self.stream.dtype)

    def normal(self, units: int, shared: bool = False) -> Tensor:
        """Independent N(0, 1) numbers, shape (samples, units)."""
        uniform = self.uniform(units, shared).clamp(min=0.5 * _UNIT)  # the quantile of 0 is infinite
        return torch.special.ndtri(uniform).to(self.stream.dtype)

    def _table(self, units: int, shared: bool, uniform: bool) -> Tensor:
        """Words, or numbers of two words, for each sample, shape (samples, units)."""
        s = self.stream
        per_row = 1 if shared else s.batch  # rows that one batch draws
        first, count = s.first // s.batch, s.count // s.batch
        if not s.antithetic:
            rows = self._rows(first * per_row, count * per_row, units, uniform)
        else:
            pairs = range(first // 2, (first + count + 1) // 2)
            drawn = self._rows(pairs.start * per_row, len(pairs) * per_row, units, uniform)
            drawn = drawn.reshape(len(pairs), 1, per_row, units)
            mirrored = (1 - _UNIT) - drawn if uniform else _LARGEST - drawn
            both = torch.cat([drawn, mirrored], dim=1).reshape(-1, per_row, units)
            skip = first % 2
            rows = both[skip : skip + count].reshape(-1, units)
        return rows.repeat_interleave(s.batch, dim=0) if shared else rows

    def _rows(self, first: int, count: int, units: int, uniform: bool) -> Tensor:
        """Rows first, ..., first + count - 1 of the table with `units` columns."""
        s = self.stream
        if s.device.type == "cpu":
            table = np.empty((count, units), np.float64 if uniform else np.int64)
            fill = kernels.fill_uniform if uniform else kernels.fill_words
            fill(np.uint64(s.seed), self.key, first, table)
            return torch.from_numpy(table)
        if not uniform:
            return philox.words(s.seed, self.key, first, count, units, s.device)
        pairs = philox.words(s.seed, self.key, first, count, 2 * units, s.device)
        high, low = pairs.reshape(count, units, 2).unbind(dim=-1)
        return ((high >> 5) * 2**26 + (low >> 6)).double() * _UNIT
