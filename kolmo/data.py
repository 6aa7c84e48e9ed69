"""Labelled points: synthetic sets of the classification literature, and CSV files.

Every set is centred and scaled to about [-2, 2]^d, so that one computational box suits all.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from kolmo import memory, reading
from kolmo.errors import InputError
from kolmo.files import write_text
from kolmo.text import nearest, shown

#: rows and numbers of the largest CSV file; a million points are as many as [data] can ask for
MOST_POINTS, MOST_NUMBERS = 10**6, 2 * 10**7
#: bytes of a CSV file's longest line, and from which its number of rows is estimated
LONGEST_LINE, _HEAD = 2**20, 2**16
#: largest noise of a synthetic set, whose points lie in [-2, 2]^d
_MOST_NOISE = 100.0


@dataclass(frozen=True)
class Dataset:
    """Points (M, d), float64, and labels (M,), 0 or 1. Raises InputError on anything else.

    one_class: points of one label only will do, as for a single value u(x, 0).
    """

    points: Tensor
    labels: Tensor
    name: str = "data"
    one_class: bool = False

    def __post_init__(self) -> None:
        points = torch.as_tensor(self.points, dtype=torch.float64)
        labels = torch.as_tensor(self.labels)
        if points.ndim != 2 or 0 in points.shape:
            raise InputError(f"{self.name}: points have shape {tuple(points.shape)}, expected (M, d), M >= 1")
        if labels.shape != points.shape[:1]:
            raise InputError(
                f"{self.name}: labels have shape {tuple(labels.shape)}, expected ({len(points)},)"
            )
        if not bool(torch.isfinite(points).all()):
            row = int((~torch.isfinite(points)).any(dim=1).nonzero()[0])
            raise InputError(f"{self.name}: point {row + 1} has a feature that is NaN or infinite")
        present = {float(v) for v in labels.unique()}
        if not present <= {0.0, 1.0}:
            raise InputError(f"{self.name}: labels are {_some(present)}, expected 0 and 1")
        if present != {0.0, 1.0} and not self.one_class:
            missing = ({0, 1} - {int(v) for v in present}).pop()
            raise InputError(f"{self.name}: class {missing} has no points, both classes are needed")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.points)

    @property
    def dim(self) -> int:
        """Number of features d."""
        return int(self.points.shape[1])

    @property
    def radius(self) -> float:
        """Largest |x_i| over all points and features."""
        return float(self.points.abs().max())


def _some(values: set[float]) -> str:
    shown = ", ".join(f"{v:g}" for v in sorted(values)[:4])
    return shown + (", ..." if len(values) > 4 else "")


def _standard(points: np.ndarray, labels: np.ndarray, name: str) -> Dataset:
    return Dataset(
        torch.from_numpy(np.ascontiguousarray(points)), torch.from_numpy(labels.astype(np.int64)), name
    )


def _halves(samples: int) -> tuple[int, int]:
    if int(samples) != samples or samples < 2:
        raise InputError(f"data.samples: {samples!r} is not an integer >= 2")
    return int(samples) // 2, int(samples) - int(samples) // 2


def moons(samples: int = 200, noise: float = 0.3, seed: int = 0) -> Dataset:
    """Two interleaving half circles with Gaussian noise (scikit-learn's make_moons)."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(_halves(samples), noise=noise, random_state=seed)
    return _standard((points - [0.5, 0.25]) * 1.3, labels, "moons")


def circles(samples: int = 200, noise: float = 0.08, seed: int = 0) -> Dataset:
    """A circle inside a circle (scikit-learn's make_circles)."""
    from sklearn.datasets import make_circles

    points, labels = make_circles(_halves(samples), noise=noise, factor=0.45, random_state=seed)
    return _standard(1.4 * points, labels, "circles")


def blobs(samples: int = 200, noise: float = 0.6, seed: int = 0) -> Dataset:
    """Two Gaussian clusters."""
    zeros, ones = _halves(samples)
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [zeros, ones])
    centres = np.array([[-0.9, -0.6], [0.9, 0.6]])
    return _standard(centres[labels] + noise * random.standard_normal((samples, 2)), labels, "blobs")


def spirals(samples: int = 200, noise: float = 0.05, seed: int = 0) -> Dataset:
    """Two interleaved spirals of three quarters of a turn each."""
    zeros, ones = _halves(samples)
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [zeros, ones])
    angle = 1.5 * math.pi * np.sqrt(random.uniform(0.02, 1, samples))
    radius = 1.5 * angle / (1.5 * math.pi)
    turn = angle + math.pi * labels
    points = radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return _standard(points + noise * random.standard_normal(points.shape), labels, "spirals")


def xor(samples: int = 200, noise: float = 0.2, seed: int = 0) -> Dataset:
    """Four clusters, opposite corners of a square in the same class."""
    _halves(samples)
    random = np.random.default_rng(seed)
    corner = np.arange(samples) % 4
    centres = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=float)
    return _standard(centres[corner] + noise * random.standard_normal((samples, 2)), corner % 2, "xor")


