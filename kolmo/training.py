"""Stochastic training: Adam on the chain with fresh noise in every step.

With `NoNoise` it is ordinary training of the residual network. Penalties are the same
objects that the control objective uses, so both minimise the same function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kolmo.chain import Chain
from kolmo.errors import InputError, NonFiniteError
from kolmo.penalty import Penalty
from kolmo.problem import Problem


@dataclass(frozen=True)
class Step:
    """One step of training, as a callback sees it.

    objective: the batch's own estimate of J + penalties. evaluations: evaluations of a block
    at a point so far, forward passes only. seconds: since the start.
    """

    number: int
    objective: float
    evaluations: int
    seconds: float


def train(
    problem: Problem,
    penalties: Sequence[Penalty] = (),
    *,
    steps: int = 2000,
    paths: int = 4,
    learning_rate: float = 0.02,
    seed: int = 0,
    device: str = "cpu",
    callback: Callable[[Step], None] | None = None,
) -> None:
    """Train the problem's network in place: full-batch Adam, cosine decay of the learning rate.

    paths: noise samples of every data point in each step. Raises InputError on bad settings
    and NonFiniteError where a loss is not finite.
    """
    for name, number in (("steps", steps), ("paths", paths)):
        if int(number) != number or number < 1:
            raise InputError(f"{name}: {number!r} is not a positive integer")
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"learning_rate: {learning_rate!r} is not a positive number")
    network = problem.network
    chain = Chain(problem, seed=seed, device=device)
    network.to(chain.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start, cost = time.perf_counter(), paths * len(problem.data) * network.depth
    try:
        for number in range(1, steps + 1):
            optimiser.zero_grad()
            loss = chain.losses(paths).mean()
            for penalty in penalties:
                loss = loss + penalty(network)
            value = float(loss.detach())
            if not value < float("inf"):
                raise NonFiniteError(f"step {number}: the loss is not finite; take a smaller learning rate")
            loss.backward()
            optimiser.step()
            schedule.step()
            if callback is not None:
                callback(Step(number, value, number * cost, time.perf_counter() - start))
    finally:
        network.to("cpu")
