"""The problems that are timed: fixed seeds, weights as a network starts with and as training leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

import kolmo
from kolmo import data, noise
from kolmo.benchmarks.peers import Task
from kolmo.network import ResidualNetwork
from kolmo.pde.domain import choose_half_width

#: of every case unless said otherwise
DEPTH, WIDTH, SAMPLES, KEEP, SCALE = 20, 16, 200, 0.8, 4.0
#: plain training that gives weights their shape, and h |V W| that no layer exceeds after it
STEPS, RATE, DECAY, LARGEST = 150, 0.01, 1e-2, 0.2


@dataclass(frozen=True)
class Case:
    """One problem on one mesh: `cells` intervals a direction. fine: of the reference for J's error.

    fresh: the weights are those a network is made with, else those of a short training.
    """

    name: str
    dim: int
    cells: int
    fine: int
    samples: int = SAMPLES
    fresh: bool = False

    @cached_property
    def problem(self) -> kolmo.Problem:
        """Dropout in a residual network."""
        return untrained(self.dim, self.samples) if self.fresh else trained(self.dim, self.samples)

    @cached_property
    def half_width(self) -> float:
        """R of the box, the same for all who solve the equation."""
        return choose_half_width(self.problem)

    @cached_property
    def task(self) -> Task:
        """The problem as peers take it."""
        return task(self.problem, self.half_width)


CASES = {
    case.name: case
    for case in (
        Case("interval-512", 1, 512, 1024),
        Case("plane-64", 2, 64, 192, fresh=True),
        Case("plane-64-trained", 2, 64, 192),
        Case("plane-128", 2, 128, 192),
        Case("cube-24", 3, 24, 40),
    )
}
#: the 3-D case of `--quick`, and the mesh of its gradients
SMALL_CUBE, SMALL_PLANE = Case("cube-10", 3, 10, 20), Case("plane-32", 2, 32, 128)


def points(dim: int, samples: int = SAMPLES) -> data.Dataset:
    """An interval against its outside, two moons, two moons with a third feature that says nothing."""
    if dim == 1:
        return data.interval(samples)
    moons = data.moons(samples)
    if dim == 2:
        return moons
    generator = torch.Generator().manual_seed(0)
    idle = 0.4 * torch.randn(samples, dim - 2, generator=generator, dtype=torch.float64)
    return data.Dataset(torch.cat([moons.points, idle], dim=1), moons.labels)


def untrained(dim: int, samples: int = SAMPLES, depth: int = DEPTH, width: int = WIDTH) -> kolmo.Problem:
    """A network as it is made."""
    network = ResidualNetwork(dim, width, depth, seed=0)
    return kolmo.Problem(points(dim, samples), network, noise.BernoulliDropout(KEEP))


def trained(dim: int, samples: int = SAMPLES, depth: int = DEPTH, width: int = WIDTH) -> kolmo.Problem:
    """A network after a short plain training, no layer of which is beyond the modified equation."""
    problem = untrained(dim, samples, depth, width)
    network: Any = problem.network
    x, labels = problem.data.points, problem.data.labels
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimiser.zero_grad()
        decay = network.step * sum(p.square().sum() for p in network.parameters())
        (problem.loss(network(x), labels).mean() + DECAY * decay).backward()
        optimiser.step()
    with torch.no_grad():
        network.V.mul_((LARGEST / network.step_size()).clamp(max=1)[:, None, None])
    network.zero_grad(set_to_none=True)
    return problem


def task(problem: kolmo.Problem, half_width: float) -> Task:
    """A problem's arrays, for peers."""
    network = problem.network
    assert isinstance(network, ResidualNetwork)
    W, b, V = (w.detach().numpy().copy() for w in (network.W, network.b, network.V))
    return Task(
        problem.data.points.numpy(),
        problem.data.labels.numpy(),
        W,
        b,
        V,
        network.horizon,
        KEEP,
        SCALE,
        half_width,
    )
