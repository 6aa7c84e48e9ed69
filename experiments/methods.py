r"""Every method on the default problem: objective against solves and seconds, and ten random starts.

First, all methods that can be handed the objective (`drivers`) start from the same random weights and are
stopped at the same gradient or the same number of solves (`races`). Second, L-BFGS and Newton-Krylov start
from ten random weights each; where they end is looked at through Pontryagin's conditions.

Nothing is clipped and substeps are fixed, but that alone does not make J smooth. The taper at the box is
one-sided: J has a kink wherever the drift at a node of the taper's strip changes its sign, and a minimum may
sit on one, where no gradient is small. Kinks are as strong as the density there. So the box is half as wide
again as accuracy asks for, and next to none of the density reaches the strip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.control import Result, lbfgs, newton, optimality
from kolmo.control.admissible import layer_of_weights
from kolmo.experiments.claims import Claim
from kolmo.experiments.descents import CountedSteps
from kolmo.experiments.pontryagin import slope_along
from kolmo.experiments.progress import Progress, Silent
from kolmo.experiments.races import RACERS, Race, Traced, race
from kolmo.network import ResidualNetwork
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.pde.domain import choose_half_width
from kolmo.pde.mesh import check_dim
from kolmo.penalty import Penalty, StepPenalty, WeightDecay
from kolmo.problem import Problem

#: half width of the box, in units of what accuracy needs: see above
WIDER = 1.5
#: of all layers together
SUBSTEPS = 40
#: relative: Pontryagin's residual against the gradient
AGREE = 1e-8
#: most steps of one descent from a random start
_MOST = 2000
_DESCENTS: dict[str, Callable[..., Result]] = {"L-BFGS": lbfgs, "Newton-Krylov": newton}


@dataclass(frozen=True)
class Size:
    """cells: a direction; None: of the configuration's last mesh. budget: solves of each method in the first
    part. reached: gradient's norm over that of the start at which all methods stop."""

    cells: int | None = None
    starts: int = 10
    budget: float = 2000
    reached: float = 1e-6


FULL, QUICK = Size(), Size(cells=24, starts=2, budget=400, reached=1e-5)


@dataclass(frozen=True)
class Start:
    """A descent from random weights.

    status: the method's own. gradient: relative to the start's. verdict: of `optimality`. identity: what
    h |Pontryagin's residual| and the gradient's norm differ by, relative to the latter. rows: of a `Race`.
    """

    seed: int
    method: str
    status: str
    iterations: int
    evaluations: int
    products: int
    solves: float
    seconds: float
    value: float
    gradient: float
    verdict: str
    identity: float
    rows: np.ndarray


