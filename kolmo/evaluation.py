"""`kolmo evaluate` and `kolmo compare`: J of networks on disk by up to four estimators."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kolmo import case, memory, tidy
from kolmo.certification import (
    check_flags,
    methods,
    parse_points,
    print_budget,
    print_estimates,
    print_values,
    single_values,
    to_tolerance,
)
from kolmo.chain import Chain
from kolmo.console import LiveProgress, print_comparison
from kolmo.device import resolve as resolve_device
from kolmo.errors import EXIT_CLAIM, EXIT_ERROR, AuditError, InputError, KolmoError
from kolmo.experiments.comparison import Comparison, parse_estimators
from kolmo.experiments.crosscheck import REFUSAL, refuse_model
from kolmo.experiments.estimators import OF_EQUATION, REDUCTIONS, Options, Reached, reach, relative_gradient
from kolmo.files import output_folder, write_atomically, write_json, write_text
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.problem import Problem
from kolmo.text import nearest, one_line

#: paths of the chain that audit the other estimators where it is not asked for
AUDIT_PATHS = 200_000
#: what a gradient by the modified equation, and one by the exact recursion, may be off by, relative
GRADIENT = {"pde": 0.25, "exact": 0.01}


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a case directory; a refusal is one JSON object with `error` under --json."""
    name = _name(options.case)
    try:
        check_flags(options)
        result = _evaluate(options, name)
    except KolmoError as error:
        if not options.json:
            raise
        print(json.dumps({"case": name, "error": one_line(error)}))
        return EXIT_ERROR
    if options.csv is not None:
        parts = ("estimates", "tolerance", "values")
        write_text(options.csv, tidy.text(tidy.of_results({p: result[p] for p in parts if p in result})))
    if options.json:
        print(json.dumps(result, allow_nan=False))
    return 0 if result.get("tolerance", {}).get("met", True) else EXIT_CLAIM


def compare(options: argparse.Namespace) -> int:
    """The estimators of each case side by side; 1 where a case's differ, 2 where one has no verdict."""
    wanted = parse_estimators(options.estimator)
    if len(wanted) < 2:
        raise InputError(f"--estimator: {options.estimator!r} is one, nothing to compare it with")
    settings = _settings(options, wanted)
    problems = {}
    for folder in options.cases:
        name = _name(folder)
        if name in problems:
            raise InputError(f"{folder}: a case named {name!r} was given before")
        problems[name] = case.load(folder)
        _check_sizes(problems[name], settings, wanted)
    if options.out is not None:
        output_folder(options.out, options.overwrite)
    found: dict[str, dict[str, Any]] = {}
    with LiveProgress(options.quiet or options.json) as progress:
        for name, problem in problems.items():
            progress.start(name, len(wanted))
            try:
                found[name] = Comparison(problem, settings).run(wanted, progress).as_dict()
            except KolmoError as error:
                found[name] = {"verdict": "refused", "reason": one_line(error)}
    words = [comparison["verdict"] for comparison in found.values()]
    if options.out is not None:
        write_json(Path(options.out) / "comparison.json", found)
    if options.csv is not None:
        write_text(options.csv, tidy.text(tidy.of_results(found)))
    if options.json:
        print(json.dumps({"cases": found}, allow_nan=False))
    else:
        print_comparison(found, wanted)
    return EXIT_CLAIM if "differ" in words else EXIT_ERROR if "refused" in words else 0


def _name(folder: str) -> str:
    """The last part of a case directory's path, as any terminal and JSON can show it."""
    return one_line(os.path.basename(os.path.abspath(folder)))


def _check_sizes(problem: Problem, settings: Options, wanted: tuple[str, ...]) -> None:
    """Raise InputError that names the flag which asks for more than memory holds."""
    dim, depth, points = problem.network.dim, problem.network.depth, len(problem.data)
    width = getattr(problem.network, "width", dim)
    for flag, name, paths in (
        ("--paths", "chain", settings.paths),
        ("--sde-paths", "sde", settings.sde_paths),
    ):
        if name in wanted:
            memory.require(
                memory.sample(points, paths, width),
                f"{flag}: {paths} paths from {points} points",
                "take fewer",
            )
    for flag, name, cells in (
        ("--cells", "pde", settings.cells),
        ("--exact-cells", "exact", settings.exact_cells),
    ):
        if name in wanted and cells is not None and dim in (1, 2, 3):
            needed = (
                memory.equation(dim, cells, depth, width) if name == "pde" else memory.recursion(dim, cells)
            )
            memory.require(needed, f"{flag}: {cells} cells a direction in {dim}-D", "take fewer")


