"""How cost grows with cells, layers, width, paths and threads: log-log series, exponents, one figure.

The equation's value and gradient is that of an untrained network: no feature of it gets sharper as layers are
added, so that only the size changes. An exponent is the slope over the upper half of a series: below it what
is constant still shows. An explicit march needs substeps in proportion to the cells a direction where drift
limits them, and to their square where diffusion does, so seconds a substep are a series of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kolmo
from kolmo import noise
from kolmo.benchmarks import cases
from kolmo.benchmarks.equation import ours
from kolmo.benchmarks.timing import Contender, cores, interleave, threads
from kolmo.network import ResidualNetwork
from kolmo.pde import BackwardKolmogorov, Explicit
from kolmo.pde.backend import BACKENDS

#: cells a direction, by dimension
CELLS = {1: (128, 256, 512, 1024), 2: (32, 48, 64, 96, 128), 3: (8, 12, 16, 24)}
LAYERS, WIDTHS = (5, 10, 20, 40, 80), (8, 16, 32, 64, 128)
PATHS = (25_000, 50_000, 100_000, 200_000, 400_000, 800_000)
HALF_WIDTH = 3.0
#: seconds that each point of a series is timed for
SHARE = 0.2


def problem(dim: int, depth: int = cases.DEPTH, width: int = cases.WIDTH) -> kolmo.Problem:
    """An untrained network whose layers are as long as the cases', whatever their number."""
    network = ResidualNetwork(dim, width, depth, horizon=depth / cases.DEPTH, seed=0)
    return kolmo.Problem(cases.points(dim), network, noise.BernoulliDropout(cases.KEEP))


def measure() -> dict[str, Any]:
    """All series: {name: {"x": [...], "seconds": [...], "exponent": slope}}."""
    found: dict[str, Any] = {}
    with threads(1):
        for dim, sizes in CELLS.items():
            found |= _cells(dim, sizes)
        found["layers"] = _series(LAYERS, [_gradient(problem(2, depth=n), 64) for n in LAYERS])
        found["width"] = _series(WIDTHS, [_gradient(problem(2, width=n), 64) for n in WIDTHS])
        found["paths"] = _series(PATHS, [_chain(n) for n in PATHS])
    found |= _threads()
    return found


def _cells(dim: int, sizes: Sequence[int]) -> dict[str, Any]:
    equations = [_equation(problem(dim), n) for n in sizes]
    series = _series(
        [n**dim for n in sizes],
        [lambda e=e: ours(e.problem, e, True) for e in equations],  # type: ignore[misc]
    )
    substeps = [_substeps(e) for e in equations]
    each = [s / n for s, n in zip(series["seconds"], substeps, strict=True)]
    return {
        f"cells, {dim}-D": {**series, "substeps": substeps},
        f"cells, {dim}-D, a substep": {
            "x": series["x"],
            "seconds": each,
            "exponent": slope(series["x"], each),
        },
    }


def _equation(problem: kolmo.Problem, cells: int) -> BackwardKolmogorov:
    backend = "box" if "box" in BACKENDS else "skfem"
    return BackwardKolmogorov(
        problem, cells=cells, backend=backend, half_width=HALF_WIDTH, propagator=Explicit(cap=10**6)
    )


def _substeps(equation: BackwardKolmogorov) -> int:
    """Substeps of the whole march."""
    with torch.no_grad():
        b, a = (c.numpy() for c in vars(equation.coefficients()).values())
    return sum(s.count for s in equation.steps(b, a, equation.problem.network.step))


def _gradient(problem: kolmo.Problem, cells: int) -> Callable[[], Callable[[], float]]:
    return lambda: ours(problem, _equation(problem, cells), True)


def _chain(paths: int) -> Callable[[], Callable[[], float]]:
    instance = problem(2)
    return lambda: lambda: kolmo.Chain(instance, dtype=torch.float32).estimate(paths).value


def _series(sizes: Sequence[int], builds: Sequence[Callable[[], Callable[[], Any]]]) -> dict[str, Any]:
    contenders = [Contender(str(n), build) for n, build in zip(sizes, builds, strict=True)]
    timings, missing = interleave(contenders, SHARE, least=2)
    kept = [n for n in sizes if str(n) in timings]
    seconds = [timings[str(n)].median for n in kept]
    series: dict[str, Any] = {"x": kept, "seconds": seconds, "exponent": slope(kept, seconds)}
    return {**series, "missing": missing} if missing else series


def _threads() -> dict[str, Any]:
    """Value and gradient, and the chain, on 1 core and more, twice as many each time."""
    most, counts = len(cores()), [1]
    while counts[-1] < most:
        counts.append(min(most, 2 * counts[-1]))
    found: dict[str, Any] = {}
    for name, build in (
        ("threads, gradient", _gradient(problem(2), 128)),
        ("threads, chain", _chain(800_000)),
    ):
        seconds = []
        for count in counts:
            with threads(count):
                timings, _ = interleave([Contender(name, build)], SHARE)
            seconds.append(timings[name].median)
        found[name] = {"x": counts, "seconds": seconds, "exponent": slope(counts, seconds)}
    return found


def slope(x: Sequence[float], seconds: Sequence[float]) -> float:
    """Least-squares slope of log seconds over log x, upper half of the series."""
    if len(x) < 2:
        return 0.0
    half = max(2, (len(x) + 1) // 2)
    return float(np.polyfit(np.log(x[-half:]), np.log(seconds[-half:]), 1)[0])


def figure(found: dict[str, Any], path: Path) -> None:
    """All series, log-log, with their exponents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    panels = [
        ("value and gradient", "cells", [f"cells, {d}-D" for d in CELLS]),
        ("value and gradient, a substep", "cells", [f"cells, {d}-D, a substep" for d in CELLS]),
        ("value and gradient, 64 x 64", "layers", ["layers"]),
        ("value and gradient, 64 x 64", "width", ["width"]),
        ("chain", "paths", ["paths"]),
        ("threads", "threads", ["threads, gradient", "threads, chain"]),
    ]
    shown, axes = plt.subplots(2, 3, figsize=(11, 6.2), constrained_layout=True)
    for panel, (title, label, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            series = found[name]
            short = name.removesuffix(", a substep").removeprefix("cells, ").removeprefix("threads, ")
            panel.loglog(
                series["x"], series["seconds"], "o-", ms=4, label=f"{short}: {series['exponent']:+.2f}"
            )
        panel.set(title=title, xlabel=label, ylabel="seconds")
        if label != "cells":
            ticks = found[names[0]]["x"]
            panel.set_xticks(ticks, [f"{n:g}" if n < 1e4 else f"{n / 1e3:g}k" for n in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(True, which="major", alpha=0.3)
        panel.legend(title="exponent", fontsize="small", title_fontsize="small")
    shown.savefig(path, dpi=110)
    plt.close(shown)
