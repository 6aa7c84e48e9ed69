"""The main job: one network trained three ways, cross-checked two ways.

control: L-BFGS through the backward Kolmogorov equation; stochastic: Adam on the chain with
fresh noise; noiseless: Adam without noise. All start from the same weights and minimise the
same penalties. Then every trained network is evaluated under the noise by the equation and
by the chain, values and gradients.

The papers' abstracts (Sun, Tao, Du, 1812.00174 and Mathematica Numerica Sinica 42(3), 2020)
name the task; data set, sizes, noise level and loss are our choice.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kolmo import control, training
from kolmo.chain import Chain, Estimate
from kolmo.config import Config
from kolmo.control.admissible import Box
from kolmo.data import Dataset
from kolmo.device import resolve as resolve_device
from kolmo.errors import InfeasibleError, KolmoError
from kolmo.experiments.claims import Claim
from kolmo.experiments.crosscheck import PdeValue, Verdict, compare_gradients, compare_values, pde_value
from kolmo.experiments.progress import Progress, Silent
from kolmo.network import LayeredNetwork
from kolmo.noise import NoNoise
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.pde.domain import choose_half_width
from kolmo.pde.mesh import check_dim
from kolmo.penalty import Penalty, StepPenalty, WeightDecay
from kolmo.problem import Problem

METHODS = ("control", "stochastic", "noiseless")


@dataclass
class Trained:
    """One network and the way to it: rows (seconds, evaluations, objective) and snapshots."""

    network: LayeredNetwork
    history: list[tuple[float, int, float]] = field(default_factory=list)
    snapshots: list[tuple[float, int, np.ndarray]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One line of the cross-check."""

    network: str
    quantity: str
    pde: float
    chain: float
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """The line for results.json."""
        return {
            "network": self.network,
            "quantity": self.quantity,
            "pde": self.pde,
            "chain": self.chain,
            "difference": self.verdict.difference,
            "tolerance": self.verdict.tolerance,
            "verdict": self.verdict.word,
            "reason": self.verdict.reason,
        }


