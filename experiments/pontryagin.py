r"""The derivative of Pontryagin's Hamiltonian by the weights, from nothing but marches through single layers.

With the value function u and the density rho of the present weights held,

    H_k(theta) = [<rho_k, P_k(theta) u_{k+1}> - <rho_k, u_{k+1}>] / h + penalty_k(theta) / h

is differentiated by central differences. Neither an adjoint nor automatic differentiation enters: it is a
check on both. Of affine layers under a quadratic loss H_k is a parabola, and the differences are exact; of
other networks they are of fourth order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kolmo.control.hamiltonian import shares
from kolmo.pde import BackwardKolmogorov
from kolmo.penalty import Penalty

#: half the distance of the two weights that a difference is taken of; of the nearest two of four
_STEP, _NEAR = 0.1, 1e-4


def hamiltonian_slope(equation: BackwardKolmogorov, penalties: Sequence[Penalty]) -> np.ndarray:
    """dH_k/dtheta_k of every layer (L m,), loss per time and weight, for a network of weights (L, m).

    Raises InputError on a penalty that is not a sum over layers, InfeasibleError where weights are refused.
    """
    network = equation.problem.network
    (theta,) = network.parameters()
    solved = equation.solve()
    slope = np.empty(theta.shape)
    for component in range(theta.shape[1]):
        ends = []
        for step in (_STEP, -_STEP):
            with torch.no_grad():
                theta[:, component] += step
                ends.append(_carried(equation, solved.value, solved.density))
                ends[-1] += sum((shares(penalty, network) for penalty in penalties), np.zeros(len(theta)))
                theta[:, component] -= step
        slope[:, component] = (ends[0] - ends[1]) / (2 * _STEP * network.step)
    return slope.ravel()


def slope_along(
    equation: BackwardKolmogorov, penalties: Sequence[Penalty], direction: np.ndarray
) -> np.ndarray:
    """dH_k/dtheta_k . v_k of every layer (L,), loss per time, along a direction v (n,) of all weights.

    By four-point differences. Raises as `hamiltonian_slope`.
    """
    network = equation.problem.network
    solved = equation.solve()
    total = np.zeros(network.depth)
    with torch.no_grad():
        theta = torch.nn.utils.parameters_to_vector(network.parameters())
        for multiple, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            moved = theta + multiple * _NEAR * torch.from_numpy(direction)
            torch.nn.utils.vector_to_parameters(moved, network.parameters())
            paid = sum((shares(penalty, network) for penalty in penalties), np.zeros(network.depth))
            total += weight * (_carried(equation, solved.value, solved.density) + paid)
        torch.nn.utils.vector_to_parameters(theta, network.parameters())
    return total / (12 * _NEAR * network.step)


def _carried(equation: BackwardKolmogorov, value: np.ndarray, density: np.ndarray) -> np.ndarray:
    """<rho_k, P_k u_{k+1}> of the present weights for every layer (L,)."""
    network = equation.problem.network
    found = equation.coefficients()
    layers = equation.steps(found.drift.numpy(), found.diffusion.numpy(), network.step)
    carried = np.empty(network.depth)
    for k in range(network.depth):
        u, steps = value[k + 1], layers[k]
        for _ in range(steps.count):
            u = steps.backward(u)
        carried[k] = np.vdot(density[k], u)
    return carried
