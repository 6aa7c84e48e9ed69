"""Three trainings of one network: by control of the equation, on noisy paths, and without noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kolmo import control, training
from kolmo.checkpoint import Checkpoint, State
from kolmo.config import Config
from kolmo.control.admissible import Box
from kolmo.experiments.progress import Progress
from kolmo.network import LayeredNetwork
from kolmo.penalty import Penalty
from kolmo.problem import Problem

METHODS = ("control", "stochastic", "noiseless")


@dataclass
class Trained:
    """One network and the way to it: rows (seconds, evaluations, objective) and snapshots."""

    network: LayeredNetwork
    history: list[tuple[float, int, float]] = field(default_factory=list)
    snapshots: list[tuple[float, int, np.ndarray]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def course(self) -> State:
        """The way so far, as checkpoints keep it."""
        return {"history": self.history, "snapshots": self.snapshots}

    def take_course(self, kept: State) -> None:
        """Put back what `course` gave."""
        self.history, self.snapshots = ([tuple(row) for row in kept[k]] for k in ("history", "snapshots"))


@dataclass(frozen=True)
class Trainer:
    """The trainings of a configuration, each of the given problem's own network, in place."""

    config: Config
    problem: Problem
    penalties: tuple[Penalty, ...]
    backend: str
    device: str
    progress: Progress

    def train(self, method: str, run: Trained, checkpoint: Checkpoint) -> None:
        """One of METHODS, its course and details into `run`."""
        {"control": self._control, "stochastic": self._stochastic, "noiseless": self._noiseless}[method](
            run, checkpoint
        )

    def _control(self, run: Trained, checkpoint: Checkpoint) -> None:
        settings = self.config.control
        total = sum(settings.iterations)
        self.progress.start("control: L-BFGS through the Kolmogorov equation", total)
        every = max(1, total // max(1, self.config.check.snapshots))

        def note(step: control.training.Progress) -> None:
            run.history.append((step.seconds, step.evaluations, step.objective))
            if len(run.history) % every == 1 or every == 1:
                run.snapshots.append((step.seconds, step.evaluations, step.theta))
            self.progress.advance(f"{step.cells} cells, objective {step.objective:.5f}")

        outcome = control.train(
            self.problem,
            self.penalties,
            cells=settings.meshes(self.problem.network.dim),
            iterations=settings.iterations,
            order=settings.order,
            backend=self.backend,
            tolerance=settings.tolerance,
            admissible=Box(settings.radius),
            seed=self.config.run.seed,
            callback=note,
            checkpoint=checkpoint,
        )
        run.details = {
            "status": outcome.result.status,
            "iterations": outcome.iterations,
            "residual": outcome.result.residual,
            "cells": outcome.cells,
            "half_width": outcome.half_width,
            "refused": outcome.refused,
            "audits": outcome.audits,
            "errors": outcome.errors,
        }

    def _stochastic(self, run: Trained, checkpoint: Checkpoint) -> None:
        settings = self.config.stochastic
        self.progress.start("stochastic: Adam on the noisy chain", settings.steps)
        self._adam(run, self.problem, settings.steps, settings.paths, settings.learning_rate, checkpoint)

    def _noiseless(self, run: Trained, checkpoint: Checkpoint) -> None:
        settings = self.config.noiseless
        self.progress.start("noiseless: Adam without noise", settings.steps)
        self._adam(run, self.problem.without_noise(), settings.steps, 1, settings.learning_rate, checkpoint)

    def _adam(
        self, run: Trained, problem: Problem, steps: int, paths: int, rate: float, checkpoint: Checkpoint
    ) -> None:
        every = max(1, steps // max(1, self.config.check.snapshots))

        def note(step: training.Step) -> None:
            run.history.append((step.seconds, step.evaluations, step.objective))
            if step.number % every == 1 or every == 1:
                theta = torch.nn.utils.parameters_to_vector(run.network.parameters())
                run.snapshots.append((step.seconds, step.evaluations, theta.detach().cpu().numpy().copy()))
            self.progress.advance(f"batch objective {step.objective:.4f}")

        training.train(
            problem,
            self.penalties,
            steps=steps,
            paths=paths,
            learning_rate=rate,
            seed=self.config.run.seed,
            device=self.device,
            callback=note,
            checkpoint=checkpoint,
        )
        run.details = {"steps": steps, "paths": paths, "learning_rate": rate}
