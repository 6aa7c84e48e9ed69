r"""Dropout is training with an explicit penalty R, shown by numbers (MATHEMATICS section 4).

First, on one trained network and over keep probabilities from 0.99 to 0.5: what dropout adds to the loss, by
the exact recursion, by Monte Carlo and by the Kolmogorov equation, against q R, with R along the features'
paths, along the modified equation's flow, and on the mesh, where it has a density over the plane.

Second, networks trained with the explicit penalty in place of noise, against networks trained on the
expectation itself (exact recursion, PDE control) and with random masks, all measured under the noise. And at
the configuration's own depth and noise, the exact recursion against training with masks.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from kolmo import config as configuration
from kolmo import training
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.errors import AuditError, InfeasibleError, InputError, KolmoError
from kolmo.experiments import optima as trainings
from kolmo.experiments import remainder
from kolmo.experiments.claims import Claim
from kolmo.experiments.optima import CONTINUED, METHODS, Effort, Optimum, reach
from kolmo.experiments.penalties import MeshPenalty, at_rate
from kolmo.experiments.progress import Progress, Silent
from kolmo.experiments.remainder import Forms, Rate, Rates
from kolmo.network import LayeredNetwork
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.pde.domain import choose_half_width
from kolmo.pde.exact import exact_half_width
from kolmo.penalty import Penalty, StepPenalty, WeightDecay
from kolmo.problem import Problem


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment, and what its claims allow.

    rates: keep probabilities at which J - J_0 is looked at; small: q up to which things are of first order.
    mesh, coarse: cells for the transport without diffusion; grid: of the recursion for remainders; paths: of
    the chain at each rate. keeps: of the trainings; depth: of their networks. own: grids of the exact
    training at the configuration's own depth. miss: what q R may miss of J - J_0, relative. apart: what
    objectives at the smallest noise may differ by, relative.
    """

    rates: tuple[float, ...]
    mesh: int
    coarse: int
    grid: int
    paths: int
    keeps: tuple[float, ...]
    effort: Effort
    own: tuple[tuple[int, int], ...]
    miss: float
    apart: float
    depth: int = 10
    small: float = 0.3


FULL = Plan(
    rates=(0.99, 0.98, 0.95, 0.9, 0.8, 0.65, 0.5),
    mesh=96,
    coarse=64,
    grid=96,
    paths=200_000,
    keeps=(0.95, 0.8, 0.65, 0.5, 0.3),
    effort=Effort(
        exact=((40, 50), (60, 30)), control=((32, 50), (48, 20)), explicit=150, continued=((60, 40),),
        steps=1200, learning_rate=0.03, masks=2, paths=200_000,
    ),
    own=((48, 50), (72, 25)),
    miss=0.03,
    apart=0.005,
)  # fmt: skip
QUICK = Plan(
    rates=(0.98, 0.9, 0.8, 0.5),
    mesh=64,
    coarse=43,
    grid=64,
    paths=40_000,
    keeps=(0.95, 0.3),
    effort=Effort(
        exact=((32, 30),), control=((24, 30),), explicit=50, continued=((32, 15),),
        steps=200, learning_rate=0.05, masks=2, paths=50_000,
    ),
    own=((32, 35), (40, 8)),
    miss=0.06,
    apart=0.03,
)  # fmt: skip
#: trainings at the configuration's own depth; R is looked at for the network of the first
OWN = ("exact", "stochastic")


