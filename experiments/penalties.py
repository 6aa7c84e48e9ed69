r"""The explicit penalty R four ways, for dropout on the block's output at rate q = (1 - p) / p.

path   the chain's own second-order adjoint, `kolmo.explicit`: what training can use;
flow   the modified equation linearised along the noiseless paths x' = b(x, t): with B = grad b,

           P' = B P + P B^T + a,    s' = B s + 1/2 P : hess b,    P(0) = 0, s(0) = 0,
           R = 1/M sum_i [ grad Phi . s(T) + 1/2 P(T) : hess Phi ],

       which is dual to the curvature's adjoint: the same R = 1/(2M) sum_i int tr(a hess u0) dt;
mesh   1/2 int sum_y <rho0_y, a : hess u0_y> dt by finite elements: the exact discrete derivative of J in
       the direction a at a = 0, one number for each node: the penalty's density over the plane;
mask   the chain's own derivative in q at q = 0, one unit of one layer dropped at a time,

           1/M sum_i sum_k sum_j [ u_{k+1}(x_{k+1} - h f_j e_j) - u_{k+1}(x_{k+1}) + h f_j d_j u_{k+1} ].

flow and mesh are one integral, path is its sum over layers and the second-order Taylor polynomial of mask:
path differs from the others by O(h), relative. All are linear in q, and given at the problem's own rate.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kolmo.chain import Chain, Estimate
from kolmo.explicit import Expansion, expansion, loss_derivatives
from kolmo.modified import drift, modified_equation
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise import BernoulliDropout
from kolmo.pde import BackwardKolmogorov, Explicit, march, value_gradient
from kolmo.pde.kolmogorov import initial_measure
from kolmo.problem import Problem

#: where the stages of the classical Runge-Kutta scheme of order 4 are, and their weights
_STAGES, _WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def at_rate(problem: Problem, rate: float, network: LayeredNetwork | None = None) -> Problem:
    """The same problem under Bernoulli dropout with (1 - keep) / keep = rate, another network if given."""
    network = problem.network if network is None else network
    return Problem(problem.data, network, BernoulliDropout(1 / (1 + rate)), problem.loss)


def split(network: ResidualNetwork, parts: int) -> ResidualNetwork:
    """Every layer as `parts` layers with the same weights: x' = f is the same, the step h is divided."""
    W, b, V = (w.detach().repeat_interleave(parts, dim=0) for w in (network.W, network.b, network.V))
    return ResidualNetwork.from_weights(W, b, V, network.horizon, network.activation.name)


@torch.no_grad()
def path_penalty(problem: Problem) -> Expansion:
    """J_0, R and its share of every layer and data point, by the chain's second-order adjoint."""
    return expansion(problem)


# the modified equation's paths


@torch.no_grad()
def flow_penalty(problem: Problem) -> tuple[float, float]:
    """J_0 and R of the modified equation of order 2, one Runge-Kutta step of order 4 a layer.

    For every noise that has order 2. Measured on a trained network of 40 layers, the steps are off by
    5e-8 of R.
    """
    network, x = problem.network, problem.data.points
    state: tuple[Tensor, ...] = (x, x.new_zeros(*x.shape, network.dim), torch.zeros_like(x))
    for layer in range(network.depth):
        slopes: list[tuple[Tensor, ...]] = []
        for share in _STAGES:
            at = _moved(state, [(share, slopes[-1])], network.step) if slopes else state
            slopes.append(_linearised(problem, layer, *at))
        state = _moved(state, list(zip(_WEIGHTS, slopes, strict=True)), network.step)
    x, covariance, shift = state
    gradient, hessian = loss_derivatives(problem, x)
    penalty = (gradient * shift).sum(dim=1) + 0.5 * (hessian * covariance).sum(dim=(1, 2))
    return float(problem.loss(x, problem.data.labels).mean()), float(penalty.mean())


def _moved(
    state: tuple[Tensor, ...], terms: list[tuple[float, tuple[Tensor, ...]]], step: float
) -> tuple[Tensor, ...]:
    """state + step * sum of weight * slope."""
    return tuple(s + step * sum(w * slope[i] for w, slope in terms) for i, s in enumerate(state))


