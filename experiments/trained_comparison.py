"""Trained networks four ways: beside equation and chain, the SDE and the exact recursion.

What the cross-check found of equation and chain is taken as it is: nothing is computed twice, or printed with
two values. A way that refuses is kept with its reason, and fails nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.experiments.claims import Claim
from kolmo.experiments.comparison import Comparison
from kolmo.experiments.estimators import ESTIMATORS, Options, Reached
from kolmo.experiments.progress import Progress
from kolmo.problem import Problem

#: what the cross-check leaves to do
OTHERS = ("sde", "exact")


def known(measured: dict[str, Any]) -> dict[str, Reached]:
    """The two estimates of a network that the cross-check measured."""
    pde, chain = measured["pde"], measured["chain"]
    bounds = {source: pde["error"][source] for source in ("mesh", "time", "domain")}
    details = {name: pde[name] for name in ("order", "cells", "half_width")}
    return {
        "pde": Reached("pde", pde["value"], 0.0, bounds, pde["seconds"], details),
        "chain": Reached(
            "chain",
            chain["value"],
            chain["standard_error"],
            {},
            chain["seconds"],
            {"paths": chain["paths"]},
            interval=chain["error"]["sampling"],
        ),
    }


def compare(
    key: str,
    problem: Problem,
    measured: dict[str, Any],
    config: Config,
    device: str,
    seed: int,
    memo: Memo,
    progress: Progress,
) -> Comparison:
    """All four for one network, the other two remembered under `key`. measured: by the cross-check."""
    # pairs of mirrored Brownian paths: a quarter of the standard error, or less, on the default problem
    options = Options(
        sde_paths=max(config.check.sde_paths, 4 * len(problem.data)),
        order=config.control.order,
        reduce=("antithetic",),
        device=device,
        seed=seed,
    )

    def start() -> Comparison:
        return Comparison(problem, options, known(measured), model=measured["pde"]["error"]["model"])

    def run(checkpoint: Checkpoint) -> State:
        return start().run(OTHERS, progress).course()

    return start().take_course(memo.remember(key, run))


def claim(comparisons: Mapping[str, Comparison], limit: float) -> Claim:
    """The estimators that answer agree, for each of these networks; refusals are counted in words.

    limit: of h |V W|, below which these networks are.
    """
    agreeing = sum(found.verdict[0] == "agree" for found in comparisons.values())
    refused = sum(len(found.refused) for found in comparisons.values())
    measured = f"{agreeing} of {len(comparisons)}"
    if refused:
        measured += f", {refused} of {len(ESTIMATORS) * len(comparisons)} estimates refused"
    text = f"{', '.join(ESTIMATORS)} agree where they answer (networks with h |V W| < {limit:g})"
    return Claim(text, measured, "all", agreeing == len(comparisons))
