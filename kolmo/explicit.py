r"""The explicit penalty: training with noise, to first order in the noise, as a function of the weights.

Without its fluctuations a noisy network is x_{k+1} = F_k(x_k), F_k = x + h m(x, theta_k), with the value
functions u_k = Phi o F_{L-1} o ... o F_k. Layer k's increment has covariance Sigma_k = h^2 C + h D, and

    J = J_0 + R + ...,     R = (1/2M) sum_i sum_k tr( Sigma_k(x_k^i) hess u_{k+1}(x_{k+1}^i) ),

J_0 the loss of the network without fluctuations and x_k^i the features of data point i. Dropout is thus
training with a penalty on the curvature of the value function along the features' paths. The curvature obeys
the second-order adjoint

    p_L = grad Phi,   p_k = F_k'^T p_{k+1},                            p_k = grad u_k(x_k),
    H_L = hess Phi,   H_k = F_k'^T H_{k+1} F_k' + h sum_j p_{k+1,j} hess m_j,    H_k = hess u_k(x_k),

so that R and its gradient cost a few passes through the network and no random numbers.

What is left out is of second order in Sigma for increments with the moments of a Gaussian. A rare mask is a
jump: its third moment -h^3 f^3 (1-p)/p is of the first order in (1-p)/p as well, and R is then off by O(h)
relative, as the modified equation is, however small the rate. R is negative where the value function is
concave along the paths; nothing bounds it from below.

Source: MATHEMATICS section 4. The penalty is the one of Wager, Wang, Liang, 1307.1493, layer by layer; the
second-order adjoint is the one of Griewank, Walther, Evaluating Derivatives, 2008, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed
from kolmo.problem import Problem


@dataclass(frozen=True)
class Expansion:
    """J to first order in the noise, differentiable in the weights.

    loss: J_0, a scalar. contributions: 1/(2M) tr(Sigma_k hess u_{k+1}) of each layer and data point,
    shape (L, M). features: x_k, shape (L + 1, M, d). slopes: grad u_k(x_k), shape (L + 1, M, d).
    """

    loss: Tensor
    contributions: Tensor
    features: Tensor
    slopes: Tensor

    @property
    def penalty(self) -> Tensor:
        """R, a scalar."""
        return self.contributions.sum()


def expansion(problem: Problem, network: LayeredNetwork | None = None) -> Expansion:
    """J_0 and R by the second-order adjoint along the features' paths.

    network: other weights than the problem's. Raises InputError where the block has no second derivative.
    """
    network = problem.network if network is None else network
    check_curvature(network)
    step, noise, x = network.step, problem.noise, problem.data.points
    features, jets = [x], []
    for layer in range(network.depth):
        jets.append(network.jet(x, slice(layer, layer + 1)))
        x = x + step * noise.mean(jets[-1]).value[0]
        features.append(x)
    slope, curvature = loss_derivatives(problem, x)
    slopes, rows = [slope], []
    identity = torch.eye(network.dim).to(x)
    for jet in reversed(jets):
        mean = noise.mean(jet)
        rows.append(0.5 * _spread(noise, jet, curvature, step) / len(x))
        jacobian = identity + step * mean.jacobian()[0]
        transposed = jacobian.transpose(1, 2)
        curvature = transposed @ curvature @ jacobian + step * contracted_hessian(mean, slope)
        slope = (transposed @ slope[..., None])[..., 0]
        slopes.append(slope)
    loss = problem.loss(x, problem.data.labels).mean()
    return Expansion(loss, torch.stack(rows[::-1]), torch.stack(features), torch.stack(slopes[::-1]))


def explicit_penalty(problem: Problem, network: LayeredNetwork | None = None) -> Tensor:
    """R, a scalar in units of the loss; its backward() is its exact gradient. Raises InputError."""
    return expansion(problem, network).penalty


class ExplicitPenalty:
    """J_0 + R in place of the expected loss, an estimator for `kolmo.control.Objective`.

    Raises InputError where the block has no second derivative.
    """

    def __init__(self, problem: Problem) -> None:
        check_curvature(problem.network)
        self.problem = problem

    def expected_loss(self, network: LayeredNetwork | None = None) -> Tensor:
        """J_0(theta) + R(theta), a scalar; network: other weights than the problem's."""
        found = expansion(self.problem, network)
        return found.loss + found.penalty


def check_curvature(network: LayeredNetwork) -> None:
    """Raise InputError unless the value function has second derivatives."""
    if not network.twice_differentiable:
        raise InputError(
            "explicit penalty: it needs a block with two derivatives, this activation has one; "
            "take tanh or softplus"
        )


def loss_derivatives(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """grad Phi_y and hess Phi_y at the final features x (M, d) of the data: (M, d) and (M, d, d)."""
    labels, loss = problem.data.labels, problem.loss
    slope = torch.func.vmap(torch.func.grad(loss))(x, labels)
    return slope, torch.func.vmap(torch.func.hessian(loss))(x, labels)


def contracted_hessian(field: Jet, weights: Tensor) -> Tensor:
    """sum_j w_j hess m_j for one layer's field m at N points and weights w (N, d): shape (N, d, d)."""
    dim = weights.shape[-1]
    entries: dict[tuple[int, int], Tensor] = {}
    for i in range(dim):
        for j in range(i, dim):
            unit = weights.new_zeros(dim, dim)
            unit[i, j] += 0.5
            unit[j, i] += 0.5
            entries[i, j] = entries[j, i] = (field.second(unit)[0] * weights).sum(dim=-1)
    rows = [torch.stack([entries[i, j] for j in range(dim)], dim=-1) for i in range(dim)]
    return torch.stack(rows, dim=-2)


def _spread(noise: Noise, jet: Jet, curvature: Tensor, step: float) -> Tensor:
    """tr((h^2 C + h D) H) of one layer at N points, curvature H (N, d, d): shape (N,)."""
    total = torch.zeros_like(curvature[:, 0, 0])
    C, D = noise.covariance(jet), noise.diffusion(jet)
    if C is not None:
        spread = packed(C)[0]
        H = curvature if spread.ndim == 3 else curvature.diagonal(dim1=-2, dim2=-1)
        total = total + step**2 * (spread * H).flatten(1).sum(dim=-1)
    if D is not None:
        total = total + step * (D[0] * curvature).flatten(1).sum(dim=-1)
    return total
