"""The exact recursion: closed forms for every noise, fourth order in the grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from kolmo import noise
from kolmo.pde import ExactRecursion
from kolmo.problem import Problem
from kolmo.verify.affine import CASES, affine_problem, chain_loss
from kolmo.verify.figure import Figure, below, order
from kolmo.verify.trained import trained_problem


def recursion(problem: Problem, **options: Any) -> float:
    """J without the limiter."""
    with torch.no_grad():
        return float(ExactRecursion(problem, limit=False, **options).expected_loss())


def closed_forms(backend: str) -> Iterator[Figure]:
    """Affine blocks, quadratic loss: u is quadratic, which splines and Gauss rules hold exactly."""
    for dim, cells in ((1, 60), (2, 48)):
        worst = 0.0
        for case in CASES.values():
            problem = affine_problem(dim, case.noise)
            found = recursion(problem, half_width=12.0, cells=cells, gauss=3)
            worst = max(worst, abs(found / chain_loss(case, problem) - 1))
        yield below(f"{dim}-D, every noise: relative error of J", worst, 1e-9)
    case = CASES["bernoulli_dropout"]
    problem = affine_problem(3, case.noise)
    found = recursion(problem, half_width=12.0, cells=24)
    yield below("3-D, dropout: relative error of J", found / chain_loss(case, problem) - 1, 1e-5)


def grid_orders(backend: str) -> Iterator[Figure]:
    """J of a tanh network against J on a grid far finer."""
    for dim, cells, fine in ((1, (24, 36, 54, 81), 486), (2, (24, 36, 54), 162)):
        problem = trained_problem(dim, noise.BernoulliDropout(0.8))
        exact = recursion(problem, half_width=3.0, cells=fine)
        errors = [recursion(problem, half_width=3.0, cells=n) - exact for n in cells]
        yield Figure(f"{dim}-D: order of J in the grid", -order(cells, errors), 3.5, math.inf)
