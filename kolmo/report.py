"""What a run leaves in its folder when it ends: networks, figures, report.html, and results.json as the last
file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kolmo import case, html, plotting
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.claims import Claim
from kolmo.experiments.study import Study
from kolmo.figures import write_figures
from kolmo.files import write_json, write_text
from kolmo.runs import versions


def plain(value: Any) -> Any:
    """Numbers, texts, lists and tables that JSON holds; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_run(
    run: BinaryClassification,
    claims: list[Claim],
    folder: Path,
    *,
    seconds: float,
    status: str,
    reason: str = "",
) -> None:
    """Write everything there is of a run, finished, interrupted or refused; each file is whole or absent.

    reason: of a refusal. report.html is left out where what it needs is missing, see `kolmo.html`.
    """
    for name, trained in run.trained.items():
        case.save(run.under_noise(trained.network), folder / name)
    figures = write_figures(run, folder)
    content = {
        "name": run.name,
        "status": status,
        "reason": reason,
        "claims": [claim.as_dict() for claim in claims],
        "networks": run.measured,
        "checks": [line.as_dict() for line in run.lines],
        "comparisons": {name: found.as_dict() for name, found in run.comparisons.items()},
        "training": {
            name: {
                **trained.details,
                "history": _history(trained.history),
            }
            for name, trained in run.trained.items()
        },
        "paths": run.paths,
        "optimality": run.optimality,
        "figures": figures,
        "seed": run.config.run.seed,
        "backend": run.backend,
        "device": run.device,
        "versions": versions(),
        "seconds": {**run.seconds, "total": seconds},
        "config": dataclasses.asdict(run.config),
    }
    if _pages(folder):
        from kolmo.html.page import render
        from kolmo.html.run import page

        write_text(folder / html.NAME, render(page(run, claims, folder, content)))
    write_json(folder / "results.json", plain(content))


def _history(rows: list[tuple[float, int, float]]) -> dict[str, list[float]]:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return {name: list(c) for name, c in zip(("seconds", "evaluations", "objective"), columns, strict=True)}


def _pages(folder: Path) -> bool:
    """Whether report.html can be written; otherwise an older one of another run is taken away."""
    if html.unavailable() is None:
        return True
    (folder / html.NAME).unlink(missing_ok=True)
    return False


def write_study(
    study: Study, claims: list[Claim], folder: Path, *, seconds: float, status: str, reason: str = ""
) -> None:
    """Write figures, report.html and results.json of an experiment, as `write_run` does of a run."""
    figures: dict[str, tuple[Figure, str]] = {}
    for name, make in study_figures(study.name).items():
        figure = make(study)
        if figure is not None:
            plotting.save(figure, folder, name)
            figures[name] = figure, make.__doc__ or name
    results = study.results()
    content = {
        **results,
        "name": study.name,
        "status": status,
        "reason": reason,
        "claims": [claim.as_dict() for claim in claims],
        "figures": list(figures),
        "seed": study.config.run.seed,
        "versions": versions(),
        "seconds": {**results.get("seconds", {}), "total": seconds},
    }
    if _pages(folder):
        from kolmo.html.page import render
        from kolmo.html.study import page

        write_text(folder / html.NAME, render(page(study, claims, folder, content, figures)))
    write_json(folder / "results.json", plain(content))


def study_figures(name: str) -> dict[str, Callable[[Any], Figure | None]]:
    """The figures of an experiment, by file name."""
    module = f"kolmo.figures_{name}"  # where an experiment has figures, they are in FIGURES there
    if find_spec(module) is None:
        return {}
    found: dict[str, Callable[[Any], Figure | None]] = import_module(module).FIGURES
    return found
