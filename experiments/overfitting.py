"""Regularisation seen on test data: the noiseless network overfits, the noisy one does not.

Sixty points, dropout with keep probability 0.5, hardly any weight decay. For each seed (data,
initial weights and masks) a network is trained without noise, one with noise on the chain and
one by PDE control; the claim is about the loss on 4000 test points with the noise off, as
networks trained with dropout are used.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch

from kolmo import control, training
from kolmo.checkpoint import Checkpoint, Memo
from kolmo.config import Config
from kolmo.control.admissible import Box
from kolmo.experiments.claims import Claim
from kolmo.experiments.intervals import half_width
from kolmo.experiments.progress import Progress, Silent
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.penalty import StepPenalty, WeightDecay

METHODS = ("noiseless", "stochastic", "control")


class Overfitting:
    """Test losses of each method over seeds: rows[seed][method] = (train, test) loss without noise."""

    name = "overfitting"
    summary = "test loss of noisy and noiseless training on few points, five seeds"
    shipped = "overfitting"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.seeds = config, 3 if quick else 5
        self.confidence = 0.8 if quick else 0.95
        self.rows: list[dict[str, tuple[float, float]]] = []
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """Train all methods for every seed. Raises KolmoError where one cannot be answered for."""
        progress = progress or Silent()
        progress.start("overfitting: three trainings a seed", 3 * self.seeds)
        first = self.config.run.seed
        for seed in range(first, first + self.seeds):
            row: dict[str, tuple[float, float]] = {}
            config = copy.deepcopy(self.config)
            config.run.seed = seed
            for method in METHODS:
                losses = partial(self._losses, config, method)
                train, test = self.memo.remember(f"seed-{seed}-{method}", losses)
                row[method] = train, test
                progress.advance(f"seed {seed}, {method}: test loss {row[method][1]:.4f}")
            self.rows.append(row)

    def _losses(self, config: Config, method: str, checkpoint: Checkpoint) -> tuple[float, float]:
        train, test = config.datasets()
        problem = config.problem(train)
        penalties = (WeightDecay(config.penalty.weight_decay), StepPenalty())
        if method == "control":
            c = config.control
            control.train(
                problem,
                penalties,
                cells=c.meshes(train.dim),
                iterations=c.iterations,
                order=c.order,
                backend=resolve_backend(config.run.backend),
                tolerance=c.tolerance,
                admissible=Box(c.radius),
                seed=config.run.seed,
                checkpoint=checkpoint,
            )
        else:
            noisy = method == "stochastic"
            settings = config.stochastic if noisy else config.noiseless
            training.train(
                problem if noisy else problem.without_noise(),
                penalties,
                steps=settings.steps,
                paths=config.stochastic.paths if noisy else 1,
                learning_rate=settings.learning_rate,
                seed=config.run.seed,
                checkpoint=checkpoint,
            )
        with torch.no_grad():
            losses = [float(problem.loss(problem.network(d.points), d.labels).mean()) for d in (train, test)]
        return losses[0], losses[1]

    def gains(self, method: str) -> np.ndarray:
        """Test loss of the noiseless network minus the method's, one per seed."""
        return np.array([row["noiseless"][1] - row[method][1] for row in self.rows])

    @property
    def finished(self) -> bool:
        """Whether every seed has been trained."""
        return len(self.rows) == self.seeds

    def claims(self) -> list[Claim]:
        """Lower test loss in every seed, and in the mean beyond a one-sided t interval."""
        claims = []
        for method in ("stochastic", "control"):
            gain = self.gains(method)
            text = f"{method}: test loss below the noiseless network's in every seed (seeds)"
            lower = int((gain > 0).sum())
            claims.append(Claim(text, lower, f"{len(gain)} of {len(gain)}", lower == len(gain)))
            margin = float(half_width(gain, self.confidence, sides=1))
            text = f"{method}: mean gain in test loss over {len(gain)} seeds"
            expected = f"> {margin:.3g} (one-sided {self.confidence:.0%} t interval)"
            claims.append(Claim(text, float(gain.mean()), expected, bool(gain.mean() > margin)))
        return claims

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Test losses of every seed."""
        first = self.config.run.seed
        rows: list[list[object]] = [
            [first + k, *(row[method][1] for method in METHODS)] for k, row in enumerate(self.rows)
        ]
        return [("test loss without noise", ["seed", *METHODS], rows)]

    def results(self) -> dict[str, Any]:
        """Losses of every seed for results.json."""
        return {"losses": [{m: {"train": a, "test": b} for m, (a, b) in row.items()} for row in self.rows]}
