"""What the commands do, on the same library that users import."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kolmo import config, html, runs, tidy
from kolmo.console import (
    LiveProgress,
    console,
    print_claims,
    print_comparison,
    print_lines,
    print_networks,
    print_optimality,
    print_table,
)
from kolmo.errors import EXIT_CLAIM, EXIT_INTERRUPTED, InputError, KolmoError
from kolmo.experiments.claims import Claim
from kolmo.files import UnwritableError
from kolmo.text import nearest, one_line


def quiet_libraries() -> None:
    """The form compiler and its build tools log every step; users asked for none of that."""
    for name in ("FFCx", "UFL", "distutils", "root", "compilers", "skfem", "matplotlib"):
        logging.getLogger(None if name == "root" else name).setLevel(logging.WARNING)


def set_threads() -> None:
    """One torch thread: the tensors are small, and the chain spreads its blocks over threads itself."""
    torch.set_num_threads(1)


# reproduce, experiment


def _settings(options: argparse.Namespace, default: str) -> config.Config:
    settings = config.load(default if options.config is None else options.config)
    if options.quick:
        settings = config.quick(settings)
    for key in ("file", "test_file"):  # found again from wherever the run is resumed
        path = getattr(settings.data, key)
        setattr(settings.data, key, path and str(Path(path).resolve()))
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
    from kolmo.experiments.estimators import ESTIMATORS
    from kolmo.report import write_run

    def show(run: BinaryClassification) -> None:
        print_networks(run.measured)
        print_lines(run.lines)
        four = {name: found.as_dict() for name, found in run.comparisons.items()}
        print_comparison(four, ESTIMATORS, "network")
        print_optimality(run.optimality)

    def make(settings: config.Config, quick: bool) -> BinaryClassification:
        return BinaryClassification(settings)

    write = tidy.beside(write_run, tidy.of_run)
    return _run(options, BinaryClassification.name, "default", "runs/reproduce", make, write, show)


def experiment(options: argparse.Namespace) -> int:
    """Run an experiment by name, or list them."""
    from kolmo.experiments import EXPERIMENTS, STUDIES, Study
    from kolmo.report import write_study

    if options.list:
        listed = [{"name": name, "summary": summary} for name, summary in EXPERIMENTS.items()]
        print(json.dumps(listed, indent=1) if options.json else _listing(EXPERIMENTS))
        return 0
    if options.name not in EXPERIMENTS:
        raise InputError(f"experiment: {options.name!r} is unknown{nearest(str(options.name), EXPERIMENTS)}")
    if options.name == "binary_classification":
        options.out = options.out or (None if options.resume else "runs/binary_classification")
        return reproduce(options)

    def show(study: Study) -> None:
        for title, columns, rows in study.tables():
            print_table(title, columns, rows)

    kind, write = STUDIES[options.name], tidy.beside(write_study, tidy.of_study)
    return _run(options, options.name, kind.shipped, f"runs/{options.name}", kind, write, show)


def _run(
    options: argparse.Namespace,
    name: str,
    default: str,
    out: str,
    make: Callable[[config.Config, bool], Any],
    write: Callable[..., None],
    show: Callable[[Any], None],
) -> int:
    """A run from its folder to its claims, begun or resumed.

    make: what is run, of settings and `quick`; its run(), claims(), config and memo are used here.
    write: leaves its results in the folder. show: prints them.
    """
    start, experiment = time.perf_counter(), None
    if options.resume is None:
        # bad settings are refused before there is a folder
        experiment = make(_settings(options, default), options.quick)
        run = runs.begin(options.out or out, options.overwrite, name, options.quick, experiment.config)
    else:
        _check_resume(options)
        before = runs.finished(options.resume, name)
        if before is not None:
            print(f"kolmo: {options.resume}: finished already, nothing is changed", file=sys.stderr)
            claims = [Claim(**claim) for claim in before["claims"]]
            return _conclude(name, claims, options.resume, options.json)
        run = runs.resume(options.resume, name)
    with run, _terminable():
        experiment = make(run.config, run.quick) if experiment is None else experiment
        if _sitting(experiment, run, write, options, start) == "interrupted":
            saved = f"interrupted; what was done is saved in {run.folder}"
            print(f"kolmo: {saved}; to go on: {runs.command(run.folder, name)}", file=sys.stderr)
            return EXIT_INTERRUPTED
        run.conclude()
    if not options.json:
        show(experiment)
    return _conclude(name, experiment.claims(), run.folder, options.json)


def _sitting(
    experiment: Any, run: runs.Run, write: Callable[..., None], options: argparse.Namespace, start: float
) -> str:
    """Run as far as it goes and write what there is: 'finished' or 'interrupted'; raises what refused it."""
    experiment.memo, earlier = run.memo, sum(run.memo.seconds.values())
    if options.resume is not None and not options.quiet:
        kept = f"{run.memo.finished} parts done, {earlier:.0f} s of work kept"
        print(f"kolmo: going on with {run.folder}: {kept}", file=sys.stderr)
    status, failure = _attempt(experiment.run, options)
    claims = experiment.claims() if status == "finished" else []
    try:
        if isinstance(failure, UnwritableError):
            raise failure
        if not run.there:
            raise UnwritableError(f"{run.folder}: has vanished, nothing is written")
        seconds = earlier + time.perf_counter() - start
        reason = one_line(failure) if failure is not None else ""
        write(experiment, claims, run.folder, seconds=seconds, status=status, reason=reason)
    except KeyboardInterrupt:
        return "interrupted"
    except (OSError, UnwritableError) as error:
        again = f"; later: {runs.command(run.folder, run.name)}" if run.there else ""
        raise InputError(f"{error}{again}") from error
    if failure is not None:
        raise failure
    return status


def _check_resume(options: argparse.Namespace) -> None:
    """A resumed run has its settings: raise InputError at an option that would give it others."""
    for key in ("config", "seed", "quick", "backend", "device", "out", "overwrite"):
        value = getattr(options, key)
        if value is not None and value is not False:
            raise InputError(
                f"--{key}: not together with --resume, the run in {options.resume} keeps its settings"
            )


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends a run like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listing(experiments: dict[str, str]) -> str:
    return "\n".join(f"{name:24s}{summary}" for name, summary in experiments.items())


def _conclude(name: str, claims: list[Claim], folder: str | Path, as_json: bool) -> int:
    """Print the claims; 1 where one does not hold."""
    if as_json:
        content = {"name": name, "claims": [dataclasses.asdict(c) for c in claims], "out": str(folder)}
        print(json.dumps(content, allow_nan=False))
    else:
        print_claims(claims)
        console().print(f"written to {folder}")
        page = Path(folder) / html.NAME
        said = f"to read and to move: {page}" if page.exists() else html.MISSING
        console().print(said, markup=False)
    return 0 if all(claim.holds for claim in claims) else EXIT_CLAIM
