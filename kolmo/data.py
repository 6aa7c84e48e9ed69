"""Labelled points: synthetic sets of the classification literature, and CSV files.

Every set is centred and scaled to about [-2, 2]^d, so that one computational box suits all.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.files import write_text
from kolmo.text import nearest


@dataclass(frozen=True)
class Dataset:
    """Points (M, d), float64, and labels (M,), 0 or 1. Raises InputError on anything else."""

    points: Tensor
    labels: Tensor
    name: str = "data"

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
        if present != {0.0, 1.0}:
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
    if not (isinstance(noise, (int, float)) and 0 <= noise < math.inf):
        raise InputError(f"data.noise: {noise!r} is not a finite number >= 0")
    return KINDS[kind](samples, noise=noise, seed=seed)


def from_csv(path: str | Path) -> Dataset:
    """Points from a CSV file with header x1,...,xd,label and labels 0 or 1.

    Raises InputError with the file and line for anything unreadable, ragged or not finite.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read as CSV: {reason}") from error
    if not rows or not any(rows[0]):
        raise InputError(f"{path}: empty, expected a header x1,...,xd,label")
    header = [name.strip() for name in rows[0]]
    expected = [f"x{i}" for i in range(1, len(header))] + ["label"]
    if header != expected or len(header) < 2:
        raise InputError(f"{path}: header is {','.join(header)[:80]!r}, expected x1,...,xd,label")
    numbers: list[list[float]] = []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: {len(row)} fields, expected {len(header)}")
        try:
            numbers.append([float(field) for field in row])
        except ValueError:
            wrong = next(field for field in row if not _is_number(field))
            raise InputError(f"{path}, line {line}: {wrong[:40]!r} is not a number") from None
        if not all(math.isfinite(v) for v in numbers[-1]):
            raise InputError(f"{path}, line {line}: a value is NaN or infinite")
        if numbers[-1][-1] not in (0.0, 1.0):
            raise InputError(f"{path}, line {line}: label {row[-1].strip()[:40]!r}, expected 0 or 1")
    if not numbers:
        raise InputError(f"{path}: no points below the header")
    table = np.array(numbers)
    return _standard(table[:, :-1], table[:, -1], str(path))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_csv(data: Dataset, path: str | Path) -> None:
    """Write a set as CSV, 17 digits, so that reading it gives the same points."""
    header = ",".join([*(f"x{i + 1}" for i in range(data.dim)), "label"])
    lines = [
        ",".join([*(f"{v:.17g}" for v in row), str(int(label))])
        for row, label in zip(data.points.tolist(), data.labels.tolist(), strict=True)
    ]
    write_text(path, "\n".join([header, *lines]) + "\n")
