"""What the commands do, on the same library that users import."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kolmo import case, config
from kolmo.chain import Chain
from kolmo.console import LiveProgress, console, print_claims, print_lines, print_networks
from kolmo.errors import EXIT_CLAIM, EXIT_ERROR, EXIT_INTERRUPTED, InputError, KolmoError
from kolmo.experiments.claims import Claim
from kolmo.experiments.crosscheck import compare_gradients, compare_values, pde_value, require_model
from kolmo.files import output_folder, write_atomically
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.problem import Problem
from kolmo.text import nearest

ESTIMATORS = ("pde", "chain")


def quiet_libraries() -> None:
    """The form compiler and its build tools log every step; users asked for none of that."""
    for name in ("FFCx", "UFL", "distutils", "root", "compilers", "skfem", "matplotlib"):
        logging.getLogger(None if name == "root" else name).setLevel(logging.WARNING)


def set_threads() -> None:
    """One torch thread: the tensors are small, and the chain spreads its blocks over threads itself."""
    torch.set_num_threads(1)


def say_backend(backend: str) -> None:
    """One line where dolfinx cannot be had and nobody asked for scikit-fem."""
    if backend == "auto" and resolve_backend(backend) == "skfem":
        from kolmo.pde.dolfinx_compat import unavailable

        print(f"kolmo: finite elements by scikit-fem ({unavailable()}: see kolmo doctor)", file=sys.stderr)


# evaluate


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a case directory; a refusal is one JSON object with `error` under --json."""
    name = Path(options.case).resolve().name
    try:
        result = _evaluate(options, name)
    except KolmoError as error:
        if not options.json:
            raise
        print(json.dumps({"case": name, "error": " ".join(str(error).split())}))
        return EXIT_ERROR
    if options.json:
        print(json.dumps(result, allow_nan=False))
    else:
        _print_evaluation(result)
    return 0


def _evaluate(options: argparse.Namespace, name: str) -> dict[str, Any]:
    wanted = [e.strip() for e in options.estimator.split(",") if e.strip()]
    for estimator in wanted:
        if estimator not in ESTIMATORS:
            raise InputError(f"--estimator: {estimator!r} is unknown{nearest(estimator, ESTIMATORS)}")
    if not wanted:
        raise InputError("--estimator: empty, expected pde, chain or both")
    if options.paths < 1 or options.paths > 10**12:
        raise InputError(f"--paths: {options.paths} is not between 1 and 10^12")
    if not 0 <= options.seed < 2**31:
        raise InputError(f"--seed: {options.seed} is not between 0 and 2^31 - 1")
    if options.cells is not None and not 3 <= options.cells <= 4096:
        raise InputError(f"--cells: {options.cells} is not between 3 and 4096")
    problem = case.load(options.case)
    backend = resolve_backend(options.backend) if "pde" in wanted else None
    folder = None
    if options.gradient:
        folder = Path(tempfile.mkdtemp(prefix=f"kolmo-{name}-")) if options.out is None else None
        folder = folder or output_folder(options.out, options.overwrite)
    if backend is not None and not options.json:
        say_backend(options.backend)
    return _estimates(options, name, problem, wanted, backend, folder)


