"""Networks of the size that training reaches: no closed form, but every term of the equation is there."""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo import data
from kolmo.loss import Logistic
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.problem import Problem


def trained_problem(dim: int, model: Noise, depth: int = 6, width: int = 4, samples: int = 20) -> Problem:
    """Weights of standard deviation 0.5, points uniform in a box, labels by the sign of their sum."""
    generator = torch.Generator().manual_seed(1)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = normal(0.5, depth, width, dim), normal(0.2, depth, width), normal(0.5, depth, dim, width)
    x = 2.4 * torch.rand(samples, dim, generator=generator, dtype=torch.float64) - 1.2
    cloud = data.Dataset(x, (x.sum(dim=1) > 0).long())
    return Problem(cloud, ResidualNetwork.from_weights(*weights), model, Logistic())
