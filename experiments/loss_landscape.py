r"""The loss landscape with and without noise: its shape around both optima, and how sharp they are.

From every start (data and initial weights by its seed) one network is trained with noise and one without, by
L-BFGS with the same penalties (`two_objectives`), the first start's further by Newton's method. Then, without
sampling noise:

- J + penalties over planes around the first start's optima, along two filter-normalised directions
  (`landscape`), and through both: with noise by the equation, without by the network itself, which is exact;
- the leading eigenvalues of the Hessian of J, with noise by Lanczos on exact products, without noise by all
  of its matrix;
- over all starts, whether J without noise is flatter at the optimum with noise than at the one without: in
  raw numbers, and in ones that no rescaling of units changes (`sharpness`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.errors import InputError
from kolmo.experiments.claims import Claim
from kolmo.experiments.landscape_found import RADII, Found, Table
from kolmo.experiments.progress import Progress, Silent
from kolmo.experiments.two_objectives import Reached, Spot, TwoObjectives
from kolmo.experiments.two_optima import (
    PLANES,
    WITH,
    Line,
    Map,
    Spectra,
    Start,
    line_of,
    map_of,
    measure,
    spectra_of,
)


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment.

    starts: how many. grid, line: points a side of a plane and along the line, odd. directions: drawn for the
    average increase. eigenvalues: leading ones. probes: of the trace with noise. confidence: of intervals.
    small: what is changed in the configuration.
    """

    starts: int = 10
    grid: int = 25
    line: int = 81
    directions: int = 200
    eigenvalues: int = 8
    probes: int = 40
    confidence: float = 0.95
    small: dict[str, dict[str, Any]] = field(default_factory=dict)


FULL = Plan()
#: the same problem on a coarser mesh; `--quick` of the command line has made the network deeper
QUICK = Plan(
    starts=3, grid=9, line=33, directions=60, eigenvalues=4, probes=10, confidence=0.8,
    small={
        "network": {"depth": 10},
        "control": {"cells": [24], "iterations": [3000], "tolerance": 1e-6},
        "check": {"paths": 100_000},
    },
)  # fmt: skip


class LossLandscape:
    """Optima of every start, and maps, line, spectra and spot checks of the first one.

    Raises InputError unless the configuration has a noise and one or two features.
    """

    name = "loss_landscape"
    summary = "J with and without noise over planes of weights, and how sharp the optima are"
    shipped = "loss_landscape"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.plan = copy.deepcopy(config), QUICK if quick else FULL
        for section, changes in self.plan.small.items():
            for key, value in changes.items():
                setattr(getattr(self.config, section), key, value)
        if self.config.noise.get("kind") == "none":
            raise InputError("[noise]: kind 'none', the experiment compares J with a noise to J without")
        first = self.config.run.seed
        self.seeds = range(first, first + self.plan.starts)
        self.first = TwoObjectives(self.config, first)
        if self.first.train.dim > 2:
            raise InputError(f"[data]: {self.first.train.dim} features, the experiment's mesh is for 1 or 2")
        self.found = Found(self.plan.confidence, self.config.control.tolerance)
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All that is not done yet. Raises KolmoError where the equation refuses a training's start."""
        progress = progress or Silent()
        progress.start("loss landscapes", 3 * len(self.seeds) + len(PLANES) + 3)
        found, of, plan = self.found, self.first, self.plan
        for seed in self.seeds[len(found.starts) :]:
            start = self._start(of if seed == of.seed else TwoObjectives(self.config, seed), progress)
            found.starts.append(start)
        start = found.starts[0]
        for index in range(len(found.maps), len(PLANES)):
            kept = self._keep(f"plane-{index}", partial(map_of, of, start, PLANES[index], plan.grid))
            found.maps.append(Map.of(kept))
            refused = sum(found.maps[-1].noisy.refused.values())
            progress.advance(f"plane {PLANES[index]}: {refused} of {plan.grid**2} weights refused")
        if found.line is None:
            found.line = Line(**self._keep("line", partial(line_of, of, start, plan.line)))
        progress.advance("the line between the optima")
        if found.spectra is None:
            compute = partial(spectra_of, of, start, plan.eigenvalues, plan.probes)
            found.spectra = Spectra(**self._keep("spectra", compute))
        progress.advance(f"leading eigenvalue with noise {found.spectra.noisy[0]:.4f}")
        if not found.spots:
            found.spots = [Spot(**kept) for kept in self.memo.remember("spots", self._spots)]
        progress.advance("spot checks by the chain")

    def _start(self, of: TwoObjectives, progress: Progress) -> Start:
        first = of.seed == self.first.seed
        train = partial(of.descend, of.plain(), first)
        plain = Reached(**self.memo.remember(f"{of.seed}-plain", train))
        progress.advance(f"seed {of.seed}, without noise: gradient {plain.residual:.0e}")
        width = of.half_width(plain.theta)
        train = partial(of.descend, of.noisy(width), first)
        noisy = Reached(**self.memo.remember(f"{of.seed}-noisy", train))
        progress.advance(f"seed {of.seed}, with noise: gradient {noisy.residual:.0e}")
        compute = partial(measure, of, plain, noisy, width, RADII, self.plan.directions)
        start = Start.of(self._keep(f"{of.seed}-sharpness", compute))
        flat, sharp = (at.largest for at in reversed(start.sharpness))
        progress.advance(f"seed {of.seed}: leading eigenvalue {sharp:.3f}, at the noisy optimum {flat:.3f}")
        return start

    def _keep(self, key: str, compute: Callable[[], Any]) -> dict[str, Any]:
        """The fields of a dataclass, from the memo."""
        kept: dict[str, Any] = self.memo.remember(key, lambda _: asdict(compute()))
        return kept

    def _spots(self, checkpoint: Checkpoint) -> State:
        """Both optima, and where the noise costs most on the grid around the one with noise."""
        start, around = self.found.starts[0], self.found.maps[PLANES.index(WITH)]
        cost = around.noisy.values - around.plain.values
        i, j = np.unravel_index(np.nanargmax(cost), cost.shape)
        far = around.plane.at(around.plane.first[i], around.plane.second[j])
        places = {
            "optimum with noise": start.noisy.theta,
            "optimum without": start.plain.theta,
            "costliest of the grid": far,
        }
        return [asdict(self.first.spot(name, theta, start.half_width)) for name, theta in places.items()]

    @property
    def finished(self) -> bool:
        return bool(self.found.spots) and len(self.found.starts) == len(self.seeds)

    def claims(self) -> list[Claim]:
        """What a finished run shows. Raises KolmoError of another one."""
        return self.found.claims()

    def results(self) -> dict[str, Any]:
        """Everything but weights, for results.json; refused values are null."""
        return self.found.results()

    def tables(self) -> list[Table]:
        """Losses and sharpness of every start, ratios, minima, eigenvalues and spot checks."""
        return self.found.tables()
