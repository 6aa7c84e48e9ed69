"""Feynman-Kac ensembles: what averages of noisy passes tend to, and how they stand attacks.

For each seed (data, initial weights and noise) a network is trained without noise and one with Gaussian
injection. Of the latter, averages of N passes are set against the value function of the backward Kolmogorov
equation, to which they tend: at the test points, and at the points to which an attack moves them. The
attacker follows the gradient of what is attacked: the network's, the sampled average's, or grad u.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import training
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.experiments.claims import Claim
from kolmo.experiments.ensemble import Classifier, Ensemble, Limit, accuracy, attack, error, single
from kolmo.experiments.intervals import half_width
from kolmo.experiments.progress import Progress, Silent
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.penalty import StepPenalty, WeightDecay
from kolmo.problem import Problem

#: Euclidean radii of the attacks; the features have unit scale
RADII = (0.0, 0.1, 0.2, 0.3)
#: members of the ensembles that are attacked
ATTACKED = (1, 4, 16)
#: members of the ensembles that are set against the limit
MEMBERS = (1, 2, 4, 8, 16, 32, 64)
#: cells of the equation's mesh, points to an axis of the maps
CELLS, MAP = 80, 61
#: members of the one that decides whether the equation's error and adversarial error are the chain's
MANY = 400
#: what the modified equation and the mesh may be off by in a probability, in the mean over points
CLOSE = 0.02

NAMES = ("plain", "single", *(f"ensemble of {n}" for n in ATTACKED), "limit")


class FeynmanKac:
    """Rows by seed: errors of ensembles by size, and (accuracy, error) of each classifier by radius."""

    name = "feynman_kac"
    summary = "averages of noisy passes, their limit by the equation, and attacks on them, ten seeds"
    shipped = "feynman_kac"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.seeds = config, 3 if quick else 10
        self.confidence = 0.8 if quick else 0.95
        self.rows: list[dict[str, Any]] = []
        self.map: dict[str, Any] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """Every seed. Raises KolmoError where the equation cannot answer for a network."""
        progress = progress or Silent()
        progress.start("Feynman-Kac ensembles", self.seeds + 1)
        first = self.config.run.seed
        for seed in range(first + len(self.rows), first + self.seeds):
            row = self.memo.remember(f"seed-{seed}", partial(self._measure, seed))
            self.rows.append(row)
            robust = row["attacked"]["limit"]["accuracy"][-1]
            progress.advance(f"seed {seed}: {robust:.0%} of attacked points stay right in the limit")
        self.map = self.memo.remember("map", partial(self._map, first))
        progress.advance()

    @property
    def finished(self) -> bool:
        return len(self.rows) == self.seeds and bool(self.map)

    def train(self, seed: int) -> tuple[Problem, Problem]:
        """The problems with their trained networks: without noise, and under the noise."""
        config = copy.deepcopy(self.config)
        config.run.seed = seed
        noisy = config.problem(config.datasets()[0])
        plain = config.problem(noisy.data).without_noise()
        penalties = (WeightDecay(config.penalty.weight_decay), StepPenalty())
        for problem, settings, paths in (
            (plain, config.noiseless, 1),
            (noisy, config.stochastic, config.stochastic.paths),
        ):
            training.train(
                problem,
                penalties,
                steps=settings.steps,
                paths=paths,
                learning_rate=settings.learning_rate,
                seed=seed,
            )
        return plain, noisy

    def limit(self, problem: Problem, points: Tensor) -> Limit:
        """The limit of the problem's ensembles, where the attacks on these points lead."""
        reach = float(points.abs().max()) + max(RADII)
        return Limit(problem, reach, cells=CELLS, backend=resolve_backend(self.config.run.backend))

    def _measure(self, seed: int, checkpoint: Checkpoint) -> State:
        plain, noisy = self.train(seed)
        config = copy.deepcopy(self.config)
        config.run.seed = seed
        test = config.datasets()[1]
        limit = self.limit(noisy, test.points)
        exact = torch.from_numpy(limit.value(test.points.numpy()))
        variance = float(limit.variance(test.points.numpy()).mean())
        spread = []
        with torch.no_grad():
            for members in MEMBERS:
                # about as many passes for each size, for about equal accuracy of the spread
                repeats, ensemble = max(1, MEMBERS[-1] // members), Ensemble(noisy, members, seed)
                off = torch.stack([ensemble(test.points) - exact for _ in range(repeats)])
                spread.append(float(off.square().mean().sqrt()))
            many = Ensemble(noisy, MANY, seed + 1)
            square = float((many(test.points) - exact).square().mean()) - variance / MANY
        classifiers: dict[str, Classifier] = {"plain": single(plain), "single": single(noisy)}
        for members, name in zip(ATTACKED, NAMES[2:], strict=False):
            classifiers[name] = Ensemble(noisy, members, seed)
        classifiers["limit"] = limit
        attacked: dict[str, dict[str, list[float]]] = {}
        sampled = []
        for name, classifier in classifiers.items():
            right, wrong = [], []
            for radius in RADII:
                moved = attack(classifier, test.points, test.labels, radius)
                right.append(accuracy(classifier, moved, test.labels))
                with torch.no_grad():
                    wrong.append(float(error(classifier, moved, test.labels).mean()))
                    if name == "limit":
                        sampled.append(float(error(many, moved, test.labels).mean()))
            attacked[name] = {"accuracy": right, "error": wrong}
        noise = math.sqrt(variance / MANY / len(test))
        return {
            "spread": spread,
            "variance": variance,
            "bias": math.sqrt(max(square, 0.0)),
            "attacked": attacked,
            "sampled": sampled,
            "sampling": noise,
        }

    def _map(self, seed: int, checkpoint: Checkpoint) -> State:
        """Probabilities on a grid, of the first seed's classifiers."""
        plain, noisy = self.train(seed)
        points = noisy.data.points
        side = 1.1 * float(points.abs().max())
        axis = torch.linspace(-side, side, MAP, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        classifiers: dict[str, Classifier] = {
            "no noise": single(plain),
            "one noisy pass": Ensemble(noisy, 1, seed),
            "16 noisy passes": Ensemble(noisy, 16, seed),
            "limit $u(x, 0)$": self.limit(noisy, grid),
        }
        with torch.no_grad():
            maps = {name: c(grid).reshape(MAP, MAP).numpy() for name, c in classifiers.items()}
        return {
            "axis": axis.numpy(),
            "maps": maps,
            "points": points.numpy(),
            "labels": noisy.data.labels.numpy(),
        }

    def ratios(self) -> np.ndarray:
        """Measured spread of ensembles of each size over what the limit's variance predicts, in the mean over
        seeds (sizes,)."""
        predicted = [np.sqrt(row["variance"] / np.array(MEMBERS) + row["bias"] ** 2) for row in self.rows]
        return np.asarray(
            np.mean([row["spread"] / p for row, p in zip(self.rows, predicted, strict=True)], axis=0)
        )

    def table(self, name: str, what: str = "accuracy") -> np.ndarray:
        """Accuracy or error of a classifier under attack (seeds, radii)."""
        return np.array([row["attacked"][name][what] for row in self.rows])

    def margin(self, values: np.ndarray) -> np.ndarray:
        """Half a 95% interval of the mean over seeds (first axis), by Student's quantile."""
        return half_width(values, 0.95)

    def claims(self) -> list[Claim]:
        """The limit and its approach, under attack too; and what noise is worth there."""
        ratios = self.ratios()
        worst = float(ratios[np.argmax(np.abs(ratios - 1))])
        claims = [
            Claim(
                f"spread of ensembles of 1 to {MEMBERS[-1]} passes over sqrt(Var / N) by the equation",
                worst,
                "1 +- 0.05",
                abs(worst - 1) <= 0.05,
            )
        ]
        far = max(row["bias"] for row in self.rows)
        text = "ensembles' mean to u at test points, root mean square (sampling noise taken off)"
        claims.append(Claim(text, far, f"<= {CLOSE:g}", far <= CLOSE))
        off = max(
            abs(sampled - limit) - 3 * row["sampling"]
            for row in self.rows
            for sampled, limit in zip(row["sampled"], row["attacked"]["limit"]["error"], strict=True)
        )
        text = "adversarial error by u and grad u, to the sampled one at the same points"
        claims.append(Claim(text, off, f"<= {CLOSE:g} and three standard errors", off <= CLOSE))
        gain = self.table("limit")[:, -1] - self.table("plain")[:, -1]
        text = f"accuracy under attack of radius {RADII[-1]:g}: limit above the network without noise"
        least = float(half_width(gain, self.confidence, sides=1))
        mean, expected = float(gain.mean()), f"> {least:.3g} (one-sided {self.confidence:.0%} t interval)"
        claims.append(Claim(text, mean, expected, mean > least))
        return claims

    def results(self) -> dict[str, Any]:
        """Everything for results.json."""
        return {
            "members": list(MEMBERS),
            "radii": list(RADII),
            "rows": self.rows,
        }

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Accuracy and error of each classifier by radius; spread by the ensemble's size."""
        if len(self.rows) < 2:
            return []
        found: list[tuple[str, list[str], list[list[object]]]] = []
        columns = ["classifier", *(f"radius {radius:g}" for radius in RADII)]
        for what, title in (
            ("accuracy", "accuracy under attack"),
            ("error", "adversarial error probability"),
        ):
            rows: list[list[object]] = []
            for name in NAMES:
                values = self.table(name, what)
                pairs = zip(values.mean(axis=0), self.margin(values), strict=True)
                rows.append([name, *(f"{mean:.3f} +- {margin:.3f}" for mean, margin in pairs)])
            found.append((f"{title}, mean over {len(self.rows)} seeds and 95% interval", columns, rows))
        rows = [["measured over predicted", *(f"{ratio:.3f}" for ratio in self.ratios())]]
        found.append(("spread of ensembles about the limit", ["N", *map(str, MEMBERS)], rows))
        return found
