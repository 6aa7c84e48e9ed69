"""`kolmo bench`: everything timed in one run, the table, results.json, and whether the targets are met."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kolmo.benchmarks import equation, page, roofline, sampling, scaling
from kolmo.benchmarks.cases import CASES, SMALL_CUBE, SMALL_PLANE
from kolmo.benchmarks.machine import machine, versions
from kolmo.benchmarks.results import Results
from kolmo.benchmarks.targets import TARGETS
from kolmo.benchmarks.timing import reason, threads
from kolmo.console import LiveProgress, console, print_table
from kolmo.errors import EXIT_CLAIM, InputError
from kolmo.files import write_json
from kolmo.text import nearest

#: the folder of this file: benchmarks/ in a clone, a package's elsewhere
_HERE = Path(__file__).resolve().parent
#: seconds that each contender of a case is timed for
SHARE, QUICK_SHARE = 1.0, 0.2
#: where figure and tables go in a clone
FIGURE, PAGE = Path("docs", "images", "scaling.png"), Path("docs", "performance.md")


def command(options: argparse.Namespace) -> int:
    """Measure, print, write, judge. Raises InputError on a key that is not one."""
    keys = chosen(options.only)
    # some of the ratios must not take the place of all of them
    out = Path(options.out) if options.out else None if options.only else default_out()
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out: {out.parent} is not a folder")
    results = Results()
    logging.disable(logging.INFO)  # compilers of forms raise the level of the root logger themselves
    try:
        content = measured(options, keys, results)
    finally:
        logging.disable(logging.NOTSET)
    if out is not None:
        write_json(out, content)
    if out == default_out() and in_clone() and not options.quick:
        page.update(_HERE.parent / PAGE, content)
    if options.json:
        print(json.dumps(content, allow_nan=False))
        return 0 if results.ok(keys) else EXIT_CLAIM
    show(results, keys, content)
    where = "nothing is written without --out" if out is None else f"written to {out}"
    console().print(f"{where}, {content['total_seconds']:.0f} s")
    return 0 if results.ok(keys) else EXIT_CLAIM


def measured(options: argparse.Namespace, keys: list[str], results: Results) -> dict[str, Any]:
    """Run all parts; what results.json holds."""
    start, complete = time.perf_counter(), not options.only
    content: dict[str, Any] = {"machine": machine(), "versions": versions()}
    with LiveProgress(options.quiet or options.json) as progress:
        rate = 0.1 if options.quick else 0.4
        stage(progress, "roofline", lambda: content.update(roofline=roofline.measure(rate)))
        for needs, name, part in plan(keys, options.quick, complete):
            stage(progress, name, partial(attempt, results, needs, name, part))
        if complete and not options.quick:
            stage(progress, "scaling", lambda: results.scaling.update(scaling.measure()))
            if in_clone():
                scaling.figure(results.scaling, _HERE.parent / FIGURE)
    content |= results.as_json(keys)
    content["quick"], content["total_seconds"] = options.quick, round(time.perf_counter() - start, 1)
    return content


def stage(progress: LiveProgress, name: str, work: Callable[[], None]) -> None:
    """One line of progress, with the seconds it took."""
    start = time.perf_counter()
    progress.start(name, 1)
    work()
    progress.advance(f"{time.perf_counter() - start:.0f} s")


def attempt(results: Results, needs: set[str], name: str, part: Callable[[Results], None]) -> None:
    """One part on one core; where it fails its keys are missing for that reason, and the rest goes on."""
    try:
        with threads(1):
            part(results)
    except Exception as error:
        lost = {key for key in needs if key not in results.ratios} or {name}
        results.missing.update(dict.fromkeys(lost, reason(error)))


def chosen(only: str | None) -> list[str]:
    """The keys that are asked for, all by default."""
    if only is None:
        return list(TARGETS)
    keys = [key.strip() for key in only.split(",")]
    for key in keys:
        if key not in TARGETS:
            raise InputError(f"--only: {key!r} is unknown{nearest(key, TARGETS)}")
    return [key for key in TARGETS if key in keys]


def in_clone() -> bool:
    """Whether this file lies in Kolmo's source tree and not in an installed package."""
    return (_HERE.parent / "pyproject.toml").is_file()


