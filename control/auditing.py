r"""Is a trained network's J to be trusted? The optimiser has exploited every weakness it could find.

The box by coupled paths of the chain and by the taper's weighted residual; the mesh by its weighted
residual, or of the recursion's grid by a coarser one; then J against the chain itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kolmo.chain import Chain
from kolmo.errors import AuditError, InfeasibleError, KolmoError
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import DomainAudit, audit_domain, projected_step
from kolmo.pde.exact import ExactRecursion
from kolmo.pde.exact_value import grid_change
from kolmo.pde.residual import linear_march, residuals
from kolmo.pde.resolution import UNSIGNED
from kolmo.problem import Problem

#: the audit allows max(3 standard errors, 5%) plus an absolute floor in units of the loss
RELATIVE, FLOOR, PATHS = 0.05, 2e-3, 100_000


@dataclass(frozen=True)
class Audit:
    """The verdict on a trained network: why it failed, the error to raise, and whether a finer
    mesh may help (otherwise a wider box). errors: of J by source, as far as the audit came."""

    reason: str = ""
    failure: KolmoError | None = None
    finer: bool = True
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def failed(cls, reason: str, finer: bool, errors: dict[str, float]) -> Audit:
        """A failure with the remedy spelt out."""
        remedy = "take more layers, more weight decay or more cells"
        error = AuditError(f"training ended where the equation cannot be trusted: {reason}; {remedy}")
        return cls(reason, error, finer, errors)


def audit(problem: Problem, equation: BackwardKolmogorov | ExactRecursion, seed: int = 0) -> Audit:
    """Is the equation's (or the recursion's) J to be trusted for the present weights?

    The mesh's error and the difference from the chain may be max(3 standard errors, 5% of J) plus a floor.
    """
    if isinstance(equation, ExactRecursion):
        box = audit_domain(problem, equation.spline.half_width, seed + 2, projected_step)
    else:
        box = audit_domain(problem, equation.space.half_width, seed + 2)
    errors = {"domain": abs(box.bias)}
    if not box.holds:
        return Audit.failed(_moved_out(box, box.bias), finer=False, errors=errors)
    try:
        with torch.no_grad():
            value = float(equation.expected_loss())
        if isinstance(equation, ExactRecursion):
            errors["mesh"] = grid_change(equation, value)
        else:
            found = residuals(linear_march(equation))
            # J is that of the clipped march, as it was trained; what the clip does is the mesh's error too
            errors["mesh"] = max(abs(value - found.corrected), UNSIGNED * found.size)
            errors |= {"time": abs(found.time), "domain": max(abs(box.bias), abs(found.domain))}
    except InfeasibleError as error:
        return Audit(str(error), error, errors=errors)
    allowed = RELATIVE * abs(value) + FLOOR
    if errors["domain"] > allowed:
        return Audit.failed(_moved_out(box, errors["domain"]), finer=False, errors=errors)
    if errors["mesh"] > allowed:
        reason = f"J = {value:.4g} has a mesh error of about {errors['mesh']:.1g}, more than {allowed:.2g}"
        return Audit.failed(reason, finer=True, errors=errors)
    chain = Chain(problem, seed=seed + 3).estimate(max(PATHS, 2 * len(problem.data)))
    allowed = max(3 * chain.standard_error, RELATIVE * chain.value) + FLOOR
    if abs(value - chain.value) <= allowed:
        return Audit(errors=errors)
    reason = (
        f"J = {value:.4g} by the equation and {chain.value:.4g} +- {chain.standard_error:.1g} by the "
        f"chain differ by more than {allowed:.2g}"
    )
    return Audit.failed(reason, finer=True, errors=errors)


def _moved_out(box: DomainAudit, bias: float) -> str:
    return f"the box of half width {box.half_width:.3g} biases J by {bias:.1g}: paths moved out"