@contextmanager
def _gradient_folder(options: argparse.Namespace, name: str) -> Iterator[Path | None]:
    """Where gradients go, None without --gradient: made first, and away again where nothing got into it."""
    if not options.gradient:
        yield None
        return
    made: list[Path] = []
    if options.out is None:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"kolmo-{name[:40]}-"))
        except OSError as error:
            raise InputError(f"--out: no temporary folder can be made ({error}); give one") from error
        made = [folder]
    else:
        wanted = Path(options.out)
        made = [path for path in (wanted, *wanted.parents) if not os.path.exists(path)]
        folder = output_folder(wanted, options.overwrite)
    try:
        yield folder
    finally:
        for path in made:
            if not any(path.iterdir()):
                path.rmdir()


def _settings(options: argparse.Namespace, wanted: tuple[str, ...]) -> Options:
    """Checked options; raises InputError that names the flag."""
    for flag, value in (("--paths", options.paths), ("--sde-paths", options.sde_paths)):
        if not 1 <= value <= 10**12:
            raise InputError(f"{flag}: {value} is not between 1 and 10^12")
    if not 0 <= options.seed < 2**31:
        raise InputError(f"--seed: {options.seed} is not between 0 and 2^31 - 1")
    if options.cells is not None and not 3 <= options.cells <= 4096:
        raise InputError(f"--cells: {options.cells} is not between 3 and 4096")
    reduce = tuple(dict.fromkeys(r.strip() for r in (options.reduce or "").split(",") if r.strip()))
    for way in reduce:
        if way not in REDUCTIONS:
            raise InputError(f"--reduce: {way!r} is unknown{nearest(way, REDUCTIONS)}")
    if "pde" in wanted or "control" in reduce:
        resolve_backend(options.backend)  # an absent one is refused before anything is computed
    if options.gradient and "sde" in wanted:
        raise InputError("--gradient: the sde estimator has none; leave sde out of --estimator")
    return Options(
        paths=options.paths,
        sde_paths=options.sde_paths,
        cells=options.cells,
        exact_cells=options.exact_cells,
        order=options.order,
        rule=options.rule,
        reduce=reduce,
        backend=options.backend,
        device=resolve_device(options.device),
        seed=options.seed,
        gradient=options.gradient,
        error=getattr(options, "error", False),
    )


def _evaluate(options: argparse.Namespace, name: str) -> dict[str, Any]:
    toward = options.tolerance is not None
    wanted = methods(options) if toward else parse_estimators(options.estimator or "pde,chain")
    settings = _settings(options, wanted)
    problem = case.load(options.case)
    _check_sizes(problem, settings, wanted)
    if toward:
        return _to_tolerance(problem, settings, options, name)
    points = parse_points(options.at or [], problem.network.dim)
    with _gradient_folder(options, name) as folder:
        result = _reached(problem, settings, wanted, options, name, folder)
    if points:
        result["values"] = single_values(problem, points, wanted, replace(settings, gradient=False))
        if not options.json:
            print_values(result["values"])
    return result


def _to_tolerance(
    problem: Problem, settings: Options, options: argparse.Namespace, name: str
) -> dict[str, Any]:
    """The estimate that meets --tolerance, or the closest, audited like every other."""
    found = to_tolerance(problem, options, settings)
    _audit(problem, {found.reached.name: found.reached}, settings)
    result: dict[str, Any] = {
        "case": name,
        "dim": problem.network.dim,
        "backend": resolve_backend(settings.backend) if found.reached.name == "pde" else None,
        "estimates": {found.reached.name: found.reached.as_dict()},
        "tolerance": {"wanted": found.tolerance, "met": found.met, "steps": list(found.steps)},
        "verdict": "agree",
        "reason": "; ".join(found.steps),
    }
    if not options.json:
        print_estimates(result["estimates"])
        print_budget({found.reached.name: found.reached})
        print("\n".join(found.steps))
        print(f"tolerance {found.tolerance:g}: {'met' if found.met else 'not met'}")
    return result


