"""Small sets of images in the formats of CIFAR."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kolmo.images.cifar import LAYOUTS


def records(kind: str, count: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Bytes of the binary version, the images (N, 3, 32, 32) and labels; every class at least once."""
    layout, rng = LAYOUTS[kind], np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(count) % layout.classes
    coarse = rng.integers(0, 20, count)
    rows = []
    for image, fine, above in zip(images, labels, coarse, strict=True):
        head = [fine] if layout.labels == 1 else [above, fine]
        rows.append(bytes(int(v) for v in head) + image.tobytes())
    return b"".join(rows), images, labels


def folder_of(kind: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A folder in the binary format; the training images and labels in it."""
    layout, count = LAYOUTS[kind], 10 if kind == "cifar10" else 100
    path.mkdir(parents=True, exist_ok=True)
    parts = []
    for seed, name in enumerate(layout.files):
        content, images, labels = records(kind, count, seed)
        (path / name).write_bytes(content)
        if name != layout.test:
            parts.append((images, labels))
    images, labels = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return images, labels


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The four arrays of a set with ten classes, in a folder."""
    rng = np.random.default_rng(7)
    made = {}
    for part, count in (("train", 30), ("test", 10)):
        made[f"{part}_images.npy"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        made[f"{part}_labels.npy"] = np.arange(count) % 10
    path.mkdir(parents=True, exist_ok=True)
    for name, array in made.items():
        np.save(path / name, array)
    return made
