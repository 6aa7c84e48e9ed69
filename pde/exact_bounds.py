"""What the value functions of the exact recursion may not leave, looked at layer by layer."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import MaximumPrincipleError, NonFiniteError
from kolmo.pde.march import VIOLATION_LIMIT


class Bounds:
    """Whether each u_k is finite, and keeps to what u_{L-1} spans at the nodes but for 5%.

    Tensors' extremes wait until `settle`, so that an accelerator is waited for but once a march. Raises
    NonFiniteError, MaximumPrincipleError, which name the layer.
    """

    def __init__(self) -> None:
        self._span: tuple[float, float] | None = None
        self._waiting: list[tuple[int, Tensor]] = []

    def see(self, layer: int, values: np.ndarray | Tensor) -> None:
        """u_layer (N, 2) at the nodes, or at the data for layer 0."""
        if isinstance(values, Tensor):
            self._waiting.append((layer, torch.stack(values.aminmax())))
        else:
            self._check(layer, float(values.min()), float(values.max()))

    def settle(self) -> None:
        """Check what waits, in the order of the march."""
        if self._waiting:
            layers, extremes = zip(*self._waiting, strict=True)
            for layer, (least, most) in zip(layers, torch.stack(extremes).tolist(), strict=True):
                self._check(layer, least, most)

    def _check(self, layer: int, least: float, most: float) -> None:
        if not math.isfinite(least + most):
            raise NonFiniteError(
                f"layer {layer}: the value function is not finite; take smaller weights", layer
            )
        # the loss beyond the box does not bound the rest
        low, high = self._span = self._span or (least, most)
        violation = max(low - least, most - high) / max(high - low, 1e-300)
        if layer > 0 and violation > VIOLATION_LIMIT:
            raise MaximumPrincipleError(
                f"layer {layer}: the value function overshoots its bounds by {violation:.0%} of their "
                "range: the grid does not resolve these weights; take more cells, smaller weights or "
                "more layers",
                layer,
            )
