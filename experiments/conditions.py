"""Pontryagin's conditions of the network that the main job trains by control."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kolmo.checkpoint import Checkpoint, State
from kolmo.config import Config
from kolmo.control import Box, optimality
from kolmo.errors import InfeasibleError
from kolmo.pde import BackwardKolmogorov
from kolmo.penalty import Penalty
from kolmo.problem import Problem

#: eigenvalues of the Hessian, and the finest mesh for them by dimension: 20 products cost as much as the rest
COUNT, CELLS = 5, {1: 96, 2: 32, 3: 10}


def conditions(
    config: Config,
    problem: Problem,
    penalties: Sequence[Penalty],
    backend: str,
    details: dict[str, Any],
    checkpoint: Checkpoint,
) -> State:
    """`Optimality` as plain values, with its verdict, mesh and seconds.

    details: of the training, whose mesh and box are taken. The eigenvalues are those of the equation without
    clip, which is smooth, on a mesh of at most CELLS. Where the mesh refuses the weights the verdict is
    'refused' and `reason` says why.
    """
    begun = time.perf_counter()
    admissible, box = Box(config.control.radius), {"half_width": details["half_width"]}
    few = min(details["cells"], CELLS[problem.network.dim])
    shared = {"order": config.control.order, "backend": backend, **box}
    try:
        equation = BackwardKolmogorov(problem, cells=details["cells"], **shared)
        at = optimality(equation, penalties, admissible, eigenvalues=0)
        smooth = BackwardKolmogorov(problem, cells=few, limit=False, **shared)
        leading = optimality(smooth, penalties, admissible, eigenvalues=COUNT).eigenvalues
    except InfeasibleError as error:
        return {"verdict": "refused", "reason": str(error), "seconds": time.perf_counter() - begun}
    return {
        "verdict": at.verdict,
        "objective": at.value,
        "projected_gradient": at.norm,
        "relative_to": at.scale,
        "on_boundary": at.on_boundary,
        "hamiltonian": at.hamiltonian.tolist(),
        "residual": at.residual.tolist(),
        "eigenvalues": [] if leading is None else leading.tolist(),
        "cells": details["cells"],
        "eigenvalue_cells": few,
        "seconds": time.perf_counter() - begun,
    }
