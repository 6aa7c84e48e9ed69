r"""Noise streams: random numbers addressed by (seed, sample, layer, unit).

The number of unit j of sample n in layer k does not depend on how samples are batched, chunked
or spread over threads, nor on the device: words come from the counter-based generator Philox
(numpy's on the CPU, its twin in `philox` elsewhere). Uniform numbers and masks are equal bit by
bit; normal numbers are their images under the quantile function and agree to its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kolmo import philox
from kolmo.errors import InputError

#: parts of a layer (composed noises) that have numbers of their own
_PARTS = 256
_UNIT = 2.0**-53
_CPU = torch.device("cpu")


def mix(*key: int) -> int:
    """A well-mixed 63-bit seed from a key such as (seed, purpose)."""
    # the length tells (0,) from (0, 0)
    sequence = np.random.SeedSequence([len(key), *(k % 2**63 for k in key)])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Stream:
    """The random numbers of samples first, ..., first + count - 1.

    batch: samples that pass the network together, for noise shared by a batch. antithetic:
    odd batches mirror the numbers of the even batch before them (u -> 1 - u).
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
        return Draws(self, number * _PARTS)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a stream's samples in one layer (and part of it)."""

    stream: Stream
    key: int

    def part(self, number: int) -> Draws:
        """The numbers of one of several noises in the same layer, independent of the others."""
        if not 0 <= number < _PARTS:
            raise InputError(f"noise: {number} parts in one layer, at most {_PARTS} have streams")
        return replace(self, key=self.key + number)

    def uniform(self, units: int, shared: bool = False) -> Tensor:
        """Numbers k 2^-53 in [0, 1), shape (samples, units); shared: one row for each batch."""
        s = self.stream
        per_row = 1 if shared else s.batch  # rows that one batch draws
        first, count = s.first // s.batch, s.count // s.batch
        if not s.antithetic:
            rows = self._rows(first * per_row, count * per_row, units)
        else:
            pairs = range(first // 2, (first + count + 1) // 2)
            drawn = self._rows(pairs.start * per_row, len(pairs) * per_row, units)
            drawn = drawn.reshape(len(pairs), 1, per_row, units)
            both = torch.cat([drawn, (1 - _UNIT) - drawn], dim=1).reshape(-1, per_row, units)
            skip = first % 2
            rows = both[skip : skip + count].reshape(-1, units)
        return rows.repeat_interleave(s.batch, dim=0) if shared else rows

    def _rows(self, first: int, count: int, units: int) -> Tensor:
        """Rows first, ..., first + count - 1 of the table with `units` columns."""
        start, size = first * units, count * units
        if self.stream.device.type == "cpu":
            bits = np.random.Philox(key=[self.stream.seed, self.key], counter=[start // 4, 0, 0, 0])
            generator = np.random.Generator(bits)
            if start % 4:
                generator.random(start % 4)
            return torch.from_numpy(generator.random(size)).reshape(count, units)
        raw = philox.words((self.stream.seed, self.key), start, size, self.stream.device)
        return (((raw >> 11) & (2**53 - 1)).double() * _UNIT).reshape(count, units)

    def bernoulli(self, probability: float, units: int, shared: bool = False) -> Tensor:
        """Masks: 1 with the probability, else 0, shape (samples, units)."""
        return (self.uniform(units, shared) < probability).to(self.stream.dtype)

    def normal(self, units: int, shared: bool = False) -> Tensor:
        """Independent N(0, 1) numbers, shape (samples, units)."""
        uniform = self.uniform(units, shared).clamp(min=0.5 * _UNIT)  # the quantile of 0 is infinite
        return torch.special.ndtri(uniform).to(self.stream.dtype)
