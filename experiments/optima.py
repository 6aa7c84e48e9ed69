r"""One network trained four ways for the same noise, from the same weights.

explicit     L-BFGS on J_0 + R: no noise, the explicit penalty in its place
exact        L-BFGS on the chain's exact recursion
control      L-BFGS through the backward Kolmogorov equation
stochastic   Adam on the chain with fresh masks

All add the same penalties on the weights. What was reached is measured under the noise by the exact
recursion, and checked against the chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kolmo import control, training
from kolmo.chain import Chain
from kolmo.checkpoint import Checkpoint
from kolmo.control.admissible import Box
from kolmo.control.lbfgs import lbfgs
from kolmo.control.objective import Objective
from kolmo.experiments.claims import Claim
from kolmo.experiments.remainder import SIGMAS, Table
from kolmo.explicit import ExplicitPenalty, expansion
from kolmo.pde.exact_value import resolve_exact
from kolmo.penalty import Penalty
from kolmo.problem import Problem

METHODS = ("explicit", "exact", "control", "stochastic")
#: the exact recursion, started where the explicit penalty ended: the optimum next to it
CONTINUED = "continued"
#: error of J aimed at when a trained network is measured: relative and absolute
_AIM = (2e-4, 1e-6)


@dataclass(frozen=True)
class Effort:
    """What trainings may cost.

    exact, control, continued: cells of each grid or mesh and L-BFGS iterations on it. explicit: iterations.
    steps, learning_rate, masks: of Adam, masks of every point in a step. paths: of the check by the chain.
    """

    exact: tuple[tuple[int, int], ...]
    steps: int
    learning_rate: float
    masks: int
    paths: int
    control: tuple[tuple[int, int], ...] = ()
    continued: tuple[tuple[int, int], ...] = ()
    explicit: int = 0
    radius: float = 5.0
    tolerance: float = 1e-5


@dataclass(frozen=True)
class Optimum:
    """A trained network under the noise, all in units of the loss.

    value: J by the exact recursion, +- error. penalty: on the weights. chain: J by Monte Carlo. noiseless,
    explicit: J_0 and R of its weights. seconds: of the training. status: how the optimiser ended.
    """

    value: float
    error: float
    penalty: float
    chain: float
    standard_error: float
    noiseless: float
    explicit: float
    seconds: float
    status: str

    @property
    def objective(self) -> float:
        """J + penalties, by the recursion."""
        return self.value + self.penalty

    @property
    def sampled(self) -> float:
        """J + penalties, by the chain."""
        return self.chain + self.penalty

    @property
    def agrees(self) -> bool:
        """Whether chain and recursion give one number."""
        return abs(self.chain - self.value) <= SIGMAS * self.standard_error + self.error

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "objective": self.objective, "agrees": self.agrees}


def reach(
    method: str,
    problem: Problem,
    penalties: Sequence[Penalty],
    effort: Effort,
    seed: int,
    backend: str,
    checkpoint: Checkpoint,
) -> Optimum:
    """Train the problem's network in place and measure it. Raises KolmoError on a refusal."""
    status = _train(method, problem, penalties, effort, seed, backend, checkpoint)
    seconds = checkpoint.seconds
    exact = resolve_exact(problem, tolerance=_AIM)
    chain = Chain(problem, seed=seed + 101).estimate(max(effort.paths, 2 * len(problem.data)))
    with torch.no_grad():
        first = expansion(problem)
        paid = sum(float(penalty(problem.network)) for penalty in penalties)
    return Optimum(
        value=exact.value,
        error=exact.error,
        penalty=paid,
        chain=chain.value,
        standard_error=chain.standard_error,
        noiseless=float(first.loss),
        explicit=float(first.penalty),
        seconds=seconds,
        status=status,
    )


def _train(
    method: str,
    problem: Problem,
    penalties: Sequence[Penalty],
    effort: Effort,
    seed: int,
    backend: str,
    checkpoint: Checkpoint,
) -> str:
    """One training, in place; returns how the optimiser ended."""
    box, tolerance = Box(effort.radius), effort.tolerance
    if method == "stochastic":
        steps, rate = effort.steps, effort.learning_rate
        training.train(
            problem,
            penalties,
            steps=steps,
            paths=effort.masks,
            learning_rate=rate,
            seed=seed,
            checkpoint=checkpoint,
        )
        return f"{steps} steps"
    if method == "explicit":
        objective = Objective(problem.network, ExplicitPenalty(problem).expected_loss, penalties)
        result = lbfgs(
            objective,
            objective.theta,
            box,
            iterations=effort.explicit,
            tolerance=tolerance,
            callback=lambda step: checkpoint.offer(step.state),
            resume=checkpoint.load(),
        )
        return f"{result.status} after {result.iterations}"
    grids = {"control": effort.control, "exact": effort.exact, CONTINUED: effort.continued}[method]
    outcome = control.train(
        problem,
        penalties,
        cells=[cells for cells, _ in grids],
        iterations=[iterations for _, iterations in grids],
        estimator="pde" if method == "control" else "exact",
        backend=backend,
        tolerance=tolerance,
        admissible=box,
        seed=seed,
        checkpoint=checkpoint,
    )
    return f"{outcome.result.status} after {outcome.iterations}"


# one keep probability after the other: optima[keep][method]

Optima = Mapping[float, Mapping[str, Optimum]]


def excess(found: Mapping[str, Optimum], method: str) -> float:
    """A training's objective over the best one under this noise, relative; nan where it was refused."""
    best = min((optimum.objective for optimum in found.values()), default=math.nan)
    return found[method].objective / best - 1 if method in found else math.nan


def claims(optima: Optima, apart: float) -> list[Claim]:
    """What is claimed of the trainings. apart: of their objectives at the smallest noise, relative."""
    mild, strong = max(optima), min(optima)
    spread = [excess(optima[mild], method) for method in METHODS]
    text = f"keep {mild:g}: four trainings reach one objective (largest relative excess)"
    holds = all(value <= apart for value in spread)
    found = [Claim(text, max(spread, key=_nan_first), f"<= {apart:g}", holds)]
    least, most = (excess(optima[keep], "explicit") for keep in (mild, strong))
    text = f"the explicit penalty's relative excess grows with the noise: at keep {strong:g}"
    return [*found, Claim(text, most, f"> {least:.2g} (at keep {mild:g})", most > least)]


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def table(optima: Optima, depth: int) -> Table:
    """Excess of every training at every keep probability."""
    names = (*METHODS, CONTINUED)
    rows: list[list[object]] = []
    for keep, found in optima.items():
        best = min((optimum.objective for optimum in found.values()), default=math.nan)
        shown = [f"{100 * excess(found, m):.3f}" if m in found else "refused" for m in names]
        rows.append([f"{keep:g}", f"{best:.5f}", *shown])
    title = f"trained with {depth} layers: the best J + penalties, and how much more each reached, in %"
    return title, ["keep", "best", *names], rows


def table_of_default(found: Mapping[str, Optimum], depth: int) -> Table:
    """The configuration's own problem."""
    columns = ["training", "objective", "J chain", "+-", "J exact", "J_0", "R", "seconds"]
    rows: list[list[object]] = [
        [
            method, f"{o.sampled:.5f}", f"{o.chain:.5f}", f"{SIGMAS * o.standard_error:.0e}",
            f"{o.value:.5f}", f"{o.noiseless:.5f}", f"{o.explicit:.5f}", f"{o.seconds:.0f}",
        ]
        for method, o in found.items()
    ]  # fmt: skip
    return f"the configuration's own problem, {depth} layers (objective: J chain + penalties)", columns, rows
