"""Noise streams: Philox's words bit by bit, one number for each (seed, sample, layer, unit), their laws."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from kolmo import philox
from kolmo.compiled import philox as kernels
from kolmo.errors import InputError
from kolmo.stream import Draws, Stream, mix, threshold

CPU = torch.device("cpu")
DEVIATIONS = 5
LARGEST = 2**32 - 1


def numbers(draws: Draws, kind: str, units: int, shared: bool = False) -> Tensor:
    """Uniform, normal or Bernoulli(0.3) numbers."""
    arguments = (0.3, units, shared) if kind == "bernoulli" else (units, shared)
    return getattr(draws, kind)(*arguments)


# ------------------------------------------------------------------ Philox


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((LARGEST,) * 4, (LARGEST,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    """Philox4x32-10 as the authors' Random123 lists it, by torch and by the kernel."""
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox.block((c0, c1, c2, c3), key)) == answer
    out = np.empty(4, np.uint32)
    seed, group = (np.uint64(low + (high << 32)) for low, high in (key, counter[:2]))
    kernels.words(seed, counter[2], counter[3], group, 4, out)
    assert tuple(out.tolist()) == answer


@given(
    seed=st.integers(0, 2**63 - 1), part=st.integers(0, 2**32 - 1), first=st.integers(0, 2**62),
    count=st.integers(0, 50), units=st.integers(1, 7),
)  # fmt: skip
def test_both_twins_have_the_same_words(seed: int, part: int, first: int, count: int, units: int) -> None:
    """Rows from any on, of any seed and part, bit by bit; and 53-bit numbers made of pairs of words."""
    words, numbers = np.empty((count, units), np.int64), np.empty((count, units))
    kernels.fill_words(np.uint64(seed), part, first, words)
    assert np.array_equal(words, philox.words(seed, part, first, count, units, CPU).numpy())
    assert ((words >= 0) & (words < 2**32)).all()
    kernels.fill_uniform(np.uint64(seed), part, first, numbers)
    pairs = philox.words(seed, part, first, count, 2 * units, CPU).numpy()
    assert np.array_equal(numbers * 2.0**53, (pairs[:, ::2] >> 5) * 2**26 + (pairs[:, 1::2] >> 6))


def test_long_tables_are_filled_to_the_end() -> None:
    """More rows than the kernel draws at once, from a row within a block of four."""
    words = np.empty((2000, 2), np.int64)
    kernels.fill_words(np.uint64(9), 3, 2**32 - 601, words)  # and across what one word counts
    assert np.array_equal(words, philox.words(9, 3, 2**32 - 601, 2000, 2, CPU).numpy())


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
@pytest.mark.parametrize("kind", ["uniform", "bernoulli", "normal"])
@pytest.mark.parametrize(
    "options", [{}, {"antithetic": True}, {"batch": 4}, {"dtype": torch.float32}], ids=str
)
def test_accelerators_have_the_numbers_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: str, seed: int
) -> None:
    """Numbers by the twin, as on an accelerator, equal the kernel's bit by bit, from any sample on."""
    here = Stream(seed, 20, 40, **options)
    words = philox.words
    monkeypatch.setattr(philox, "words", lambda *address: words(*address[:-1], CPU))
    there = dataclasses.replace(here, device=torch.device("meta"))
    for layer, units, shared in [(0, 1, False), (3, 3, False), (7, 2, True), (1000, 5, False)]:
        ours = numbers(there.layer(layer).part(2), kind, units, shared)
        assert torch.equal(ours, numbers(here.layer(layer).part(2), kind, units, shared))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_has_the_numbers_of_the_cpu() -> None:
    """Uniform numbers and masks bit by bit, normal numbers to the rounding of their quantile function."""
    here, there = Stream(5, 30, 10_000), Stream(5, 30, 10_000, device=torch.device("cuda"))
    for kind in ("uniform", "bernoulli"):
        assert torch.equal(numbers(there.layer(3), kind, 3).cpu(), numbers(here.layer(3), kind, 3))
    found, wanted = there.layer(3).normal(3).cpu(), here.layer(3).normal(3)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


# ------------------------------------------------------------------ addresses


