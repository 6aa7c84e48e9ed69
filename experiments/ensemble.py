r"""Classifiers of a noisy network at test time: one pass without noise, averages of passes, and their limit.

    p_N(x) = 1/N sum_n sigma(s X_L^n . e_1),  X_0^n = x,      p_N -> u(x, 0) as N grows,

where u solves the backward Kolmogorov equation with u(., T) = sigma(s x_1): the ensemble is Feynman and Kac's
formula, sampled. What an attacker follows is the gradient of p_N, or grad u in the limit.
Source: Wang, Yuan, Shi, Osher, 1811.10745; Madry et al., 1706.06083, for the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.loss import Logistic, Loss
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import choose_half_width
from kolmo.pde.recovery import Recovery
from kolmo.problem import Problem
from kolmo.stream import Stream, mix

#: x (Q, d) -> probability of label 1 (Q,), differentiable by x
Classifier = Callable[[Tensor], Tensor]


class Probability(Loss):
    """Phi_y(x) = sigma(s (2y - 1) x_1)^power: the probability of label y by the features, or its square."""

    kind = "probability"

    def __init__(self, scale: float, power: int = 1) -> None:
        self.scale, self.power = scale, power

    def __call__(self, x: Tensor, label: Tensor | int) -> Tensor:
        sign = 2 * torch.as_tensor(label, dtype=x.dtype) - 1
        return torch.sigmoid(self.scale * sign * x[..., 0]) ** self.power


def _scale(problem: Problem) -> float:
    if not isinstance(problem.loss, Logistic):
        raise InputError(f"loss {problem.loss.kind!r}: the ensemble's probabilities are of the logistic one")
    return problem.loss.scale


def single(problem: Problem) -> Classifier:
    """One pass through the network without noise."""
    scale = _scale(problem)
    return lambda x: torch.sigmoid(scale * problem.network(x)[..., 0])


class Ensemble:
    """The average of `members` noisy passes, each point with noise of its own, fresh in every call.

    Raises InputError on another loss than the logistic one, or fewer than one member.
    """

    def __init__(self, problem: Problem, members: int, seed: int = 0) -> None:
        if members < 1:
            raise InputError(f"members: {members!r} is not a positive number")
        self._problem, self.members, self._scale = problem, members, _scale(problem)
        self._seed, self._drawn = mix(seed), 0

    def __call__(self, x: Tensor) -> Tensor:
        problem, count = self._problem, self.members * len(x)
        stream = Stream(self._seed, self._drawn, count)
        self._drawn += count
        state = x.repeat(self.members, 1)
        for layer in range(problem.network.depth):
            state = state + problem.noise.sample(problem.network, layer, state, stream.layer(layer))
        return torch.sigmoid(self._scale * state[:, 0]).reshape(self.members, -1).mean(dim=0)


class Limit:
    """The limit u(x, 0) of all ensembles, and the variance of a single pass, by the equation.

    reach: |x_i| up to which points are asked for. keys: of `BackwardKolmogorov`.
    Raises InputError on another loss than the logistic one, and InfeasibleError.
    """

    def __init__(self, problem: Problem, reach: float, **keys: Any) -> None:
        scale = _scale(problem)
        width = max(choose_half_width(problem), 1.1 * reach)
        self._moments = []
        for power in (1, 2):
            terminal = Problem(problem.data, problem.network, problem.noise, Probability(scale, power))
            equation = BackwardKolmogorov(terminal, half_width=width, **keys)
            with torch.no_grad():
                equation.expected_loss()
            assert equation.last is not None
            self._moments.append(equation.last.initial[:, 1:])
        self.recovery = Recovery(equation.space)

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = _Spline.apply(x, self)
        return found

    def value(self, points: np.ndarray) -> np.ndarray:
        """u at points (Q, d): shape (Q,)."""
        return self.recovery.at(self._moments[0], points)[:, 0]

    def slope(self, points: np.ndarray) -> np.ndarray:
        """grad u at points (Q, d): shape (Q, d)."""
        return self.recovery.slopes(self._moments[0], points)[:, 0]

    def variance(self, points: np.ndarray) -> np.ndarray:
        """Of one noisy pass's probability at points (Q, d): shape (Q,), >= 0."""
        second = self.recovery.at(self._moments[1], points)[:, 0]
        return np.maximum(second - self.value(points) ** 2, 0.0)


class _Spline(torch.autograd.Function):
    """u at points, with grad u."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Limit) -> Tensor:
        points = x.detach().numpy()
        if x.requires_grad:
            ctx.slope = torch.from_numpy(limit.slope(points))
        return torch.from_numpy(limit.value(points))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        return scale[:, None] * ctx.slope, None


def error(classifier: Classifier, x: Tensor, labels: Tensor) -> Tensor:
    """The probability of the wrong label at each point, shape (Q,)."""
    p = classifier(x)
    return torch.where(labels == 1, 1 - p, p)


def accuracy(classifier: Classifier, x: Tensor, labels: Tensor) -> float:
    """Share of the points on their label's side of 1/2."""
    with torch.no_grad():
        return float(((classifier(x) > 0.5).long() == labels).double().mean())


def attack(classifier: Classifier, x: Tensor, labels: Tensor, radius: float, steps: int = 10) -> Tensor:
    """Points within `radius` (Euclidean) of x that raise the error: projected gradient ascent.

    steps: of length 2.5 radius / steps each, along the normalised gradient, from x itself. The cross entropy
    has the same directions.
    """
    moved = x.clone()
    for _ in range(steps if radius > 0 else 0):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(error(classifier, moved, labels).sum(), moved)
        norm = slope.norm(dim=1, keepdim=True).clamp(min=1e-30)
        shift = moved.detach() + 2.5 * radius / steps * slope / norm - x
        moved = x + shift * (radius / shift.norm(dim=1, keepdim=True).clamp(min=radius))
    return moved.detach()
