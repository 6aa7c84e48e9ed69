r"""Four estimators of one number, compared two by two: z-scores, and a verdict.

Within the chain (`chain`, `exact`) and within its modified equation (`pde`, `sde`) two estimators differ by
their stated errors only; across, by what the modified equation is off by as well. With the difference
d, the stated bounds of both added up and their sampling errors e1, e2,

    z = max(0, |d| - bounds) / sqrt(e1^2 + e2^2),       differ where z > 4.

Bounds are twice the estimated errors of mesh, grid, time and box: an estimate is not a bound, good ones are
within a factor of two. A pair without sampling differs where |d| exceeds them. Across, the modified
equation's share is twice its estimate where there is one, else what the size of h |V W| allows. Where the
noise hardly moves J, a wrong modified equation agrees too: `kolmo.consistency` looks at its single steps
besides.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kolmo.checkpoint import State
from kolmo.consistency import OneStep, one_step
from kolmo.errors import InputError, KolmoError
from kolmo.experiments.crosscheck import SAFETY, model_error
from kolmo.experiments.estimators import ESTIMATORS, OF_CHAIN, OF_EQUATION, Options, Reached, reach
from kolmo.experiments.progress import Progress, Silent
from kolmo.problem import Problem

#: two-sided tail 6e-5: with three pairs a run, a false alarm in five thousand
Z_LIMIT = 4.0


@dataclass(frozen=True)
class Pair:
    """Two estimates: their difference, the bounds it may have, and its sampling error."""

    first: str
    second: str
    difference: float
    bound: float
    sampling: float

    @property
    def z(self) -> float:
        """What the bounds do not explain, in standard errors."""
        beyond = max(0.0, abs(self.difference) - self.bound)
        return beyond / self.sampling if self.sampling > 0 else (math.inf if beyond > 0 else 0.0)

    @property
    def agree(self) -> bool:
        return self.z <= Z_LIMIT

    @property
    def allowed(self) -> float:
        """What the difference may be."""
        return self.bound + Z_LIMIT * self.sampling

    @property
    def reason(self) -> str:
        """The comparison in one line."""
        sign = "<=" if self.agree else ">"
        return (
            f"|J_{self.first} - J_{self.second}| = {abs(self.difference):.2g} {sign} {self.allowed:.2g} = "
            f"{self.bound:.2g} (bounds) + {Z_LIMIT:g} x {self.sampling:.1g} (sampling)"
        )


@dataclass
class Comparison:
    """What was reached for one problem, what was refused and why, and how it compares.

    model: estimate of what the modified equation is off by, absolute; None where it was not estimated.
    """

    problem: Problem
    options: Options = field(default_factory=Options)
    reached: dict[str, Reached] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    step: OneStep | None = None
    model: float | None = None

    def run(self, names: tuple[str, ...] = ESTIMATORS, progress: Progress | None = None) -> Comparison:
        """Reach J by every estimator named, beside those reached before; a refusal is kept with its reason.

        Raises the last refusal where fewer than two estimators answer.
        """
        progress = progress or Silent()
        failure: KolmoError | None = None
        for name in names:
            try:
                self.reached[name] = reach(name, self.problem, self.options)
                progress.advance(f"{name}: J = {self.reached[name].value:.6f}")
            except KolmoError as error:
                self.refused[name] = " ".join(str(error).split())
                failure = error
                progress.advance(f"{name}: refused")
        if failure is not None and len(self.reached) < 2:
            raise failure
        if any(name in self.reached for name in OF_EQUATION):
            self.step = one_step(self.problem, self.options.order, seed=self.options.seed + 3)
        return self

    @property
    def pairs(self) -> list[Pair]:
        """Both pairs within a model, and the best across."""
        found = []
        for inside in (OF_CHAIN, OF_EQUATION):
            if all(name in self.reached for name in inside):
                found.append(self._pair(*inside, 0.0))
        best = [next((n for n in inside if n in self.reached), None) for inside in (OF_EQUATION, OF_CHAIN)]
        if best[0] is not None and best[1] is not None:
            if self.model is None:
                model = model_error(self.problem, self.reached[best[1]].value)
            else:
                model = SAFETY * self.model
            found.append(self._pair(best[0], best[1], model))
        return found

    def _pair(self, first: str, second: str, model: float) -> Pair:
        a, b = self.reached[first], self.reached[second]
        sampling = math.hypot(a.standard_error, b.standard_error)
        return Pair(first, second, a.value - b.value, SAFETY * (a.bound + b.bound) + model, sampling)

    @property
    def faults(self) -> list[str]:
        """What disagrees, in words."""
        found = [pair.reason for pair in self.pairs if not pair.agree]
        return found + (self.step.faults if self.step is not None else [])

    @property
    def verdict(self) -> tuple[str, str]:
        """'agree' or 'differ', and the reason."""
        if self.faults:
            return "differ", "; ".join(self.faults)
        if not self.pairs:
            return "agree", "one estimator, nothing to compare"
        return "agree", "; ".join(pair.reason for pair in self.pairs)

    @property
    def largest(self) -> float:
        """The largest z-score of the pairs, 0 where there is none."""
        return max((pair.z for pair in self.pairs), default=0.0)

    def course(self) -> State:
        """What was found, as a memo keeps it, without gradients."""
        return {
            "reached": [asdict(replace(one, gradient=None)) for one in self.reached.values()],
            "refused": self.refused,
            "step": None if self.step is None else asdict(self.step),
        }

    def take_course(self, kept: State) -> Comparison:
        """Put back what `course` gave."""
        self.reached = {one["name"]: Reached(**one) for one in kept["reached"]}
        self.refused = kept["refused"]
        self.step = None if kept["step"] is None else OneStep(**kept["step"])
        return self

    def as_dict(self) -> dict[str, Any]:
        """Estimates, refusals, pairs and verdict for JSON."""
        word, reason = self.verdict
        return {
            "estimates": {name: found.as_dict() for name, found in self.reached.items()},
            "refused": self.refused,
            "pairs": [
                {
                    "first": p.first,
                    "second": p.second,
                    "difference": p.difference,
                    "bound": p.bound,
                    "sampling": p.sampling,
                    "z": p.z if math.isfinite(p.z) else None,
                    "verdict": "agree" if p.agree else "differ",
                }
                for p in self.pairs
            ],
            "one_step": None
            if self.step is None
            else {
                "drift": _number(self.step.drift),
                "correction": _number(self.step.correction),
                "covariance": _number(self.step.covariance),
                "tolerance": list(self.step.tolerance),
            },
            "verdict": word,
            "reason": reason,
        }


def parse_estimators(text: str) -> tuple[str, ...]:
    """Names from a comma-separated list; raises InputError that names an unknown one."""
    from kolmo.text import nearest

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in ESTIMATORS:
            raise InputError(f"--estimator: {name!r} is unknown{nearest(name, ESTIMATORS)}")
    if not names:
        raise InputError(f"--estimator: empty, expected some of {', '.join(ESTIMATORS)}")
    return names


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
