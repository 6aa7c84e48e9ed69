"""What the commands do, on the same library that users import."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kolmo import config
from kolmo.console import LiveProgress, console, print_claims, print_lines, print_networks, print_table
from kolmo.errors import EXIT_CLAIM, EXIT_INTERRUPTED, InputError, KolmoError
from kolmo.experiments.claims import Claim
from kolmo.files import output_folder
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.text import nearest


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


def _attempt(
    run: Callable[[LiveProgress], None], options: argparse.Namespace
) -> tuple[str, KolmoError | None]:
    """Run to the end, or to where it was interrupted or refused: what is done is written all the same."""
    with LiveProgress(options.quiet or options.json) as progress:
        try:
            run(progress)
        except KeyboardInterrupt:
            return "interrupted", None
        except KolmoError as error:
            return "refused", error
    return "finished", None


def reproduce(options: argparse.Namespace) -> int:
    """The main job: run, print, write, judge."""
    from kolmo.experiments.binary_classification import BinaryClassification
    from kolmo.report import write_run

    start = time.perf_counter()
    settings = _settings(options, "default")
    experiment = BinaryClassification(settings)
    folder = output_folder(options.out or "runs/reproduce", options.overwrite)
    say_backend(settings.run.backend)
    status, failure = _attempt(experiment.run, options)
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
    from kolmo.experiments import EXPERIMENTS, STUDIES
    from kolmo.report import write_study

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
    kind = STUDIES[options.name]
    study = kind(_settings(options, kind.shipped), options.quick)
    folder = output_folder(options.out or f"runs/{options.name}", options.overwrite)
    say_backend(study.config.run.backend)
    status, failure = _attempt(study.run, options)
    claims = study.claims() if status == "finished" else []
    write_study(study, claims, folder, seconds=time.perf_counter() - start, status=status)
    if failure is not None:
        raise failure
    if status == "interrupted":
        print(f"kolmo: interrupted; what was done is saved in {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not options.json:
        for title, columns, rows in study.tables():
            print_table(title, columns, rows)
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
