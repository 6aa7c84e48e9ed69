r"""Choosing a noise by what it is worth on other data: a validation loss's gradient by the strengths.

    min_s V(theta*(s)),   theta*(s) = argmin_theta J(theta, s) + penalties(theta)

By the implicit function theorem, with H the Hessian of the inner objective at theta*,

    dV/ds = -(d^2 J / ds dtheta) w,   H w = grad V(theta*),

one linear system by conjugate gradients with exact products, whatever the number of strengths; the mixed
derivative is a product with the joint Hessian in (theta, s). Source: Pedregosa, ICML 2016, 1602.02355.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg as spla
import torch
from torch import Tensor

from kolmo.control.objective import Objective
from kolmo.errors import ConditionError, InputError
from kolmo.noise import Controlled
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.penalty import Penalty


@dataclass(frozen=True)
class Hypergradient:
    """Validation loss at theta*(s) and its derivative by the strengths (L,).

    residual: |H w - grad V| / |grad V|. products: Hessian-vector products it took. slope: |grad_theta of the
    inner objective|, which the theorem takes for 0.
    """

    value: float
    gradient: np.ndarray
    residual: float
    products: int
    slope: float


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
    Raises InputError on another noise, ConditionError where the system is not solved (the weights are no
    strict minimum), and InfeasibleError where an equation refuses the weights.
    """
    problem = equation.problem
    if not isinstance(problem.noise, Controlled):
        raise InputError(
            f"noise {problem.noise.kind!r}: a hypergradient is by the strengths of a Controlled one"
        )
    strengths = problem.noise.strengths
    if not strengths.requires_grad:
        raise InputError("strengths: they do not require gradients")
    weights = list(problem.network.parameters())
    outer = validation()
    pulled = torch.autograd.grad(outer, weights, materialize_grads=True)
    right = torch.cat([g.reshape(-1) for g in pulled]).numpy()
    size = len(right)
    curvature = equation.curvature(more=[strengths])
    inner = Objective(
        problem.network,
        equation.expected_loss,
        penalties,
        second=lambda: _Inner(curvature.product, size, len(strengths)),
    )
    theta = inner.theta
    slope = float(np.linalg.norm(inner.value_and_gradient(theta)[1]))
    product = inner.hessian(theta)
    operator = spla.LinearOperator((size, size), matvec=lambda v: product(v.reshape(-1)), dtype=np.float64)
    norm = float(np.linalg.norm(right))
    solution, _ = spla.minres(operator, right, rtol=0.1 * tolerance, maxiter=iterations)
    residual = float(np.linalg.norm(product(solution) - right)) / max(norm, float(np.finfo(float).tiny))
    if not residual <= tolerance and norm > 0:
        raise ConditionError(
            f"hypergradient: {iterations} iterations leave {residual:.1g} of the right side, {tolerance:.1g} "
            "are allowed; the weights may be no strict minimum: train further, or take a larger weight decay"
        )
    mixed = curvature.product(np.concatenate([solution, np.zeros(len(strengths))]))[size:]
    return Hypergradient(float(outer.detach()), -mixed, residual, curvature.products, slope)


class _Inner:
    """The joint Hessian's block of the weights."""

    def __init__(self, product: Callable[[np.ndarray], np.ndarray], size: int, more: int) -> None:
        self._product, self._size, self._more = product, size, more

    def product(self, direction: np.ndarray) -> np.ndarray:
        return self._product(np.concatenate([direction, np.zeros(self._more)]))[: self._size]
