r"""Is a layer's step small enough for a modified equation?

The flow of an equation preserves orientation, and its series in h exists where h |grad m| < 1. A layer
x + h m(x) with det(I + h grad m) <= 0 folds space: no modified equation of any order describes it there.
Looked at along the noiseless paths of the data, where the loss is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kolmo.errors import StepError
from kolmo.problem import Problem

#: largest h |grad m| (spectral norm) that is accepted; its series in h converges below 1 only
NORM_LIMIT = 2.0


@dataclass(frozen=True)
class StepNumbers:
    """By layer (L,): the largest h |grad m|_2 and the smallest det(I + h grad m) over the data's paths."""

    norm: Tensor
    determinant: Tensor


@torch.no_grad()
def step_numbers(problem: Problem) -> StepNumbers:
    """Steps of the mean increment along the noiseless paths of the data."""
    network, x = problem.network, problem.data.points
    identity = torch.eye(network.dim).to(x)
    norms, determinants = [], []
    for layer in range(network.depth):
        mean = problem.noise.mean(network.jet(x, slice(layer, layer + 1)))
        jacobian = network.step * mean.jacobian()[0]
        norms.append(torch.linalg.matrix_norm(jacobian, 2).max())
        determinants.append(torch.linalg.det(identity + jacobian).min())
        x = x + network.step * mean.value[0]
    return StepNumbers(torch.stack(norms), torch.stack(determinants))


def check_step(problem: Problem) -> None:
    """Raise StepError that names the worst layer where the data pass through a fold."""
    numbers = step_numbers(problem)
    layer = int(numbers.norm.argmax())
    if not float(numbers.norm[layer]) <= NORM_LIMIT:
        reason = f"h |grad f| = {float(numbers.norm[layer]):.3g} at its data, above {NORM_LIMIT:g}"
    elif float(numbers.determinant.min()) <= 0:
        layer = int(numbers.determinant.argmin())
        reason = f"it folds space at its data, det(I + h grad f) = {float(numbers.determinant[layer]):.2g}"
    else:
        return
    raise StepError(
        f"layer {layer}: {reason}, so that no modified equation describes it; take more layers or smaller "
        "weights (h |grad f| <= 0.25), or the exact or chain estimator",
        layer,
    )
