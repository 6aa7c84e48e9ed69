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
        return self.coefficient * network.time_step * total

    def by_layer(self, network: LayeredNetwork) -> Tensor:
        """Every layer's part (L,), of parameters with the layers on their first axis."""
        parts = [p.square().reshape(network.depth, -1).sum(dim=1) for p in network.parameters()]
        return self.coefficient * network.time_step * torch.stack(parts).sum(dim=0)


class StepPenalty(Penalty):
    """weight * sum_k max(0, h |V_k W_k|_F - threshold)^2: keeps the modified equation valid.

    Zero at the default problem's optimum; it only stops an optimiser from leaving the region
    where h |grad f| is small enough for order 2 to describe the chain.
    """

    def __init__(self, weight: float = 10.0, threshold: float = 0.5) -> None:
        self.weight, self.threshold = weight, threshold

    def __call__(self, network: LayeredNetwork) -> Tensor:
        return self.by_layer(network).sum()

    def by_layer(self, network: LayeredNetwork) -> Tensor:
        """Every layer's part (L,)."""
        return self.weight * (network.step_size() - self.threshold).clamp(min=0).square()


class DepthSmoothness(Penalty):
    r"""coefficient * sum_k |theta_{k+1} - theta_k|^2 / h: the squared H1(0, T) seminorm of the control.

    With it and weight decay controls are bounded in H1(0, T): minimising sequences converge, and the
    continuous problem has a solution.
    Parameters have the layers on their first axis, coefficient is a finite number >= 0: else InputError.
    """

    def __init__(self, coefficient: float) -> None:
        if not (isinstance(coefficient, (int, float)) and 0 <= coefficient < math.inf):
            raise InputError(f"penalty.depth_smoothness: {coefficient!r} is not a finite number >= 0")
        self.coefficient = float(coefficient)

    def __call__(self, network: LayeredNetwork) -> Tensor:
        for name, p in network.named_parameters():
            if p.shape[:1] != (network.depth,):
                shape = tuple(p.shape)
                raise InputError(
                    f"penalty.depth_smoothness: {name} has shape {shape}, not {network.depth} layers first"
                )
        zero = torch.zeros((), dtype=torch.float64)
        total = sum(((p[1:] - p[:-1]).square().sum() for p in network.parameters()), zero)
        return self.coefficient / network.time_step * total