def default_out() -> Path:
    """benchmarks/results.json of the clone, or results.json in the working folder."""
    return _HERE / "results.json" if in_clone() else Path("results.json")


#: the keys that come of it, its name, and what it does
Part = tuple[set[str], str, Callable[[Results], None]]


def plan(keys: list[str], quick: bool, complete: bool) -> list[Part]:
    """What has to be run for these keys; `complete`: the cases without a key too."""
    share, after = QUICK_SHARE if quick else SHARE, CASES["plane-64-trained"]
    gradient = (SMALL_PLANE, share, 128) if quick else (after, share, equation.FINEST)
    plane, large_cube = CASES["plane-64"], SMALL_CUBE if quick else CASES["cube-24"]
    of_plane = {
        "tutorial_value_over_box_gradient",
        "tutorial_value_over_mesh_gradient",
        "tuned_dolfinx_value_over_box_value",
        "gradient_over_value",
        "mesh_gradient_over_exact_gradient",
    }
    parts: list[Part] = [
        (of_plane, plane.name, lambda r: equation.plane(r, plane, share, quick)),
        (
            {"tutorial_gradient_over_ours_equal_error"},
            "gradient at equal error",
            lambda r: equation.equal_error(r, *gradient),
        ),
        ({"chain_over_torchsde", "chain_over_torch"}, "chain", lambda r: sampling.chain(r, after, share)),
        ({"training_steps_over_torch"}, "training", lambda r: sampling.steps(r, share)),
        (
            {"stochastic_seconds_over_control_seconds"},
            "control",
            lambda r: sampling.objective(r, quick),
        ),
        (
            {"gradient_3d_over_tutorial_3d"},
            large_cube.name,
            lambda r: equation.cube(r, large_cube, share, quick),
        ),
    ]
    found = [(needs & set(keys), name, part) for needs, name, part in parts if needs & set(keys)]
    if complete and not quick:
        interval, large = CASES["interval-512"], CASES["plane-128"]
        found.append((set(), after.name, lambda r: equation.plane(r, after, share, True, "_trained")))
        found.append(
            (set(), interval.name, lambda r: equation.measure(r, interval, ("tutorial", "tuned"), share))
        )
        found.append((set(), large.name, lambda r: equation.measure(r, large, ("tutorial", "tuned"), share)))
    return found


def show(results: Results, keys: list[str], content: dict[str, Any]) -> None:
    """The tables."""
    print_table(
        "seconds (median, quartiles), memory above the start in MiB, J minus its reference",
        ("case", "contender", "median", "quartiles", "runs", "MiB", "error"),
        results.timing_rows(),
    )
    print_table(
        "ratios of medians, all in this run, one core",
        ("key", "ratio", "quartiles", "target", "stretch", ""),
        results.ratio_rows(keys),
    )
    console().print("correctness beside each ratio")
    for key in keys:
        console().print(f"  {key}: {results.notes.get(key) or 'missing: ' + results.missing.get(key, '?')}")
    others = {name: why for name, why in results.missing.items() if name not in TARGETS}
    if others:
        console().print("missing contenders")
        for name, why in others.items():
            console().print(f"  {name}: {why}")
    rows = [
        (name, *(f"{content['roofline'][where][name]:.3g}" for where in ("one_core", "all_cores")))
        for name in content["roofline"]["one_core"]
    ]
    print_table("roofline of this machine", ("rate", "one core", "all cores"), rows)
    if results.scaling:
        rows = [
            (name, f"{series['x'][0]}..{series['x'][-1]}", f"{series['exponent']:+.2f}")
            for name, series in results.scaling.items()
        ]
        print_table("cost grows as the power", ("of", "from..to", "exponent"), rows)
