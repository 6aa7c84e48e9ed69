"""How long a training on images takes, and how fast it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kolmo.errors import InputError
from kolmo.text import nearest

#: number types of products and convolutions by [images] precision; None: as the weights, float32
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: SGD with Nesterov momentum.

    epochs: passes over the training images. batch: images of a step, of all processes together; what is left
    of an epoch is left out. learning_rate: the largest; it grows linearly over `warmup` epochs and falls to
    0 by a cosine. weight_decay: of convolutions and the head's matrix. precision: of products, weights are
    float32. Raises InputError that names the wrong entry.
    """

    epochs: int = 40
    batch: int = 64
    learning_rate: float = 0.1
    warmup: float = 2.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"images.{name}: {getattr(self, name)!r} is not a positive integer")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"images.learning_rate: {self.learning_rate!r} is not a positive number")
        for name, most in (("warmup", math.inf), ("weight_decay", math.inf), ("momentum", 1.0)):
            if not 0 <= getattr(self, name) < most:
                raise InputError(f"images.{name}: {getattr(self, name)!r} is not a number in [0, {most:g})")
        if self.precision not in PRECISIONS:
            raise InputError(
                f"images.precision: {self.precision!r} is unknown{nearest(self.precision, PRECISIONS)}"
            )

    def rate(self, step: int, per_epoch: int) -> float:
        """The learning rate of a step, counted from 0."""
        total, warmup = self.epochs * per_epoch, self.warmup * per_epoch
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return rise * 0.5 * self.learning_rate * (1 + math.cos(math.pi * step / total))
