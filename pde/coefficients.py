"""Drift and diffusion at the nodes from the weights: by torch, differentiable, or compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kolmo.errors import InputError
from kolmo.modified import Coefficients, modified_equation
from kolmo.multiplicative import Multiplicative, multiplicative
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.pde.boundary import Taper
from kolmo.pde.nodal import NodalLayers, Nodes
from kolmo.pde.space import Space

#: hidden values of one evaluation of the network: few enough layers at a time to stay in cache
_CACHE_VALUES = 150_000
#: hidden values kept for the gradient; above, layers are evaluated again in the backward pass
_STORED_VALUES = 8_000_000


class NodalCoefficients:
    """The modified equation's coefficients at a space's nodes, before the taper and after it.

    order: of the modified equation. correction: share of order 2's correction, see `modified_equation`.
    """

    def __init__(self, space: Space, noise: Noise, order: int, correction: float) -> None:
        self.space, self.noise, self.order, self.correction = space, noise, order, correction
        # components contiguous, as everything at the nodes
        self.points = torch.from_numpy(np.ascontiguousarray(space.coefficient_points.T)).T
        self.taper = Taper(space.coefficient_points, space.half_width, space.spacing)
        self.nodes = Nodes(space.coefficient_points, self.taper, space.line)
        self._plain: dict[tuple[int, float], Multiplicative | None] = {}

    def __call__(self, network: LayeredNetwork) -> Coefficients:
        """Tapered drift and diffusion of all layers; gradients are summed over processes.

        Raises InputError where the weights differ between processes.
        """
        model = _Model(network, self)
        if self.space.processes == 1:
            return Coefficients(*model(self.points))
        check = float(sum(p.detach().double().sum() for p in network.parameters()))
        if self.space.maximum(check) != -self.space.maximum(-check):
            raise InputError("network: the weights differ between processes; give the network a seed")
        shared = _SumGradients.apply(self.space, *network.parameters())
        names = [f"network.{name}" for name, _ in network.named_parameters()]
        parameters = dict(zip(names, shared, strict=True))
        return Coefficients(*torch.func.functional_call(model, parameters, (self.points,)))

    def layers(self, network: LayeredNetwork, adjoint: bool) -> NodalLayers | None:
        """The tapered coefficients compiled, layer by layer; None where they cannot be.

        adjoint: whether they will be differentiated.
        """
        if self.space.processes > 1 or not isinstance(network, ResidualNetwork) or not network.compiled:
            return None
        key = network.depth, network.step
        if key not in self._plain:  # the noise stays as it is
            self._plain[key] = multiplicative(network, self.noise, self.order, self.correction)
        plain = self._plain[key]
        return None if plain is None else NodalLayers(network, plain, self.nodes, adjoint)

    def free(self, network: LayeredNetwork) -> Coefficients:
        """Before the taper, without derivatives (one process)."""
        with torch.no_grad():
            return Coefficients(*_Model(network, self, tapered=False)(self.points))


class _Model(nn.Module):
    """Weights -> (b, a) at the nodes; by torch in layer ranges, in turns where memory is short."""

    def __init__(self, network: LayeredNetwork, of: NodalCoefficients, tapered: bool = True) -> None:
        super().__init__()
        self.network = network
        self._of, self._tapered = of, tapered

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        count, width = max(1, len(points)), getattr(network, "width", 16)
        device = next((p.device for p in network.parameters()), points.device)
        # an accelerator takes all layers at once, and has no caches to keep warm
        cache = _CACHE_VALUES if device.type == "cpu" else _STORED_VALUES
        chunk = max(1, cache // (count * (2 * network.dim if network.compiled else width)))
        points = points.to(device)
        recompute = count * width * network.depth > _STORED_VALUES
        parts = []
        for k in range(0, network.depth, chunk):
            layers = slice(k, k + chunk)
            if recompute:
                parts.append(checkpoint(self._range, layers, points, use_reentrant=False))
            else:
                parts.append(self._range(layers, points))
        return _joined([p[0] for p in parts]), _joined([p[1] for p in parts])

    def _range(self, layers: slice, points: Tensor) -> tuple[Tensor, Tensor]:
        of = self._of
        found = modified_equation(self.network, of.noise, points, of.order, layers, of.correction, fixed=True)
        # the march is the processor's, wherever the network is
        found = Coefficients(found.drift.cpu(), found.diffusion.cpu())
        if self._tapered:
            found = of.taper(found)
        return found.drift, found.diffusion


def _joined(parts: list[Tensor]) -> Tensor:
    """Layers in one tensor (L, Q, ...), nodes contiguous as in its parts."""
    return parts[0] if len(parts) == 1 else torch.cat([p.movedim(1, -1) for p in parts]).movedim(-1, 1)


class _SumGradients(torch.autograd.Function):
    """Parameters held alike by every process; gradients are summed over processes."""

    @staticmethod
    def forward(ctx: Any, space: Space, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.space = space
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(torch.from_numpy(ctx.space.sum(np.ascontiguousarray(g.numpy()))) for g in gradients))
