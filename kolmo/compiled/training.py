"""Steps of Adam by kernels: the gradient over fresh paths, penalties, moments and weights, in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kolmo.compiled.chain import CompiledChain
from kolmo.compiled.jit import kernel, part
from kolmo.compiled.penalty import add_penalty
from kolmo.compiled.reverse import Derivatives
from kolmo.network import ResidualNetwork
from kolmo.penalty import Penalty
from kolmo.stream import Stream

# Kingma, Ba, 1412.6980, as torch.optim.Adam has them
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def has_steps(network: ResidualNetwork) -> bool:
    """Whether the weights are what the kernels train: W, b, V and nothing else, double, none fixed."""
    parameters = dict(network.named_parameters())
    return set(parameters) == {"W", "b", "V"} and all(
        p.requires_grad and p.dtype == torch.float64 and p.is_contiguous() for p in parameters.values()
    )


class CompiledSteps:
    """Adam on the mean loss of a chain's paths and on penalties; the network's weights change in place.

    Its moments have the form of torch.optim.Adam's.
    """

    def __init__(self, chain: CompiledChain, network: ResidualNetwork, penalties: Sequence[Penalty]) -> None:
        self._chain, self._network, self._penalties = chain, network, penalties
        self._weights = Derivatives(*(p.detach().numpy() for p in (network.W, network.b, network.V)))
        self._gradient, self._first, self._second = (chain.zeros() for _ in range(3))
        self._number = 0

    def objective(self, stream: Stream) -> float:
        """Mean loss of a stream's paths plus penalties; their gradient is what `descend` follows."""
        for total in self._gradient:
            total.fill(0.0)
        self._chain.refresh()
        cotangent = np.full(stream.count, 1 / stream.count)
        value = float(self._chain.gradient(stream, cotangent, self._gradient).mean())
        for penalty in self._penalties:
            value += add_penalty(penalty, self._network, self._weights, self._gradient)
        return value

    def descend(self, rate: float) -> None:
        """One step with a learning rate."""
        self._number += 1
        _adam(
            self._weights, self._gradient, self._first, self._second,
            rate / (1 - _BETA1**self._number), math.sqrt(1 - _BETA2**self._number),
        )  # fmt: skip

    def moments(self) -> list[dict[str, Any]]:
        """The state of torch.optim.Adam for each parameter."""
        return [
            {"step": np.array(self._number, np.float32), "exp_avg": first, "exp_avg_sq": second}
            for first, second in zip(self._first, self._second, strict=True)
        ]

    def restore(self, moments: Sequence[dict[str, Any]]) -> None:
        """Go on from such a state."""
        self._number = int(moments[0]["step"])
        for first, second, kept in zip(self._first, self._second, moments, strict=True):
            first[...], second[...] = kept["exp_avg"], kept["exp_avg_sq"]


@part
def _update(theta, gradient, first, second, rate, root):  # type: ignore[no-untyped-def]
    for i in range(theta.size):
        first[i] += (gradient[i] - first[i]) * (1.0 - _BETA1)
        second[i] = second[i] * _BETA2 + gradient[i] * gradient[i] * (1.0 - _BETA2)
        theta[i] -= rate * first[i] / (math.sqrt(second[i]) / root + _EPSILON)


@kernel
def _adam(theta, gradient, first, second, rate, root):  # type: ignore[no-untyped-def]
    _update(theta.W.ravel(), gradient.W.ravel(), first.W.ravel(), second.W.ravel(), rate, root)
    _update(theta.b.ravel(), gradient.b.ravel(), first.b.ravel(), second.b.ravel(), rate, root)
    _update(theta.V.ravel(), gradient.V.ravel(), first.V.ravel(), second.V.ravel(), rate, root)
