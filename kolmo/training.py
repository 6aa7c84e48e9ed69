"""Stochastic training: Adam on the chain with fresh noise in every step.

With `NoNoise` it is ordinary training of the residual network. Penalties are the same
objects that the control objective uses, so both minimise the same function. With a checkpoint a training
that was interrupted goes on after the last step that was kept, bitwise as if it never had been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from kolmo.chain import Chain
from kolmo.checkpoint import Checkpoint, State
from kolmo.errors import InputError, NonFiniteError
from kolmo.network import LayeredNetwork
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
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train the problem's network in place: full-batch Adam, cosine decay of the learning rate.

    paths: noise samples of every data point in each step. checkpoint: what an interrupted training with the
    same arguments left, and where this one leaves its state. Raises InputError on bad settings and
    NonFiniteError where a loss is not finite.
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
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    start, cost = time.perf_counter(), paths * len(problem.data) * network.depth
    done, kept = 0, checkpoint.load()
    if kept is not None:
        done, start = kept["step"], start - kept["seconds"]
        _restore(network, optimiser, schedule, kept)
    try:
        for number in range(done + 1, steps + 1):
            optimiser.zero_grad()
            # a step's noise is addressed by its number: a resumed training draws what it would have drawn
            loss = chain.losses(paths, first=(number - 1) * paths).mean()
            for penalty in penalties:
                loss = loss + penalty(network)
            value = float(loss.detach())
            if not value < float("inf"):
                raise NonFiniteError(f"step {number}: the loss is not finite; take a smaller learning rate")
            loss.backward()
            optimiser.step()
            schedule.step()
            seconds = time.perf_counter() - start
            if callback is not None:
                callback(Step(number, value, number * cost, seconds))
            checkpoint.offer(partial(_state, number, seconds, network, optimiser, schedule))
    finally:
        network.to("cpu")


def weights_of(network: LayeredNetwork) -> State:
    """A network's weights, as checkpoints keep them."""
    return [p.detach().cpu().numpy() for p in network.parameters()]


def set_weights(network: LayeredNetwork, weights: State) -> None:
    """Give a network the weights that `weights_of` took from one like it."""
    with torch.no_grad():
        for p, kept in zip(network.parameters(), weights, strict=True):
            p.copy_(torch.from_numpy(kept))


def _state(
    step: int,
    seconds: float,
    network: LayeredNetwork,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> State:
    """All that the next step depends on: weights, moments and learning rate; and the clock."""
    return {
        "step": step,
        "seconds": seconds,
        "weights": weights_of(network),
        "moments": [
            {name: moment.cpu().numpy() for name, moment in optimiser.state[p].items()}
            for p in network.parameters()
        ],
        "rate": optimiser.param_groups[0]["lr"],
        "schedule": schedule.state_dict(),
    }


def _restore(
    network: LayeredNetwork,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    state: State,
) -> None:
    set_weights(network, state["weights"])
    moments = [{name: torch.from_numpy(m) for name, m in found.items()} for found in state["moments"]]
    groups = optimiser.state_dict()["param_groups"]
    groups[0]["lr"] = state["rate"]
    optimiser.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
    schedule.load_state_dict(state["schedule"])
