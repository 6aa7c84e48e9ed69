r"""Pontryagin's Hamiltonian of a training problem on the mesh, and the optimality of a network's weights.

    H(t, theta) = sum_y <rho_y, L_theta u_y> + running penalty(theta)

with the value function u and the density rho of the present weights (MATHEMATICS section 3). On the mesh,

    H_k(theta) = [<rho_k, P_k(theta) u_{k+1}> - <rho_k, u_{k+1}>] / h + penalty_k(theta) / h,

P_k a layer's propagator. It tends to the above with the layers, and its gradient by theta_k is exactly that
of the discrete objective over h: weights are stationary for the one where they are for the other. Where
nothing depends on t explicitly, H_k is the same for all k, to O(h), along weights that are optimal and smooth
in k; weights that are stationary only, each layer for itself, may jump, and H_k with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg as spla
import torch

from kolmo.control.admissible import Admissible, Box, layer_of_weights
from kolmo.control.objective import Objective
from kolmo.errors import InputError
from kolmo.network import LayeredNetwork
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.penalty import Penalty
from kolmo.problem import Problem

#: relative to the gradient without penalties and projection: below, weights count as stationary
STATIONARY = 1e-4
#: tolerance of the eigenvectors
_LANCZOS = 1e-3


@dataclass(frozen=True)
class Optimality:
    """How far weights are from Pontryagin's conditions.

    hamiltonian: H_k of every layer (L,), loss per time. residual: |theta_k - P(theta_k - dH_k/dtheta_k)| of
    every layer (L,). value: the objective. norm: of its projected gradient, |theta - P(theta - gradient)|;
    gradient: that of the gradient itself. scale: what `verdict` compares the norm with. eigenvalues: the
    leading ones of the objective's Hessian, largest modulus first (None where they were not asked for, or all
    weights but one are held).
    on_boundary: how many weights the admissible set holds.
    """

    hamiltonian: np.ndarray
    residual: np.ndarray
    norm: float
    value: float
    gradient: float
    scale: float
    on_boundary: int
    eigenvalues: np.ndarray | None

    @property
    def verdict(self) -> str:
        """'stationary', 'on the boundary of the admissible set', or 'stalled'; never 'globally optimal'."""
        if self.norm > STATIONARY * self.scale:
            return "stalled"
        return "on the boundary of the admissible set" if self.on_boundary else "stationary"


def hamiltonian(equation: BackwardKolmogorov, penalties: Sequence[Penalty] = ()) -> np.ndarray:
    """H_k of the problem's present weights (L,), loss per time; penalties are sums over layers.

    Raises InputError on another penalty, and InfeasibleError where the equation refuses the weights.
    """
    network = equation.problem.network
    found = equation.solve()
    change = np.einsum("tqc,tqc->t", found.density[:-1], found.value[:-1] - found.value[1:])
    with torch.no_grad():
        running = sum((shares(penalty, network) for penalty in penalties), np.zeros(network.depth))
    return np.asarray((change + running) / network.step)


def shares(penalty: Penalty, network: LayeredNetwork) -> np.ndarray:
    """A penalty's part of every layer (L,). Raises InputError where it is not a sum over layers."""
    if not hasattr(penalty, "by_layer"):
        raise InputError(f"penalty {type(penalty).__name__}: it has no `by_layer`, what each layer pays")
    return np.asarray(penalty.by_layer(network).detach().numpy())


def optimality(
    problem: Problem | BackwardKolmogorov,
    penalties: Sequence[Penalty] = (),
    admissible: Admissible | None = None,
    *,
    eigenvalues: int | None = None,
    scale: float | None = None,
) -> Optimality:
    """Pontryagin's conditions at the problem's present weights.

    problem: or its equation on a mesh of your own; by default that of `BackwardKolmogorov(problem)`.
    eigenvalues: how many of the Hessian's to compute (by Lanczos, on the weights that the set does not hold),
    by default 5 or all but one of fewer weights; they take 20 products or more, nearly all that this costs.
    scale: what `verdict` measures the residual by; the norm of J's own gradient by default, which the
    penalties' balances at an optimum.
    Raises InputError on a bad number, InfeasibleError where the equation refuses the weights.
    """
    equation = BackwardKolmogorov(problem) if isinstance(problem, Problem) else problem
    network = equation.problem.network
    admissible = Box() if admissible is None else admissible
    objective = Objective(network, equation.expected_loss, penalties, equation.curvature)
    theta, layer, h = objective.theta, layer_of_weights(network), network.step
    eigenvalues = min(5, len(theta) - 1) if eigenvalues is None else eigenvalues
    if not 0 <= eigenvalues < len(theta):
        raise InputError(f"eigenvalues: {eigenvalues!r} is not a number below that of the weights")
    value, gradient = objective.value_and_gradient(theta)
    alone = Objective(network, equation.expected_loss).value_and_gradient(theta)[1]
    residual = admissible.residual(theta, gradient)
    by_layer = np.sqrt(np.bincount(layer, admissible.residual(theta, gradient / h) ** 2))
    held = admissible.blocked(theta, gradient)
    count = min(eigenvalues, int((~held).sum()) - 1)
    return Optimality(
        hamiltonian=hamiltonian(equation, penalties),
        residual=by_layer,
        norm=float(np.linalg.norm(residual)),
        value=value,
        gradient=float(np.linalg.norm(gradient)),
        scale=float(np.linalg.norm(alone)) if scale is None else scale,
        on_boundary=int(held.sum()),
        eigenvalues=leading(objective, theta, count, ~held, tolerance=_LANCZOS)[0] if count > 0 else None,
    )


def leading(
    objective: Objective,
    theta: np.ndarray,
    count: int,
    free: np.ndarray | None = None,
    seed: int = 0,
    tolerance: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues (by modulus, largest first) of the Hessian, with eigenvectors in columns.

    free: weights that may move, all by default; eigenvectors are zero elsewhere. Lanczos by scipy. tolerance:
    on |H v - lambda v| relative to |lambda|, whose square an eigenvalue is off by; 0: rounding.
    """
    product = objective.hessian(theta)
    index = np.arange(len(theta)) if free is None else np.flatnonzero(free)

    def restricted(v: np.ndarray) -> np.ndarray:
        whole = np.zeros_like(theta)
        whole[index] = v.reshape(-1)
        return product(whole)[index]

    operator = spla.LinearOperator((len(index), len(index)), matvec=restricted, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(len(index))
    values, vectors = spla.eigsh(operator, k=count, which="LM", v0=start, tol=tolerance)
    order = np.argsort(-np.abs(values))
    whole = np.zeros((len(theta), count))
    whole[index] = vectors[:, order]
    return values[order], whole
