r"""What the modified equation is off by in J: the chain against the equation of a finite order.

Three figures, signed like J_chain - J where a sign is known:

- orders: J of order 2 minus J of order 1 (0 for order 1 of a block without second derivatives);
- halving: 2 (J(1) - 2 J(1/2) + J(0)), J(s) with the share s of order 2's correction: s = 1/2 is the network
  of half the step and twice the depth at the same diffusion h C, so this is the part of J that is of
  second order in h, about what order 2 leaves out;
- defect: the chain's own one-step expectation T_k against the equation's, weighted with the density,

      J_chain - J = sum_k <rho_k, T_k u_{k+1} - u_k>  up to products of both errors,

  less what of it the weighted residuals assign to mesh, time and domain. It sees what matters for this
  J, sign included. Source: Braack, Ern, Multiscale Model. Simul. 1 (2003), for the idea.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kolmo.errors import InputError
from kolmo.modified import modified_equation
from kolmo.pde.exact import ExactRecursion
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.pde.residual import Marched, Residuals

#: outcomes of a layer times nodes times layers beyond which the one-step defect is not computed
MOST_WORK = 2e8


@dataclass(frozen=True)
class ModelProbes:
    """Signed figures for J_chain - J_equation; None where there is none."""

    orders: float | None
    halving: float | None
    defect: float | None

    @property
    def estimate(self) -> float:
        """The stated size: the one-step defect, without it the larger of the other two."""
        if self.defect is not None:
            return abs(self.defect)
        return max(abs(self.orders or 0.0), abs(self.halving or 0.0))


def model_error(marched: Marched, found: Residuals) -> ModelProbes:
    """The modelling error of a march whose residuals are `found`.

    Raises InfeasibleError where a probe is refused.
    """
    orders = halving = None
    if _second_order_exists(marched.equation):
        first, half, second = (_value(marched, share) for share in (0.0, 0.5, 1.0))
        orders, halving = second - first, 2 * (second - 2 * half + first)
    return ModelProbes(orders, halving, one_step_defect(marched, found))


def _second_order_exists(equation: BackwardKolmogorov) -> bool:
    problem = equation.problem
    if equation.order == 2:
        return True
    try:
        with torch.no_grad():
            modified_equation(problem.network, problem.noise, problem.data.points[:1], 2, slice(0, 1))
    except InputError:  # a block with one derivative, or a diffusion that varies with x
        return False
    return True


def _value(marched: Marched, share: float) -> float:
    """J on the same mesh with a share of order 2's correction; 0 is order 1."""
    equation = marched.equation
    if share == (equation.correction if equation.order == 2 else 0.0):
        return marched.value
    probe = BackwardKolmogorov(
        equation.problem,
        space=equation.space,
        propagator=equation.propagator,
        limit=False,
        correction=share,
    )
    with torch.no_grad():
        return float(probe.expected_loss())


def one_step_defect(marched: Marched, found: Residuals) -> float | None:
    """The weighted defect of the equation's one-step expectations, signed like J_chain - J; None where a
    layer has no finite sum of outcomes or too long a one."""
    equation, recovery = marched.equation, marched.recovery
    try:
        recursion = ExactRecursion(
            equation.problem, cells=recovery.cells, half_width=recovery.half_width, limit=False
        )
    except InputError:  # the noise does not say its outcomes, or has too many
        return None
    network = equation.problem.network
    if recursion.outcomes() * len(recursion.spline.nodes) * network.depth > MOST_WORK:
        return None

    def ordered(nodal: np.ndarray) -> np.ndarray:
        return recovery.grid(nodal).reshape(-1, nodal.shape[1])

    total, rho = 0.0, equation.initial
    for k, steps in enumerate(marched.trajectory.steps):
        later = None if k + 1 == network.depth else ordered(marched.trajectory.value(k + 1))
        change = recursion.step(k, later) - ordered(marched.trajectory.value(k))
        total += float(np.vdot(ordered(rho), change))
        for _ in range(steps.count):
            rho = steps.forward(rho)
    return total - float(found.layers.sum()) - found.time - found.domain
