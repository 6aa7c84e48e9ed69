"""The built-in penalties with their derivatives, added to those of the loss."""

from __future__ import annotations

import math

import numpy as np
import torch

from kolmo.compiled.jit import kernel, part
from kolmo.compiled.reverse import Derivatives
from kolmo.network import ResidualNetwork
from kolmo.penalty import Penalty, StepPenalty, WeightDecay


def add_penalty(penalty: Penalty, network: ResidualNetwork, weights: Derivatives, into: Derivatives) -> float:
    """A penalty's value, its derivatives added to `into`; weights: those of the network, as arrays.

    A penalty of one's own is differentiated by torch.
    """
    if type(penalty) is WeightDecay:
        return _weight_decay(penalty.coefficient * network.step, weights, into)
    if type(penalty) is StepPenalty:
        return _step_penalty(penalty.weight, penalty.threshold, network.step, weights, into)
    value, parameters = penalty(network), (network.W, network.b, network.V)
    if value.requires_grad:
        for total, found in zip(into, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            if found is not None:
                total += found.numpy()
    return float(value.detach())


@part
def _squares(factor, theta, gradient):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(theta.size):
        total += theta[i] * theta[i]
        gradient[i] += 2.0 * factor * theta[i]
    return factor * total


@kernel
def _weight_decay(factor, theta, into):  # type: ignore[no-untyped-def]
    # factor |theta|^2
    return (
        _squares(factor, theta.W.ravel(), into.W.ravel())
        + _squares(factor, theta.b.ravel(), into.b.ravel())
        + _squares(factor, theta.V.ravel(), into.V.ravel())
    )


@kernel
def _step_penalty(weight, threshold, step, theta, into):  # type: ignore[no-untyped-def]
    # weight sum_k max(0, h |A_k| - threshold)^2 with A = V W: its derivative by A is p A / |A|, by V that
    # times W^T
    depth, width, d = theta.W.shape
    value, A = 0.0, np.empty((d, d))
    for k in range(depth):
        W, V, square = theta.W[k], theta.V[k], 0.0
        for i in range(d):
            for a in range(d):
                total = 0.0
                for j in range(width):
                    total += V[i, j] * W[j, a]
                A[i, a] = total
                square += total * total
        norm = math.sqrt(square)
        beyond = step * norm - threshold
        if beyond < 0.0:
            continue
        value += weight * beyond * beyond
        slope = 2.0 * weight * beyond * step / norm if norm > 0.0 else 0.0
        for i in range(d):
            for a in range(d):
                pull = slope * A[i, a]
                for j in range(width):
                    into.V[k, i, j] += pull * W[j, a]
                    into.W[k, j, a] += pull * V[i, j]
    return value
