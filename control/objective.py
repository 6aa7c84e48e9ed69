"""The reduced objective theta -> J(theta) + penalties, as optimisers see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError, NonFiniteError
from kolmo.network import LayeredNetwork
from kolmo.penalty import Penalty
from kolmo.profile import section


class SecondDerivative(Protocol):
    """The Hessian of J at fixed weights, as products with vectors of them."""

    def product(self, direction: np.ndarray) -> np.ndarray:
        """H v."""


class Objective:
    """An estimator of J plus penalties, as a function of one vector of weights.

    estimator: any callable that returns J as a torch scalar for the network's present
    weights, such as `BackwardKolmogorov(problem).expected_loss`. second: makes J's `SecondDerivative` at the
    present weights, such as `equation.curvature`; only methods of second order ask for it. more: tensors that
    are controls too, behind the weights in the vector, such as the problem's `controls`; `second` is then
    `partial(equation.curvature, more=more)`. Evaluations of value or gradient, second derivatives made, and
    products with them are counted.
    """

    def __init__(
        self,
        network: LayeredNetwork,
        estimator: Callable[[], Tensor],
        penalties: Sequence[Penalty] = (),
        second: Callable[[], SecondDerivative] | None = None,
        more: Sequence[Tensor] = (),
    ) -> None:
        self.network, self.estimator, self.penalties = network, estimator, tuple(penalties)
        self._second = second
        self._parameters = [*network.parameters(), *more]
        self.evaluations, self.curvatures, self.products = 0, 0, 0

    @property
    def theta(self) -> np.ndarray:
        """The network's weights, and more controls, as one vector, float64."""
        return torch.nn.utils.parameters_to_vector(self._parameters).detach().cpu().numpy().copy()

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        size = sum(p.numel() for p in self._parameters)
        if np.shape(theta) != (size,):
            raise InputError(f"theta: shape {np.shape(theta)}, expected a vector of {size} weights")
        device = self._parameters[0].device
        flat = torch.as_tensor(theta, dtype=torch.float64, device=device)
        torch.nn.utils.vector_to_parameters(flat, self._parameters)

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
            gradients = torch.autograd.grad(total, self._parameters, allow_unused=True)
        for number, found in enumerate(gradients):
            if found is None:
                raise InputError(
                    f"objective: the estimator gives no derivative by control {number} of "
                    f"{len(gradients)}, shape {tuple(self._parameters[number].shape)}"
                )
        gradient = torch.cat([g.reshape(-1) for g in gradients]).cpu().numpy()
        _finite(float(np.abs(gradient).max()))
        return _finite(float(total.detach())), gradient

    def hessian(self, theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """v -> H v, H the Hessian of J + penalties at theta.

        Raises InputError where the estimator has no second derivative, InfeasibleError like `value`.
        """
        if self._second is None:
            raise InputError("objective: methods of second order need `second`, such as equation.curvature")
        self.theta = theta
        self.curvatures += 1
        curvature = self._second()
        zero = torch.zeros((), dtype=torch.float64)
        penalty = sum((penalty(self.network) for penalty in self.penalties), zero)
        slope: Tensor | None = None
        if penalty.requires_grad:
            parts = torch.autograd.grad(penalty, self._parameters, create_graph=True, materialize_grads=True)
            slope = torch.cat([p.reshape(-1) for p in parts])

        def product(v: np.ndarray) -> np.ndarray:
            self.products += 1
            found = curvature.product(v)
            if slope is not None and slope.requires_grad:
                along = slope @ torch.as_tensor(v, dtype=torch.float64)
                parts = torch.autograd.grad(
                    along, self._parameters, retain_graph=True, materialize_grads=True
                )
                found = found + torch.cat([p.reshape(-1) for p in parts]).detach().numpy()
            _finite(float(np.abs(found).max()))
            return found

        return product

    def _total(self) -> Tensor:
        total = self.estimator()
        for penalty in self.penalties:
            total = total + penalty(self.network)
        return total


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise NonFiniteError("the objective or its gradient is not finite; take smaller weights")
    return value
