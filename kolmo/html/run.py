"""The page of a main job, section by section: verdicts first, figures, budgets, then where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.claims import Claim
from kolmo.experiments.comparison import Z_LIMIT
from kolmo.figures import STEP_LIMIT
from kolmo.html import run_figures, tables
from kolmo.html.fields import fields
from kolmo.html.formulas import formula
from kolmo.html.origin import cite, rerun
from kolmo.html.page import Figure, Page, Picture, Section
from kolmo.html.tables import Table

#: what the pictures of a run show, in words; by file name
_ALTERNATIVES = {
    "regions": "Maps of the score of each trained network over the plane with the data and the zero line.",
    "value_density": "Maps of the expected loss of both labels and the density of both classes, five times.",
    "training": "Objective of the trainings against evaluations and against seconds.",
    "paths": "J by the equation against J by the chain along the trainings: on the diagonal they agree.",
    "weights": "Entries of W and V of each network over depth, and the step of each layer with its limit.",
    "errors": "Bars of the estimated errors of J by source, and the difference of both values of J.",
    "pontryagin": "The Hamiltonian and the residual over depth, and the leading curvatures of the objective.",
}
_FOUR = "The four estimators again, with more paths of the SDE (--help: other paths, meshes and orders):"


def page(run: BinaryClassification, claims: Sequence[Claim], folder: Path, content: dict[str, Any]) -> Page:
    """All that there is of a run, finished or not.

    folder: has the figures. content: what results.json holds.
    """
    stills = {name: Picture(folder / f"{name}.png", _ALTERNATIVES[name]) for name in content["figures"]}
    sections = [
        _verdicts(run, claims, content),
        _networks(run),
        _four_ways(run),
        _fields(run, stills),
        _plain("regions", "Decision regions", run_figures.regions(run, _of(stills, "regions"))),
        _plain(
            "training", "Training", run_figures.training(run, _of(stills, "training", "paths")), "objective"
        ),
        _plain("weights", "Weights over depth", run_figures.weights(run, _of(stills, "weights")), "step"),
        _conditions(run, _of(stills, "pontryagin")),
        _budget(run, _of(stills, "errors")),
        rerun(run.name, folder, run.config, content, [(_FOUR, f"kolmo compare {' '.join(run.measured)}")]),
        cite(),
    ]
    return Page(
        "Kolmo: one network trained three ways",
        f"{_task(run)}.",
        facts(content),
        [section for section in sections if section is not None],
    )


def facts(content: dict[str, Any]) -> list[tuple[str, str]]:
    """What the top of a page says of any run."""
    status = content["status"] + (f": {content['reason']}" if content.get("reason") else "")
    found = [("status", status), ("seed", str(content["seed"])), ("kolmo", content["versions"]["kolmo"])]
    return [*found, ("time", f"{content['seconds']['total']:.0f} s")]


def _of(stills: dict[str, Picture], *names: str) -> list[Picture]:
    return [stills[name] for name in names if name in stills]


def _task(run: BinaryClassification) -> str:
    """The problem in one line."""
    data, network = run.config.data, run.problem.network
    kind, *strengths = run.config.noise.items()
    source = Path(data.file).name if data.file else data.kind
    noise = ", ".join([str(kind[1]).replace("_", " "), *(f"{k} {v}" for k, v in strengths)])
    return (
        f"{len(run.train)} points of {source} in {run.train.dim}-D, {network.depth} layers of "
        f"{run.config.network.width} {run.config.network.activation} units, noise: {noise}"
    )


def _verdicts(run: BinaryClassification, claims: Sequence[Claim], content: dict[str, Any]) -> Section:
    text = [tables.summary(claims, content["status"])]
    if run.lines:
        agree = sum(line.verdict.agree for line in run.lines)
        text.append(f"Cross-check: {agree} of {len(run.lines)} lines agree.")
    if run.comparisons:
        text.append(tables.four_ways_summary(run.comparisons))
    if run.optimality:
        text.append(f"Pontryagin's conditions of the control network: {run.optimality['verdict']}.")
    return Section(
        "verdicts",
        "Verdicts",
        text=text,
        tables=[tables.claims_table(claims)] if claims else [],
    )


def _networks(run: BinaryClassification) -> Section | None:
    if not run.measured:
        return None
    text = [
        "All networks start from the same weights. Control is trained through the equation, stochastic on "
        "noisy paths, noiseless without noise; then all are evaluated under the noise, by the equation and "
        "by paths of the network itself.",
        "A line agrees where the difference is at most the stated error: 3 standard errors of sampling plus "
        "twice the estimated errors of mesh, time, box and modified equation.",
    ]
    shown = [tables.networks_table(run.measured), tables.cross_check_table(run.lines)]
    return Section(
        "networks",
        "Networks and cross-check",
        text=text,
        formulas=[formula("chain")],
        tables=shown,
    )


def _four_ways(run: BinaryClassification) -> Section | None:
    if not run.comparisons:
        return None
    text = [
        "The chain and the exact recursion, which sums over the outcomes of a layer's noise, are of the "
        "network itself; the equation and the SDE are of its modified equation. Equation and chain are "
        "those of the table above.",
        "Three pairs are compared: both estimators of the network, both of the modified equation, and the "
        "best of either, which may differ by what the modified equation is off by (twice its estimate) too. "
        "z is what twice the stated errors of mesh, time and box do not explain, in standard errors. The "
        f"estimators agree where z is at most {Z_LIMIT:g} for each pair, and single steps of the network are "
        "those of the modified equation.",
    ]
    shown = [tables.four_ways_table(run.comparisons), tables.pairs_table(run.comparisons)]
    return Section("four-ways", "Cross-check four ways", text=text, tables=shown)


def _fields(run: BinaryClassification, stills: dict[str, Picture]) -> Section | None:
    made = fields(run, _of(stills, "value_density"))
    if made is None:
        return None
    figure, numbers = made
    return Section(
        "about-fields",
        "Value function and density",
        formulas=[formula("backward"), formula("forward")],
        figures=[figure],
        folded=[("The same in numbers", numbers)],
    )


def _plain(name: str, title: str, figure: Figure | None, formula_name: str = "") -> Section | None:
    """A section that is a figure, with a formula or none before it."""
    if figure is None:
        return None
    formulas = [formula(formula_name, limit=STEP_LIMIT)] if formula_name else []
    return Section(f"about-{name}", title, formulas=formulas, figures=[figure])


def _conditions(run: BinaryClassification, stills: list[Picture]) -> Section | None:
    """Pontryagin's conditions: the verdict in words, H over depth, curvatures."""
    found = run.optimality
    if not found:
        return None
    figure = run_figures.hamiltonian(run, stills)
    if figure is None:
        text = [f"Verdict: {found['verdict']}. {found['reason']}"]
        return Section("conditions", "Pontryagin's conditions", text=text, formulas=[formula("hamiltonian")])
    relative = found["projected_gradient"] / found["relative_to"]
    rows = [
        ["verdict", found["verdict"]],
        ["projected gradient", f"{found['projected_gradient']:.1e}, {relative:.1e} of J's own"],
        ["residual of a layer, at most", f"{max(found['residual']):.1e}"],
        ["H", f"from {min(found['hamiltonian']):.4f} to {max(found['hamiltonian']):.4f}"],
        ["weights on the boundary of the admissible set", str(found["on_boundary"])],
        ["leading curvatures", ", ".join(f"{value:.3g}" for value in found["eigenvalues"]) or "-"],
    ]
    return Section(
        "conditions",
        "Pontryagin's conditions",
        text=[f"Verdict on the control network: {found['verdict']}."],
        formulas=[formula("hamiltonian")],
        figures=[figure],
        tables=[Table("Conditions of the control network", ["what", "found"], rows)],
    )


def _budget(run: BinaryClassification, stills: list[Picture]) -> Section | None:
    if not run.measured:
        return None
    text = [
        "Where the equation's J may be off: the mesh, the time steps, the box, the modified equation in "
        "place of the network; and where the chain's is: sampling. How each is estimated: docs/errors.md.",
    ]
    label = "Error budget of each network"
    caption = "The same as bars, logarithmic; dashed: the difference of the two values of J."
    figures = [Figure("errors", label, caption, stills=stills)] if stills else []
    table = tables.budget_table(run.measured, run.lines)
    return Section("budget", "Error budget", text=text, tables=[table], figures=figures)