@settings(max_examples=150)
@given(
    batch=st.integers(1, 4), start=st.integers(0, 9), antithetic=st.booleans(), shared=st.booleans(),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), units=st.integers(1, 6),
    kind=st.sampled_from(["uniform", "normal", "bernoulli"]),
)  # fmt: skip
def test_numbers_do_not_depend_on_the_split(
    batch: int, start: int, sizes: list[int], units: int, antithetic: bool, shared: bool, kind: str
) -> None:
    """Samples drawn in any pieces, from any batch on, are rows of the one table that starts at sample 0."""

    def rows(first: int, batches: int) -> Tensor:
        stream = Stream(7, first * batch, batches * batch, batch, antithetic)
        return numbers(stream.layer(4), kind, units, shared)

    starts = list(itertools.accumulate(sizes, initial=start))
    pieces = torch.cat([rows(first, size) for first, size in zip(starts, sizes, strict=False)])
    assert pieces.shape == (sum(sizes) * batch, units)
    assert torch.equal(pieces, rows(0, starts[-1])[start * batch :])


@given(units=st.integers(1, 6), first=st.integers(0, 40), seed=st.integers(0, 2**63 - 1))
def test_a_batch_changes_nothing_where_numbers_are_not_shared(units: int, first: int, seed: int) -> None:
    """Without antithetic numbers a sample's own numbers are the same in batches of any size."""
    tables = [Stream(seed, first * 6, 12, batch).layer(2).uniform(units) for batch in (1, 2, 3, 6)]
    assert all(torch.equal(table, tables[0]) for table in tables)


@pytest.mark.parametrize("kind", ["uniform", "normal", "bernoulli"])
def test_a_unit_does_not_know_how_many_there_are(kind: str) -> None:
    """The numbers of the first units are the same whoever else draws."""
    draws = Stream(2, 7, 90).layer(3)
    assert torch.equal(numbers(draws, kind, 6)[:, :2], numbers(draws, kind, 2))


@pytest.mark.parametrize(("first", "count", "batch"), [(1, 4, 2), (0, 5, 2), (3, 3, 4), (7, 7, 3)])
def test_parts_of_batches_are_refused(first: int, count: int, batch: int) -> None:
    with pytest.raises(InputError, match=r"^stream: .* whole batches") as caught:
        Stream(0, first, count, batch)
    assert str(batch) in str(caught.value) and "\n" not in str(caught.value)


def test_too_many_parts_are_refused() -> None:
    """A layer has finitely many parts with numbers of their own, none of them the next layer's."""
    with pytest.raises(InputError, match=r"^noise: 256 parts"):
        Stream(0, 0, 4).layer(0).part(256)
    last, following = Stream(0, 0, 400).layer(0).part(255).uniform(2), Stream(0, 0, 400).layer(1).uniform(2)
    assert not np.isin(last, following).any()


