r"""One draw of a data set, and what each way to choose a schedule of dropout makes of it (`noise_design`).

Every training minimises J + penalties through the modified equation. Those of a grid begin at the same
weights, trained at the configuration's own keep probability, and so does every descent: ways to choose differ
by the schedule, not by the luck of a start. What a schedule is worth is decided with the noise off, as
networks trained with dropout are used: V is the loss of the plain network on validation points; test points,
which nothing is chosen by, decide in the end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import data
from kolmo.config import Config
from kolmo.control import Interval, Objective, Result, design, lbfgs
from kolmo.control.design import at_the_edge
from kolmo.data import Dataset
from kolmo.errors import ConditionError, InfeasibleError, InputError
from kolmo.noise import Controlled, Noise, from_settings
from kolmo.noise.masks import Masked
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.penalty import Penalty, StepPenalty, WeightDecay
from kolmo.problem import Problem

#: two-dimensional sets and the noise of their points: classes overlap
SETS = {"moons": 0.4, "circles": 0.15, "blobs": 0.9, "spirals": 0.3, "xor": 0.5}
#: keep probabilities that are admissible
LEAST, MOST = 0.65, 0.95
#: points that schedules are chosen by
VALIDATION = 200
#: the network, small since it is trained thousands of times, and the mesh of all trainings
DEPTH, WIDTH, CELLS = 6, 4, 32
#: of the box, which holds all sets; of every layer: substeps are fixed and nothing is clipped, so J is smooth
HALF_WIDTH, SUBSTEPS = 4.0, 4
#: of trainings on a grid: iterations, slope at the end, and gradients that L-BFGS remembers
ITERATIONS, SLOPE, MEMORY = 500, 1e-3, 100
#: of the descent on V, see `control.design`
DESCENT: dict[str, Any] = {
    "iterations": 8, "tolerance": 3e-3, "resolution": 1e-3, "slope": 1e-4, "accuracy": 1e-2,
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What one way to choose came to.

    strengths (L,): keep probabilities. validation, test: loss of the plain network trained with them. trials
    (n, 2): after every training the solves so far, and V (nan where it was refused). solves: values with
    gradients, second derivatives made, and products with them; of the plain network, without an equation,
    where there is no noise. products: the latter alone. excess: what V is above its value at the minimum
    since training stopped early, to first order (descents; else nan). status: of the descent, or of the best
    training. seconds: the clock's.
    """

    strengths: np.ndarray
    validation: float
    test: float
    trials: np.ndarray
    solves: int
    products: int
    excess: float
    status: str
    seconds: float

    @property
    def refused(self) -> int:
        """Trainings of a grid that did not end in a minimum."""
        return int(np.isnan(self.trials[:, 1]).sum())

    def reached(self, value: float) -> float:
        """Solves until V was no larger than a value; infinite: it never was."""
        below = self.trials[self.trials[:, 1] <= value, 0]
        return float(below.min()) if len(below) else float("inf")