def _reached(
    problem: Problem,
    settings: Options,
    wanted: tuple[str, ...],
    options: argparse.Namespace,
    name: str,
    folder: Path | None,
) -> dict[str, Any]:
    """Estimates, audited, and their gradients in the folder."""
    comparison = Comparison(problem, settings)
    for estimator in wanted:
        comparison.reached[estimator] = reach(estimator, problem, settings)
    _audit(problem, comparison.reached, settings)
    word, reason = comparison.verdict
    result: dict[str, Any] = {
        "case": name,
        "dim": problem.network.dim,
        "backend": resolve_backend(settings.backend) if "pde" in wanted else None,
        "estimates": {estimator: found.as_dict() for estimator, found in comparison.reached.items()},
    }
    if folder is not None:
        for estimator, found in comparison.reached.items():
            assert found.gradient is not None  # sde, which has none, was refused
            path = _write_gradient(folder / f"{estimator}.npz", found.gradient)
            result["estimates"][estimator]["gradient"] = path
        differing, words = _gradients(comparison.reached)
        reason = "; ".join([reason, *words])
        word = "differ" if differing else word
    result["verdict"], result["reason"] = word, reason
    if not options.json:
        print_estimates(result["estimates"])
        if settings.error:
            print_budget(comparison.reached)
        print(f"{word}: {reason}")
    return result


def _audit(problem: Problem, reached: dict[str, Reached], settings: Options) -> None:
    """Every estimate against the chain, which is sampled for it where it was not asked for.

    Raises ModelError where the modified equation does not describe the chain, AuditError where the
    exact recursion is off by more than its own errors explain.
    """
    if not set(reached) - {"chain"}:
        return
    if "chain" in reached:
        value, error = reached["chain"].value, reached["chain"].standard_error
    else:
        paths = max(min(settings.paths, AUDIT_PATHS), 2 * len(problem.data))
        sampled = Chain(problem, seed=settings.seed, device=settings.device).estimate(paths)
        value, error = sampled.value, sampled.standard_error
    for name in OF_EQUATION:
        if name in reached:
            allowed = 3 * error + reached[name].standard_error * 3 + REFUSAL[0] + REFUSAL[1] * abs(value)
            refuse_model(problem, reached[name].value, value, allowed)
    if "exact" in reached:
        found = reached["exact"]
        allowed = 5 * error + found.bound + 5e-3 * abs(value) + 1e-4
        if abs(found.value - value) > allowed:
            raise AuditError(
                f"the exact recursion gives J = {found.value:.4g} and the chain {value:.4g} +- {error:.1g}: "
                f"they differ by more than {allowed:.1g}; take more cells (--exact-cells), or the chain "
                "estimator"
            )


def _gradients(reached: dict[str, Reached]) -> tuple[bool, list[str]]:
    """Whether a gradient differs from the chain's own (exact before chain), and the comparisons in words."""
    reference = next((reached[n] for n in ("exact", "chain") if n in reached), None)
    differing, words = False, []
    for name, found in reached.items():
        against = reached.get("chain") if name == "exact" else reference
        if name not in GRADIENT or against is None:
            continue
        relative, sampling, cosine = relative_gradient(found, against)
        agree = relative <= sampling + GRADIENT[name]
        differing = differing or not agree
        words.append(
            f"gradients of {name} and {against.name}: relative difference {relative:.2g} "
            f"{'<=' if agree else '>'} {sampling:.1g} (sampling) + {GRADIENT[name]:g}, cosine {cosine:.4f}"
        )
    return differing, words


def _write_gradient(path: Path, arrays: dict[str, torch.Tensor]) -> str:
    plain = {name: array.detach().numpy() for name, array in arrays.items()}
    write_atomically(path, lambda file: np.savez(file, **plain))
    return str(path)
