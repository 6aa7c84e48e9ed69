"""Stochastic training: Adam on the chain with fresh noise in every step.

With `NoNoise` it is ordinary training of the residual network. Penalties are the same
objects that the control objective uses, so both minimise the same function. With a checkpoint a training
that was interrupted goes on after the last step that was kept, bitwise as if it never had been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from kolmo.chain import Chain
from kolmo.checkpoint import Checkpoint, State
from kolmo.errors import InputError, NonFiniteError
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.penalty import Penalty
from kolmo.problem import Problem
from kolmo.stream import Stream


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
    stepper = _steps(chain, network, penalties)
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    start, cost = time.perf_counter(), paths * len(problem.data) * network.depth
    done, kept = 0, checkpoint.load()
    if kept is not None:
        done, start = kept["step"], start - kept["seconds"]
        set_weights(network, kept["weights"])
        stepper.restore(kept["moments"])
    try:
        for number in range(done + 1, steps + 1):
            # a step's noise is addressed by its number: a resumed training draws what it would have drawn
            value = stepper.objective(chain.stream(paths, (number - 1) * paths))
            if not value < float("inf"):
                raise NonFiniteError(f"step {number}: the loss is not finite; take a smaller learning rate")
            stepper.descend(0.5 * learning_rate * (1 + math.cos(math.pi * (number - 1) / steps)))
            seconds = time.perf_counter() - start
            if callback is not None:
                callback(Step(number, value, number * cost, seconds))
            checkpoint.offer(partial(_state, number, seconds, network, stepper))
    finally:
        network.to("cpu")


class Steps(Protocol):
    """Adam, a step at a time."""

    def objective(self, stream: Stream) -> float:
        """Mean loss of a stream's paths plus penalties, whose gradient `descend` follows."""

    def descend(self, rate: float) -> None:
        """One step with a learning rate."""

    def moments(self) -> list[dict[str, Any]]:
        """The state of torch.optim.Adam for each parameter, as arrays."""

    def restore(self, moments: Sequence[dict[str, Any]]) -> None:
        """Go on from such a state."""


def _steps(chain: Chain, network: LayeredNetwork, penalties: Sequence[Penalty]) -> Steps:
    """By kernels where there are any, else by torch: the same function, the same numbers, to rounding."""
    kernels = chain.kernels(network)
    if kernels is not None:
        from kolmo.compiled.chain import CompiledChain
        from kolmo.compiled.training import CompiledSteps, has_steps

        assert isinstance(network, ResidualNetwork)
        if isinstance(kernels, CompiledChain) and has_steps(network):
            return CompiledSteps(kernels, network, penalties)
    return TorchSteps(chain, network, penalties)


class TorchSteps:
    """Adam by torch, for any network, noise, loss and device."""

    def __init__(self, chain: Chain, network: LayeredNetwork, penalties: Sequence[Penalty]) -> None:
        self._chain, self._network, self._penalties = chain, network, penalties
        self._optimiser = torch.optim.Adam(network.parameters())

    def objective(self, stream: Stream) -> float:
        self._optimiser.zero_grad()
        loss = self._chain.plain(self._network, stream).mean()
        for penalty in self._penalties:
            loss = loss + penalty(self._network)
        loss.backward()
        return float(loss.detach())

    def descend(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()

    def moments(self) -> list[dict[str, Any]]:
        state = self._optimiser.state
        return [
            {name: moment.cpu().numpy() for name, moment in state[p].items()}
            for p in self._network.parameters()
        ]

    def restore(self, moments: Sequence[dict[str, Any]]) -> None:
        state = {
            i: {name: torch.from_numpy(m) for name, m in found.items()} for i, found in enumerate(moments)
        }
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})


def weights_of(network: LayeredNetwork) -> State:
    """A network's weights, as checkpoints keep them."""
    return [p.detach().cpu().numpy() for p in network.parameters()]


def set_weights(network: LayeredNetwork, weights: State) -> None:
    """Give a network the weights that `weights_of` took from one like it."""
    with torch.no_grad():
        for p, kept in zip(network.parameters(), weights, strict=True):
            p.copy_(torch.from_numpy(kept))


def _state(step: int, seconds: float, network: LayeredNetwork, stepper: Steps) -> State:
    """All that the next step depends on: weights and moments; and the clock."""
    return {
        "step": step,
        "seconds": seconds,
        "weights": weights_of(network),
        "moments": stepper.moments(),
    }
