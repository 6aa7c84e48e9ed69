"""Random shifts and mirror images, of a whole batch at once.

The usual augmentation: an image is padded with `margin` pixels of the mean colour on every side, cut to its
size again at a random place, and mirrored with probability 1/2 where its mirror image shows the same. The
random numbers are addressed by (seed, sample), as those of the noise: sample n of a training is moved alike
in batches of any size, on any device and in any process.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from kolmo.errors import InputError
from kolmo.images.data import ImageData
from kolmo.stream import Stream, mix

_PURPOSE = 1


class Augmentation:
    """Moves normalised images of one kind of data; seed: of all its random numbers."""

    def __init__(self, data: ImageData, seed: int) -> None:
        self.margin, self.mirror = data.margin, data.mirror
        self._seed = mix(seed, _PURPOSE)

    def __call__(self, images: Tensor, first: int) -> Tensor:
        """Samples first, first + 1, ... of a training: normalised images (N, C, H, W), moved."""
        stream = Stream(self._seed, first, len(images), device=images.device)
        drawn = stream.layer(0).uniform(3)
        shifts = (drawn[:, :2] * (2 * self.margin + 1)).long()
        return moved(images, shifts, drawn[:, 2] < 0.5 if self.mirror else None, self.margin)


def moved(images: Tensor, shifts: Tensor, mirrored: Tensor | None, margin: int) -> Tensor:
    """Image n cut out at (row, column) shifts[n] of the padded one, then mirrored where mirrored[n].

    images: (N, C, H, W), padded with 0, the mean. shifts: (N, 2), integers from 0 to 2 margin; `margin`
    leaves an image where it is. Gives (N, C, H, W), channels last in memory. Raises InputError at other
    shifts.
    """
    height, width = images.shape[2:]
    if bool(((shifts < 0) | (shifts > 2 * margin)).any()):
        raise InputError(f"augmentation: shifts beyond 0 to {2 * margin}")
    padded = pad(images, (margin, margin, margin, margin))
    rows = shifts[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    columns = columns + shifts[:, 1:]
    number = torch.arange(len(images), device=images.device)[:, None, None]
    # indices around the channels put these last: (N, H, W, C)
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
