"""The main job: one network trained three ways, its value cross-checked four ways, its gradient two.

control: L-BFGS through the backward Kolmogorov equation; stochastic: Adam on the chain with
fresh noise; noiseless: Adam without noise. All start from the same weights and minimise the
same penalties. Then every trained network is evaluated under the noise by the equation and
by the chain, values and gradients; then by the SDE and the exact recursion, values alone.

The papers' abstracts (Sun, Tao, Du, 1812.00174 and Mathematica Numerica Sinica 42(3), 2020)
name the task; data set, sizes, noise level and loss are our choice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from kolmo import training
from kolmo.chain import Chain, Estimate
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.data import Dataset
from kolmo.device import resolve as resolve_device
from kolmo.errors import InfeasibleError, KolmoError
from kolmo.experiments import trained_comparison
from kolmo.experiments.claims import Claim
from kolmo.experiments.comparison import Comparison
from kolmo.experiments.conditions import conditions
from kolmo.experiments.crosscheck import Line, PdeValue, Verdict, compare_gradients, compare_values, pde_value
from kolmo.experiments.progress import Progress, Silent
from kolmo.experiments.three_ways import METHODS, Trained, Trainer
from kolmo.network import LayeredNetwork
from kolmo.noise import NoNoise
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.pde.domain import choose_half_width
from kolmo.pde.mesh import check_dim
from kolmo.penalty import Penalty, StepPenalty, WeightDecay
from kolmo.problem import Problem


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
        #: J of each network by all four estimators
        self.comparisons: dict[str, Comparison] = {}
        self.paths: dict[str, list[dict[str, float | None]]] = {}
        #: Pontryagin's conditions of the control network, see `conditions`
        self.optimality: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All stages. Raises KolmoError where a stage cannot be answered for."""
        progress = progress or Silent()
        stages: list[tuple[str, Callable[[Progress], None]]] = [
            *((method, partial(self._train, method)) for method in METHODS),
            ("cross-check", self._cross_check),
            ("four-ways", self._four_ways),
            ("training-paths", self._follow),
            ("optimality", self._judge),
        ]
        for name, stage in stages:
            stage(progress)
            self.seconds[name] = sum(s for key, s in self.memo.seconds.items() if key.startswith(name))

    def under_noise(self, network: LayeredNetwork) -> Problem:
        """The training problem with this network, noise on."""
        return self.problem.with_network(network)

    # training

    def _train(self, method: str, progress: Progress) -> None:
        """One training, or as much of it as is left."""
        run = self.trained[method] = Trained(copy.deepcopy(self.problem.network))
        start = self.under_noise(run.network)
        trainer = Trainer(self.config, start, self.penalties, self.backend, self.device, progress)

        def resume(kept: State) -> None:
            run.take_course(kept)
            progress.advance("resumed", len(run.history))

        def compute(checkpoint: Checkpoint) -> State:
            trainer.train(method, run, checkpoint.beside(run.course, resume))
            weights = training.weights_of(run.network)
            return {**run.course(), "weights": weights, "details": run.details}

        kept = self.memo.remember(method, compute)
        run.take_course(kept)
        run.details = kept["details"]
        training.set_weights(run.network, kept["weights"])

    # evaluation

    def _cross_check(self, progress: Progress) -> None:
        progress.start("cross-check: equation against chain", 3 * len(self.trained))
        for number, (name, run) in enumerate(self.trained.items()):
            seed = self._seed(number)
            check = partial(self._check, name, self.under_noise(run.network), seed, progress)
            kept = self.memo.remember(f"cross-check-{name}", check)
            self.lines += [Line(**{**line, "verdict": Verdict(**line["verdict"])}) for line in kept["lines"]]
            self.measured[name] = kept["measured"]

    def _seed(self, number: int) -> int:
        """Of the samples of one network."""
        return 7919 * (self.config.run.seed + 1) + number

    def _four_ways(self, progress: Progress) -> None:
        progress.start(
            "cross-check: SDE and exact recursion", len(trained_comparison.OTHERS) * len(self.trained)
        )
        for number, (name, run) in enumerate(self.trained.items()):
            self.comparisons[name] = trained_comparison.compare(
                f"four-ways-{name}",
                self.under_noise(run.network),
                self.measured[name],
                self.config,
                self.device,
                self._seed(number) + 43,
                self.memo,
                progress,
            )

    def _check(
        self, name: str, problem: Problem, seed: int, progress: Progress, checkpoint: Checkpoint
    ) -> State:
        """Both lines of a network and its figures, as a memo keeps them."""
        pde = pde_value(
            problem,
            cells=self.config.control.check_cells(self.train.dim),
            refine=True,
            order=self.config.control.order,
            backend=self.backend,
            gradient=True,
            model=True,
        )
        progress.advance(f"{name}: J = {pde.value:.5f} by the equation")
        paths = max(self.config.check.paths, 2 * len(self.train))
        chain = Chain(problem, seed=seed, device=self.device).estimate(paths)
        progress.advance(f"{name}: J = {chain.value:.5f} by the chain")
        sampled = Chain(problem, seed=seed + 17).gradient(
            max(self.config.check.gradient_paths, 32 * len(self.train))
        )
        assert pde.gradient is not None  # asked for above
        verdict, cosine = compare_gradients(pde.gradient, sampled)
        progress.advance(f"{name}: gradients at cosine {cosine:.4f}")
        values = Line(name, "value", pde.value, chain.value, compare_values(pde, chain))
        gradients = Line(name, "gradient", _norm(pde.gradient), _norm(sampled.value), verdict)
        measured = self._measure(problem.network, pde, chain, seed)
        measured["gradient"] = {
            "relative_difference": verdict.difference,
            "cosine": cosine,
            "paths": sampled.paths,
        }
        return {"lines": [asdict(values), asdict(gradients)], "measured": measured}

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
                "error": {**pde.errors, "sampling": 0.0},
                "seconds": pde.seconds,
            },
            "chain": {
                "value": chain.value,
                "standard_error": chain.standard_error,
                "interval": [low, high],
                "error": {**dict.fromkeys(pde.errors, 0.0), "sampling": (high - low) / 2},
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
            for number, (seconds, evaluations, theta) in enumerate(snapshots):
                torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), network.parameters())
                value = partial(self._value, self.under_noise(network), cells, half_width)
                kept = self.memo.remember(f"training-paths-{name}-{number}", value)
                rows.append({"seconds": seconds, "evaluations": evaluations, **kept})
                progress.advance(f"{name}: J = {kept['chain']:.5f} by the chain")

    def _value(self, problem: Problem, cells: int, half_width: float, checkpoint: Checkpoint) -> State:
        """J at a snapshot, by both estimators."""
        chain = Chain(problem, seed=self.config.run.seed).estimate(max(100_000, 2 * len(self.train)))
        value = self._short_value(problem, cells, half_width)
        return {"pde": value, "chain": chain.value, "standard_error": chain.standard_error}

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

    def _judge(self, progress: Progress) -> None:
        """Pontryagin's conditions of the control network, on the mesh that it was trained on."""
        progress.start("Pontryagin's conditions", 1)
        run = self.trained["control"]
        judge = partial(
            conditions, self.config, self.under_noise(run.network), self.penalties, self.backend, run.details
        )
        self.optimality = self.memo.remember("optimality", judge)
        progress.advance(f"control: {self.optimality['verdict']}")

    # outcome

    def claims(self) -> list[Claim]:
        """What this run shows, against the bounds in [check]."""
        found = self.measured
        if any(method not in self.comparisons for method in METHODS):
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
        mild = {n: four for n, four in self.comparisons.items() if found[n]["largest_step"] < bound}
        claims.append(trained_comparison.claim(mild, bound))
        return claims


def _norm(gradient: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([g.reshape(-1) for g in gradient.values()]).norm())
