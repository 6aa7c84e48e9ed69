"""What the experiment `loss_landscape` found, and what it claims of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import numpy as np

from kolmo.errors import KolmoError
from kolmo.experiments.claims import Claim
from kolmo.experiments.sharpness import Ratio
from kolmo.experiments.two_objectives import Spot
from kolmo.experiments.two_optima import BOTH, PLANES, WITH, Line, Map, Spectra, Start

#: title, columns and rows
Table = tuple[str, list[str], list[list[object]]]

#: slope of the line through the first start's optimum, units of the loss, at most
SLOPE = 1e-6
#: coordinates by which the minimum of a plane may be off from the optimum in it
PLACE = 1e-6
#: an eigenpair's |H v - lambda v|, relative to the largest eigenvalue
EIGENPAIR = 1e-8
#: standard errors by which a sampled mean over directions may be off from the exact one
SIGMAS = 4.0
#: radii of the average increase along filter-normalised directions: 1 is a step as long as the weights
RADII = (0.05, 0.1, 0.2, 0.4)
#: measures of sharpness and their names
MEASURES = {
    "largest": "leading eigenvalue",
    "trace": "trace",
    "filtered": "filter-normalised trace",
}


@dataclass
class Found:
    """Filled part by part; maps, line, spectra and spots are of the first start.

    confidence: of intervals. tolerance: of trainings, gradient's norm.
    """

    confidence: float
    tolerance: float
    starts: list[Start] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    line: Line | None = None
    spectra: Spectra | None = None
    spots: list[Spot] = field(default_factory=list)

    def ratios(self, name: str) -> np.ndarray:
        """A measure of J without noise at the optimum with noise over that at the one without, by start."""
        pairs = [[getattr(at, name) for at in start.sharpness] for start in self.starts]
        return np.array([noisy / plain for plain, noisy in pairs])

    def ratio(self, name: str) -> Ratio:
        """Their mean and its interval."""
        return Ratio.of(self.ratios(name), self.confidence)

    def nearest(self, title: str) -> float:
        """Distance of the noisy landscape's nearest minimum to its optimum in a plane, in coordinates."""
        found = self.maps[PLANES.index(title)]
        return min(
            (float(np.linalg.norm(m.at - found.optima["noisy"])) for m in found.noisy_minima), default=np.inf
        )

    def claims(self) -> list[Claim]:
        """What a finished run shows: optima and minima first, then the noise's cost, then sharpness."""
        if not self.spots or self.line is None or self.spectra is None:
            raise KolmoError("the run was not finished, nothing is claimed")
        worst = max(reached.residual for s in self.starts for reached in (s.plain, s.noisy))
        text = f"{2 * len(self.starts)} trained networks: largest gradient"
        claims = [Claim(text, worst, f"<= {self.tolerance:g}", worst <= self.tolerance)]
        slope = abs(self.line.slope)
        text = "line between the optima: slope of J with noise at its own, by differences"
        claims.append(Claim(text, slope, f"<= {SLOPE:g}", slope <= SLOPE))
        lowest = float(self.line.s[np.nanargmin(self.line.noisy)])
        text = "line between the optima: where J with noise is lowest (0: optimum without, 1: with)"
        claims.append(Claim(text, lowest, "1", lowest == 1))
        away = max(self.nearest(WITH), self.nearest(BOTH))
        text = "planes through the optimum with noise: distance to their nearest minimum"
        claims.append(Claim(text, away, f"<= {PLACE:g}", away <= PLACE))
        claims += [self._of_cost(), *self._of_sharpness()]
        text = "eigenpairs with noise, |H v - lambda v| over the largest eigenvalue"
        found = self.spectra.residual
        claims.append(Claim(text, found, f"<= {EIGENPAIR:g}", found <= EIGENPAIR))
        agree = sum(spot.agrees for spot in self.spots)
        text = "J with noise by the equation and by the chain agree within the stated errors (spots)"
        every = len(self.spots)
        return [*claims, Claim(text, agree, f"{every} of {every}", agree == every)]

    def _of_cost(self) -> Claim:
        """Starts whose noiseless optimum the equation refuses are no evidence and do not count."""
        costs = np.array([start.cost for start in self.starts])
        costs = costs[np.isfinite(costs).all(axis=1)]
        less = int((costs[:, 1] < costs[:, 0]).sum())
        refused = len(self.starts) - len(costs)
        text = "starts whose optimum with noise has the noise cost less than the one without"
        expected = f"{len(costs)} of {len(costs)}" + (f", {refused} refused" if refused else "")
        return Claim(text, less, expected, less == len(costs) > 0)

    def _of_sharpness(self) -> list[Claim]:
        claims, share = [], f"{self.confidence:.0%}"
        start = "J without noise, at the optimum with noise over at the one without"
        for name in ("largest", "trace"):
            found = self.ratio(name)
            expected = f"< 1 ({share} interval {found.low:.2f} to {found.high:.2f})"
            claims.append(Claim(f"{start}: {MEASURES[name]}", found.mean, expected, found.high < 1))
        found = self.ratio("filtered")
        expected = f"not below 1 ({share} interval {found.low:.2f} to {found.high:.2f})"
        claims.append(Claim(f"{start}: {MEASURES['filtered']}", found.mean, expected, found.high >= 1))
        left = Ratio.of(self.ratios("filtered") / self.ratios("trace"), self.confidence)
        expected = f"> 1 ({share} interval {left.low:.2f} to {left.high:.2f})"
        text = "the same ratio of the filter-normalised trace over that of the trace"
        claims.append(Claim(text, left.mean, expected, left.low > 1))
        worst = max(
            float(abs(at.increase[0] - 0.5 * RADII[0] ** 2 * at.filtered) / at.sampling[0])
            for start in self.starts
            for at in start.sharpness
        )
        text = "filter-normalised trace, exact against directions drawn (standard errors)"
        return [*claims, Claim(text, worst, f"<= {SIGMAS:g}", worst <= SIGMAS)]

    def results(self) -> dict[str, Any]:
        """Everything but weights, for results.json; refused values are null."""
        found: dict[str, Any] = {
            "starts": [_listed(start) for start in self.starts],
            "maps": [_listed(found) for found in self.maps],
            "line": None if self.line is None else _listed(self.line),
            "spectra": None if self.spectra is None else _listed(self.spectra),
            "spots": [{**asdict(s), "allowed": s.allowed, "agrees": s.agrees} for s in self.spots],
        }
        if len(self.starts) > 1:
            found["ratios"] = {name: _listed(self.ratio(name)) for name in MEASURES}
        return found

    def tables(self) -> list[Table]:
        """Losses and sharpness of every start, ratios, minima, eigenvalues, spot checks; * with noise."""
        losses: list[list[object]] = []
        sharp: list[list[object]] = []
        for s in self.starts:
            at = s.sharpness
            losses.append([s.seed, *_digits([x.loss for x in at]), *_digits(s.cost), *_digits(s.test)])
            sharp.append([s.seed, *(f"{getattr(x, name):.3f}" for name in MEASURES for x in at)])
        columns = ["J off", "J off*", "cost", "cost*", "test", "test*"]
        title = "both optima (*: with noise): J with the noise off, what the noise costs, test loss"
        tables: list[Table] = [(title, ["seed", *columns], losses)]
        columns = ["eigenvalue", "eigenvalue*", "trace", "trace*", "filtered", "filtered*"]
        tables.append(("sharpness of J without noise, at both optima", ["seed", *columns], sharp))
        if len(self.starts) > 1:
            tables.append(self._of_ratios())
        minima: list[list[object]] = []
        for found in self.maps:
            refused = sum(found.noisy.refused.values())
            for m in found.noisy_minima:
                place, bends = ", ".join(f"{x:.4f}" for x in m.at), ", ".join(_digits(m.bends))
                minima.append([found.title, refused, place, f"{m.value:.5f}", f"{m.slope:.0e}", bends])
        columns = ["plane", "refused", "at", "J + penalties", "slope", "Hessian"]
        tables.append(("minima of J + penalties with noise, in planes", columns, minima))
        if self.spectra is not None:
            tables.append(self._of_spectra(self.spectra))
        checks: list[list[object]] = [
            [s.name, *_digits([s.value, s.chain]), f"{abs(s.value - s.chain):.1e}", f"{s.allowed:.1e}"]
            for s in self.spots
        ]
        columns = ["weights", "equation", "chain", "differ by", "stated"]
        return [*tables, ("spot checks of J with noise", columns, checks)]

    def _of_ratios(self) -> Table:
        every = {words: self.ratios(name) for name, words in MEASURES.items()}
        rises = np.array([[at.increase[-1] for at in start.sharpness] for start in self.starts])
        every[f"mean increase at radius {RADII[-1]:g}"] = rises[:, 1] / rises[:, 0]
        tests = np.array([start.test for start in self.starts])
        every["test loss"] = tests[:, 1] / tests[:, 0]
        rows: list[list[object]] = []
        for words, ratios in every.items():
            found = Ratio.of(ratios, self.confidence)
            rows.append([words, *(f"{x:.2f}" for x in (found.mean, found.low, found.high))])
        title = f"at the optimum with noise over at the one without, {self.confidence:.0%} interval"
        return title, ["J without noise", "ratio", "from", "to"], rows

    def _of_spectra(self, found: Spectra) -> Table:
        without, under = (f"{at.trace:.3f}" for at in self.starts[0].sharpness)
        rows: list[list[object]] = [
            ["noise on*", *_digits(found.noisy), f"{found.trace:.3f} +- {2 * found.trace_error:.3f}"],
            ["noise off*", *_digits(found.plain_at_noisy), under],
            ["noise off", *_digits(found.plain_at_plain), without],
        ]
        columns = ["J", *(f"{k + 1}." for k in range(len(found.noisy))), "trace"]
        return f"leading eigenvalues, seed {self.starts[0].seed} (*: optimum with noise)", columns, rows


def _digits(values: Iterable[float]) -> list[str]:
    return [f"{value:.4f}" for value in values]


def _listed(found: Any) -> Any:
    """Fields for JSON: arrays as lists, what is not finite as None, weights left out."""
    if isinstance(found, np.ndarray):
        return _listed(found.tolist())
    if isinstance(found, float):
        return found if np.isfinite(found) else None
    if isinstance(found, (list, tuple)):
        return [_listed(value) for value in found]
    if is_dataclass(found) or isinstance(found, dict):
        fields = vars(found) if is_dataclass(found) else found
        return {k: _listed(v) for k, v in fields.items() if k not in ("theta", "origin", "axes")}
    return found
