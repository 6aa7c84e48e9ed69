"""What `kolmo evaluate` adds to values: error budgets, single values u(x, 0), and J to a tolerance."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from kolmo.console import print_table
from kolmo.data import Dataset
from kolmo.errors import InputError
from kolmo.experiments.estimators import SOURCES, Options, Reached, reach
from kolmo.experiments.tolerance import METHODS, Certified, certify
from kolmo.pde.resolution import Effort
from kolmo.problem import Problem
from kolmo.text import nearest


def check_flags(options: argparse.Namespace) -> None:
    """Raise InputError that names the first flag which is wrong by itself or beside --tolerance."""
    if options.tolerance is None:
        for flag, given in (("--seconds", options.seconds), ("--memory", options.memory)):
            if given is not None:
                raise InputError(f"{flag}: it limits what --tolerance may cost, which is not given")
        return
    for flag, value in (
        ("--tolerance", options.tolerance),
        ("--seconds", options.seconds),
        ("--memory", options.memory),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{flag}: {value} is not a positive number")
    for flag, given in (
        ("--cells", options.cells is not None),
        ("--exact-cells", options.exact_cells is not None),
        ("--reduce", bool(options.reduce)),
        ("--gradient", options.gradient),
        ("--at", bool(options.at)),
    ):
        if given:
            raise InputError(
                f"{flag}: not together with --tolerance, which chooses meshes, paths and estimator"
            )
    methods(options)


def methods(options: argparse.Namespace) -> tuple[str, ...]:
    """The estimators that --tolerance may use; raises InputError that names another one."""
    if options.estimator is None:
        return METHODS
    names = tuple(dict.fromkeys(name.strip() for name in options.estimator.split(",") if name.strip()))
    for name in names:
        if name not in METHODS:
            raise InputError(f"--estimator: {name!r} cannot meet a tolerance{nearest(name, METHODS)}")
    if not names:
        raise InputError(f"--estimator: empty, expected some of {', '.join(METHODS)}")
    return names


def to_tolerance(problem: Problem, options: argparse.Namespace, settings: Options) -> Certified:
    """J to --tolerance within --seconds and --memory."""
    seconds = 600.0 if options.seconds is None else options.seconds
    memory = (8.0 if options.memory is None else options.memory) * 2**30
    return certify(problem, options.tolerance, settings, methods(options), Effort(seconds, memory))


# single values


def parse_points(texts: list[str], dim: int) -> list[list[float]]:
    """The points of --at x1,...,xd; raises InputError that names the one that is not."""
    found = []
    for text in texts:
        try:
            point = [float(part) for part in text.split(",")]
        except ValueError:
            point = []
        if len(point) != dim or not all(math.isfinite(x) and abs(x) <= 1e6 for x in point):
            raise InputError(f"--at: {text!r} is not a point of {dim} numbers, separated by commas")
        found.append(point)
    return found


def single_values(
    problem: Problem, points: list[list[float]], wanted: tuple[str, ...], settings: Options
) -> list[dict[str, Any]]:
    """u_y(x, 0), the expected loss of one point, for both labels and by every estimator, with its errors."""
    rows = []
    for point in points:
        for label in (0, 1):
            x = torch.tensor([point], dtype=torch.float64)
            alone = Problem(
                Dataset(x, torch.tensor([label]), "--at", one_class=True),
                problem.network,
                problem.noise,
                problem.loss,
            )
            found = {name: reach(name, alone, settings).as_dict() for name in wanted}
            rows.append({"point": point, "label": label, "estimates": found})
    return rows


# tables


def print_estimates(estimates: dict[str, dict[str, Any]]) -> None:
    """One line for each estimator of J."""
    for name, estimate in estimates.items():
        if "standard_error" in estimate:
            what, error = "standard error", estimate["standard_error"]
            size = f"{estimate['paths']} paths"
        else:
            what, error = "error of discretisation", sum(estimate["error"].values())
            if "total_error" in estimate:
                what, error = "stated error", estimate["total_error"]
            size = f"{estimate['cells']} cells a direction"
        value, seconds = estimate["value"], estimate["seconds"]
        line = f"{name:6s} J = {value:.6f}   {what} {error:.1e}   {size}   {seconds:.1f} s"
        if "indefinite" in estimate:
            share = estimate["indefinite"]["share"]
            line += f"   plain diffusion indefinite at {share:.0%} of points, product form used"
        if estimate.get("gain") is not None:
            line += f"   {estimate['gain']:.3g} times the plain chain's accuracy a second"
        print(line + (f"   gradient in {estimate['gradient']}" if "gradient" in estimate else ""))


def print_budget(reached: dict[str, Reached]) -> None:
    """One row for each estimator, one column for each source of error."""
    columns = ["estimator", "J", *SOURCES, "stated"]
    rows = []
    for name, found in reached.items():
        budget = found.budget
        other = sum(size for source, size in budget.items() if source not in SOURCES)
        budget["mesh"] += other  # the recursion's quadrature and rule: of discretisation too
        rows.append(
            [name, f"{found.value:.6f}", *(_size(budget[source]) for source in SOURCES), _size(found.total)]
        )
    print_table("error budget of J (stated: twice the estimates, plus the 95% interval)", columns, rows)
    for name, found in reached.items():
        for line in (*_checks(found.details.get("checks", {})), *_layers(found.details.get("layers", {}))):
            print(f"{name}: {line}")


def _checks(checks: dict[str, float | None]) -> list[str]:
    """What stands beside the budget's terms, in words."""
    words = {
        "uncorrected": "J on the mesh {:.6f}",
        "corrected": "J without the leading errors of mesh and time {:.6f}",
        "richardson": "mesh error by Richardson {:.1e}",
        "exit_probability": "probability to reach the taper {:.1e}",
        "order_difference": "model: orders 1 and 2 differ by {:+.1e}",
        "depth_halving": "model: depth-halving {:+.1e}",
        "one_step_defect": "model: one-step defect {:+.1e}",
    }
    return [text.format(checks[key]) for key, text in words.items() if checks.get(key) is not None]


def _layers(numbers: dict[str, list[float | None]]) -> list[str]:
    """The largest number of each kind over the layers, and where."""
    titles = {"step": "h |grad f| at the data", "courant": "Courant number", "peclet": "mesh Peclet number"}
    words = []
    for kind, values in numbers.items():
        sizes = [math.inf if value is None else value for value in values]
        layer = sizes.index(max(sizes))
        words.append(f"{titles[kind]} up to {sizes[layer]:.3g} (layer {layer})")
    return words


def print_values(rows: list[dict[str, Any]]) -> None:
    """u(x, 0) of single points."""
    table = []
    for row in rows:
        where = ", ".join(f"{x:g}" for x in row["point"])
        for name, estimate in row["estimates"].items():
            table.append(
                [f"({where})", row["label"], name, f"{estimate['value']:.6f}", _size(_stated(estimate))]
            )
    print_table("u(x, 0) of single points", ["x", "label", "estimator", "u", "stated error"], table)


def _stated(estimate: dict[str, Any]) -> float:
    if "total_error" in estimate:
        return float(estimate["total_error"])
    return float(estimate.get("standard_error", 0.0)) + sum(estimate.get("error", {}).values())


def _size(error: float) -> str:
    return "0" if error == 0 else f"{error:.1e}"
