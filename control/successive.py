r"""The method of successive approximations, in its extended form that converges.

Given weights theta', the value function u (backward Kolmogorov) and the density rho (forward), every layer
for itself minimises the augmented Hamiltonian

    H_k(theta) + gamma / (2 h^2) [ |P u_{k+1} - P' u_{k+1}|^2 + |P^T rho_k - P'^T rho_k|^2 ],
    P = P_k(theta),   P' = P_k(theta'),

with norms of L2 for the value function and of its dual for the density. Without the last two terms layers
change as if the others did not, and the objective may rise; with gamma large enough it falls: gamma is raised
until it does, and lowered after.

Source: Li, Chen, Tai, E, Maximum principle based algorithms for deep learning, 1710.09513: with the
equation's solutions as state and costate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kolmo.control.admissible import Box, layer_of_weights
from kolmo.control.hamiltonian import shares
from kolmo.control.lbfgs import Result, lbfgs
from kolmo.control.objective import Objective
from kolmo.errors import InfeasibleError, InputError
from kolmo.modified import modified_equation
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.penalty import Penalty

#: factors by which gamma is raised after a sweep that fails and lowered after another; most failures in a row
_RAISE, _LOWER, _MOST = 4.0, 0.5, 20
#: share of the decrease that the Hamiltonians promise and the objective has to have
_ARMIJO = 1e-4


@dataclass
class Sweep:
    """What a callback sees after each accepted sweep: gamma is what it took."""

    iteration: int
    theta: np.ndarray
    value: float
    residual: float
    gamma: float
    solves: int


def successive_approximations(
    equation: BackwardKolmogorov,
    penalties: Sequence[Penalty] = (),
    admissible: Box | None = None,
    *,
    iterations: int = 50,
    tolerance: float = 1e-6,
    gamma: float = 0.1,
    inner: int = 10,
    callback: Callable[[Sweep], None] | None = None,
) -> Result:
    """Minimise J + penalties over the problem's weights, in place, layer by layer.

    penalties: sums over layers. admissible: a box. tolerance: on the Euclidean norm of theta - P(theta -
    gradient). gamma: of the first sweep, loss times time. inner: steps of each layer's own minimisation, at
    most. The result counts whole solutions of the equation as evaluations.
    Raises InputError on a bad option or penalty, and InfeasibleError only where the start is refused.
    """
    admissible = Box() if admissible is None else admissible
    if not isinstance(admissible, Box):
        raise InputError(f"admissible: {type(admissible).__name__}, layers are minimised in a box each")
    if not gamma > 0:
        raise InputError(f"gamma: {gamma!r} is not positive")
    objective = Objective(equation.problem.network, equation.expected_loss, penalties)
    layer = layer_of_weights(equation.problem.network)
    theta = admissible.project(objective.theta)
    value, gradient = objective.value_and_gradient(theta)
    refused: dict[str, int] = {}
    status, iteration, solves = "iteration limit", 0, 1
    residual = float(np.linalg.norm(admissible.residual(theta, gradient)))
    while iteration < iterations:
        if residual <= tolerance:
            status = "stationary"
            break
        objective.theta = theta
        solution = equation.solve()
        solves += 1
        for _ in range(_MOST):
            trial, promised = theta.copy(), 0.0
            for k in range(equation.problem.network.depth):
                objective.theta = theta
                part = layer == k
                own = _Layer(
                    equation, penalties, k, part, theta, solution.value[k + 1], solution.density[k], gamma
                )
                before = own.value_and_gradient(theta[part])[0]
                found = lbfgs(own, theta[part], admissible, iterations=inner, tolerance=0.1 * tolerance)  # type: ignore[arg-type]
                trial[part] = found.theta
                promised += before - found.value
            try:
                solves += 1
                new_value, new_gradient = objective.value_and_gradient(trial)
            except InfeasibleError as error:
                reason = type(error).__name__
                refused[reason] = refused.get(reason, 0) + 1
                gamma *= _RAISE
                continue
            if new_value <= value - _ARMIJO * promised:
                break
            gamma *= _RAISE
        else:
            status = "stalled"
            break
        theta, value, gradient = trial, new_value, new_gradient
        iteration += 1
        residual = float(np.linalg.norm(admissible.residual(theta, gradient)))
        if callback is not None:
            callback(Sweep(iteration, theta, value, residual, gamma, solves))
        gamma *= _LOWER
    objective.theta = theta
    return Result(theta, value, residual, iteration, solves, status, refused)


class _Layer:
    """h times the augmented Hamiltonian of one layer as a function of its weights, as `lbfgs` takes it."""

    def __init__(
        self,
        equation: BackwardKolmogorov,
        penalties: Sequence[Penalty],
        layer: int,
        part: np.ndarray,
        theta: np.ndarray,
        u: np.ndarray,
        rho: np.ndarray,
        gamma: float,
    ) -> None:
        self._equation, self._penalties, self._layer, self._part = equation, penalties, layer, part
        self._whole, self._u, self._rho = theta.copy(), u, rho
        self._weight = gamma / equation.problem.network.step
        self._network = equation.problem.network
        self._parameters = list(self._network.parameters())
        self._mass = equation.space.lumped_mass[:, None]
        self.evaluations = 0
        _, self._before, self._after = self._march()

    @property
    def theta(self) -> np.ndarray:
        """The layer's weights."""
        return self._whole[self._part]

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        self._whole[self._part] = theta
        torch.nn.utils.vector_to_parameters(torch.from_numpy(self._whole), self._parameters)

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Raises InfeasibleError where the layer needs too many substeps."""
        self.theta = theta
        self.evaluations += 1
        coefficients, u, rho = self._march()
        of_value, of_density = u - self._before, rho - self._after
        value = float(np.vdot(self._rho, u - self._u))
        value += (
            0.5 * self._weight * float((self._mass * of_value**2).sum() + (of_density**2 / self._mass).sum())
        )
        cotangent = self._cotangent(self._rho + self._weight * self._mass * of_value, self._u)
        cotangent = cotangent + self._cotangent(self._rho, self._weight * of_density / self._mass)
        pulls = [
            torch.from_numpy(p)[None]
            for p in self._equation.space.pullback(cotangent, coefficients[1].ndim == 3)
        ]
        total = sum((c * p).sum() for c, p in zip(coefficients, pulls, strict=True))
        for penalty in self._penalties:
            value += float(shares(penalty, self._network)[self._layer])
            total = total + penalty.by_layer(self._network)[self._layer]  # type: ignore[attr-defined]
        gradients = torch.autograd.grad(total, self._parameters)  # type: ignore[arg-type]
        whole = torch.cat([g.reshape(-1) for g in gradients]).numpy()
        return value, whole[self._part]

    def _march(self) -> tuple[tuple[torch.Tensor, torch.Tensor], np.ndarray, np.ndarray]:
        """The layer's coefficients, u one layer earlier and rho one layer later."""
        equation, here = self._equation, slice(self._layer, self._layer + 1)
        which = (equation.order, here, equation.correction)
        points, noise = equation.nodal.points, equation.problem.noise
        found = equation.taper(modified_equation(self._network, noise, points, *which, fixed=True))
        drift, diffusion = found.drift.detach().numpy(), found.diffusion.detach().numpy()
        self._steps = equation.steps(drift, diffusion, self._network.step)[0]
        u, rho = self._u, self._rho
        for _ in range(self._steps.count):
            u, rho = self._steps.backward(u), self._steps.forward(rho)
        return (found.drift, found.diffusion), u, rho

    def _cotangent(self, rho: np.ndarray, u: np.ndarray) -> np.ndarray:
        """d/dK of <rho, P(K) u>."""
        states, total = [u], None
        for _ in range(self._steps.count - 1):
            states.append(self._steps.backward(states[-1]))
        for state in reversed(states):
            rho, part = self._steps.adjoint(rho, state)
            total = part if total is None else total + part
        assert total is not None
        return total
