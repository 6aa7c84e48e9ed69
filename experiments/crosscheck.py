"""Two estimators of the same number: the Kolmogorov equation against the chain."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from kolmo.chain import Estimate, GradientEstimate
from kolmo.errors import ModelError
from kolmo.pde.model_error import model_error as model_probes
from kolmo.pde.resolution import ResolvedValue, resolve_value
from kolmo.problem import Problem
from kolmo.profile import section

#: a stated error is this many times its estimate, whose effectivity is between 1/2 and 2
SAFETY = 2.0
#: what the modified equation of a mild network may be off by: absolute + relative
MODEL = (2e-3, 0.02)
#: beyond this the modified equation does not describe the chain and J_pde is refused
REFUSAL = (5e-3, 0.06)


#: largest h |V W| of a mild network, for which MODEL is stated; REFUSAL beyond
MILD = 0.35


def model_error(problem: Problem, value: float) -> float:
    """What the modified equation may be off by in J: stated, by the size of h |V W|."""
    with torch.no_grad():
        mild = float(problem.network.step_size().max()) <= MILD
    absolute, relative = MODEL if mild else REFUSAL
    return absolute + relative * abs(value)


@dataclass(frozen=True)
class PdeValue:
    """J by the PDE with its errors, and its gradient by parameter name where asked for.

    model: what the modified equation is off by, None where it was not asked for.
    """

    resolved: ResolvedValue
    seconds: float
    gradient: dict[str, torch.Tensor] | None = None
    model: float | None = None

    @property
    def value(self) -> float:
        return self.resolved.value

    @property
    def errors(self) -> dict[str, float]:
        """Estimates by source, absolute."""
        found = self.resolved
        known = {"mesh": found.mesh_error, "time": found.time_error, "domain": found.domain_error}
        return known if self.model is None else known | {"model": self.model}


def pde_value(
    problem: Problem,
    *,
    cells: int | None = None,
    refine: bool | None = None,
    order: int = 2,
    backend: str = "auto",
    gradient: bool = False,
    model: bool = False,
) -> PdeValue:
    """J (its gradient, its modelling error) on a mesh that resolves it (see `resolve_value`)."""
    start = time.perf_counter()
    resolved = resolve_value(problem, cells=cells, refine=refine, order=order, backend=backend)
    result = None
    if gradient:
        parameters = dict(problem.network.named_parameters())
        loss = resolved.equation.expected_loss()
        with section("network backward"):
            found = torch.autograd.grad(loss, list(parameters.values()))
        result = dict(zip(parameters, found, strict=True))
    off = model_probes(resolved.marched, resolved.residuals).estimate if model else None
    return PdeValue(resolved, time.perf_counter() - start, result, off)


@dataclass(frozen=True)
class Verdict:
    """Whether two numbers agree, and why, in words."""

    agree: bool
    reason: str
    difference: float
    tolerance: float

    @property
    def word(self) -> str:
        return "agree" if self.agree else "differ"


@dataclass(frozen=True)
class Line:
    """One line of the main job's cross-check: a quantity of a network both ways."""

    network: str
    quantity: str
    pde: float
    chain: float
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """The line for results.json."""
        return {
            "network": self.network,
            "quantity": self.quantity,
            "pde": self.pde,
            "chain": self.chain,
            "difference": self.verdict.difference,
            "tolerance": self.verdict.tolerance,
            "verdict": self.verdict.word,
            "reason": self.verdict.reason,
        }


def compare_values(pde: PdeValue, chain: Estimate) -> Verdict:
    """J_pde against J_chain within sampling and the stated errors: twice the estimates.

    The model's is the estimated one where there is one, what a mild network's may be otherwise.
    """
    difference = pde.value - chain.value
    sampling = 3 * chain.standard_error
    found = pde.resolved
    numerics = SAFETY * (found.mesh_error + found.time_error + found.domain_error)
    model = MODEL[0] + MODEL[1] * abs(chain.value) if pde.model is None else SAFETY * pde.model
    tolerance = sampling + numerics + model
    agree = abs(difference) <= tolerance
    sign = "<=" if agree else ">"
    reason = (
        f"|J_pde - J_chain| = {abs(difference):.2g} {sign} {tolerance:.2g} = {sampling:.1g} "
        f"(3 standard errors) + {numerics:.1g} (mesh, time, box) + {model:.2g} (modified equation)"
    )
    return Verdict(agree, reason, difference, tolerance)


def refuse_model(problem: Problem, value: float, chain: float, allowed: float) -> None:
    """Raise ModelError where J by the modified equation and J of the chain differ by more than allowed."""
    difference = abs(value - chain)
    if difference <= allowed:
        return
    with torch.no_grad():
        sizes = problem.network.step_size()
    layer = int(sizes.argmax())
    raise ModelError(
        f"layer {layer}: h |V W| = {float(sizes[layer]):.2f}; the modified equation is off by "
        f"{difference:.2g} in J ({value:.4g} against {chain:.4g} by the chain), more than the "
        f"{allowed:.2g} that a valid one may be; take more layers or smaller weights "
        "(h |V W| <= 0.25), or the exact or chain estimator",
        layer,
    )


def gradient_difference(
    found: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], *errors: dict[str, torch.Tensor]
) -> tuple[float, float, float]:
    """Relative difference of two gradients, its sampling error (2 standard errors), and their cosine."""

    def vector(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([gradient[name].reshape(-1) for name in found])

    left, right = vector(found), vector(reference)
    size = float(right.norm()) or 1.0
    sampling = 2 * math.hypot(*(float(vector(error).norm()) for error in errors)) / size
    cosine = float(left @ right) / (float(left.norm() * right.norm()) or 1.0)
    return float((left - right).norm()) / size, sampling, cosine


def compare_gradients(
    pde: dict[str, torch.Tensor], chain: GradientEstimate, limit: float = 0.25
) -> tuple[Verdict, float]:
    """The two gradients: relative difference against sampling plus `limit`, and their cosine.

    limit: the modified equation's share, relative to the gradient's norm.
    """
    relative, sampling, cosine = gradient_difference(pde, chain.value, chain.standard_error)
    tolerance = sampling + limit
    agree = relative <= tolerance
    reason = (
        f"relative difference {relative:.2g} {'<=' if agree else '>'} {tolerance:.2g} = {sampling:.1g} "
        f"(sampling) + {limit:g} (modified equation), cosine {cosine:.4f}"
    )
    return Verdict(agree, reason, relative, tolerance), cosine