class Methods:
    """Races by method; descents from random starts; slopes[s], how far dH/dtheta by differences is from the
    gradient over h at start s, relative.

    config: its data, network, noise and last mesh; starts are networks drawn with its seed and those after.
    """

    name = "methods"
    summary = "every method on the default problem: objective against seconds and solves; ten random starts"
    shipped = "methods"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.size = config, QUICK if quick else FULL
        self.train, _ = config.datasets()
        check_dim(self.train.dim)
        self.backend = resolve_backend(config.run.backend)
        self.penalties: tuple[Penalty, ...] = (WeightDecay(config.penalty.weight_decay), StepPenalty())
        self.races: dict[str, Race] = {}
        self.starts: dict[tuple[int, str], Start] = {}
        self.slopes: dict[int, float] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All that is not done yet. Raises KolmoError where the equation refuses a start."""
        progress = progress or Silent()
        progress.start("every method from one start", len(RACERS))
        for number, method in enumerate(RACERS):
            kept = self.memo.remember(f"method-{number}", partial(self._race, method))
            self.races[method] = Race(**kept)
            progress.advance(f"{method}: {self.races[method].status}")
        progress.start("random starts", self.size.starts * len(_DESCENTS))
        for seed in range(self.config.run.seed, self.config.run.seed + self.size.starts):
            for number, method in enumerate(_DESCENTS):
                kept = self.memo.remember(f"start-{seed}-{number}", partial(self._descend, seed, method))
                start = self.starts[seed, method] = Start(**kept)
                progress.advance(f"start {seed}, {method}: gradient {start.gradient:.0e}")
            self.slopes[seed] = self.memo.remember(f"start-{seed}-slope", partial(self._slope, seed))

    @property
    def finished(self) -> bool:
        return len(self.slopes) == self.size.starts

    @property
    def cells(self) -> int:
        """Of the mesh, a direction."""
        return self.size.cells or self.config.control.meshes(self.train.dim)[-1]

    def problem(self, seed: int) -> Problem:
        """The configuration's, with weights drawn by another seed."""
        n, problem = self.config.network, self.config.problem(self.train)
        drawn = ResidualNetwork(self.train.dim, n.width, n.depth, n.horizon, n.activation, seed=seed)
        return problem.with_network(drawn)

    def equation(self, problem: Problem) -> BackwardKolmogorov:
        """On the one mesh, with substeps of one length whatever the depth."""
        substeps = -(-SUBSTEPS // problem.network.depth)
        return BackwardKolmogorov(
            problem,
            cells=self.cells,
            half_width=self.half_width,
            order=self.config.control.order,
            backend=self.backend,
            propagator=CountedSteps(substeps),
            limit=False,
        )

    @cached_property
    def half_width(self) -> float:
        """Of the box, for all starts alike."""
        return WIDER * choose_half_width(self.problem(self.config.run.seed))

    def _race(self, method: str, checkpoint: Checkpoint) -> State:
        problem = self.problem(self.config.run.seed)
        reached, budget = self.size.reached, self.size.budget
        return asdict(race(method, self.equation, problem, self.penalties, reached=reached, budget=budget))

    def _descend(self, seed: int, method: str, checkpoint: Checkpoint) -> State:
        problem = self.problem(seed)
        equation = self.equation(problem)
        objective = Traced(equation, self.penalties)
        start = objective.theta
        first = float(np.linalg.norm(objective.value_and_gradient(start)[1]))
        objective = Traced(equation, self.penalties)
        tolerance = self.size.reached * first
        found = _DESCENTS[method](objective, start, iterations=_MOST, tolerance=tolerance)
        solves, seconds = objective.solves, objective.seconds
        at = optimality(equation, self.penalties, eigenvalues=0)
        whole = problem.network.step * float(np.linalg.norm(at.residual))
        counts = found.iterations, found.evaluations, objective.products, solves, seconds
        return asdict(
            Start(
                seed,
                method,
                found.status,
                *counts,
                value=found.value,
                gradient=found.residual / first,
                verdict=at.verdict,
                identity=abs(whole - at.norm) / at.norm,
                rows=np.array(objective.rows) / [1, 1, 1, first],
            )
        )

    def _slope(self, seed: int, checkpoint: Checkpoint) -> State:
        """Along a random direction of length 1 in every layer."""
        problem = self.problem(seed)
        equation = self.equation(problem)
        objective = Traced(equation, self.penalties)
        layer, h = layer_of_weights(problem.network), problem.network.step
        gradient = objective.value_and_gradient(objective.theta)[1] / h
        along = np.random.default_rng(seed).standard_normal(len(gradient))
        along /= np.sqrt(np.bincount(layer, along**2))[layer]
        differences = slope_along(equation, self.penalties, along) - np.bincount(layer, gradient * along)
        return float(np.abs(differences).max() / np.linalg.norm(gradient))

    # outcome

    def claims(self) -> list[Claim]:
        """Of a finished study: gradients that were reached, verdicts, Pontryagin's conditions."""
        claims, reached = [], self.size.reached
        for method in _DESCENTS:
            found = [start for start in self.starts.values() if start.method == method]
            worst = max(start.gradient for start in found)
            text = f"{method}: largest gradient of {len(found)} ends, relative to its start's"
            claims.append(Claim(text, worst, f"<= {reached:g}", worst <= reached))
        words = [start.verdict for start in self.starts.values()]
        count = words.count("stationary")
        text = "ends that Pontryagin's conditions call stationary"
        claims.append(Claim(text, f"{count} of {len(words)}", "all", count == len(words)))
        worst = max(start.identity for start in self.starts.values())
        text = "h |Pontryagin's residual| at the ends is the gradient's norm, relative"
        claims.append(Claim(text, worst, f"<= {AGREE:g}", worst <= AGREE))
        worst = max(self.slopes.values())
        text = "dH/dtheta by differences is the gradient over h at the starts, relative"
        claims.append(Claim(text, worst, f"<= {AGREE:g}", worst <= AGREE))
        ran = [found for found in self.races.values() if found.ran]
        lower = sum(bool(found.value < found.rows[0, 2]) for found in ran)
        text = "methods that end below the start"
        claims.append(Claim(text, f"{lower} of {len(ran)}", "all", lower == len(ran)))
        return claims

    def results(self) -> dict[str, Any]:
        """Everything for results.json; `seconds` alone are the clock's."""

        def listed(found: Race | Start) -> dict[str, Any]:
            fields = {k: v for k, v in asdict(found).items() if k not in ("rows", "theta")}
            kept = np.unique(np.linspace(0, len(found.rows) - 1, 200).astype(int)) if len(found.rows) else []
            return {**fields, "rows": found.rows[kept].tolist()}

        return {
            "mesh": {"cells": self.cells, "half_width": self.half_width},
            "reached": self.size.reached,
            "methods": {method: listed(found) for method, found in self.races.items()},
            "starts": [listed(start) for start in self.starts.values()],
            "slopes": list(self.slopes.values()),
        }

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """What every method took from one start, and what two of them took from each of the others."""
        rows: list[list[object]] = []
        for method, r in self.races.items():
            if r.ran:
                ends = [f"{r.value:.6f}", f"{r.gradient:.0e}"]
                counts = [r.evaluations, r.products, f"{r.solves:.0f}", f"{r.seconds:.0f}", r.status]
                rows.append([method, *ends, *counts])
            else:
                rows.append([method, *[""] * 6, r.status])
        first = "every method from one start (gradient: relative; seconds: of the processor)"
        columns = ["method", "objective", "gradient", "values", "products", "solves", "seconds", "status"]
        tables = [(first, columns, rows)]
        rows = []
        for s in self.starts.values():
            counts = [s.iterations, s.evaluations, s.products, f"{s.solves:.0f}", f"{s.seconds:.0f}"]
            rows.append([s.seed, s.method, f"{s.value:.6f}", f"{s.gradient:.0e}", *counts, s.verdict])
        columns = ["start", "method", "objective", "gradient", "steps", *columns[3:7], "verdict"]
        tables.append((f"{self.size.starts} random starts", columns, rows))
        return tables
