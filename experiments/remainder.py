r"""How much of what dropout adds to the loss is the explicit penalty R: by rate, and by step size.

    J(q) - J_0 = q R + remainder,      q = (1 - p) / p,

J(q) by the chain's exact recursion and by Monte Carlo, J_0 the network without masks. With R by units
dropped one at a time (`mask`) the remainder is O(q^2). With the curvature along the paths (`path`) it keeps a
part of O(h q R), for the third moment of a rare mask is of the first order in q. That part, and what path
differs from the modified equation's R by, is seen by splitting every layer in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kolmo.experiments.claims import Claim
from kolmo.experiments.penalties import (
    MeshPenalty,
    at_rate,
    flow_penalty,
    mask_penalty,
    path_penalty,
    sampled_loss,
    split,
)
from kolmo.network import ResidualNetwork
from kolmo.pde.exact import ExactRecursion
from kolmo.pde.exact_value import resolve_exact
from kolmo.problem import Problem

Table = tuple[str, list[str], list[list[object]]]

#: error of the recursion aimed at: relative to J, and absolute
_AIM = (1e-4, 1e-6)
#: cells of the equation that is the chain's control variate, by dimension
_CONTROL = {1: 128, 2: 48}
#: standard errors that the chain and the recursion may be apart, besides the recursion's own error
SIGMAS = 4.0
#: fitted slopes, of remainders in q and of differences in h, may be off by this
WITHIN = 0.25


@dataclass(frozen=True)
class Forms:
    """R at q = 1 in each of its forms, and J_0 where the form has its own.

    mesh_error: relative to R, its change from a mesh 2/3 as fine and what the noiseless march is off by
    in J_0, which the flow knows. steps: (h, path, flow, mask) of the network, and with layers split in two.
    """

    path: float
    flow: float
    mesh: float
    mask: float
    losses: dict[str, float]
    mesh_error: float
    cells: int
    steps: tuple[tuple[float, float, float, float], ...]

    def order(self, form: str) -> float:
        """The order in h of |path / form - 1|, from the two step sizes."""
        column = {"flow": 2, "mask": 3}[form]
        errors = [abs(row[1] / row[column] - 1) for row in self.steps]
        return float(np.log(errors[0] / errors[1]) / np.log(self.steps[0][0] / self.steps[1][0]))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "orders": {form: self.order(form) for form in ("flow", "mask")}}


def measure_forms(problem: Problem, mesh: MeshPenalty, coarse: MeshPenalty) -> Forms:
    """R by every form for the problem's network; mesh and coarse are those of q = 1."""
    network = problem.network
    assert isinstance(network, ResidualNetwork)
    steps: list[tuple[float, float, float, float]] = []
    losses: dict[str, float] = {}
    for parts in (1, 2):
        unit = at_rate(problem, 1.0, split(network, parts))
        found, (loss, flow) = path_penalty(unit), flow_penalty(unit)
        steps.append((unit.network.step, float(found.penalty), flow, mask_penalty(unit)))
        losses = losses or {"path": float(found.loss), "flow": loss, "mesh": mesh.loss}
    _, path, flow, mask = steps[0]
    error = abs(mesh.penalty / coarse.penalty - 1) + abs(mesh.loss / losses["flow"] - 1)
    return Forms(path, flow, mesh.penalty, mask, losses, error, mesh.cells, tuple(steps))


@dataclass(frozen=True)
class Rate:
    """What dropout with one keep probability adds to the loss J_0 of the same network without it.

    exact: J - J_0 by the recursion on a grid that resolves it, +- error. difference: by two recursions on one
    grid, whose errors largely cancel: for the remainder. chain: by Monte Carlo. equation: J_pde less
    J_pde at a = 0, on one mesh.
    """

    keep: float
    exact: float
    error: float
    difference: float
    chain: float
    standard_error: float
    equation: float

    @property
    def rate(self) -> float:
        """q = (1 - p) / p."""
        return (1 - self.keep) / self.keep

    @property
    def agrees(self) -> bool:
        """Whether chain and recursion give one number."""
        return abs(self.chain - self.exact) <= SIGMAS * self.standard_error + self.error

    def remainder(self, penalty: float) -> float:
        """|J - J_0 - q R| for R at q = 1."""
        return abs(self.difference - self.rate * penalty)

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "rate": self.rate}


