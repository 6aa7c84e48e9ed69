"""Terminal losses Phi_y(x): what the last features cost, by label y in {0, 1}."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.text import shown


class Loss(ABC):
    """Phi_y(x) for features x (..., d) and a label 0 or 1."""

    kind: str

    @abstractmethod
    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        """Loss of each point: x (..., d), label broadcastable to (...): shape (...)."""

    def predict(self, x: Tensor) -> Tensor:
        """The label whose loss is smaller, shape (...)."""
        return (self(x, 1) < self(x, 0)).long()

    @property
    def controls(self) -> tuple[Tensor, ...]:
        """The parameters that require gradients."""
        return ()

    def settings(self) -> dict[str, object]:
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

    def settings(self) -> dict[str, object]:
        return {"scale": self.scale}


class LogisticHead(Loss):
    """softplus(-(2y - 1)(w . x + c)): the logistic loss of the classifier sign(w . x + c).

    weight: w (d,); bias: c (). Numbers, or float64 tensors that are controls when they require gradients.
    Raises InputError on another shape or a number that is not finite.
    """

    kind = "logistic_head"

    def __init__(self, weight: object, bias: object = 0.0) -> None:
        self.weight = _finite("weight", weight, 1)
        self.bias = _finite("bias", bias, 0)

    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        if x.shape[-1] != len(self.weight):
            raise InputError(f"loss.weight: {len(self.weight)} values, the features have {x.shape[-1]}")
        sign = 2 * torch.as_tensor(label, dtype=x.dtype, device=x.device) - 1
        return torch.nn.functional.softplus(-sign * (x @ self.weight.to(x) + self.bias.to(x)))

    @property
    def controls(self) -> tuple[Tensor, ...]:
        return tuple(p for p in (self.weight, self.bias) if p.requires_grad)

    def settings(self) -> dict[str, object]:
        return {"weight": self.weight.tolist(), "bias": float(self.bias.detach())}


def _finite(name: str, given: object, axes: int) -> Tensor:
    expected = "a number" if axes == 0 else "a list of numbers, one a feature"
    try:
        found = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"loss.{name}: {shown(given)} is not {expected}") from None
    if found.dtype != torch.float64 or found.ndim != axes or not bool(torch.isfinite(found).all()):
        raise InputError(f"loss.{name}: {shown(given)} is not {expected}, finite and float64")
    return found


class LeastSquares(Loss):
    """1/2 |x_1 - (2y - 1)|^2: quadratic, for the closed forms."""

    kind = "least_squares"

    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        target = 2 * torch.as_tensor(label, dtype=x.dtype, device=x.device) - 1
        return 0.5 * (x[..., 0] - target).square()
