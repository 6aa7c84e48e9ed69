"""CIFAR-10 and CIFAR-100 from a local folder: the binary version, or four arrays in numpy's format.

A record of the binary version is one byte with the label (CIFAR-100: two, the coarse label first) and 3072
bytes with the pixels: 32 rows of 32 of red, then green, then blue. The version for Python is pickled; it is
not read, for unpickling executes what a file says.

Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kolmo import memory, reading
from kolmo.errors import InputError
from kolmo.images.data import ImageData, ImageSet

SHAPE = (3, 32, 32)
_PIXELS = 3072
#: the four arrays: images (N, 32, 32, 3), bytes, and labels (N,), integers
ARRAYS = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")


@dataclass(frozen=True)
class Layout:
    """Files of the binary version, in the folder that its archive unpacks to.

    labels: bytes with labels in a record, of which the last one counts. md5: of the archive. pickled: folder
    of the version for Python and a file in it, by which it is recognised.
    """

    title: str
    classes: int
    labels: int
    train: tuple[str, ...]
    test: str
    folder: str
    archive: str
    md5: str
    pickled: tuple[str, str]

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return self.labels + _PIXELS

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test)

    def expected(self) -> str:
        """The layout in words, for messages."""
        files = f"{self.train[0]} to {self.train[-1]}" if len(self.train) > 1 else self.train[0]
        archive = f"unpack {self.archive}, MD5 {self.md5}"
        return f"expected {files} and {self.test} ({archive}), or {', '.join(ARRAYS)}"


LAYOUTS = {
    "cifar10": Layout(
        "CIFAR-10", 10, 1, tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin",
        "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
        ("cifar-10-batches-py", "data_batch_1"),
    ),
    "cifar100": Layout(
        "CIFAR-100", 100, 2, ("train.bin",), "test.bin", "cifar-100-binary", "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8", ("cifar-100-python", "train"),
    ),
}  # fmt: skip


def load(kind: str, folder: str | Path) -> ImageData:
    """Training and test images from a folder, or from the archive's own folder inside it.

    kind: 'cifar10' or 'cifar100'. Raises InputError in one line where the folder or a file is missing, a file
    is cut off, or its labels are not those of this set.
    """
    layout = LAYOUTS[kind]
    if not str(folder):
        raise InputError(
            f"images.folder: empty, expected the folder with {layout.title}; {layout.expected()}"
        )
    found = _find(Path(folder), layout)
    if (found / layout.test).exists() or any((found / name).exists() for name in layout.train):
        train, test = _binary(found, layout)
    else:
        train, test = _arrays(found)
    return ImageData(train, test, layout.classes, margin=4, mirror=True, name=layout.title)


def _find(folder: Path, layout: Layout) -> Path:
    """Where the files are. Raises InputError that says what was expected."""
    if not reading.is_folder(folder):
        raise InputError(f"{folder}: no such folder with {layout.title}; {layout.expected()}")
    for place in (folder, folder / layout.folder):
        if any((place / name).exists() for name in (*layout.files, *ARRAYS)):
            return place
    inner, file = layout.pickled
    if (folder / file).exists() or (folder / inner / file).exists():
        raise InputError(
            f"{folder}: {layout.title} for Python, which is pickled and not read, for unpickling executes "
            f"what a file says; take the binary version ({layout.archive}, MD5 {layout.md5})"
        )
    raise InputError(f"{folder}: no {layout.title} in it; {layout.expected()}")


def _binary(folder: Path, layout: Layout) -> tuple[ImageSet, ImageSet]:
    sizes = {name: _records(folder / name, layout) for name in layout.files}
    most = max(sizes[name] for name in layout.train)
    for name in layout.train:
        if sizes[name] != most:
            raise InputError(
                f"{folder / name}: {sizes[name]} records, another of the batches has {most}: cut off?"
            )
    # as read, the images of each file on their own, and all of them in one piece
    total = 3 * layout.record * sum(sizes.values())
    memory.require(total, f"{folder}: {sum(sizes.values())} images", "take a machine with more memory")
    parts = [_read(folder / name, layout) for name in layout.train]
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return ImageSet(images, labels, str(folder / layout.train[0])), _read(folder / layout.test, layout)


def _records(path: Path, layout: Layout) -> int:
    """Whole records in a file. Raises InputError where there are none, or not only whole ones."""
    try:
        with reading.opened(path) as file:
            size = reading.size(file)
    except InputError as error:
        raise InputError(f"{error}; {layout.expected()}") from error
    if size == 0 or size % layout.record:
        raise InputError(
            f"{path}: {size} bytes, expected whole records of {layout.record} bytes "
            f"({layout.title} has {10_000 if len(layout.train) > 1 else 50_000} of them in "
            f"{layout.train[0]}): cut off, or another file"
        )
    return size // layout.record


def _read(path: Path, layout: Layout) -> ImageSet:
    with reading.opened(path) as file:
        records = np.frombuffer(bytearray(file.read()), np.uint8).reshape(-1, layout.record)
    labels = records[:, layout.labels - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= layout.classes)
    if len(wrong):
        number = int(wrong[0])
        raise InputError(
            f"{path}: record {number} has label {labels[number]}, expected 0 to {layout.classes - 1}"
        )
    images = torch.from_numpy(np.ascontiguousarray(records[:, layout.labels :])).reshape(-1, *SHAPE)
    return ImageSet(images, torch.from_numpy(labels), str(path))


def _arrays(folder: Path) -> tuple[ImageSet, ImageSet]:
    images, labels = {}, {}
    for name in ARRAYS:
        part, what = name.removesuffix(".npy").split("_")
        array = _array(folder / name)
        if what == "images":
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (32, 32, 3):
                raise InputError(
                    f"{folder / name}: {array.dtype} of shape {array.shape}, expected uint8 (N, 32, 32, 3)"
                )
            memory.require(2 * array.size, f"{folder / name}: {len(array)} images", "take fewer of them")
            images[part] = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
        else:
            if array.dtype.kind not in "iu" or array.ndim != 1:
                raise InputError(
                    f"{folder / name}: {array.dtype} of shape {array.shape}, expected integers (N,)"
                )
            labels[part] = torch.from_numpy(array.astype(np.int64))
    train, test = (
        ImageSet(images[part], labels[part], str(folder / f"{part}_labels.npy")) for part in ("train", "test")
    )
    return train, test


def _array(path: Path) -> np.ndarray:
    """An array as it lies in its file, nothing of it read yet and nothing unpickled."""
    reading.opened(path).close()
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: cut off, pickled or not in numpy's format") from error