class BinaryClassification:
    """The experiment's state, filled stage by stage, so that an interrupted run keeps what is done."""

    name = "binary_classification"
    summary = "two moons by PDE control, stochastic and noiseless training, cross-checked"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.train, self.test = config.datasets()
        check_dim(self.train.dim)
        self.problem: Problem = config.problem(self.train)
        self.backend = resolve_backend(config.run.backend)
        self.device = resolve_device(config.run.device)
        self.penalties: tuple[Penalty, ...] = (WeightDecay(config.penalty.weight_decay), StepPenalty())
        self.trained: dict[str, Trained] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.lines: list[Line] = []
        self.paths: dict[str, list[dict[str, float | None]]] = {}
        self.seconds: dict[str, float] = {}

    def run(self, progress: Progress | None = None) -> None:
        """All stages. Raises KolmoError where a stage cannot be answered for."""
        progress = progress or Silent()
        stages: list[tuple[str, Callable[[Progress], None]]] = [
            *((method, getattr(self, f"_train_{method}")) for method in METHODS),
            ("cross-check", self._cross_check),
            ("training paths", self._follow),
        ]
        for name, stage in stages:
            start = time.perf_counter()
            stage(progress)
            self.seconds[name] = time.perf_counter() - start

    def under_noise(self, network: LayeredNetwork) -> Problem:
        """The training problem with this network, noise on."""
        return self.problem.with_network(network)

    # training

    def _fresh(self, method: str) -> Trained:
        self.trained[method] = Trained(copy.deepcopy(self.problem.network))
        return self.trained[method]

    def _train_control(self, progress: Progress) -> None:
        settings, run = self.config.control, self._fresh("control")
        total = sum(settings.iterations)
        progress.start("control: L-BFGS through the Kolmogorov equation", total)
        every = max(1, total // max(1, self.config.check.snapshots))

        def note(step: control.training.Progress) -> None:
            run.history.append((step.seconds, step.evaluations, step.objective))
            if len(run.history) % every == 1 or every == 1:
                run.snapshots.append((step.seconds, step.evaluations, step.theta))
            progress.advance(f"{step.cells} cells, objective {step.objective:.5f}")

        outcome = control.train(
            self.under_noise(run.network),
            self.penalties,
            cells=settings.meshes(self.train.dim),
            iterations=settings.iterations,
            order=settings.order,
            backend=self.backend,
            tolerance=settings.tolerance,
            admissible=Box(settings.radius),
            seed=self.config.run.seed,
            callback=note,
        )
        run.details = {
            "status": outcome.result.status,
            "iterations": outcome.iterations,
            "residual": outcome.result.residual,
            "cells": outcome.cells,
            "half_width": outcome.half_width,
            "refused": outcome.refused,
            "audits": outcome.audits,
        }

    def _train_stochastic(self, progress: Progress) -> None:
        settings, run = self.config.stochastic, self._fresh("stochastic")
        progress.start("stochastic: Adam on the noisy chain", settings.steps)
        self._adam(
            run,
            self.under_noise(run.network),
            settings.steps,
            settings.paths,
            settings.learning_rate,
            progress,
        )

    def _train_noiseless(self, progress: Progress) -> None:
        settings, run = self.config.noiseless, self._fresh("noiseless")
        progress.start("noiseless: Adam without noise", settings.steps)
        problem = self.under_noise(run.network).without_noise()
        self._adam(run, problem, settings.steps, 1, settings.learning_rate, progress)

    def _adam(
        self, run: Trained, problem: Problem, steps: int, paths: int, rate: float, progress: Progress
    ) -> None:
        every = max(1, steps // max(1, self.config.check.snapshots))

        def note(step: training.Step) -> None:
            run.history.append((step.seconds, step.evaluations, step.objective))
            if step.number % every == 1 or every == 1:
                theta = torch.nn.utils.parameters_to_vector(run.network.parameters())
                run.snapshots.append((step.seconds, step.evaluations, theta.detach().cpu().numpy().copy()))
            progress.advance(f"batch objective {step.objective:.4f}")

        training.train(
            problem,
            self.penalties,
            steps=steps,
            paths=paths,
            learning_rate=rate,
            seed=self.config.run.seed,
            device=self.device,
            callback=note,
        )
        run.details = {"steps": steps, "paths": paths, "learning_rate": rate}

    # evaluation

    def _cross_check(self, progress: Progress) -> None:
        progress.start("cross-check: equation against chain", 3 * len(self.trained))
        for number, (name, run) in enumerate(self.trained.items()):
            problem = self.under_noise(run.network)
            pde = pde_value(
                problem,
                cells=self.config.control.check_cells(self.train.dim),
                refine=True,
                order=self.config.control.order,
                backend=self.backend,
                gradient=True,
            )
            progress.advance(f"{name}: J = {pde.value:.5f} by the equation")
            seed = 7919 * (self.config.run.seed + 1) + number
            paths = max(self.config.check.paths, 2 * len(self.train))
            chain = Chain(problem, seed=seed, device=self.device).estimate(paths)
            progress.advance(f"{name}: J = {chain.value:.5f} by the chain")
            sampled = Chain(problem, seed=seed + 17).gradient(
                max(self.config.check.gradient_paths, 32 * len(self.train))
            )
            assert pde.gradient is not None  # asked for above
            verdict, cosine = compare_gradients(pde.gradient, sampled)
            self.lines.append(Line(name, "value", pde.value, chain.value, compare_values(pde, chain)))
            self.lines.append(Line(name, "gradient", _norm(pde.gradient), _norm(sampled.value), verdict))
            self.measured[name] = self._measure(run.network, pde, chain, seed)
            self.measured[name]["gradient"] = {
                "relative_difference": verdict.difference,
                "cosine": cosine,
                "paths": sampled.paths,
            }
            progress.advance(f"{name}: gradients at cosine {cosine:.4f}")

    def _measure(self, network: LayeredNetwork, pde: PdeValue, chain: Estimate, seed: int) -> dict[str, Any]:
        with torch.no_grad():
            penalty = sum(float(p(network)) for p in self.penalties)
            largest = float(network.step_size().max())
        noisy_test = Chain(Problem(self.test, network, self.problem.noise, self.problem.loss), seed=seed + 29)
        low, high = chain.interval
        return {
            "pde": {
                "value": pde.value,
                "order": self.config.control.order,
                "cells": pde.resolved.cells,
                "half_width": pde.resolved.half_width,
                "error": {"mesh": pde.resolved.mesh_error},
                "seconds": pde.seconds,
            },
            "chain": {
                "value": chain.value,
                "standard_error": chain.standard_error,
                "interval": [low, high],
                "paths": chain.paths,
                "seconds": chain.seconds,
            },
            "penalty": penalty,
            "objective": chain.value + penalty,
            "loss_without_noise": self._plain_loss(network, self.train),
            "test_loss_without_noise": self._plain_loss(network, self.test),
            "test_loss": noisy_test.estimate(50 * len(self.test)).value,
            "train_accuracy": self._accuracy(network, self.train),
            "test_accuracy": self._accuracy(network, self.test),
            "largest_step": largest,
        }

    def _plain_loss(self, network: LayeredNetwork, data: Dataset) -> float:
        with torch.no_grad():
            return float(self.problem.loss(network(data.points), data.labels).mean())

    def _accuracy(self, network: LayeredNetwork, data: Dataset) -> float:
        with torch.no_grad():
            return float((self.problem.loss.predict(network(data.points)) == data.labels).double().mean())

    def _follow(self, progress: Progress) -> None:
        """J by both estimators at the snapshots of the two noisy trainings."""
        followed = {name: self.trained[name].snapshots for name in ("control", "stochastic")}
        progress.start("J along the training paths", sum(len(s) for s in followed.values()))
        cells = self.config.control.meshes(self.train.dim)[-1 if self.train.dim < 3 else 0]
        for name, snapshots in followed.items():
            rows = self.paths.setdefault(name, [])
            network = copy.deepcopy(self.problem.network)
            half_width = choose_half_width(self.under_noise(self.trained[name].network))
            for seconds, evaluations, theta in snapshots:
                torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), network.parameters())
                problem = self.under_noise(network)
                chain = Chain(problem, seed=self.config.run.seed).estimate(max(100_000, 2 * len(self.train)))
                value = self._short_value(problem, cells, half_width)
                row = {"seconds": seconds, "evaluations": evaluations, "pde": value}
                rows.append({**row, "chain": chain.value, "standard_error": chain.standard_error})
                progress.advance(f"{name}: J = {chain.value:.5f} by the chain")

    def _short_value(self, problem: Problem, cells: int, half_width: float) -> float | None:
        """J on one mesh, None where it is refused (early weights may be out of reach)."""
        try:
            order = self.config.control.order
            equation = BackwardKolmogorov(
                problem, cells=cells, order=order, backend=self.backend, half_width=half_width
            )
            with torch.no_grad():
                return float(equation.expected_loss())
        except InfeasibleError:
            return None

    # outcome

    def claims(self) -> list[Claim]:
        """What this run shows, against the bounds in [check]."""
        found = self.measured
        if any(method not in found for method in METHODS):
            raise KolmoError("the run was not finished, nothing is claimed")
        excess = found["control"]["objective"] / found["stochastic"]["objective"] - 1
        most = self.config.check.excess
        claims = [
            Claim(
                "the control's objective is no worse than the stochastic training's (relative excess)",
                excess,
                f"<= {most:g}",
                excess <= most,
            )
        ]
        within, bound = self.config.check.agreement, self.config.check.largest_step
        for name in ("control", "stochastic"):
            gap = found[name]["pde"]["value"] / found[name]["chain"]["value"] - 1
            size = found[name]["largest_step"]
            text = f"{name}: J_pde and J_chain agree (relative difference)"
            claims.append(Claim(text, gap, f"within {within:g}", abs(gap) <= within))
            text = f"{name}: h |V W| is where the modified equation holds"
            claims.append(Claim(text, size, f"< {bound:g}", size < bound))
        if not isinstance(self.problem.noise, NoNoise):
            worse = found["noiseless"]["objective"] / found["control"]["objective"] - 1
            errors = [found[n]["chain"]["standard_error"] for n in ("noiseless", "control")]
            least = max(0.01, 5 * float(np.hypot(*errors)) / found["control"]["objective"])
            claims.append(
                Claim(
                    "the noiseless network is clearly worse under noise (relative excess)",
                    worse,
                    f">= {least:.2g}",
                    worse >= least,
                )
            )
        # a network trained without noise may lie where no modified equation is valid: said, not counted
        valid = [line for line in self.lines if found[line.network]["largest_step"] < bound]
        agreeing = sum(line.verdict.agree for line in valid)
        claims.append(
            Claim(
                f"lines of the cross-check agree (of networks with h |V W| < {bound:g})",
                f"{agreeing} of {len(valid)}",
                "all",
                agreeing == len(valid),
            )
        )
        return claims


def _norm(gradient: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([g.reshape(-1) for g in gradient.values()]).norm())
