r"""The chain's own backward recursion (estimator `exact`): no sampling, no modelling error in h.

    u_L = Phi,   u_k(x) = sum_o p_o u_{k+1}(P(x + increment_o(x, theta_k))),   J = sum_y <u_0, mu_y>,

the sum over all outcomes of a layer's random numbers, or over a Gauss rule where they are
continuous; P projects onto the box. Each u_k with 0 < k < L is a cubic spline on a tensor grid; u_L is
evaluated where it is needed, and u_0 at the data only. The gradient is that of the recursion as it is
computed: the transposed recursion carries the density, and gathers each layer's dependence on its weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import memory
from kolmo.device import device_of, on_processor
from kolmo.errors import InputError
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise.base import Outcomes
from kolmo.noise.law import GAUSS
from kolmo.pde.domain import choose_half_width, projected_step
from kolmo.pde.exact_bounds import Bounds
from kolmo.pde.exact_device import DeviceGrid, DeviceLayers
from kolmo.pde.exact_gauss import gaussian_outcomes, regressed
from kolmo.pde.exact_jumps import jumps
from kolmo.pde.exact_layers import GeneralLayers, Layers, Stage, interpolate, losses
from kolmo.pde.exact_multiplicative import Grid, MultiplicativeLayers
from kolmo.pde.mesh import check_dim
from kolmo.pde.spline import TensorSpline
from kolmo.problem import Problem
from kolmo.stream import Stream, mix

#: cells per direction by dimension, where none are given
DEFAULT_CELLS = {1: 256, 2: 96, 3: 32}
#: rules for a layer's expectation: its own outcomes, or Gaussian increments with the same two moments
RULES = ("outcomes", "gauss")
#: largest box bias relative to J, and absolute
_BOX = (2e-4, 1e-5)


class ExactRecursion:
    """The expected loss of one problem's chain by its backward recursion.

    cells: of the grid, per direction (default 256, 96, 32 in 1, 2, 3-D; at least 4). half_width: R of the
    box, by default from coupled paths of the chain. rule: 'outcomes', or 'gauss' for Gaussian increments
    with the same mean and covariance, an approximation to O(h^2) for noises with too many
    outcomes (`gauss_error` measures it). gauss: points of a Gauss rule for each continuous random
    number. limit: keep each interpolated value between those at its cell's corners, so that u stays in
    [min Phi, max Phi], as training needs; without it the recursion is more accurate. compiled: take the
    processor's kernels where the weights are; False, like weights on an accelerator, takes torch on the
    weights' device, with the same numbers to rounding.

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
        compiled: bool = True,
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
        self.compiled = compiled
        needed = memory.recursion(dim, int(cells))
        memory.require(needed, f"cells: the recursion on {cells} cells a direction in {dim}-D", "take fewer")
        half_width = exact_half_width(problem) if half_width is None else half_width
        self.spline = TensorSpline(dim, int(cells), half_width)
        self._device_grids: dict[torch.device, DeviceGrid] = {}
        # too many outcomes are refused here, not in the middle of a run
        self._outcomes(problem.network, 0, problem.data.points[:1])

    def expected_loss(self, network: LayeredNetwork | None = None) -> Tensor:
        """J(theta), a float64 scalar; its backward() is the exact gradient of the recursion.

        It is on the device of the weights. network: other weights than the problem's. Raises
        NonFiniteError, MaximumPrincipleError.
        """
        network = self.problem.network if network is None else network
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not parameters:
            value = self._value(network, None)[0]
            return torch.tensor(value, dtype=torch.float64, device=device_of(network))
        return _ExactLoss.apply(self, network, *parameters)

    def values(self, network: LayeredNetwork | None = None) -> np.ndarray:
        """E[Phi_y(X_L) | X_0 = x] at every data point for both labels, shape (M, 2)."""
        network = self.problem.network if network is None else network
        return self._value(network, None)[1]

    # one layer

    def step(self, layer: int, nodal: np.ndarray | None) -> np.ndarray:
        """E[u(x + increment of `layer`)] at the nodes, (nodes, 2), u the spline with these nodal values, or
        the terminal loss where there are none."""
        layers = self._general(on_processor(self.problem.network))
        stage = None if nodal is None else layers.stage(nodal)
        return layers.at(layer, torch.from_numpy(self.spline.nodes), stage)

    def outcomes(self) -> int:
        """Number of outcomes of a layer that the expectation sums over."""
        return len(self._outcomes(self.problem.network, 0, self.problem.data.points[:1]).weights)

    def _outcomes(self, network: LayeredNetwork, layer: int, x: Tensor) -> Outcomes:
        noise, x = self.problem.noise, x.to(device_of(network))
        if self.rule == "outcomes":
            found = noise.outcomes(network, layer, x, self.gauss)
        else:
            found = gaussian_outcomes(self.problem, network, layer, x, self.gauss)
        # the box would hide an infinite increment, and does not hide nan
        return replace(found, base=torch.where(found.base.isfinite(), found.base, torch.nan))

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.spline, self.problem.data.points)

    def _on(self, device: torch.device) -> DeviceGrid:
        """The grid on a device, made once."""
        if device not in self._device_grids:
            self._device_grids[device] = DeviceGrid(self.spline, self.problem.data.points, device)
        return self._device_grids[device]

    def _general(self, network: LayeredNetwork) -> GeneralLayers:
        problem = self.problem
        return GeneralLayers(
            network, self._outcomes, problem.loss, self.spline, problem.data.points, self.limit
        )

    def _layers(self, network: LayeredNetwork, adjoint: bool) -> Layers[Any, Any]:
        problem, device = self.problem, device_of(network)
        if device.type != "cpu" or not self.compiled:
            return DeviceLayers(network, self._outcomes, problem.loss, self._on(device), self.limit)
        plain = jumps(network, problem.noise, self.gauss) if self.rule == "outcomes" else None
        if plain is None or not isinstance(network, ResidualNetwork):
            return self._general(network)
        return MultiplicativeLayers(network, plain, problem.loss, self._grid, self.limit, adjoint)

    # the recursion

    def _value(
        self, network: LayeredNetwork, stages: list[Any] | None, layers: Layers[Any, Any] | None = None
    ) -> tuple[float, np.ndarray]:
        """J, and u_0 at the data; the stages of layers 0..L-2 are put into `stages`, where it is given."""
        layers = self._layers(network, False) if layers is None else layers
        if stages is not None and device_of(network).type == "cpu":
            needed = memory.recursion(self.spline.dim, self.spline.cells, network.depth)
            if needed > memory.lately_available():
                memory.require(needed, f"cells: the splines of {network.depth} layers", "take fewer")
        stage, bounds = None, Bounds()
        for layer in range(network.depth - 1, 0, -1):
            nodal = layers.expectation(layer, stage)
            bounds.see(layer, nodal)
            stage = layers.stage(nodal)
            if stages is not None:
                stages.insert(0, stage)
        found = layers.expectation(0, stage)
        bounds.see(0, found)
        bounds.settle()
        data = torch.as_tensor(found).cpu().numpy()
        labels = self.problem.data.labels.numpy()
        return float(data[np.arange(len(data)), labels].mean()), data

    def _gradient(self, network: LayeredNetwork, stages: list[Any], layers: Layers[Any, Any]) -> list[Tensor]:
        """dJ/dparameters by the transposed recursion, forward in depth."""
        labels = self.problem.data.labels.numpy()
        cotangent = np.zeros((len(labels), 2))
        cotangent[np.arange(len(labels)), labels] = 1 / len(labels)
        for layer in range(network.depth):
            stage = stages[layer] if layer < network.depth - 1 else None
            cotangent = layers.transposed(layer, stage, cotangent)
        return layers.gradient()

    def gauss_error(self, paths: int = 400, samples: int = 256, seed: int = 7) -> tuple[float, float]:
        """What the rule 'gauss' is off by in J, and the standard error of that estimate.

        Exactly, J - J_gauss = sum_k E[(T_k - G_k) u_{k+1}(X_k)], T_k the chain's own expectation of
        layer k, G_k the Gaussian one, X_k the chain's paths. T_k is sampled `samples` times at each
        of about `paths` paths, with linear and quadratic control variates: T_k and G_k agree on
        those, so that only what is of third order is left to chance.
        """
        network, data, noise = on_processor(self.problem.network), self.problem.data, self.problem.noise
        copies = max(1, -(-paths // len(data)))
        x, labels = data.points.repeat(copies, 1), data.labels.repeat(copies).numpy()
        count = len(x)
        defect = np.zeros(count)
        stages: list[Stage] = []
        layers = self._general(network)
        self._value(network, stages, layers)
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
            smooth = layers.at(layer, x, stage)[np.arange(count), labels]
            jumps = (moved - (x + o.base).repeat(samples, 1)).numpy().reshape(samples, count, -1)
            covariance = (o.factor @ o.factor.transpose(1, 2)).numpy()
            defect += regressed(drawn.reshape(samples, count), jumps, covariance) - smooth
            x = after
        return float(defect.mean()), float(defect.std(ddof=1) / np.sqrt(count))

    def _at(self, y: Tensor, stage: Stage | None) -> np.ndarray:
        """u at points y (N, d), both labels, shape (N, 2)."""
        if stage is None:
            return losses(self.problem.loss, y).numpy()
        out, none = np.empty((len(y), 2)), y.new_zeros(len(y), self.spline.dim, 1)
        here = Outcomes(none[..., 0].contiguous(), none, np.zeros((1, 1)), np.ones(1))
        interpolate(self.spline, y.numpy(), here, stage, self.limit, out)
        return out


class _ExactLoss(torch.autograd.Function):
    """Weights -> J by the recursion; backward: its exact transpose."""

    @staticmethod
    def forward(ctx: Any, recursion: ExactRecursion, network: LayeredNetwork, *parameters: Tensor) -> Tensor:
        stages: list[Any] = []
        layers = recursion._layers(network, True)
        value = recursion._value(network, stages, layers)[0]
        ctx.recursion, ctx.network, ctx.stages, ctx.layers = recursion, network, stages, layers
        ctx.save_for_backward(*parameters)
        return torch.tensor(value, dtype=torch.float64, device=device_of(network))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  raises where weights were changed in between
        gradient = ctx.recursion._gradient(ctx.network, ctx.stages, ctx.layers)
        return (None, None, *(scale * g for g in gradient))


def exact_half_width(problem: Problem) -> float:
    """R of the box onto which departure points are projected: bias of J below 2e-4 + 1e-5 / J, relative."""
    return choose_half_width(
        problem, confine=projected_step, relative=_BOX[0], absolute=_BOX[1], paths=2 * 8192
    )
