"""Running penalties on the weights: what training pays besides the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import LayeredNetwork


class Penalty(ABC):
    """A differentiable function of a network's weights."""

    @abstractmethod
    def __call__(self, network: LayeredNetwork) -> Tensor:
        """The penalty, a scalar >= 0."""


class WeightDecay(Penalty):
    """coefficient * h sum_k |theta_k|^2: the squared L2(0, T) norm of the control."""

    def __init__(self, coefficient: float = 1e-2) -> None:
        if not (isinstance(coefficient, (int, float)) and 0 <= coefficient < math.inf):
            raise InputError(f"penalty.weight_decay: {coefficient!r} is not a finite number >= 0")
        self.coefficient = float(coefficient)

    def __call__(self, network: LayeredNetwork) -> Tensor:
        total = sum((p.square().sum() for p in network.parameters()), torch.zeros((), dtype=torch.float64))
        return self.coefficient * network.step * total


class StepPenalty(Penalty):
    """weight * sum_k max(0, h |V_k W_k|_F - threshold)^2: keeps the modified equation valid.

    Zero at the default problem's optimum; it only stops an optimiser from leaving the region
    where h |grad f| is small enough for order 2 to describe the chain.
    """

    def __init__(self, weight: float = 10.0, threshold: float = 0.5) -> None:
        self.weight, self.threshold = weight, threshold

    def __call__(self, network: LayeredNetwork) -> Tensor:
        return self.weight * (network.step_size() - self.threshold).clamp(min=0).square().sum()
