"""The counter-based generator Philox4x32-10, in torch integers: the same words on any device.

A word is addressed by (seed, part, unit, row): four consecutive rows of a unit are the four words of the
block with counter (row // 4 mod 2^32, row // 4 div 2^32, part, unit) and key (seed mod 2^32, seed div 2^32).
`kolmo.compiled.philox` is its twin on the CPU. Source: Salmon, Moraes, Dror, Shaw, Parallel random
numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: multipliers of the two halves of a round, and what the key grows by from round to round
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = 0xFFFFFFFF
#: parts of a layer (composed noises) that have numbers of their own: `part` is layer * PARTS + part
PARTS = 256

_Block = tuple[Tensor, Tensor, Tensor, Tensor]


def words(seed: int, part: int, first: int, count: int, units: int, device: torch.device) -> Tensor:
    """Words of rows first, ..., first + count - 1 and units 0, ..., units - 1: int64 (count, units)."""
    rows = torch.arange(first // 4, (first + count + 3) // 4, device=device, dtype=torch.int64)[:, None]
    unit = torch.arange(units, device=device, dtype=torch.int64)
    counter = (rows & _LOW, rows >> 32, torch.full_like(rows, part), unit)
    lanes = torch.stack(torch.broadcast_tensors(*block(counter, (seed & _LOW, seed >> 32))), dim=1)
    return lanes.reshape(-1, units)[first % 4 : first % 4 + count]


def block(counter: _Block, key: tuple[int, int]) -> _Block:
    """The four words of each counter under a key, all of them 32-bit numbers in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high1, low1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 32 bits of a product; where it exceeds 2^63 its bits are right all the same."""
    product = a * b
    return (product >> 32) & _LOW, product & _LOW
