"""Stochastic training in plain PyTorch, float32: modules, `Dropout`, Adam, a cosine schedule."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kolmo.benchmarks.peers import Task


class ResidualNet(nn.Module):
    """x + h dropout(V tanh(W x + b)), as one would write it: two linear layers a block."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        inners = [nn.Linear(task.dim, task.width) for _ in range(task.layers)]
        outers = [nn.Linear(task.width, task.dim, bias=False) for _ in range(task.layers)]
        self.inner, self.outer = nn.ModuleList(inners), nn.ModuleList(outers)
        self.step, self.drop = task.step, nn.Dropout(1 - task.keep)
        with torch.no_grad():
            for k, (inner, outer) in enumerate(zip(inners, outers, strict=True)):
                inner.weight.copy_(torch.from_numpy(task.W[k]))
                inner.bias.copy_(torch.from_numpy(task.b[k]))
                outer.weight.copy_(torch.from_numpy(task.V[k]))

    def forward(self, x: Tensor) -> Tensor:
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + self.step * self.drop(outer(torch.tanh(inner(x))))
        return x

    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W (L, m, d), b (L, m), V (L, d, m)."""
        kept = {name: w.detach().double().numpy() for name, w in self.named_parameters()}
        names = ("inner.{}.weight", "inner.{}.bias", "outer.{}.weight")
        W, b, V = (np.stack([kept[n.format(k)] for k in range(len(self.inner))]) for n in names)
        return W, b, V


#: seconds since the start, weights
Snapshot = tuple[float, tuple[np.ndarray, np.ndarray, np.ndarray]]


def train(
    task: Task,
    steps: int,
    paths: int,
    rate: float,
    decay: float = 0.0,
    seed: int = 0,
    every: int = 0,
) -> tuple[float, list[Snapshot]]:
    """Adam on `paths` masks of every point a step: the mean loss of the last tenth of steps, and snapshots.

    decay: of decay * h * sum of squared weights, which is Adam's own weight_decay. every: steps between
    snapshots, 0 for none.
    """
    torch.manual_seed(seed)
    network = ResidualNet(task)
    points = torch.tensor(task.points, dtype=torch.float32).repeat(paths, 1)
    sign = (2 * torch.tensor(task.labels, dtype=torch.float32) - 1).repeat(paths)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=2 * decay * task.step)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses: list[float] = []
    snapshots: list[Snapshot] = []
    start = time.perf_counter()
    for number in range(1, steps + 1):
        optimiser.zero_grad()
        loss = F.softplus(-task.scale * sign * network(points)[:, 0]).mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        if number > 0.9 * steps:
            losses.append(float(loss.detach()))
        if every and (number % every == 0 or number == steps):
            snapshots.append((time.perf_counter() - start, network.weights()))
    return float(np.mean(losses)), snapshots
