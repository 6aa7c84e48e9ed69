"""The reduced objective theta -> J(theta) + penalties, as optimisers see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError, NonFiniteError
from kolmo.network import LayeredNetwork
from kolmo.penalty import Penalty
from kolmo.profile import section


class Objective:
    """An estimator of J plus penalties, as a function of one vector of weights.

    estimator: any callable that returns J as a torch scalar for the network's present
    weights, such as `BackwardKolmogorov(problem).expected_loss`. Evaluations are counted.
    """

    def __init__(
        self,
        network: LayeredNetwork,
        estimator: Callable[[], Tensor],
        penalties: Sequence[Penalty] = (),
    ) -> None:
        self.network, self.estimator, self.penalties = network, estimator, tuple(penalties)
        self._parameters = list(network.parameters())
        self.evaluations = 0

    @property
    def theta(self) -> np.ndarray:
        """The network's weights as one vector, float64."""
        return torch.nn.utils.parameters_to_vector(self._parameters).detach().numpy().copy()

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        size = sum(p.numel() for p in self._parameters)
        if np.shape(theta) != (size,):
            raise InputError(f"theta: shape {np.shape(theta)}, the network has {size} weights")
        torch.nn.utils.vector_to_parameters(torch.as_tensor(theta, dtype=torch.float64), self._parameters)

    def value(self, theta: np.ndarray) -> float:
        """J + penalties at theta. Raises InfeasibleError where the estimator refuses theta."""
        self.theta = theta
        self.evaluations += 1
        with torch.no_grad():
            return _finite(float(self._total()))

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """J + penalties and their gradient at theta. Raises InfeasibleError like `value`."""
        self.theta = theta
        self.evaluations += 1
        total = self._total()
        with section("network backward"):  # but for the estimator's own adjoint, a section within
            gradients = torch.autograd.grad(total, self._parameters)
        gradient = torch.cat([g.reshape(-1) for g in gradients]).numpy()
        _finite(float(np.abs(gradient).max()))
        return _finite(float(total.detach())), gradient

    def _total(self) -> Tensor:
        total = self.estimator()
        for penalty in self.penalties:
            total = total + penalty(self.network)
        return total


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise NonFiniteError("the objective or its gradient is not finite; take smaller weights")
    return value
