r"""The chain's own backward recursion (estimator `exact`): no sampling, no modelling error in h.

    u_L = Phi,   u_k(x) = sum_o p_o u_{k+1}(P(x + increment_o(x, theta_k))),   J = sum_y <u_0, mu_y>,

the sum over all outcomes of a layer's random numbers, or over a Gauss rule where they are
continuous; P projects onto the box. Each u_k with 0 < k < L is a cubic spline on a tensor grid; u_L is
evaluated where it is needed, and u_0 at the data only. The gradient is that of the recursion as it is
computed: the transposed recursion carries the density, torch the increments' dependence on the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import memory
from kolmo.errors import InputError, MaximumPrincipleError, NonFiniteError
from kolmo.network import LayeredNetwork
from kolmo.noise.base import MOST_OUTCOMES, Outcomes
from kolmo.noise.law import GAUSS, Normal
from kolmo.noise.structure import packed
from kolmo.pde.domain import choose_half_width, projected_step
from kolmo.pde.march import VIOLATION_LIMIT
from kolmo.pde.mesh import check_dim
from kolmo.pde.spline import TensorSpline, gather, scatter
from kolmo.problem import Problem
from kolmo.stream import Stream, mix

#: cells per direction by dimension, where none are given
DEFAULT_CELLS = {1: 256, 2: 96, 3: 32}
#: rules for a layer's expectation: its own outcomes, or Gaussian increments with the same two moments
RULES = ("outcomes", "gauss")
#: points of one piece of work, and departure points whose terminal loss is held at once
_PIECE, _TERMINAL = 8192, 400_000
#: largest box bias relative to J, and absolute
_BOX = (2e-4, 1e-5)


@dataclass
class _Stage:
    """u_{k+1} on the grid as layer k sees it."""

    coefficients: np.ndarray
    nodal: np.ndarray


class ExactRecursion:
    """The expected loss of one problem's chain by its backward recursion.

    cells: of the grid, per direction (default 256, 96, 32 in 1, 2, 3-D; at least 4). half_width: R of the
    box, by default from coupled paths of the chain. rule: 'outcomes', or 'gauss' for Gaussian increments
    with the same mean and covariance, an approximation to O(h^2) for noises with too many
    outcomes (`gauss_error` measures it). gauss: points of a Gauss rule for each continuous random
    number. limit: keep each interpolated value between those at its cell's corners, so that u stays in
    [min Phi, max Phi], as training needs; without it the recursion is more accurate.

    Raises InputError on d > 3, bad options, or a noise with too many outcomes; the methods raise
    NonFiniteError, and MaximumPrincipleError where an unlimited spline overshoots by more than 5%.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        cells: int | None = None,
        half_width: float | None = None,
        rule: str = "outcomes",
        gauss: int = GAUSS,
        limit: bool = True,
    ) -> None:
        dim = problem.network.dim
        check_dim(dim)
        if rule not in RULES:
            raise InputError(f"rule: {rule!r} is unknown, expected one of: {', '.join(RULES)}")
        cells = DEFAULT_CELLS[dim] if cells is None else cells
        if int(cells) != cells or cells < 4:
            raise InputError(f"cells: {cells!r} is not an integer >= 4")
        if int(gauss) != gauss or not 2 <= gauss <= 64:
            raise InputError(f"gauss: {gauss!r} is not an integer from 2 to 64")
        self.problem, self.rule, self.gauss, self.limit = problem, rule, gauss, limit
        needed = memory.recursion(dim, int(cells))
        memory.require(needed, f"cells: the recursion on {cells} cells a direction in {dim}-D", "take fewer")
        half_width = exact_half_width(problem) if half_width is None else half_width
        self.spline = TensorSpline(dim, int(cells), half_width)
        self._nodes = torch.from_numpy(self.spline.nodes)
        # too many outcomes are refused here, not in the middle of a run
        self._outcomes(problem.network, 0, self._nodes[:1])

    def expected_loss(self, network: LayeredNetwork | None = None) -> Tensor:
        """J(theta), a float64 scalar; its backward() is the exact gradient of the recursion.

        network: other weights than the problem's. Raises NonFiniteError, MaximumPrincipleError.
        """
        network = self.problem.network if network is None else network
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not parameters:
            return torch.tensor(self._value(network, keep=False)[0], dtype=torch.float64)
        return _ExactLoss.apply(self, network, *parameters)

    def values(self, network: LayeredNetwork | None = None) -> np.ndarray:
        """E[Phi_y(X_L) | X_0 = x] at every data point for both labels, shape (M, 2)."""
        network = self.problem.network if network is None else network
        return self._value(network, keep=False)[2]

    # one layer

    def step(self, layer: int, nodal: np.ndarray | None) -> np.ndarray:
        """E[u(x + increment of `layer`)] at the nodes, (nodes, 2), u the spline with these nodal values, or
        the terminal loss where there are none."""
        stage = None if nodal is None else _Stage(self.spline.coefficients(nodal), nodal)
        return self._expectation(self.problem.network, layer, self._nodes, stage)

    def outcomes(self) -> int:
        """Number of outcomes of a layer that the expectation sums over."""
        return len(self._outcomes(self.problem.network, 0, self._nodes[:1]).weights)

    def _outcomes(self, network: LayeredNetwork, layer: int, x: Tensor) -> Outcomes:
        noise = self.problem.noise
        if self.rule == "outcomes":
            return noise.outcomes(network, layer, x, self.gauss)
        return gaussian_outcomes(self.problem, network, layer, x, self.gauss)

    def _expectation(
        self, network: LayeredNetwork, layer: int, x: Tensor, stage: _Stage | None
    ) -> np.ndarray:
        """u_layer at x (N, d), shape (N, 2); stage None: the next one is Phi itself."""
        out = np.empty((len(x), 2))

        def piece(part: slice) -> None:
            with torch.no_grad():
                o = self._outcomes(network, layer, x[part])
                if stage is None:
                    out[part] = self._terminal(x[part], o).numpy()
                    return
            s = self.spline
            gather(
                s.grid, x[part].numpy(), o.base.numpy(), _plain(o.factor), o.table, o.weights,
                stage.coefficients, stage.nodal, -s.half_width, s.spacing, s.cells, self.limit, out[part],
            )  # fmt: skip

        _in_threads(piece, len(x))
        if not np.isfinite(out).all():
            raise NonFiniteError(
                f"layer {layer}: the value function is not finite; take smaller weights", layer
            )
        return out

    def _terminal(self, x: Tensor, o: Outcomes) -> Tensor:
        """E[Phi_y(x + increment)] for both labels, shape (N, 2)."""
        table, weights = torch.from_numpy(o.table), torch.from_numpy(o.weights)
        total = x.new_zeros(len(x), 2)
        step = max(1, _TERMINAL // len(x))
        for i in range(0, len(table), step):
            moved = (x + o.base)[:, None] + torch.einsum("nar,or->noa", o.factor, table[i : i + step])
            both = torch.stack([self.problem.loss(moved, label) for label in (0, 1)], dim=-1)
            total = total + torch.einsum("noc,o->nc", both, weights[i : i + step])
        return total

    # the recursion

    def _value(self, network: LayeredNetwork, keep: bool) -> tuple[float, list[_Stage], np.ndarray]:
        """J, the stages of layers 0..L-2 (all or the last one used), and u_0 at the data."""
        if keep:
            needed = memory.recursion(self.spline.dim, self.spline.cells, network.depth)
            memory.require(needed, f"cells: the splines of {network.depth} layers", "take fewer")
        stages: list[_Stage] = []
        stage: _Stage | None = None
        low, high = -np.inf, np.inf
        for layer in range(network.depth - 1, 0, -1):
            nodal = self._expectation(network, layer, self._nodes, stage)
            if stage is None:
                low, high = nodal.min(), nodal.max()  # the loss beyond the box does not bound the rest
            _check(nodal, low, high, layer)
            stage = _Stage(self.spline.coefficients(nodal), nodal)
            stages = [stage, *stages] if keep else [stage]
        data = self._expectation(network, 0, self.problem.data.points, stage)
        labels = self.problem.data.labels.numpy()
        return float(data[np.arange(len(data)), labels].mean()), stages, data

    def _gradient(
        self, network: LayeredNetwork, stages: list[_Stage], parameters: list[Tensor]
    ) -> list[Tensor]:
        """dJ/dparameters by the transposed recursion, forward in depth."""
        labels = self.problem.data.labels.numpy()
        cotangent = np.zeros((len(labels), 2))
        cotangent[np.arange(len(labels)), labels] = 1 / len(labels)
        total = [torch.zeros_like(p) for p in parameters]
        x = self.problem.data.points
        for layer in range(network.depth):
            stage = stages[layer] if layer < network.depth - 1 else None
            cotangent = self._transposed(network, layer, x, stage, cotangent, parameters, total)
            x = self._nodes
        return total

    def _transposed(
        self,
        network: LayeredNetwork,
        layer: int,
        x: Tensor,
        stage: _Stage | None,
        cotangent: np.ndarray,
        parameters: list[Tensor],
        total: list[Tensor],
    ) -> np.ndarray:
        """Adds a layer's share of the gradient to `total`; returns dJ/du_{layer+1} at the nodes."""
        s = self.spline
        pieces = list(_pieces(len(x)))
        groups = [pieces[i::_GROUPS] for i in range(min(_GROUPS, len(pieces)))]

        def group(parts: list[slice]) -> tuple[list[Tensor | None], np.ndarray, np.ndarray]:
            d_coefficients, d_nodal = np.zeros((s.size, 2)), np.zeros((len(s.nodes), 2))
            sums: list[Tensor | None] = [None] * len(parameters)
            for part in parts:
                with torch.enable_grad():
                    found: tuple[Tensor | None, ...]
                    o = self._outcomes(network, layer, x[part])
                    if stage is None:
                        pulled = (self._terminal(x[part], o) * torch.from_numpy(cotangent[part])).sum()
                        found = torch.autograd.grad(pulled, parameters, allow_unused=True)
                    else:
                        base, factor = o.base.detach().numpy(), _plain(o.factor)
                        d_base, d_factor = np.zeros(base.shape), np.zeros(factor.shape)
                        scatter(
                            s.grid, x[part].numpy(), base, factor, o.table, o.weights, stage.coefficients,
                            stage.nodal, -s.half_width, s.spacing, s.cells, self.limit, cotangent[part],
                            d_base, d_factor, d_coefficients, d_nodal,
                        )  # fmt: skip
                        found = _pull_back(o, d_base, d_factor, parameters)
                sums = [
                    a if b is None else (b if a is None else a + b) for a, b in zip(sums, found, strict=True)
                ]
            return sums, d_coefficients, d_nodal

        with _pool() as pool:
            results = list(pool.map(group, groups))
        for sums, _, _ in results:
            for gradient, part in zip(total, sums, strict=True):
                if part is not None:
                    gradient += part
        if stage is None:
            return np.zeros((0, 2))
        d_coefficients = np.sum([r[1] for r in results], axis=0)
        return s.coefficients_transposed(d_coefficients) + np.sum([r[2] for r in results], axis=0)

    def gauss_error(self, paths: int = 400, samples: int = 256, seed: int = 7) -> tuple[float, float]:
        """What the rule 'gauss' is off by in J, and the standard error of that estimate.

        Exactly, J - J_gauss = sum_k E[(T_k - G_k) u_{k+1}(X_k)], T_k the chain's own expectation of
        layer k, G_k the Gaussian one, X_k the chain's paths. T_k is sampled `samples` times at each
        of about `paths` paths, with linear and quadratic control variates: T_k and G_k agree on
        those, so that only what is of third order is left to chance.
        """
        network, data, noise = self.problem.network, self.problem.data, self.problem.noise
        copies = max(1, -(-paths // len(data)))
        x, labels = data.points.repeat(copies, 1), data.labels.repeat(copies).numpy()
        count = len(x)
        defect = np.zeros(count)
        stages = self._value(network, keep=True)[1]
        for layer in range(network.depth):
            stage = stages[layer] if layer < network.depth - 1 else None
            with torch.no_grad():
                o = gaussian_outcomes(self.problem, network, layer, x, self.gauss)
                draws = Stream(mix(seed, 1), 0, count * samples, count, antithetic=True).layer(layer)
                repeated = x.repeat(samples, 1)
                moved = repeated + noise.sample(network, layer, repeated, draws)
                own = Stream(mix(seed), 0, count, count).layer(layer)
                after = x + noise.sample(network, layer, x, own)
            drawn = self._at(moved, stage)[np.arange(len(moved)), np.tile(labels, samples)]
            smooth = self._expectation(network, layer, x, stage)[np.arange(count), labels]
            jumps = (moved - (x + o.base).repeat(samples, 1)).numpy().reshape(samples, count, -1)
            covariance = (o.factor @ o.factor.transpose(1, 2)).numpy()
            defect += _regressed(drawn.reshape(samples, count), jumps, covariance) - smooth
            x = after
        return float(defect.mean()), float(defect.std(ddof=1) / np.sqrt(count))

    def _at(self, y: Tensor, stage: _Stage | None) -> np.ndarray:
        """u at points y (N, d), both labels, shape (N, 2)."""
        if stage is None:
            return torch.stack([self.problem.loss(y, label) for label in (0, 1)], dim=-1).numpy()
        out = np.empty((len(y), 2))
        zero, s = np.zeros((len(y), 1)), self.spline
        factor, table = np.zeros((len(y), s.dim, 1)), np.zeros((1, 1))
        gather(
            s.grid, y.numpy(), np.broadcast_to(zero, y.shape).copy(), factor, table, np.ones(1),
            stage.coefficients, stage.nodal, -s.half_width, s.spacing, s.cells, self.limit, out,
        )  # fmt: skip
        return out


class _ExactLoss(torch.autograd.Function):
    """Weights -> J by the recursion; backward: its exact transpose."""

    @staticmethod
    def forward(ctx: Any, recursion: ExactRecursion, network: LayeredNetwork, *parameters: Tensor) -> Tensor:
        value, stages, _ = recursion._value(network, keep=True)
        ctx.recursion, ctx.network, ctx.stages = recursion, network, stages
        ctx.save_for_backward(*parameters)
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        parameters = list(ctx.saved_tensors)  # also raises where weights were changed in between
        gradient = ctx.recursion._gradient(ctx.network, ctx.stages, parameters)
        return (None, None, *(scale * g for g in gradient))


def gaussian_outcomes(
    problem: Problem, network: LayeredNetwork, layer: int, x: Tensor, gauss: int
) -> Outcomes:
    """Gaussian increments with the noise's mean h m and covariance h^2 C + h D, by a product rule."""
    noise, h = problem.noise, network.step
    jet = network.jet(x, slice(layer, layer + 1))
    base = h * noise.mean(jet).value[0]
    dim = x.shape[1]
    C, D = noise.covariance(jet), noise.diffusion(jet)
    full = base.new_zeros(len(x), dim, dim)
    if C is not None:
        spread = packed(C)[0]
        full = full + h * h * (torch.diag_embed(spread) if spread.ndim == 2 else spread)
    if D is not None:
        full = full + h * D[0]
    # a root of a singular covariance has no derivative: lifted by less than rounding does to J
    lift = 1e-12 * full.diagonal(dim1=-2, dim2=-1).sum(-1).detach() + 1e-24
    factor = torch.linalg.cholesky(full + lift[:, None, None] * torch.eye(dim).to(full))
    values, weights = Normal(1.0).points(gauss)
    if gauss**dim > MOST_OUTCOMES:
        raise InputError(f"gauss: {gauss} points in {dim} dimensions are more than {MOST_OUTCOMES} outcomes")
    index = np.indices((gauss,) * dim).reshape(dim, -1).T
    return Outcomes(base, factor, values[index], weights[index].prod(axis=1))


def _regressed(values: np.ndarray, jumps: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Means (N,) of samples (S, N), jumps (S, N, d) as control variates with covariance (N, d, d)."""
    rows, columns = np.triu_indices(jumps.shape[2])
    variance = np.einsum("nii->ni", covariance)
    # a component that hardly varies must not become a feature of its lifted variance
    scale = np.sqrt(np.maximum(variance, 1e-8 * variance.sum(axis=1, keepdims=True)) + 1e-300)
    z = jumps / scale
    known = (covariance / scale[:, :, None] / scale[:, None, :])[:, rows, columns]
    features = np.concatenate([z, z[..., rows] * z[..., columns] - known], axis=2)  # of mean zero
    features = np.concatenate([np.ones((*z.shape[:2], 1)), features], axis=2).transpose(1, 0, 2)
    gram = features.transpose(0, 2, 1) @ features
    # features may be dependent (a noise of rank one): the smallest solution will do
    solved = np.linalg.pinv(gram, rcond=1e-8, hermitian=True) @ (
        features.transpose(0, 2, 1) @ values.T[..., None]
    )
    return np.asarray(solved[:, 0, 0])


def exact_half_width(problem: Problem) -> float:
    """R of the box onto which departure points are projected: bias of J below 2e-4 + 1e-5 / J, relative."""
    return choose_half_width(
        problem, confine=projected_step, relative=_BOX[0], absolute=_BOX[1], paths=2 * 8192
    )


def _check(nodal: np.ndarray, low: float, high: float, layer: int) -> None:
    violation = max(low - float(nodal.min()), float(nodal.max()) - high) / max(high - low, 1e-300)
    if violation > VIOLATION_LIMIT:
        raise MaximumPrincipleError(
            f"layer {layer}: the value function overshoots its bounds by {violation:.0%} of their range: the "
            "grid does not resolve these weights; take more cells, smaller weights or more layers",
            layer,
        )


#: accumulators of a transposed layer: fixed, so that sums do not depend on the number of threads
_GROUPS = 8


def _pieces(count: int) -> Iterator[slice]:
    return (slice(i, min(i + _PIECE, count)) for i in range(0, count, _PIECE))


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,))


def _in_threads(piece: Callable[[slice], None], count: int) -> None:
    with _pool() as pool:
        list(pool.map(piece, _pieces(count)))


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients, None for 0."""
    return a if b is None else (b if a is None else a + b)


def _plain(factor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(factor.detach().numpy())


def _pull_back(
    o: Outcomes, d_base: np.ndarray, d_factor: np.ndarray, parameters: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Cotangents of base and factor to the parameters."""
    pairs = [(o.base, torch.from_numpy(d_base)), (o.factor, torch.from_numpy(d_factor))]
    pairs = [(tensor, cotangent) for tensor, cotangent in pairs if tensor.requires_grad]
    if not pairs:
        return (None,) * len(parameters)
    tensors, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(tensors, parameters, cotangents, allow_unused=True)
