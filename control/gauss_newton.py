r"""The Gauss-Newton matrix of the chain: a Hessian without negative curvature, for Newton's model.

    G = 1/N sum_n (dX_L/dtheta)_n^T  hess Phi(X_L)_n  (dX_L/dtheta)_n

over sampled paths n of the chain, with hess Phi of the loss by the features. It leaves out what the second
derivative of the network contributes, and is semidefinite where Phi is convex, as the logistic loss is. The
objective and its gradient stay the equation's: G only shapes the step, so that sampling and time step have
no part in where Newton's method ends, only in how fast. Without noise it is the classical matrix.
Source: Schraudolph, Neural Computation 14 (2002).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from kolmo.chain import Chain
from kolmo.errors import InputError
from kolmo.problem import Problem
from kolmo.stream import Stream


class GaussNewton:
    """G at the network's present weights, as products with vectors of them.

    paths: from each data point; seed: of their noise, one for all steps, so that G is a function of the
    weights. Raises InputError where the problem has controls besides the weights, or on a bad number.
    Use it as `Objective(..., second=partial(GaussNewton, problem))`.
    """

    def __init__(self, problem: Problem, paths: int = 4, seed: int = 0) -> None:
        if int(paths) != paths or paths < 1:
            raise InputError(f"paths: {paths!r} is not a positive integer")
        if problem.controls:
            raise InputError(
                "gauss-newton: the matrix is by the weights alone, the problem has other controls"
            )
        self._problem, network = problem, problem.network
        self._shapes = {f"network.{name}": p.shape for name, p in network.named_parameters()}
        self._theta = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        self._chain = _Chain(problem, Chain(problem, seed=seed).stream(int(paths), 0))
        features, self._back, *_ = torch.func.vjp(self._features, self._theta)
        self._slope = torch.func.grad(partial(_mean_loss, problem))
        self._reached = features.detach()

    def product(self, direction: np.ndarray) -> np.ndarray:
        """G v for a vector v of weights."""
        v = torch.as_tensor(direction, dtype=torch.float64)
        along = torch.func.jvp(self._features, (self._theta,), (v,))[1]
        bent = torch.func.jvp(self._slope, (self._reached,), (along,))[1]
        (found,) = self._back(bent)
        return np.asarray(found.detach().numpy())

    def _features(self, theta: Tensor) -> Tensor:
        """X_L of every path (N, d)."""
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        each = zip(self._shapes.items(), parts, strict=True)
        found: Tensor = torch.func.functional_call(self._chain, {n: p.reshape(s) for (n, s), p in each}, ())
        return found


class _Chain(torch.nn.Module):
    """Weights -> X_L of every path, under the noise of a stream."""

    def __init__(self, problem: Problem, stream: Stream) -> None:
        super().__init__()
        self.network, self._noise, self._stream = problem.network, problem.noise, stream
        self._start = problem.data.points.repeat(stream.count // stream.batch, 1)

    def forward(self) -> Tensor:
        x = self._start
        for layer in range(self.network.depth):
            x = x + self._noise.sample(self.network, layer, x, self._stream.layer(layer))
        return x


def _mean_loss(problem: Problem, x: Tensor) -> Tensor:
    labels = problem.data.labels.repeat(len(x) // len(problem.data))
    return problem.loss(x, labels).mean()