def _linearised(problem: Problem, layer: int, x: Tensor, P: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """b, B P + P B^T + a and B s + 1/2 P : hess b in one layer at x (M, d), P (M, d, d), s (M, d)."""
    network, noise, here = problem.network, problem.noise, slice(layer, layer + 1)
    dim, count = network.dim, len(x)
    a = modified_equation(network, noise, x, 2, here).diffusion[0]
    a = torch.diag_embed(a) if a.ndim == 2 else a

    def field(z: Tensor) -> Tensor:
        jet = network.jet(z, here)
        return drift(noise.mean(jet), noise.diffusion(jet), network.step, 2)[0]

    # b and its derivatives along all pairs of axes (i, j), in one batch: row (i * dim + j) * M + n
    axes = torch.eye(dim).to(x)
    left = axes.repeat_interleave(dim * count, dim=0)
    right = axes.repeat_interleave(count, dim=0).repeat(dim, 1)

    def along_left(z: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.func.jvp(field, (z,), (left,)))

    derivatives = torch.func.jvp(along_left, (x.repeat(dim * dim, 1),), (right,))
    (value, first), (_, second) = derivatives[0], derivatives[1]
    B = first.reshape(dim, dim, count, dim)[:, 0].permute(1, 2, 0)
    bent = torch.einsum("ijnc,nij->nc", second.reshape(dim, dim, count, dim), P)
    turned = B @ P
    return value[:count], turned + turned.transpose(1, 2) + a, (B @ s[..., None])[..., 0] + 0.5 * bent


# the mesh


class MeshPenalty:
    """R of a problem under diagonal noise on one mesh, by the transpose of the noiseless march.

    loss: J_0 on the mesh. penalty: R, the sum of nodal (Q,). rate: the strongest noise, relative to the
    problem's, that `difference` is asked for; all marches take the substeps that it needs, so that they
    differ by the noise alone. The march is not clipped: at a = 0 a clip would hide part of the derivative.
    Raises InfeasibleError where the mesh does not resolve the noiseless transport.
    """

    def __init__(
        self, problem: Problem, cells: int, half_width: float, rate: float = 1.0, backend: str = "auto"
    ) -> None:
        equation = BackwardKolmogorov(
            problem, cells=cells, backend=backend, half_width=half_width, limit=False
        )
        with torch.no_grad():
            coefficients = equation.coefficients()
        self._equation, self._step = equation, problem.network.step
        self._drift, self._diffusion = coefficients.drift.numpy(), coefficients.diffusion.numpy()
        self.cells, self.space = cells, equation.space
        equation.propagator = Explicit(substeps=self._substeps(rate))
        self.loss, trajectory = self._march(0.0)
        shares = np.zeros(self._drift.shape[:2])

        def collect(layer: int, cotangent: np.ndarray) -> None:
            derivative = self.space.pullback(cotangent, diagonal=True)[1]
            shares[layer] = (derivative * self._diffusion[layer]).sum(axis=1)

        march.adjoint(trajectory, initial_measure(self.space, problem), collect)
        self.nodal = shares.sum(axis=0)
        self.penalty = float(self.nodal.sum())

    def _march(self, rate: float) -> tuple[float, march.Trajectory]:
        return self._equation.march(self._drift, rate * self._diffusion, self._step)

    def _substeps(self, rate: float) -> int:
        """What the stiffest layer needs."""
        scheme, counts = Explicit(), []
        for layer, (b, a) in enumerate(zip(self._drift, self._diffusion, strict=True)):
            generator = self.space.generator(b, rate * a)
            counts.append(scheme.on_layer(self.space, generator, self._step, layer).count)
        return max(counts)

    def difference(self, rate: float) -> float:
        """J_pde at `rate` times the problem's noise minus J_pde without noise, same drift and substeps."""
        return self._march(rate)[0] - self.loss


# the chain


@torch.no_grad()
def mask_penalty(problem: Problem) -> float:
    """R by units dropped one at a time, for the problem's Bernoulli dropout; cost O(L^2)."""
    network, noise, found = problem.network, problem.noise, expansion(problem)
    assert isinstance(noise, BernoulliDropout)
    x, moved = found.features, found.features.new_zeros(0, *found.features.shape[1:])
    increments = x[1:] - x[:-1]
    for layer in range(network.depth):
        # what was dropped in a layer before passes this one; then each unit of this one is dropped
        moved = moved + network.step * network.block(layer, moved)
        dropped = x[layer + 1] - torch.diag_embed(increments[layer]).transpose(0, 1)
        moved = torch.cat([moved, dropped])
    labels = problem.data.labels
    jumps = (problem.loss(moved, labels) - problem.loss(x[-1], labels)).mean(dim=1)
    linear = (increments * found.slopes[1:]).sum(dim=2).mean(dim=1)
    keep = x.new_tensor([noise.keep.at(k, network.depth) for k in range(network.depth)])
    return float(((1 - keep) / keep * (jumps.reshape(network.depth, -1).sum(dim=1) + linear)).sum())


def sampled_loss(problem: Problem, cells: int, backend: str, paths: int, seed: int) -> Estimate:
    """J by Monte Carlo, with grad u of the problem's Kolmogorov equation as control variate.

    The control variate's mean is zero whatever u is: J is the chain's own, ten times as precise at q = 1.
    """
    equation = BackwardKolmogorov(problem, cells=cells, backend=backend, limit=False)
    with torch.no_grad():
        control = value_gradient(equation)
    return Chain(problem, seed=seed, control=control).estimate(paths)
