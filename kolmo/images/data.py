"""Labelled images: scikit-learn's digits, which come with it, and CIFAR from a local folder.

Pixels stay bytes, as they are stored; `ImageData.normalised` makes numbers of mean 0 and variance 1 of them,
by the statistics of the training images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.text import nearest

#: share of the digits that are test images
DIGITS_TEST = 1 / 3


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W), bytes, and labels (N,), from 0. Raises InputError on anything else."""

    images: Tensor
    labels: Tensor
    name: str = "images"

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or 0 in shape:
            raise InputError(
                f"{self.name}: {self.images.dtype} of shape {shape}, expected bytes (N, C, H, W)"
            )
        if self.labels.shape != shape[:1]:
            raise InputError(f"{self.name}: {shape[0]} images, but labels {tuple(self.labels.shape)}")
        object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageData:
    """Training and test images of one kind, and how they may be moved without changing what they show.

    classes: K, labels are 0..K-1 and all of them occur in training. margin: pixels by which an image may be
    shifted. mirror: whether its mirror image shows the same. mean, std (C,): of the training pixels.
    Raises InputError where the two sets do not go together.
    """

    train: ImageSet
    test: ImageSet
    classes: int
    margin: int
    mirror: bool
    name: str = "images"
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = [tuple(s.images.shape[1:]) for s in (self.train, self.test)]
            raise InputError(f"{self.name}: training images are {shapes[0]}, test images {shapes[1]}")
        for images in (self.train, self.test):
            wrong = ((images.labels < 0) | (images.labels >= self.classes)).nonzero()
            if len(wrong):
                number = int(wrong[0])
                raise InputError(
                    f"{images.name}: image {number} has label {int(images.labels[number])}, "
                    f"expected 0 to {self.classes - 1}"
                )
        present = torch.bincount(self.train.labels, minlength=self.classes)
        if not bool(present.all()):
            missing = int((present == 0).nonzero()[0])
            raise InputError(
                f"{self.train.name}: {int((present > 0).sum())} classes, expected {self.classes}; "
                f"class {missing} has no images"
            )
        # by histograms: as numbers, 50,000 images would take half a gigabyte
        pixels = torch.arange(256, dtype=torch.float64)
        channels = self.train.images.transpose(0, 1).flatten(1)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
        share = counts / counts.sum(dim=1, keepdim=True)
        mean = share @ pixels
        std = (share * (pixels - mean[:, None]) ** 2).sum(dim=1).sqrt()
        if not bool((std > 0).all()):
            raise InputError(f"{self.train.name}: all pixels of a channel are equal")
        object.__setattr__(self, "mean", mean.float())
        object.__setattr__(self, "std", std.float())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) as float32 of about mean 0 and variance 1, channels last in memory."""
        numbers = images.float().contiguous(memory_format=torch.channels_last)
        mean, std = (s.to(images.device)[:, None, None] for s in (self.mean, self.std))
        return (numbers - mean) / std


@lru_cache(maxsize=4)
def digits(seed: int = 0) -> ImageData:
    """1797 handwritten digits of 8 x 8 pixels, a third of every class for testing, drawn by the seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.uint8))[:, None]
    labels, rng = found.target, np.random.default_rng(seed)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(DIGITS_TEST * len(members))
        for part, chosen in zip(parts, (members[cut:], members[:cut]), strict=True):
            part.append(chosen)
    sets = []
    for name, part in zip(("training", "test"), parts, strict=True):
        own = torch.from_numpy(np.sort(np.concatenate(part)))
        sets.append(ImageSet(images[own], torch.from_numpy(labels)[own], f"digits, {name}"))
    # a mirrored 2 is no digit
    return ImageData(sets[0], sets[1], classes=10, margin=1, mirror=False, name="digits")


#: kinds of images by the name that [images] data takes; all but the first are read from a folder
KINDS = ("digits", "cifar10", "cifar100")


def load(kind: str, folder: str | Path = "", seed: int = 0) -> ImageData:
    """Images by name; seed: of the split of the digits. Raises InputError that names the culprit."""
    if kind not in KINDS:
        raise InputError(f"images.data: {kind!r} is unknown{nearest(kind, KINDS)}")
    if kind == "digits":
        if folder:
            raise InputError(f"images.folder: {str(folder)!r} is given, but the digits are not in a folder")
        return digits(seed)
    from kolmo.images import cifar

    return cifar.load(kind, folder)
