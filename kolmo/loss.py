"""Terminal losses Phi_y(x): what the last features cost, by label y in {0, 1}."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kolmo.errors import InputError


class Loss(ABC):
    """Phi_y(x) for features x (..., d) and a label 0 or 1."""

    kind: str

    @abstractmethod
    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        """Loss of each point: x (..., d), label broadcastable to (...): shape (...)."""

    def predict(self, x: Tensor) -> Tensor:
        """The label whose loss is smaller, shape (...)."""
        return (self(x, 1) < self(x, 0)).long()

    def settings(self) -> dict[str, float]:
        """The keys of [loss] in problem.toml, without `kind`."""
        return {}


class Logistic(Loss):
    """softplus(-s (2y - 1) x_1): the logistic loss of the classifier sign(x_1); s = scale > 0."""

    kind = "logistic"

    def __init__(self, scale: float = 4.0) -> None:
        if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 < scale < math.inf:
            raise InputError(f"loss.scale: {scale!r} is not a finite number > 0")
        self.scale = float(scale)

    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        sign = 2 * torch.as_tensor(label, dtype=x.dtype, device=x.device) - 1
        return torch.nn.functional.softplus(-self.scale * sign * x[..., 0])

    def settings(self) -> dict[str, float]:
        return {"scale": self.scale}


class LeastSquares(Loss):
    """1/2 |x_1 - (2y - 1)|^2: quadratic, for the closed forms."""

    kind = "least_squares"

    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        target = 2 * torch.as_tensor(label, dtype=x.dtype, device=x.device) - 1
        return 0.5 * (x[..., 0] - target).square()
