"""Philox4x32-10 as a numba kernel: the words of `kolmo.philox`, several counters at a time on the CPU."""

from __future__ import annotations

import numpy as np

from kolmo.compiled.jit import inline, kernel
from kolmo.philox import MULTIPLIERS, ROUNDS, WEYL

_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)
_W0, _W1 = (np.uint64(w) for w in WEYL)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
#: rows drawn at once
_ROWS = 512


@inline
def _block(seed, part, unit, group):  # type: ignore[no-untyped-def]
    # 32-bit words in 64-bit lanes: vector units multiply those, and nothing else, to 64 bits
    c0, c1, c2, c3 = group & _LOW, group >> _HALF, np.uint64(part) & _LOW, np.uint64(unit) & _LOW
    k0, k1 = np.uint64(seed) & _LOW, np.uint64(seed) >> _HALF
    for _ in range(ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@inline
def _put(out, g, block):  # type: ignore[no-untyped-def]
    for i in range(4):
        out[4 * g + i] = np.uint32(block[i])


@kernel
def words(seed, part, unit, group, count, out):  # type: ignore[no-untyped-def]
    # words of `count` rows (a multiple of 4) of one unit; the first row is 4 * group
    for g in range(count >> 2):
        _put(out, g, _block(seed, part, unit, np.uint64(group) + np.uint64(g)))


@kernel
def words_of_two(seed, part, unit, group, count, out, other):  # type: ignore[no-untyped-def]
    # those of two successive units: each round waits for the one before, and another unit's fill the time
    for g in range(count >> 2):
        index = np.uint64(group) + np.uint64(g)
        first, second = _block(seed, part, unit, index), _block(seed, part, unit + 1, index)
        _put(out, g, first)
        _put(other, g, second)


@inline
def unit_interval(high, low, flip):  # type: ignore[no-untyped-def]
    # k 2^-53 of the upper 27 and 26 bits of two words, exactly; by signed 32-bit numbers, which every
    # vector unit converts
    upper, lower = np.int32((high ^ flip) >> np.uint32(5)), np.int32((low ^ flip) >> np.uint32(6))
    return (np.float64(upper) * 67108864.0 + np.float64(lower)) * 2.0**-53


@kernel
def fill_words(seed, part, first, table):  # type: ignore[no-untyped-def]
    # words of rows first, first + 1, ... into table (rows, units)
    row = np.empty(_ROWS + 4, np.uint32)
    count, units = table.shape
    for start in range(0, count, _ROWS):
        size = min(_ROWS, count - start)
        skip = (first + start) & 3
        for unit in range(units):
            words(seed, part, unit, (first + start) >> 2, (skip + size + 3) & ~3, row)
            for s in range(size):
                table[start + s, unit] = row[skip + s]


@kernel
def fill_uniform(seed, part, first, table):  # type: ignore[no-untyped-def]
    # numbers k 2^-53 of rows first, first + 1, ... into table (rows, units)
    high, low = np.empty(_ROWS + 4, np.uint32), np.empty(_ROWS + 4, np.uint32)
    count, units = table.shape
    for start in range(0, count, _ROWS):
        size = min(_ROWS, count - start)
        skip = (first + start) & 3
        for unit in range(units):
            words_of_two(seed, part, 2 * unit, (first + start) >> 2, (skip + size + 3) & ~3, high, low)
            for s in range(size):
                table[start + s, unit] = unit_interval(high[skip + s], low[skip + s], np.uint32(0))
