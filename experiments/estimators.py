r"""The four ways to J (MATHEMATICS section 4), each with its errors by source.

`chain` and `exact` are of the network itself; `sde` and `pde` of its modified equation. A way that
cannot be answered for raises.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from kolmo.chain import Chain, Estimate
from kolmo.errors import InputError
from kolmo.experiments.crosscheck import SAFETY, gradient_difference, pde_value
from kolmo.modified import indefinite
from kolmo.pde import BackwardKolmogorov, ExactValue, resolve_exact, value_gradient
from kolmo.pde.domain import audit_domain, projected_step
from kolmo.pde.guards import layer_numbers
from kolmo.pde.model_error import ModelProbes, model_error
from kolmo.pde.resolution import ResolvedValue, resolve_value
from kolmo.problem import Problem
from kolmo.text import nearest
from kolmo.validity import step_numbers

#: every estimator, equation first
ESTIMATORS = ("pde", "chain", "sde", "exact")
#: those of the chain itself, the better first, and those of its modified equation
OF_CHAIN, OF_EQUATION = ("exact", "chain"), ("pde", "sde")
#: ways to reduce the variance of the chain's estimate; antithetic paths reduce the SDE's too
REDUCTIONS = ("antithetic", "control")
#: the sources of an error budget
SOURCES = ("mesh", "time", "domain", "model", "sampling")
#: cells of the value function that the control variate takes, by dimension
_CONTROL_CELLS = {1: 256, 2: 64, 3: 24}


@dataclass(frozen=True)
class Options:
    """What estimators may be told.

    paths, sde_paths: of the samples. cells: of the mesh, exact_cells: of the exact recursion's grid
    (both refined by default). order: of the modified equation. rule: of the exact recursion. reduce: of
    REDUCTIONS, for the chain; antithetic is for the SDE too. seed: of the noise. error: estimate the
    modelling error too.
    """

    paths: int = 1_000_000
    sde_paths: int = 200_000
    cells: int | None = None
    exact_cells: int | None = None
    order: int = 2
    rule: str = "outcomes"
    reduce: tuple[str, ...] = ()
    backend: str = "auto"
    device: str = "cpu"
    seed: int = 0
    gradient: bool = False
    error: bool = False


@dataclass(frozen=True)
class Reached:
    """J by one estimator.

    standard_error: of the sampling, 0 without any. bounds: estimates of the errors of discretisation by
    source, absolute. model: estimate of what the modified equation is off by, None where not asked for.
    interval: half width of the sampling's 95% interval.
    details: what else is worth knowing. gradient: by parameter name, `*_se` beside it where sampled.
    """

    name: str
    value: float
    standard_error: float
    bounds: dict[str, float]
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    gradient: dict[str, torch.Tensor] | None = None
    model: float | None = None
    interval: float = 0.0

    @property
    def bound(self) -> float:
        """The errors of discretisation, added up."""
        return sum(self.bounds.values())

    @property
    def budget(self) -> dict[str, float]:
        """Every source's estimate, and the half width of the sampling's 95% interval."""
        known = {**self.bounds, "model": self.model or 0.0, "sampling": self.interval}
        return {source: known.pop(source, 0.0) for source in SOURCES} | known

    @property
    def total(self) -> float:
        """The stated error: twice the estimates, which may be off by that much, plus the interval."""
        budget = self.budget
        return SAFETY * (sum(budget.values()) - budget["sampling"]) + budget["sampling"]

    def as_dict(self) -> dict[str, Any]:
        """The estimate as `kolmo evaluate --json` prints it, without its gradient."""
        result: dict[str, Any] = {"value": self.value}
        if self.name in ("chain", "sde"):
            result["standard_error"] = self.standard_error
        if self.model is not None:
            result |= {"error": self.budget, "total_error": self.total}
        elif self.bounds:
            result["error"] = self.bounds
        return {**result, **self.details, "seconds": self.seconds}


def reach(name: str, problem: Problem, options: Options) -> Reached:
    """J by the estimator called `name`; raises KolmoError where it cannot be answered for."""
    ways: dict[str, Callable[[Problem, Options], Reached]] = {
        "pde": _pde,
        "chain": _chain,
        "sde": _sde,
        "exact": _exact,
    }
    if name not in ways:
        raise InputError(f"estimator: {name!r} is unknown{nearest(name, ways)}")
    return ways[name](problem, options)


def _pde(problem: Problem, options: Options) -> Reached:
    start = time.perf_counter()
    found = pde_value(
        problem,
        cells=options.cells,
        order=options.order,
        backend=options.backend,
        gradient=options.gradient,
    )
    reached = of_equation(problem, found.resolved, options)
    return replace(reached, gradient=found.gradient, seconds=time.perf_counter() - start)


def of_equation(problem: Problem, resolved: ResolvedValue, options: Options) -> Reached:
    """A resolved value of the equation with its errors by source."""
    details: dict[str, Any] = {
        "order": options.order,
        "cells": resolved.cells,
        "half_width": resolved.half_width,
    }
    lost = indefinite(problem.network, problem.noise, problem.data.points) if options.order == 2 else None
    if lost is not None:
        details["indefinite"] = {"share": lost.share, "worst": lost.worst}
    bounds = {"mesh": resolved.mesh_error, "time": resolved.time_error, "domain": resolved.domain_error}
    model = None
    if options.error:
        probes = model_error(resolved.marched, resolved.residuals)
        model = probes.estimate
        details["checks"] = {
            "corrected": resolved.residuals.corrected,
            "uncorrected": resolved.residuals.value,
            "richardson": resolved.richardson if math.isfinite(resolved.richardson) else None,
            "exit_probability": resolved.exit_probability,
            **_of_model(probes),
        }
        details["layers"] = _layers(problem, resolved)
    return Reached("pde", resolved.value, 0.0, bounds, 0.0, details, model=model)


def _layers(problem: Problem, resolved: ResolvedValue) -> dict[str, list[float | None]]:
    """The numbers of each layer that the guards look at; None for what is infinite."""
    tapered = resolved.marched.tapered
    found = layer_numbers(
        resolved.equation.space, tapered.drift.numpy(), tapered.diffusion.numpy(), problem.network.step
    )
    numbers = {
        "step": step_numbers(problem).norm.tolist(),
        "courant": found.courant.tolist(),
        "peclet": found.peclet.tolist(),
    }
    return {name: [v if math.isfinite(v) else None for v in values] for name, values in numbers.items()}


def _of_model(probes: ModelProbes) -> dict[str, float | None]:
    return {
        "order_difference": probes.orders,
        "depth_halving": probes.halving,
        "one_step_defect": probes.defect,
    }


def _chain(problem: Problem, options: Options) -> Reached:
    for way in options.reduce:
        if way not in REDUCTIONS:
            raise InputError(f"reduce: {way!r} is unknown{nearest(way, REDUCTIONS)}")
    paths, antithetic = options.paths, "antithetic" in options.reduce
    control = None
    if "control" in options.reduce:
        dim = problem.network.dim
        if dim not in _CONTROL_CELLS:
            raise InputError(
                f"reduce: the control variate solves the equation in 1, 2 or 3 dimensions, not {dim}"
            )
        # any u leaves the mean alone, so the mesh need not resolve it
        equation = BackwardKolmogorov(
            problem, cells=_CONTROL_CELLS[dim], order=options.order, backend=options.backend, limit=False
        )
        control = value_gradient(equation)
    chain = Chain(problem, seed=options.seed, device=options.device, antithetic=antithetic, control=control)
    found = chain.estimate(paths)
    details: dict[str, Any] = {"paths": found.paths}
    if options.reduce:
        gain = found.gain(_plain(problem, options))
        details |= {"reduction": list(options.reduce), "gain": gain if np.isfinite(gain) else None}
    gradient = None
    if options.gradient:
        count = max(paths // 4, 64 * len(problem.data))
        sampled = Chain(problem, seed=options.seed + 1, antithetic=antithetic).gradient(count)
        gradient = {**sampled.value, **{f"{k}_se": e for k, e in sampled.standard_error.items()}}
    model = 0.0 if options.error else None
    return Reached(
        "chain", found.value, found.standard_error, {}, found.seconds, details, gradient, model, _half(found)
    )


def _half(found: Estimate) -> float:
    """Half width of the 95% interval."""
    low, high = found.interval
    return (high - low) / 2


def _plain(problem: Problem, options: Options) -> Estimate:
    """A smaller plain sample, to tell what a reduction gains a second."""
    paths = max(options.paths // 4, 4 * len(problem.data))
    return Chain(problem, seed=options.seed + 5, device=options.device).estimate(paths)


def _sde(problem: Problem, options: Options) -> Reached:
    from kolmo.sde import SDE

    if options.gradient:
        raise InputError("gradient: the sde estimator has none; ask for pde, chain or exact")
    antithetic = "antithetic" in options.reduce
    found = SDE(
        problem, order=options.order, seed=options.seed, device=options.device, antithetic=antithetic
    ).estimate(options.sde_paths)
    details: dict[str, Any] = {
        "order": options.order,
        "paths": found.paths,
        "method": found.method,
        "noise_type": found.noise_type,
        "steps": found.steps,
    }
    if antithetic:
        details["reduction"] = ["antithetic"]
    model = None
    if options.error:
        resolved = resolve_value(problem, order=options.order, backend=options.backend)
        probes = model_error(resolved.marched, resolved.residuals)
        model, details["checks"] = probes.estimate, _of_model(probes)
    bounds = {"time": found.time_error}
    return Reached(
        "sde", found.value, found.standard_error, bounds, found.seconds, details, None, model, _half(found)
    )


def _exact(problem: Problem, options: Options) -> Reached:
    return of_recursion(
        problem, resolve_exact(problem, cells=options.exact_cells, rule=options.rule), options
    )


def of_recursion(problem: Problem, found: ExactValue, options: Options) -> Reached:
    """A resolved value of the recursion with its errors by source."""
    half_width = found.recursion.spline.half_width
    box = abs(audit_domain(problem, half_width, options.seed + 11, projected_step).bias)
    bounds = {"mesh": found.grid_error, "domain": box}
    for source, size in (("quadrature", found.quadrature_error), ("rule", found.rule_error)):
        if size:
            bounds[source] = size
    details: dict[str, Any] = {
        "cells": found.cells,
        "half_width": half_width,
        "outcomes": found.outcomes,
    }
    if options.rule != "outcomes":
        details["rule"] = options.rule
    gradient = found.gradient() if options.gradient else None
    model = 0.0 if options.error else None
    return Reached("exact", found.value, 0.0, bounds, found.seconds, details, gradient, model)


def relative_gradient(found: Reached, reference: Reached) -> tuple[float, float, float]:
    """Relative difference of two gradients, its sampling error (2 standard errors), and their cosine."""
    if found.gradient is None or reference.gradient is None:
        raise InputError("gradient: one of the estimates has none")
    values, errors = [], []
    for gradient in (found.gradient, reference.gradient):
        values.append({name: g.detach() for name, g in gradient.items() if not name.endswith("_se")})
        sampled = {name[:-3]: e for name, e in gradient.items() if name.endswith("_se")}
        errors += [sampled] if sampled else []
    return gradient_difference(*values, *errors)
