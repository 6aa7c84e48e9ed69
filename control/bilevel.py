r"""Choosing a noise by what it is worth on other data: a validation loss's gradient by the strengths.

    min_s V(theta*(s)),   theta*(s) = argmin_theta J(theta, s) + penalties(theta)

By the implicit function theorem, with H the Hessian of the inner objective at theta*,

    dV/ds = -(d^2 J / ds dtheta) w,   H w = grad V(theta*),

one linear system by conjugate gradients with exact products, whatever the number of strengths; the mixed
derivative is a product with the joint Hessian in (theta, s). The same w tells what training that stopped
early is off by: V(theta) - V(theta*) = w . grad(J + penalties) to first order.

Source: Pedregosa, ICML 2016, 1602.02355.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.control.objective import Objective, SecondDerivative
from kolmo.errors import ConditionError, InputError
from kolmo.noise import Controlled
from kolmo.pde.curvature import Curvature
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.penalty import Penalty


class SaddleError(ConditionError):
    """Weights of small slope that are no minimum. direction: of negative curvature, length 1."""

    def __init__(self, direction: np.ndarray) -> None:
        super().__init__(
            "hypergradient: the objective has a direction of negative curvature, the weights are no minimum; "
            "train further, or take a larger weight decay"
        )
        self.direction = direction


@dataclass(frozen=True)
class Hypergradient:
    """Validation loss at theta*(s) and its derivative by the strengths (L,).

    residual: |H w - grad V| / |grad V|. products: Hessian-vector products it took. slope: |grad_theta of the
    inner objective|, which the theorem takes for 0; excess: what V is above its value at the minimum for
    that, to first order.
    """

    value: float
    gradient: np.ndarray
    residual: float
    products: int
    slope: float
    excess: float


def hypergradient(
    equation: BackwardKolmogorov,
    validation: Callable[[], Tensor],
    penalties: Sequence[Penalty] = (),
    *,
    tolerance: float = 1e-8,
    iterations: int = 400,
) -> Hypergradient:
    """dV/ds at the problem's present weights, which minimise the inner objective.

    equation: of a problem whose noise is `Controlled`. validation: V as a torch scalar of the network's
    present weights, such as another equation's `expected_loss`. tolerance, iterations: of the linear system.
    Raises InputError on another noise, ConditionError where the system is not solved or a direction of
    negative curvature is met (the weights are no strict minimum), and InfeasibleError where an equation
    refuses the weights.
    """
    return Inner(equation, penalties).hypergradient(validation, tolerance, iterations)


class Inner(Objective):
    """J + penalties as a function of the weights, at the present strengths of a `Controlled` noise.

    Raises InputError on another noise, or strengths that do not require gradients.
    """

    def __init__(self, equation: BackwardKolmogorov, penalties: Sequence[Penalty] = ()) -> None:
        noise = equation.problem.noise
        if not isinstance(noise, Controlled):
            raise InputError(f"noise {noise.kind!r}: a hypergradient is by the strengths of a Controlled one")
        if not noise.strengths.requires_grad:
            raise InputError("strengths: they do not require gradients")
        super().__init__(equation.problem.network, equation.expected_loss, penalties, self._at_present)
        self.equation, self.strengths = equation, noise.strengths
        self._joint: Curvature | None = None

    def _at_present(self) -> SecondDerivative:
        self._joint = self.equation.curvature(more=[self.strengths])
        return _OfWeights(self._joint, len(self.strengths))

    def hypergradient(
        self, validation: Callable[[], Tensor], tolerance: float, iterations: int
    ) -> Hypergradient:
        """As the function of this name."""
        before, theta = self.products, self.theta
        outer = validation()
        pulled = torch.autograd.grad(outer, list(self.network.parameters()), materialize_grads=True)
        right = torch.cat([g.reshape(-1) for g in pulled]).detach().numpy()
        slope = self.value_and_gradient(theta)[1]
        product = self.hessian(theta)
        assert self._joint is not None
        solution, residual = _conjugate_gradients(product, right, tolerance, iterations)
        self.products += 1
        mixed = self._joint.product(np.concatenate([solution, np.zeros(len(self.strengths))]))[len(theta) :]
        return Hypergradient(
            value=float(outer.detach()),
            gradient=-mixed,
            residual=residual,
            products=self.products - before,
            slope=float(np.linalg.norm(slope)),
            excess=float(solution @ slope),
        )


class _OfWeights:
    """The joint Hessian's block of the weights."""

    def __init__(self, joint: Curvature, more: int) -> None:
        self._joint, self._more = joint, more

    def product(self, direction: np.ndarray) -> np.ndarray:
        """H v."""
        return self._joint.product(np.concatenate([direction, np.zeros(self._more)]))[: len(direction)]


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], right: np.ndarray, tolerance: float, iterations: int
) -> tuple[np.ndarray, float]:
    """w with |H w - right| <= tolerance |right|, and that ratio. Raises ConditionError."""
    solution, left = np.zeros_like(right), right.copy()
    direction, squared = left, float(left @ left)
    scale = max(math.sqrt(squared), float(np.finfo(float).tiny))
    for _ in range(iterations):
        if math.sqrt(squared) <= tolerance * scale:
            break
        curved = product(direction)
        bend = float(direction @ curved)
        if bend <= 0:
            raise SaddleError(direction / np.linalg.norm(direction))
        solution = solution + squared / bend * direction
        left = left - squared / bend * curved
        before, squared = squared, float(left @ left)
        direction = left + squared / before * direction
    ratio = math.sqrt(squared) / scale
    if ratio > tolerance:
        raise ConditionError(
            f"hypergradient: {iterations} iterations leave {ratio:.1g} of the right side, {tolerance:.1g} "
            "are allowed; the weights may be no strict minimum: train further, or take a larger weight decay"
        )
    return solution, ratio