class Draw:
    """Points of one seed, and the weights that trainings begin with.

    config: its noise, loss, weight decay, backend and numbers of points. seed: of points and random weights.
    Raises InputError on a noise without one keep probability that is admissible, or points outside of the
    box.
    """

    def __init__(self, config: Config, name: str, seed: int) -> None:
        noise = from_settings(config.noise)
        if not isinstance(noise, Masked) or len(noise.keep.values) != 1:
            raise InputError(
                f"[noise]: {config.noise!r} has not one keep probability that choices can begin at"
            )
        self._kind: Callable[..., Masked] = type(noise)
        self._keep = noise.keep.values[0]
        if not LEAST <= self._keep <= MOST:
            raise InputError(f"[noise]: keep is {self._keep:g}, expected {LEAST:g} to {MOST:g}")
        self.train = data.synthetic(name, config.data.train, SETS[name], seed)
        self.test = data.synthetic(name, config.data.test, SETS[name], seed + 1_000_003)
        self.validation = data.synthetic(name, VALIDATION, SETS[name], seed + 2_000_003)
        if not self.train.radius < HALF_WIDTH:
            raise InputError(f"{name}: a point at {self.train.radius:.3g}, the box ends at {HALF_WIDTH:g}")
        own = copy.deepcopy(config)
        own.run.seed, own.network.depth, own.network.width = seed, DEPTH, WIDTH
        self._problem, self._order = own.problem(self.train), config.control.order
        self._backend = resolve_backend(config.run.backend)
        self._penalties: tuple[Penalty, ...] = (WeightDecay(config.penalty.weight_decay), StepPenalty())
        self.start = self._weights()

    @property
    def depth(self) -> int:
        """L."""
        return self._problem.network.depth

    def loss(self, points: Dataset) -> Tensor:
        """Mean loss of the plain network."""
        return self._problem.loss(self._problem.network(points.points), points.labels).mean()

    def equation(self, noise: Noise) -> BackwardKolmogorov:
        """The equation of training with a noise, smooth in the weights."""
        return BackwardKolmogorov(
            Problem(self.train, self._problem.network, noise, self._problem.loss),
            cells=CELLS,
            half_width=HALF_WIDTH,
            order=self._order,
            backend=self._backend,
            propagator=Explicit(substeps=SUBSTEPS),
            limit=False,
        )

    # schedules (L,)

    def constant(self, keep: float) -> np.ndarray:
        """The same probability in all layers."""
        return np.full(self.depth, keep)

    def decay(self, last: float) -> np.ndarray:
        """Linear decay of stochastic depth, 1 before the first layer and `last` in the last one.

        Source: Huang, Sun, Liu, Sedra, Weinberger, 1603.09382.
        """
        return 1 - (np.arange(self.depth) + 1) / self.depth * (1 - last)

    @property
    def lines(self) -> np.ndarray:
        """Modes (L, 2) of lines over depth, by the probability in the first layer and in the last."""
        rise = np.linspace(0, 1, self.depth)
        return np.stack([1 - rise, rise], axis=1)

    # ways to choose

    def begin(self) -> Choice:
        """Training at the configuration's own keep probability; all others then begin at its weights."""
        found = self.search([self.constant(self._keep)])
        self.start = self._weights()
        return found

    def plain(self) -> Choice:
        """Training without noise: no equation is needed."""
        return self._search([self.constant(1.0)], lambda keeps: lambda: self.loss(self.train))

    def search(self, schedules: Sequence[np.ndarray]) -> Choice:
        """The best of these by V. Raises InfeasibleError where all are refused."""

        def estimator(keeps: np.ndarray) -> Callable[[], Tensor]:
            return self.equation(self._kind(keep=keeps.tolist())).expected_loss

        return self._search(schedules, estimator)

    def _search(
        self, schedules: Sequence[np.ndarray], estimator: Callable[[np.ndarray], Callable[[], Tensor]]
    ) -> Choice:
        clock, solves, trials = time.perf_counter(), 0, []
        best: tuple[float, float, np.ndarray, str] | None = None
        refusal: InfeasibleError | None = None
        for keeps in schedules:
            objective = Objective(self._problem.network, estimator(keeps), self._penalties)
            try:
                fitted = self._fit(objective)
            except InfeasibleError as error:
                refusal, value = error, float("nan")
            else:
                value, test = self._losses()
                if best is None or value < best[0]:
                    best = value, test, keeps, fitted.status
            solves += objective.evaluations
            trials.append((solves, value))
        if best is None:
            assert refusal is not None
            raise refusal
        value, test, keeps, status = best
        seconds, nan = time.perf_counter() - clock, float("nan")
        return Choice(keeps, value, test, np.array(trials, float), solves, 0, nan, status, seconds)

    def _fit(self, objective: Objective) -> Result:
        """Train from the start. Raises InfeasibleError where that does not end in a minimum."""
        found = lbfgs(
            objective,
            self.start,
            iterations=ITERATIONS,
            tolerance=SLOPE,
            memory=MEMORY,
            callback=at_the_edge,
        )
        if found.status != "stationary":
            raise ConditionError(
                f"training: {found.status} at a slope of {found.residual:.1g}, not {SLOPE:g}"
            )
        return found

    def descend(self, modes: np.ndarray) -> Choice:
        """By descent on V over schedules M z, from the configuration's own. Raises InfeasibleError."""
        strengths = torch.full((self.depth,), self._keep, dtype=torch.float64, requires_grad=True)
        equation = self.equation(Controlled(self._kind(keep=self._keep), strengths))
        Objective(self._problem.network, equation.expected_loss).theta = self.start
        found = design(
            equation,
            lambda: self.loss(self.validation),
            self._penalties,
            start=np.full(modes.shape[1], self._keep),
            admissible=Interval(LEAST, MOST),
            modes=modes,
            **DESCENT,
        )
        value, test = self._losses()
        return Choice(
            strengths=found.strengths,
            validation=value,
            test=test,
            trials=np.array(found.trials, float),
            solves=found.solves,
            products=found.products,
            excess=found.best.excess,
            status=found.status,
            seconds=found.seconds,
        )

    def _weights(self) -> np.ndarray:
        flat = torch.nn.utils.parameters_to_vector(self._problem.network.parameters())
        return np.asarray(flat.detach().numpy().copy())

    @torch.no_grad()
    def _losses(self) -> tuple[float, float]:
        return float(self.loss(self.validation)), float(self.loss(self.test))
