r"""Depth continuation: solve with few layers, prolong, and go on with more.

The optimal control of a shallow network is a start for a deep one (nested controls), at a fraction of the
cost: an iteration takes as long as there are layers, and most iterations are done where there are few. The
noise is rescaled on the way so that the diffusion h C stays as it is (`kolmo.refinement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kolmo.control.training import Training, train
from kolmo.errors import InputError
from kolmo.penalty import Penalty
from kolmo.problem import Problem
from kolmo.refinement import refined


def continuation(
    problem: Problem,
    depths: Sequence[int],
    penalties: Sequence[Penalty] = (),
    *,
    cells: Sequence[int],
    iterations: Sequence[int],
    **options: Any,
) -> tuple[Problem, list[Training]]:
    """Train at each of the depths, each a multiple of the one before, from the prolonged weights.

    problem: at the first depth, with the noise that it has there. cells, iterations: one for each depth.
    options: of `train`. Returns the problem at the last depth, trained, and how each training went.
    Raises InputError on depths that are not nested, and what `train` raises.
    """
    if len({len(depths), len(cells), len(iterations)}) != 1:
        raise InputError(
            f"continuation: {len(depths)} depths, {len(cells)} cells and {len(iterations)} iterations"
        )
    trainings: list[Training] = []
    for depth, n, steps in zip(depths, cells, iterations, strict=True):
        before = problem.network.depth
        if depth % before:
            raise InputError(f"depths: {depth} is no multiple of the {before} layers before it")
        if depth != before:
            problem = refined(problem, depth // before)
        trainings.append(train(problem, penalties, cells=(n,), iterations=(steps,), **options))
    return problem, trainings