def interval(samples: int = 200, noise: float = 0.1, seed: int = 0) -> Dataset:
    """In one dimension: an inner interval against the two outer ones."""
    zeros, ones = _halves(samples)
    random = np.random.default_rng(seed)
    inner = random.uniform(-0.5, 0.5, ones)
    outer = random.uniform(0.7, 1.4, zeros) * random.choice([-1.0, 1.0], zeros)
    points = np.concatenate([outer, inner])[:, None]
    labels = np.repeat([0, 1], [zeros, ones])
    return _standard(points + noise * random.standard_normal(points.shape), labels, "interval")


#: synthetic sets by the name that [data] kind takes
KINDS: dict[str, Callable[..., Dataset]] = {
    f.__name__: f for f in (moons, circles, blobs, spirals, xor, interval)
}


def synthetic(kind: str, samples: int, noise: float | None, seed: int) -> Dataset:
    """A synthetic set by name; raises InputError that names the nearest right one."""
    if kind not in KINDS:
        raise InputError(f"data.kind: {kind!r} is unknown{nearest(kind, KINDS)}")
    if noise is None:
        return KINDS[kind](samples, seed=seed)
    if not (isinstance(noise, (int, float)) and 0 <= noise <= _MOST_NOISE):
        raise InputError(f"data.noise: {noise!r} is not a number from 0 to {_MOST_NOISE:g}")
    return KINDS[kind](samples, noise=noise + 0.0, seed=seed)  # numpy takes -0.0 for negative


def from_csv(path: str | Path) -> Dataset:
    """Points from a CSV file with header x1,...,xd,label and labels 0 or 1.

    Raises InputError with the file and line for anything unreadable, ragged or not finite, and for more
    than MOST_POINTS rows: before they are read, where the size of the file tells.
    """
    path = Path(path)
    numbers = array("d")
    with reading.opened(path) as file:
        _refuse_many_rows(file, path)
        rows = csv.reader(_lines(file, path), strict=True)
        try:
            columns = _columns(next(rows, []), path)
            for row in rows:
                if row:
                    numbers.extend(_point(row, columns, f"{path}, line {rows.line_num}"))
                if len(numbers) > min(MOST_POINTS * columns, MOST_NUMBERS):
                    raise _too_many(path, f"{rows.line_num - 1} rows of {columns} numbers")
        except csv.Error as error:
            raise InputError(f"{path}, line {rows.line_num}: cannot be read as CSV: {error}") from error
    if not numbers:
        raise InputError(f"{path}: no points below the header")
    table = np.frombuffer(numbers).reshape(-1, columns)
    return _standard(table[:, :-1], table[:, -1], str(path))


def _refuse_many_rows(file: BinaryIO, path: Path) -> None:
    """An estimate from the size of the file and its first lines, with room for longer ones below."""
    size, head = reading.size(file), file.read(_HEAD)
    file.seek(0)
    rows = size * head.count(b"\n") / max(1, len(head))
    if rows > 1.5 * MOST_POINTS:
        raise _too_many(path, f"about {rows:.1g} rows in {memory.gib(size)}")


def _too_many(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: {found}, at most {MOST_POINTS} rows and {MOST_NUMBERS} numbers are read; take a sample"
    )


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """Decoded lines, none of them endless."""
    for number in count(1):
        raw = file.readline(LONGEST_LINE + 1)
        if not raw:
            return
        if len(raw) > LONGEST_LINE:
            raise InputError(f"{path}, line {number}: longer than {LONGEST_LINE} bytes")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 text") from error
        if "\0" in line:
            raise InputError(f"{path}, line {number}: a NUL byte, expected text")
        yield line


def _columns(row: list[str], path: Path) -> int:
    """How many columns a right header has."""
    header = [name.strip() for name in row]
    if not any(header):
        raise InputError(f"{path}: empty, expected a header x1,...,xd,label")
    if header != [f"x{i}" for i in range(1, len(header))] + ["label"] or len(header) < 2:
        raise InputError(f"{path}: header is {shown(','.join(header))}, expected x1,...,xd,label")
    return len(header)


def _point(row: list[str], columns: int, where: str) -> list[float]:
    """Features and label of a row."""
    if len(row) != columns:
        raise InputError(f"{where}: {len(row)} fields, expected {columns}")
    point = []
    for field in row:
        number = _number(field)
        if number is None:
            raise InputError(f"{where}: {shown(field)} is not a number")
        point.append(number)
    if not all(map(math.isfinite, point)):
        raise InputError(f"{where}: a value is NaN or infinite")
    if point[-1] not in (0.0, 1.0):
        raise InputError(f"{where}: label {shown(row[-1].strip())}, expected 0 or 1")
    return point


def _number(text: str) -> float | None:
    """float(text), but for what Python takes and no other program does: 1_000 and digits beyond ASCII."""
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def to_csv(data: Dataset, path: str | Path) -> None:
    """Write a set as CSV, 17 digits, so that reading it gives the same points."""
    header = ",".join([*(f"x{i + 1}" for i in range(data.dim)), "label"])
    lines = [
        ",".join([*(f"{v:.17g}" for v in row), str(int(label))])
        for row, label in zip(data.points.tolist(), data.labels.tolist(), strict=True)
    ]
    write_text(path, "\n".join([header, *lines]) + "\n")