@dataclass
class Regularization:
    """The experiment's state, filled stage by stage, so that an interrupted run keeps what is done.

    own: the configuration's problem by method, `network` of the first of them; forms, mesh, rates: of that
    network; optima[keep]: every training; refused: reasons, by (keep, method). Raises InputError unless the
    configuration has one or two features and Bernoulli dropout.
    """

    config: Config
    quick: bool = False
    own: dict[str, Optimum] = field(default_factory=dict)
    network: LayeredNetwork | None = None
    forms: Forms | None = None
    mesh: MeshPenalty | None = None
    rates: list[Rate] = field(default_factory=list)
    optima: dict[float, dict[str, Optimum]] = field(default_factory=dict)
    refused: dict[tuple[float, str], str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo)

    name = "regularization"
    summary = "dropout as an explicit penalty: its value four ways, its density, and training with it"
    shipped = "default"

    def __post_init__(self) -> None:
        self.config = copy.deepcopy(self.config)
        if self.quick:
            configuration.quick(self.config)
        self.plan = QUICK if self.quick else FULL
        if self.config.noise.get("kind") != "bernoulli_dropout":
            raise InputError(
                "[noise]: the experiment varies the rate of kind bernoulli_dropout, the configuration has "
                f"{self.config.noise.get('kind')!r}"
            )
        self.data, _ = self.config.datasets()
        if self.data.dim > 2:
            raise InputError(f"[data]: {self.data.dim} features, the experiment's meshes are for 1 or 2")
        self.backend = resolve_backend(self.config.run.backend)
        self.penalties: tuple[Penalty, ...] = (
            WeightDecay(self.config.penalty.weight_decay),
            StepPenalty(),
        )

    def run(self, progress: Progress | None = None) -> None:
        """All stages; what is done already stays. Raises KolmoError where one cannot be answered for."""
        progress = progress or Silent()
        for stage in (self._train_own, self._look_at_rates, self._train_all):
            stage(progress)
            name = stage.__name__.strip("_")
            self.seconds[name] = sum(s for key, s in self.memo.seconds.items() if key.startswith(name))

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        plan = self.plan
        looked = self.forms is not None and len(self.rates) == len(plan.rates)
        return len(self.own) == len(OWN) and looked and len(self.optima) == len(plan.keeps)

    # stages

    def problem(self) -> Problem:
        """The configuration's problem, with the network trained on its expectation once there is one."""
        problem = self.config.problem(self.data)
        return problem if self.network is None else problem.with_network(self.network)

    def _reached(self, method: str, problem: Problem, effort: Effort, checkpoint: Checkpoint) -> State:
        """Train the problem's network and measure it: optimum and weights, as a memo keeps them."""
        seed = self.config.run.seed
        optimum = reach(method, problem, self.penalties, effort, seed, self.backend, checkpoint)
        return {"optimum": asdict(optimum), "weights": training.weights_of(problem.network)}

    def _or_refused(self, method: str, problem: Problem, effort: Effort, checkpoint: Checkpoint) -> State:
        """The same, or why it is refused and the weights where that was."""
        try:
            return self._reached(method, problem, effort, checkpoint)
        except (InfeasibleError, AuditError) as refusal:
            return {"refused": str(refusal), "weights": training.weights_of(problem.network)}

    def _train_own(self, progress: Progress) -> None:
        settings, control = self.config.stochastic, self.config.control
        effort = Effort(
            exact=self.plan.own,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            masks=settings.paths,
            paths=self.config.check.paths,
            radius=control.radius,
            tolerance=control.tolerance,
        )
        progress.start("the configuration's own problem: exact and stochastic training", len(OWN))
        for method in OWN:
            if method not in self.own:
                problem = self.config.problem(self.data)
                train = partial(self._reached, method, problem, effort)
                kept = self.memo.remember(f"train_own-{method}", train)
                training.set_weights(problem.network, kept["weights"])
                self.own[method] = Optimum(**kept["optimum"])
                self.network = problem.network if method == OWN[0] else self.network
            progress.advance(f"{method}: objective {self.own[method].sampled:.5f}")

    def _look_at_rates(self, progress: Progress) -> None:
        """R in all its forms, then J - J_0 at every rate."""
        plan, problem = self.plan, self.problem()
        progress.start("the penalty four ways, and what dropout adds to the loss", 1 + len(plan.rates))
        largest = max((1 - keep) / keep for keep in plan.rates)
        strongest, unit = at_rate(problem, largest), at_rate(problem, 1.0)
        if self.forms is None or self.mesh is None:
            box = choose_half_width(strongest)
            mesh = self.mesh = MeshPenalty(unit, plan.mesh, box, largest, self.backend)

            def measure_forms(checkpoint: Checkpoint) -> State:
                coarse = MeshPenalty(unit, plan.coarse, box, largest, self.backend)
                return asdict(remainder.measure_forms(problem, mesh, coarse))

            kept = self.memo.remember("look_at_rates-forms", measure_forms)
            self.forms = Forms(**{**kept, "steps": tuple(map(tuple, kept["steps"]))})
        progress.advance(f"R = {self.forms.path:.5f} at keep 0.5")
        rates = Rates(problem, self.mesh, plan.grid, exact_half_width(strongest))
        for number in range(len(self.rates), len(plan.rates)):
            keep, seed = plan.rates[number], 7919 * (self.config.run.seed + 1) + number
            measure = partial(self._rate, rates, keep, max(plan.paths, 2 * len(self.data)), seed)
            self.rates.append(Rate(**self.memo.remember(f"look_at_rates-{keep:g}", measure)))
            progress.advance(f"keep {keep:g}: J - J_0 = {self.rates[-1].exact:.5f}")

    def _rate(self, rates: Rates, keep: float, paths: int, seed: int, checkpoint: Checkpoint) -> State:
        return asdict(rates.measure(keep, paths, seed))

    def _train_all(self, progress: Progress) -> None:
        """Every training at every keep probability, then the exact one from where the explicit one ended."""
        keeps = [keep for keep in self.plan.keeps if keep not in self.optima]
        progress.start("trainings at several keep probabilities", len(keeps) * (len(METHODS) + 1))
        for keep in keeps:
            config = copy.deepcopy(self.config)
            config.noise, config.network.depth = {"kind": "bernoulli_dropout", "keep": keep}, self.plan.depth
            found: dict[str, Optimum] = {}
            explicit: LayeredNetwork | None = None
            for method in (*METHODS, CONTINUED):
                problem = config.problem(self.data)
                if method == CONTINUED and explicit is not None:
                    problem = problem.with_network(explicit)
                train = partial(self._or_refused, method, problem, self.plan.effort)
                kept = self.memo.remember(f"train_all-{keep:g}-{method}", train)
                training.set_weights(problem.network, kept["weights"])
                if "optimum" in kept:
                    found[method] = Optimum(**kept["optimum"])
                    progress.advance(f"keep {keep:g}, {method}: objective {found[method].objective:.5f}")
                else:
                    self.refused[keep, method] = kept["refused"]
                    progress.advance(f"keep {keep:g}, {method}: refused")
                explicit = problem.network if method == METHODS[0] else explicit
            self.optima[keep] = found

    # outcome

    def claims(self) -> list[Claim]:
        """What the run shows of R, then of the trainings. Raises KolmoError where it was not finished."""
        if not self.finished or self.forms is None:
            raise KolmoError("the run was not finished, nothing is claimed")
        found = remainder.claims(self.forms, self.rates, self.plan.small, self.plan.miss)
        found += trainings.claims(self.optima, self.plan.apart)
        every = [*self.own.values(), *(o for reached in self.optima.values() for o in reached.values())]
        agree = sum(optimum.agrees for optimum in every)
        text = (
            f"chain and recursion agree on J ({remainder.SIGMAS:g} standard errors, grid): trained networks"
        )
        found.append(Claim(text, f"{agree} of {len(every)}", "all", agree == len(every)))
        exact, masks = (self.own[method] for method in OWN)
        sampling = 2 * math.hypot(exact.standard_error, masks.standard_error) / masks.sampled
        excess = exact.sampled / masks.sampled - 1
        text = f"{self.config.network.depth} layers: exact training is no worse than masks (relative excess)"
        expected = f"<= {sampling:.1g} (2 standard errors)"
        return [*found, Claim(text, excess, expected, excess <= sampling)]

    def results(self) -> dict[str, Any]:
        """All numbers for results.json."""
        return {
            "own": {method: optimum.as_dict() for method, optimum in self.own.items()},
            "penalty": None if self.forms is None else self.forms.as_dict(),
            "rates": [rate.as_dict() for rate in self.rates],
            "trainings": [
                {
                    "keep": keep,
                    "depth": self.plan.depth,
                    "optima": {method: optimum.as_dict() for method, optimum in found.items()},
                    "excess": {method: trainings.excess(found, method) for method in found},
                    "refused": {method: why for (k, method), why in self.refused.items() if k == keep},
                }
                for keep, found in self.optima.items()
            ],
            "seconds": self.seconds,
        }

    def tables(self) -> list[remainder.Table]:
        """Title, columns and rows of what there is so far."""
        found = [] if self.forms is None else remainder.tables(self.forms, self.rates)
        if self.optima:
            found.append(trainings.table(self.optima, self.plan.depth))
        if self.own:
            found.append(trainings.table_of_default(self.own, self.config.network.depth))
        return found