# ------------------------------------------------------------------ antithetic, shared, single precision


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_odd_batches_mirror_even_ones(batch: int, shared: bool) -> None:
    """u -> 1 - u (to 2^-53), xi -> -xi, a fair coin -> its other side; even batches are those of pairs."""
    count = 2000
    draws = Stream(3, 0, count * batch, batch, antithetic=True).layer(2)
    even, odd = draws.uniform(4, shared).reshape(count // 2, 2, batch, 4).unbind(dim=1)
    assert torch.equal(even + odd, torch.full_like(even, 1 - 2.0**-53))
    plain = Stream(3, 0, count // 2 * batch, batch).layer(2)
    assert torch.equal(even.reshape(-1, 4), plain.uniform(4, shared))
    even, odd = draws.normal(4, shared).reshape(count // 2, 2, batch, 4).unbind(dim=1)
    torch.testing.assert_close(odd, -even, rtol=0, atol=1e-11)
    even, odd = draws.bernoulli(0.5, 4, shared).reshape(count // 2, 2, batch, 4).unbind(dim=1)
    assert torch.equal(even + odd, torch.ones_like(even))


@pytest.mark.parametrize("kind", ["uniform", "normal", "bernoulli"])
def test_shared_numbers_are_one_for_each_batch(kind: str) -> None:
    """Rows of a batch are alike, batches are not, and own numbers differ within the batch."""
    draws = Stream(1, 30, 3000, 5).layer(1)
    shared = numbers(draws, kind, 60, shared=True).reshape(600, 5, 60)
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert len(torch.unique(shared[:, 0], dim=0)) == 600
    own = numbers(draws, kind, 60).reshape(600, 5, 60)
    assert not (own[:, 0] == own[:, 1]).all(dim=1).any()


def test_masks_do_not_depend_on_the_precision() -> None:
    """float32 masks are float64's; float32 normal numbers are float64's, rounded."""
    double = Stream(1, 0, 50_000).layer(1)
    single = Stream(1, 0, 50_000, dtype=torch.float32).layer(1)
    drawn = double.uniform(2)
    for p in (1e-4, 0.3, 1 - 1e-8, *(drawn[:5, 0] + 1e-12).tolist()):  # also where rounding would decide
        assert single.bernoulli(p, 2).dtype == torch.float32
        assert torch.equal(single.bernoulli(p, 2).double(), double.bernoulli(p, 2))
    assert torch.equal(single.normal(2), double.normal(2).float())


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize(
    "options", [{}, {"antithetic": True}, {"batch": 4}], ids=["plain", "antithetic", "batch"]
)
def test_uniform_and_normal_laws(options: dict[str, Any]) -> None:
    """Kolmogorov-Smirnov against U(0, 1) and N(0, 1); the first four normal moments within 5 errors."""
    draws = Stream(2, 0, 50_000, **options).layer(9)
    u, xi = draws.uniform(2).numpy().ravel(), draws.normal(2).numpy().ravel()
    assert u.min() >= 0 and u.max() < 1 and np.array_equal(u * 2**53, np.floor(u * 2**53))
    assert stats.kstest(u, "uniform").pvalue > 1e-3 and stats.kstest(xi, "norm").pvalue > 1e-3
    for degree, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((xi**degree).mean() - moment) < DEVIATIONS * (2 * variance / len(xi)) ** 0.5
    low = u * 2**20 % 1  # and the lower bits are uniform on their own
    assert stats.kstest(low, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("p", [1e-4, 0.3, 0.5, 0.999])
def test_masks_have_their_probability(p: float) -> None:
    """Shares within 5 standard errors, and P(keep) = 1 keeps everything."""
    draws = Stream(4, 0, 200_000).layer(0)
    masks = draws.bernoulli(p, 2)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert abs(float(masks.mean()) - p) < DEVIATIONS * (p * (1 - p) / masks.numel()) ** 0.5
    assert bool((draws.bernoulli(1.0, 2) == 1).all())


@given(p=st.floats(0, 1))
def test_masks_are_words_below_a_threshold(p: float) -> None:
    """The probability of a mask is a multiple of 2^-32, and within 2^-33 of what was asked for."""
    assert abs(threshold(p) / 2**32 - p) <= 2.0**-33
    draws = Stream(6, 5, 30).layer(1)
    words = philox.words(6, draws.key, 5, 30, 3, CPU)
    assert torch.equal(draws.bernoulli(p, 3), (words < threshold(p)).double())


def test_layers_units_parts_seeds_and_samples_are_independent() -> None:
    """No number occurs twice, and numbers and their squares are uncorrelated within 5 errors."""
    count = 20_000
    draws = [Stream(seed, 0, count).layer(k).part(n) for seed in (0, 1) for k in (0, 1, 40) for n in (0, 1)]
    columns = torch.cat([d.uniform(3) for d in draws], dim=1)
    columns = torch.cat([columns[:-1], columns[1:, :3]], dim=1)  # the next sample's too
    assert len(torch.unique(columns[:, :-3])) == columns[:, :-3].numel()
    centred = columns - 0.5
    table = torch.cat([centred, centred.square()], dim=1).T
    correlation = torch.corrcoef(table) - torch.eye(len(table))
    assert correlation.abs().max() < DEVIATIONS / count**0.5


def test_seeds_of_keys() -> None:
    """Keys such as (seed, purpose) have distinct 63-bit seeds, the same every time."""
    keys = [(a, b) for a in range(60) for b in range(1, 60)] + [(a,) for a in range(60)]
    seeds = [mix(*key) for key in keys]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**63 for s in seeds)
    assert seeds == [mix(*key) for key in keys]
    bits = np.array([[s >> i & 1 for i in range(63)] for s in seeds])
    assert abs(bits.mean(axis=0) - 0.5).max() < DEVIATIONS * 0.5 / len(seeds) ** 0.5


def test_mixed_seeds_know_their_length() -> None:
    """(0,), (0, 0) and 2^32, (0, 1) are different keys."""
    found = [mix(0), mix(0, 0), mix(0, 0, 0), mix(2**32), mix(0, 1), mix(1, 0)]
    assert len(set(found)) == len(found)
