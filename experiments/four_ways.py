"""J four ways for every noise: the project's table.

For each noise one small network is trained (moons, L-BFGS on the exact expectation of its noisy
loss), then its expected loss is reached by the equation, the SDE, the exact recursion and the
chain, and the four are compared as `kolmo compare` does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kolmo import control, noise, training
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.control.admissible import Box
from kolmo.data import moons
from kolmo.device import resolve as resolve_device
from kolmo.experiments.claims import Claim
from kolmo.experiments.comparison import Comparison
from kolmo.experiments.estimators import ESTIMATORS, Options
from kolmo.experiments.progress import Progress, Silent
from kolmo.network import ResidualNetwork
from kolmo.noise import Noise
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.penalty import StepPenalty, WeightDecay
from kolmo.problem import Problem

#: every noise by the name that the table shows
NOISES: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "Gaussian injection": {"kind": "gaussian_injection", "std": 0.3},
    "dropout, output": {"kind": "bernoulli_dropout", "keep": 0.7},
    "dropout, hidden": {"kind": "hidden_dropout", "keep": 0.7},
    "DropConnect": {"kind": "dropconnect", "keep": 0.6},
    "stochastic depth": {"kind": "stochastic_depth", "keep": 0.7},
    "... linear decay": {"kind": "stochastic_depth", "keep": {"last": 0.5}},
    "... test-time": {"kind": "stochastic_depth", "keep": 0.7, "scaling": "test_time"},
    "... per batch": {"kind": "stochastic_depth", "keep": 0.7, "per": "batch"},
    "Gaussian dropout": {"kind": "gaussian_dropout", "std": 0.7},
    "uniform": {"kind": "uniform_noise", "half_width": 1.0},
    "shake-shake": {"kind": "shake_shake"},
    "dropout + injection": {
        "kind": "composition",
        "parts": [
            {"kind": "bernoulli_dropout", "keep": 0.8},
            {"kind": "gaussian_injection", "std": 0.2},
        ],
    },
}
#: what `quick` keeps
QUICK = ("Gaussian injection", "dropout, output", "stochastic depth")


class FourWays:
    """Comparisons by noise, filled one after the other."""

    name = "estimators"
    summary = "J four ways (equation, SDE, exact recursion, chain) for every noise, compared"
    shipped = "default"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config = config
        self.noises = {name: NOISES[name] for name in (QUICK if quick else NOISES)}
        self.depth, self.points, self.iterations = (12, 40, 15) if quick else (20, 100, 40)
        self.options = Options(
            paths=100_000 if quick else 1_000_000,
            sde_paths=20_000 if quick else 100_000,
            backend=resolve_backend(config.run.backend),
            device=resolve_device(config.run.device),
            seed=config.run.seed,
        )
        self.comparisons: dict[str, Comparison] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """Train and compare for every noise. Raises KolmoError where fewer than two estimators answer."""
        progress = progress or Silent()
        for number, (name, settings) in enumerate(self.noises.items()):
            progress.start(name, 1 + len(ESTIMATORS))
            problem = self._problem(noise.from_settings(settings))
            weights = self.memo.remember(f"{number}-trained", partial(self._train, problem))
            training.set_weights(problem.network, weights)
            progress.advance("trained")
            compare = partial(self._compare, problem, progress)
            found = self.memo.remember(f"{number}-compared", compare)
            self.comparisons[name] = Comparison(problem, self.options).take_course(found)

    def _problem(self, model: Noise) -> Problem:
        seed = self.config.run.seed
        # 4 hidden units: the masks of DropConnect's 8 weights can still be summed over
        network = ResidualNetwork(2, 4, self.depth, seed=seed)
        return Problem(moons(self.points, seed=seed), network, model)

    def _train(self, problem: Problem, checkpoint: Checkpoint) -> State:
        control.train(
            problem,
            (WeightDecay(3e-3), StepPenalty(threshold=0.3)),
            estimator="exact",
            cells=(40,),
            iterations=(self.iterations,),
            admissible=Box(5.0),
            seed=self.config.run.seed,
            checkpoint=checkpoint,
        )
        return training.weights_of(problem.network)

    def _compare(self, problem: Problem, progress: Progress, checkpoint: Checkpoint) -> State:
        """What a comparison finds, as a memo keeps it."""
        return Comparison(problem, self.options).run(progress=progress).course()

    @property
    def finished(self) -> bool:
        """Whether every noise has been compared."""
        return len(self.comparisons) == len(self.noises)

    def claims(self) -> list[Claim]:
        """All four estimators answer and agree, for every noise."""
        claims = []
        for name, found in self.comparisons.items():
            word, _ = found.verdict
            answered = len(found.reached) == len(ESTIMATORS)
            text = f"{name}: four estimators agree (largest z)"
            claims.append(Claim(text, found.largest, "z <= 4, none refused", word == "agree" and answered))
        return claims

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """J by each estimator, and what a step of the chain is of one of the equation."""
        rows: list[list[object]] = []
        for name, found in self.comparisons.items():
            cells: list[object] = [
                f"{found.reached[e].value:.5f}" if e in found.reached else "refused" for e in ESTIMATORS
            ]
            errors: list[object] = [
                f"{found.reached[e].standard_error + found.reached[e].bound:.0e}"
                if e in found.reached
                else ""
                for e in ESTIMATORS
            ]
            both = [cell for pair in zip(cells, errors, strict=True) for cell in pair]
            rows.append([name, *both, found.verdict[0]])
        columns = ["noise", *(c for e in ESTIMATORS for c in (e, "+-")), "verdict"]
        return [("J by each estimator, and its stated error", columns, rows)]

    def results(self) -> dict[str, Any]:
        """Every comparison."""
        return {"comparisons": {name: found.as_dict() for name, found in self.comparisons.items()}}
