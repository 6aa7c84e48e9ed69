"""numpy's Philox generator in torch integers: the same words, bit by bit, on any device.

numpy computes Philox-4x64-10 on the CPU only; this is its twin for accelerators, in int64
tensors whose arithmetic wraps. Word w of a key's stream is lane w % 4 of the block with
counter w // 4 + 1, as numpy counts. Source: Salmon, Moraes, Dror, Shaw, Parallel random numbers:
as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: multipliers of the two halves of a round, and what the key grows by from round to round
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def words(key: tuple[int, int], first: int, count: int, device: torch.device) -> Tensor:
    """Words first, ..., first + count - 1 of a key's stream as int64 bit patterns, shape (count,)."""
    blocks = torch.arange(first // 4 + 1, (first + count - 1) // 4 + 2, device=device, dtype=torch.int64)
    zero = torch.zeros_like(blocks)
    state = (blocks, zero, zero, zero)
    keys = [k % 2**64 for k in key]
    for _ in range(_ROUNDS):
        state = _round(state, _signed(keys[0]), _signed(keys[1]))
        keys = [(k + w) % 2**64 for k, w in zip(keys, _WEYL, strict=True)]
    skip = first % 4
    return torch.stack(state, dim=1).reshape(-1)[skip : skip + count]


_State = tuple[Tensor, Tensor, Tensor, Tensor]


def _round(state: _State, key0: int, key1: int) -> _State:
    high0, low0 = _product(state[0], _MULTIPLIERS[0])
    high1, low1 = _product(state[2], _MULTIPLIERS[1])
    return high1 ^ state[1] ^ key0, low1, high0 ^ state[3] ^ key1, low0


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 64 bits of the unsigned product, by halves of 32 bits."""
    a_high, a_low = (a >> 32) & _LOW, a & _LOW
    b_high, b_low = b >> 32, b & _LOW
    low = a_low * b_low
    middle = a_high * b_low + ((low >> 32) & _LOW)
    other = a_low * b_high + (middle & _LOW)
    high = a_high * b_high + ((middle >> 32) & _LOW) + ((other >> 32) & _LOW)
    return high, a * _signed(b)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - 2**64 if word >= 2**63 else word
