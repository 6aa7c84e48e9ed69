"""The march as torch functions: from coefficients or weights to J, backward by the exact adjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kolmo.modified import Coefficients
from kolmo.pde import march
from kolmo.pde.checkpointed import Checkpointed
from kolmo.pde.march import March, Trajectory
from kolmo.pde.nodal import NodalLayers
from kolmo.profile import section

if TYPE_CHECKING:
    from kolmo.pde.kolmogorov import BackwardKolmogorov


class ExpectedLoss(torch.autograd.Function):
    """(b, a) -> J by the march; backward: the exact discrete adjoint."""

    @staticmethod
    def forward(
        ctx: Any, drift: Tensor, diffusion: Tensor, equation: BackwardKolmogorov, step: float
    ) -> Tensor:
        at = Coefficients(drift, diffusion).at
        value, ctx.marched = equation.march_within(at, len(drift), step, any(ctx.needs_input_grad))
        ctx.equation, ctx.shape = equation, diffusion.shape
        return drift.new_tensor(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        equation: BackwardKolmogorov = ctx.equation
        layers, nodes, *components = ctx.shape
        pool = equation.nodal.nodes.pool
        d_drift = np.moveaxis(pool.take(layers, equation.space.dim, nodes), -1, 1)
        d_diffusion = np.moveaxis(pool.take(layers, *components, nodes), -1, 1)

        def collect(layer: int, cotangent: np.ndarray) -> None:
            with section("contraction"):
                equation.space.pull_into(cotangent, d_drift[layer], d_diffusion[layer])

        _adjoint(ctx.marched, equation, collect, float(scale))
        return torch.from_numpy(d_drift), torch.from_numpy(d_diffusion), None, None


class CompiledLoss(torch.autograd.Function):
    """(W, b, V) -> J with compiled coefficients, layer by layer; backward as of `ExpectedLoss`."""

    @staticmethod
    def forward(
        ctx: Any,
        W: Tensor,
        b: Tensor,
        V: Tensor,
        equation: BackwardKolmogorov,
        layers: NodalLayers,
        step: float,
    ) -> Tensor:
        value, ctx.marched = equation.march_within(layers.at, layers.depth, step, layers.adjoint)
        ctx.equation, ctx.layers = equation, layers
        return W.new_tensor(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        equation: BackwardKolmogorov = ctx.equation
        layers: NodalLayers = ctx.layers

        def collect(layer: int, cotangent: np.ndarray) -> None:
            rows = layers.empty()
            with section("contraction"):
                equation.space.pull_into(cotangent, *layers.shaped(rows))
            layers.pull(layer, rows)

        _adjoint(ctx.marched, equation, collect, float(scale))
        return *layers.gradient(), None, None, None


def _adjoint(marched: March, equation: BackwardKolmogorov, collect: march.EachLayer, scale: float) -> None:
    if isinstance(marched, Checkpointed):
        marched.adjoint(equation.initial, collect, scale)
    else:
        assert isinstance(marched, Trajectory)
        march.adjoint(marched, equation.initial, collect, scale)
