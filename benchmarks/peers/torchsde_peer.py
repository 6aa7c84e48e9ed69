r"""The network as an SDE in torchsde, by `sdeint` with diagonal noise and Euler's method, one step a layer.

    dX = f dt + sqrt(h (1 - p) / p) |f| dW

has, step by step, the mean and covariance of the network with dropout: the cheapest SDE with the same
limit. float32 and a batch that torchsde likes on a CPU. `f` and `g` are written as in torchsde's README and
examples. Its reference documentation ("Providing specialised methods") also takes an `f_and_g` where they
share work: `SharedDropoutSDE`, listed beside.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kolmo.benchmarks.peers import MissingPeerError, Task

#: paths simulated at once: of 2 000 to 100 000 the fastest
BATCH = 10_000


class DropoutSDE(torch.nn.Module):
    """Drift and diagonal diffusion by themselves, weights constant on each layer."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.W, self.b, self.V = (torch.tensor(w, dtype=torch.float32) for w in (task.W, task.b, task.V))
        self.step, self.layers = task.step, task.layers
        self.spread = math.sqrt(task.step * (1 - task.keep) / task.keep)

    def block(self, t: Tensor, x: Tensor) -> Tensor:
        """f of the layer that time t lies in."""
        k = min(int(float(t) / self.step + 1e-3), self.layers - 1)
        return torch.tanh(x @ self.W[k].T + self.b[k]) @ self.V[k].T

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        """Drift."""
        return self.block(t, x)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        """Diffusion, its diagonal."""
        return self.spread * self.block(t, x)


class SharedDropoutSDE(DropoutSDE):
    """The same SDE with one evaluation of the block for both."""

    def f_and_g(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion."""
        value = self.block(t, x)
        return value, self.spread * value


def value(
    task: Task, paths: int, seed: int = 0, equation: type[DropoutSDE] = DropoutSDE
) -> tuple[float, float]:
    """J and its standard error from about `paths` paths, the same number from every point."""
    try:
        import torchsde
    except ImportError as error:
        raise MissingPeerError(f"torchsde: {error}") from error
    torch.manual_seed(seed)
    sde, points = equation(task), torch.tensor(task.points, dtype=torch.float32)
    sign = 2 * torch.tensor(task.labels, dtype=torch.float32) - 1
    copies = max(1, BATCH // len(points))
    start, signs = points.repeat(copies, 1), sign.repeat(copies)
    times = torch.tensor([0.0, task.horizon])
    means = []
    with torch.no_grad():
        for _ in range(max(2, round(paths / len(start)))):
            end = torchsde.sdeint(sde, start, times, method="euler", dt=task.step)[-1]
            means.append(float(torch.nn.functional.softplus(-task.scale * signs * end[:, 0]).mean()))
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(len(means)))