class Rates:
    """Measures one network at one rate after the other, on one box and grid."""

    def __init__(self, problem: Problem, mesh: MeshPenalty, cells: int, half_width: float) -> None:
        self.problem, self.mesh, self.cells, self.half_width = problem, mesh, cells, half_width
        self._loss = float(path_penalty(problem).loss)
        self._without = self._recursion(problem.without_noise())

    def _recursion(self, problem: Problem) -> float:
        """J on the one grid by the linear recursion, whose error is smooth in the rate."""
        recursion = ExactRecursion(problem, cells=self.cells, half_width=self.half_width, limit=False)
        with torch.no_grad():
            return float(recursion.expected_loss())

    def measure(self, keep: float, paths: int, seed: int) -> Rate:
        """All estimates at one keep probability. Raises KolmoError where one is refused."""
        rate = (1 - keep) / keep
        problem = at_rate(self.problem, rate)
        exact = resolve_exact(problem, half_width=self.half_width, tolerance=_AIM)
        sampled = sampled_loss(problem, _CONTROL[problem.network.dim], self.mesh.space.backend, paths, seed)
        return Rate(
            keep=keep,
            exact=exact.value - self._loss,
            error=exact.error,
            difference=self._recursion(problem) - self._without,
            chain=sampled.value - self._loss,
            standard_error=sampled.standard_error,
            equation=self.mesh.difference(rate),
        )


def slope(rates: Sequence[Rate], penalty: float) -> float:
    """Least-squares slope of log |J - J_0 - q R| over log q."""
    kept = np.array([(rate.rate, rate.remainder(penalty)) for rate in rates])
    logs = np.log(np.maximum(kept, np.finfo(float).tiny))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def claims(forms: Forms, rates: Sequence[Rate], small: float, miss: float) -> list[Claim]:
    """What is claimed of R. small: q up to which things are of first order; miss: what q R may be off by."""
    first = [rate for rate in rates if rate.rate <= small]
    gap, within = forms.mesh / forms.flow - 1, forms.mesh_error
    text = "R on the mesh is R along the flow (relative difference)"
    found = [Claim(text, gap, f"within {within:.2g} (mesh)", abs(gap) <= within)]
    gap = max((rate.equation / (rate.rate * forms.mesh) - 1 for rate in first), key=abs)
    text = f"J_pde - J_pde(a = 0) is q R on the mesh, q <= {small:g} (largest relative difference)"
    found.append(Claim(text, gap, f"within {within:.2g} (mesh)", abs(gap) <= within))
    for form, words in (("flow", "R along the flow"), ("mask", "R by single masks")):
        order = forms.order(form)
        text = f"R along the chain's paths tends to {words} (order in h)"
        found.append(Claim(text, order, f"1 +- {WITHIN:g}", abs(order - 1) <= WITHIN))
    steep = slope(first, forms.mask)
    text = f"J - J_0 - q R, R by single masks: slope in q <= {small:g}"
    found.append(Claim(text, steep, f"2 +- {WITHIN:g}", abs(steep - 2) <= WITHIN))
    gap = max((rate.rate * forms.path / rate.exact - 1 for rate in rates), key=abs)
    text = f"q R along the paths is what dropout adds, keep {rates[0].keep:g} to {rates[-1].keep:g} (worst)"
    found.append(Claim(text, gap, f"within {miss:g}", abs(gap) <= miss))
    agree = sum(rate.agrees for rate in rates)
    text = f"chain and recursion agree on J - J_0 ({SIGMAS:g} standard errors, grid): keep probabilities"
    return [*found, Claim(text, f"{agree} of {len(rates)}", "all", agree == len(rates))]


def tables(forms: Forms, rates: Sequence[Rate]) -> list[Table]:
    """R in its forms, then what dropout adds at every rate."""
    (h, *whole), (_, *halved) = forms.steps
    rows: list[list[object]] = []
    for number, name in enumerate(("path", "flow", "mask")):
        loss = f"{forms.losses[name]:.6f}" if name in forms.losses else ""
        gaps = [f"{100 * (row[number] / row[1] - 1):+.3f}" for row in (whole, halved)]
        rows.append([name, loss, f"{whole[number]:.6f}", *gaps])
    gap = f"{100 * (forms.mesh / forms.flow - 1):+.3f}"
    rows.append([f"mesh, {forms.cells} cells", f"{forms.losses['mesh']:.6f}", f"{forms.mesh:.6f}", gap, ""])
    title = f"R at keep 0.5 (q = 1), and its difference from the flow's in %, h = {h:.3g}"
    columns = ["R by", "J_0", "R", "% at h", "% at h/2"]
    lines: list[list[object]] = [
        [
            f"{r.keep:g}", f"{r.rate:.4f}", f"{r.exact:.6f}", f"{r.chain:.6f}",
            f"{SIGMAS * r.standard_error:.0e}", f"{r.equation:.6f}", f"{r.rate * forms.path:.6f}",
            f"{r.remainder(forms.path):.1e}", f"{r.remainder(forms.mask):.1e}",
        ]
        for r in rates
    ]  # fmt: skip
    heading = "what dropout adds, J - J_0, three ways; q R along the paths; what q R leaves of it"
    names = ["keep", "q", "exact", "chain", "+-", "pde", "q R", "by path", "by mask"]
    return [(title, columns, rows), (heading, names, lines)]
