"""Taylor remainders: is every gradient that of its value, as computed?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo import noise
from kolmo.chain import Chain
from kolmo.control import Objective, taylor_test
from kolmo.pde import BackwardKolmogorov, ExactRecursion, Explicit, Implicit
from kolmo.problem import Problem
from kolmo.verify.figure import Figure, around, below
from kolmo.verify.trained import trained_problem

#: lengths of the steps in the weights
STEPS = (4e-3, 2e-3, 1e-3)


def taylor(backend: str) -> Iterator[Figure]:
    """|J(theta + e d) - J - e J'd| = O(e^2) for the equation, both propagators, and the exact recursion."""
    for dim, cells in ((1, 48), (2, 18)):
        for model in (noise.BernoulliDropout(0.8), noise.GaussianInjection(0.3)):
            problem = trained_problem(dim, model)
            for scheme in (Explicit(substeps=4), Implicit()):
                keys: dict[str, Any] = {"propagator": scheme, "half_width": 3.0, "backend": backend}
                equation = BackwardKolmogorov(problem, cells=cells, limit=False, **keys)
                name = f"{dim}-D, {model.kind}, {type(scheme).__name__.lower()}"
                yield _rate(name, problem, equation.expected_loss, 0.1)
            exact = ExactRecursion(problem, cells=24, half_width=4.0, limit=False)
            yield _rate(f"{dim}-D, {model.kind}, exact recursion", problem, exact.expected_loss, 0.2)


def _rate(name: str, problem: Problem, loss: Callable[[], Tensor], tolerance: float) -> Figure:
    objective = Objective(problem.network, loss)
    rates = taylor_test(objective, objective.theta, steps=STEPS)
    return around(f"{name}: order of the remainder", rates.order1, 2, tolerance)


def limited(backend: str) -> Iterator[Figure]:
    """The same where the clip, or the recursion's limiter, is at work."""
    problem = trained_problem(2, noise.BernoulliDropout(0.8), depth=10, width=8)
    keys: dict[str, Any] = {"propagator": Explicit(substeps=4), "half_width": 3.0, "backend": backend}
    equation = BackwardKolmogorov(problem, cells=14, **keys)
    objective = Objective(problem.network, equation.expected_loss)
    rates = taylor_test(objective, objective.theta, steps=(1e-4, 5e-5, 2.5e-5))
    assert equation.last is not None  # a march has been made
    yield Figure("entries that the clip cuts", float(equation.last.clipped), 1, np.inf)
    yield around("clipped march: order of the remainder", rates.order1, 2, 0.1)
    exact = ExactRecursion(problem, cells=24, half_width=4.0)
    objective = Objective(problem.network, exact.expected_loss)
    rates = taylor_test(objective, objective.theta, steps=STEPS)
    # kinks are crossed here and there between two steps, so that there is no order to fit
    remainder = rates.remainders1[-1] / rates.remainders0[-1]
    yield below("limited recursion: remainder 1 by remainder 0", remainder, 2e-3)


def sampled(backend: str) -> Iterator[Figure]:
    """The chain's gradient is that of the mean loss of its very paths."""
    problem = trained_problem(2, noise.BernoulliDropout(0.8), samples=10)
    found = Chain(problem, seed=3).gradient(16 * 10)
    direction = {name: torch.ones_like(p) / p.numel() for name, p in problem.network.named_parameters()}
    slope = sum(float((found.value[name] * d).sum()) for name, d in direction.items())
    values = []
    for sign in (1, -1):
        _move(problem, direction, sign * 1e-5)
        values.append(Chain(problem, seed=3).estimate(16 * 10).value)
        _move(problem, direction, -sign * 1e-5)
    difference = (values[0] - values[1]) / 2e-5
    yield below("against a central difference, relative", slope / difference - 1, 1e-6)


@torch.no_grad()
def _move(problem: Problem, direction: dict[str, Tensor], size: float) -> None:
    for name, parameter in problem.network.named_parameters():
        parameter.add_(direction[name], alpha=size)
