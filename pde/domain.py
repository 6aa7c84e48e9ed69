r"""The computational box: as small as the paths allow.

Coupled paths (the same masks, increments tapered against free) give the bias that a box of
half width R puts on J; R is the first of 1.25 max |x_data|_inf, and 10% more at a time, whose
bias meets the tolerance. Paths that leave far beyond the data hardly move the loss, so this
box is smaller than one that holds every path, and the mesh finer at the same cost: measured
on the spirals case at n = 64, the mesh error falls from 54% of J (R = 4.1, holding 99% of the
paths) to 3% (R = 2.5; benchmarks/box_and_clip.py). Training moves paths out, so the audit is
repeated after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kolmo.chain import coupled
from kolmo.device import on_processor
from kolmo.errors import DomainError
from kolmo.pde.boundary import profile
from kolmo.problem import Problem
from kolmo.profile import timed

#: paths of a pilot sample
PILOT_PATHS = 8192
#: largest bias by the box, relative to J plus an absolute floor in units of the loss
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 5e-5

#: one step of a path kept in a box: (x, increment, half width) -> x
Confine = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class DomainAudit:
    """bias: mean difference of the loss, tapered minus free, over coupled paths."""

    half_width: float
    loss: float
    bias: float

    def within(self, relative: float, absolute: float) -> bool:
        """Whether the bias is below relative * loss + absolute."""
        return abs(self.bias) <= relative * self.loss + absolute

    @property
    def holds(self) -> bool:
        return self.within(RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


def boxed_step(x: torch.Tensor, increment: torch.Tensor, half_width: float) -> torch.Tensor:
    """One step of a path that the taper keeps in the box."""
    outward = increment * x > 0
    step = torch.where(outward, profile(x, half_width), 1.0) * increment
    return (x + step).clamp(-half_width, half_width)


def projected_step(x: torch.Tensor, increment: torch.Tensor, half_width: float) -> torch.Tensor:
    """One step of a path that is projected onto the box."""
    return (x + increment).clamp(-half_width, half_width)


@timed("box")
@torch.no_grad()
def audit_domain(
    problem: Problem,
    half_width: float,
    seed: int = 1,
    confine: Confine = boxed_step,
    paths: int = PILOT_PATHS,
) -> DomainAudit:
    """Bias of J by the box, from coupled paths of the chain: confined (tapered) against free."""
    problem = problem.with_network(on_processor(problem.network))
    copies = -(-paths // len(problem.data))
    free, labels = problem.data.points.repeat(copies, 1), problem.data.labels.repeat(copies)
    boxed = free
    for layer in range(problem.network.depth):
        both = coupled(problem, layer, torch.stack([free, boxed]), seed)
        free, boxed = free + both[0], confine(boxed, both[1], half_width)
    if not bool(torch.isfinite(free).all()):
        raise DomainError("paths of the chain run to infinity; take smaller weights or less noise")
    loss = problem.loss(free, labels)
    bias = (problem.loss(boxed, labels) - loss).mean()
    return DomainAudit(half_width, float(loss.mean()), float(bias))


def choose_half_width(
    problem: Problem,
    seed: int = 1,
    enlargements: int = 16,
    *,
    confine: Confine = boxed_step,
    relative: float = RELATIVE_TOLERANCE,
    absolute: float = ABSOLUTE_TOLERANCE,
    paths: int = PILOT_PATHS,
) -> float:
    """The first half width, from 1.25 times the data's radius on, whose audit holds.

    Raises DomainError where none does.
    """
    half_width = 1.25 * problem.data.radius
    for _ in range(enlargements):
        audit = audit_domain(problem, half_width, seed, confine, paths)
        if audit.within(relative, absolute):
            return half_width
        half_width *= 1.1
    raise DomainError(
        f"paths leave the box of half width {half_width:.3g} whatever its size (bias {audit.bias:.2g} in J): "
        "the noisy network runs away; take smaller weights or less noise"
    )