def _estimates(
    options: argparse.Namespace,
    name: str,
    problem: Problem,
    wanted: list[str],
    backend: str | None,
    folder: Path | None,
) -> dict[str, Any]:
    result: dict[str, Any] = {"case": name, "dim": problem.network.dim, "backend": backend, "estimates": {}}
    pde = sampled = None
    # where only `pde` is asked, a small sample of the chain still audits it
    paths = options.paths if "chain" in wanted else min(options.paths, 200_000)
    chain = Chain(problem, seed=options.seed, device=options.device).estimate(
        max(paths, 2 * len(problem.data))
    )
    if "pde" in wanted:
        pde = pde_value(
            problem,
            cells=options.cells,
            order=options.order,
            backend=options.backend,
            gradient=options.gradient,
        )
        require_model(problem, pde, chain)
        result["estimates"]["pde"] = {
            "value": pde.value,
            "order": options.order,
            "cells": pde.resolved.cells,
            "half_width": pde.resolved.half_width,
            "seconds": pde.seconds,
            "error": {"mesh": pde.resolved.mesh_error},
        }
    if "chain" in wanted:
        result["estimates"]["chain"] = {
            "value": chain.value,
            "standard_error": chain.standard_error,
            "paths": chain.paths,
            "seconds": chain.seconds,
        }
    if folder is not None:
        if pde is not None and pde.gradient is not None:
            result["estimates"]["pde"]["gradient"] = _write_gradient(folder / "pde.npz", pde.gradient)
        if "chain" in wanted:
            sampled = Chain(problem, seed=options.seed + 1).gradient(max(paths // 4, 32 * len(problem.data)))
            errors = {f"{key}_se": e for key, e in sampled.standard_error.items()}
            result["estimates"]["chain"]["gradient"] = _write_gradient(
                folder / "chain.npz", {**sampled.value, **errors}
            )
    result["verdict"], result["reason"] = _verdict(pde, chain, sampled, "chain" in wanted)
    return result


def _verdict(pde: Any, chain: Any, sampled: Any, asked: bool) -> tuple[str, str]:
    if pde is None:
        return "agree", "one estimator, nothing to compare"
    verdict = compare_values(pde, chain)
    agree, reason = verdict.agree, verdict.reason
    if not asked:
        reason += f"; the chain is an audit of {chain.paths} paths"
    if pde.gradient is not None and sampled is not None:
        gradients, _ = compare_gradients(pde.gradient, sampled)
        agree, reason = agree and gradients.agree, f"{reason}; gradients: {gradients.reason}"
    return ("agree" if agree else "differ"), reason


def _write_gradient(path: Path, arrays: dict[str, torch.Tensor]) -> str:
    plain = {name: array.detach().numpy() for name, array in arrays.items()}
    write_atomically(path, lambda file: np.savez(file, **plain))
    return str(path)


def _print_evaluation(result: dict[str, Any]) -> None:
    for name, estimate in result["estimates"].items():
        error = estimate.get("standard_error", estimate.get("error", {}).get("mesh"))
        what = "standard error" if name == "chain" else "mesh error"
        size = f"{estimate['paths']} paths" if name == "chain" else f"{estimate['cells']} cells a direction"
        value, seconds = estimate["value"], estimate["seconds"]
        line = f"{name:6s} J = {value:.6f}   {what} {error:.1e}   {size}   {seconds:.1f} s"
        print(line + (f"   gradient in {estimate['gradient']}" if "gradient" in estimate else ""))
    print(f"{result['verdict']}: {result['reason']}")


# reproduce, experiment


def _settings(options: argparse.Namespace, default: str) -> config.Config:
    settings = config.load(default if options.config is None else options.config)
    if options.quick:
        settings = config.quick(settings)
    for key in ("backend", "device", "seed"):
        value = getattr(options, key)
        if value is not None:
            setattr(settings.run, key, value)
    if not 0 <= settings.run.seed < 2**31:
        raise InputError(f"--seed: {settings.run.seed} is not between 0 and 2^31 - 1")
    return settings


def reproduce(options: argparse.Namespace) -> int:
    """The main job: run, print, write, judge."""
    from kolmo.experiments.binary_classification import BinaryClassification
    from kolmo.report import write_run

    start = time.perf_counter()
    settings = _settings(options, "default")
    experiment = BinaryClassification(settings)
    folder = output_folder(options.out or "runs/reproduce", options.overwrite)
    say_backend(settings.run.backend)
    status, failure = "finished", None
    with LiveProgress(options.quiet or options.json) as progress:
        try:
            experiment.run(progress)
        except KeyboardInterrupt:
            status = "interrupted"
        except KolmoError as error:
            status, failure = "refused", error
    claims = experiment.claims() if status == "finished" else []
    write_run(experiment, claims, folder, seconds=time.perf_counter() - start, status=status)
    if failure is not None:
        raise failure
    if status == "interrupted":
        print(f"kolmo: interrupted; what was done is saved in {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not options.json:
        print_networks(experiment.measured)
        print_lines(experiment.lines)
    return _conclude("reproduce", claims, folder, options.json)


def experiment(options: argparse.Namespace) -> int:
    """Run an experiment by name, or list them."""
    from kolmo.experiments import EXPERIMENTS
    from kolmo.experiments.overfitting import Overfitting
    from kolmo.report import write_overfitting

    if options.list:
        listed = [{"name": name, "summary": summary} for name, summary in EXPERIMENTS.items()]
        print(json.dumps(listed, indent=1) if options.json else _listing(EXPERIMENTS))
        return 0
    if options.name not in EXPERIMENTS:
        raise InputError(f"experiment: {options.name!r} is unknown{nearest(str(options.name), EXPERIMENTS)}")
    if options.name == "binary_classification":
        options.out = options.out or "runs/binary_classification"
        return reproduce(options)
    start = time.perf_counter()
    settings = _settings(options, "overfitting")
    study = Overfitting(settings, seeds=3 if options.quick else 5)
    folder = output_folder(options.out or f"runs/{options.name}", options.overwrite)
    say_backend(settings.run.backend)
    with LiveProgress(options.quiet or options.json) as progress, contextlib.suppress(KeyboardInterrupt):
        study.run(progress)
    if len(study.rows) < study.seeds:
        write_overfitting(study, [], folder, seconds=time.perf_counter() - start)
        print(f"kolmo: interrupted; what was done is saved in {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    claims = study.claims(0.8 if options.quick else 0.95)
    write_overfitting(study, claims, folder, seconds=time.perf_counter() - start)
    return _conclude(options.name, claims, folder, options.json)


def _listing(experiments: dict[str, str]) -> str:
    return "\n".join(f"{name:24s}{summary}" for name, summary in experiments.items())


def _conclude(name: str, claims: list[Claim], folder: Path, as_json: bool) -> int:
    """Print the claims; 1 where one does not hold."""
    if as_json:
        content = {"name": name, "claims": [dataclasses.asdict(c) for c in claims], "out": str(folder)}
        print(json.dumps(content, allow_nan=False))
    else:
        print_claims(claims)
        console().print(f"written to {folder}")
    return 0 if all(claim.holds for claim in claims) else EXIT_CLAIM
