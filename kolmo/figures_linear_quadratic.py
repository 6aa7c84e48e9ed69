"""Figures of linear-quadratic control: optimal controls, Hamiltonians over time, gaps against solves."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.experiments.linear_quadratic import Case, LinearQuadratic

#: one for each method, in the order of `Case.methods`: colour and marker, told apart with any colour vision
_LOOKS = (
    ("#0072B2", "o"), ("#D55E00", "^"), ("#56B4E9", "s"), ("#E69F00", "v"), ("#009E73", "D"),
    ("#CC79A7", "P"),
)  # fmt: skip
#: below, gaps are rounding and drawn at the edge
_FLOOR = 1e-18


def controls(study: LinearQuadratic) -> Figure | None:
    """The weights that every method ends with over the closed forms; None without any method's end."""
    cases = [case for case in study.cases if study.descents.get(case.name)]
    if not cases:
        return None
    figure, panels = _panels(cases)
    for panel, case in zip(panels, cases, strict=True):
        system, T = case.system(study.config.run.seed), case.horizon
        times = np.linspace(0, T, 200)
        label = "Riccati, continuous time"
        panel.plot(times, system.control(times)[:, 0], color="0.55", linewidth=1.5, label=label)
        exact = system.modified(case.depth, 2).minimiser.reshape(case.depth, -1)
        edges = np.linspace(0, T, case.depth + 1)
        look: dict[str, Any] = {
            "color": "black",
            "linewidth": 1.2,
            "label": "closed form of the layers",
        }
        plotting.draw_steps(panel, edges, exact[:, :1], **look)
        # within its layer each method has a place of its own, as they coincide
        for index, (method, found) in enumerate(study.descents[case.name].items()):
            colour, marker = _LOOKS[index]
            at = edges[:-1] + (index + 1) / (len(_LOOKS) + 1) * np.diff(edges)
            weights = found.theta.reshape(case.depth, -1)[:, 0]
            panel.plot(at, weights, marker, color=colour, markersize=4.5, label=method, zorder=3)
        plotting.tidy(panel, "$t$", "$\\theta(t)$" if case is cases[0] else "", case.name)
    _legend(figure, panels)
    return figure


def hamiltonians(study: LinearQuadratic) -> Figure | None:
    """H over time at the optimum of every depth, and Riccati's constant; None without any depth."""
    cases = [case for case in study.cases if study.points.get(case.name)]
    if not cases:
        return None
    figure, panels = _panels(cases)
    for panel, case in zip(panels, cases, strict=True):
        for index, point in enumerate(study.points[case.name]):
            colour, marker = _LOOKS[index]
            times = case.horizon * (np.arange(point.depth) + 0.5) / point.depth
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1}
            panel.plot(times, point.hamiltonian, label=f"{point.depth} layers", **look)
        constant = case.system(study.config.run.seed).hamiltonian()
        panel.axhline(constant, color="black", linewidth=1.2, linestyle=(0, (4, 3)), label="Riccati")
        plotting.tidy(panel, "$t$", "$H(t)$" if case is cases[0] else "", case.name)
    _legend(figure, panels)
    return figure


def gaps(study: LinearQuadratic) -> Figure | None:
    """Objective above its minimum against solves, by method; None without any."""
    cases = [case for case in study.cases if study.descents.get(case.name)]
    if not cases:
        return None
    figure, panels = _panels(cases)
    for panel, case in zip(panels, cases, strict=True):
        for index, (method, found) in enumerate(study.descents[case.name].items()):
            colour, marker = _LOOKS[index]
            # some coincide: the first ones are larger, hollow, and show around the others
            size = 9 - index
            hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.3}
            few = len(found.gaps) < 40
            look: dict[str, Any] = {"color": colour, "marker": marker if few else None, "markersize": size}
            # a solve later than it is, or zero solves would have no place on a logarithmic axis
            solves = 1 + np.array(found.solves)
            panel.plot(solves, np.maximum(found.gaps, _FLOOR), label=method, linewidth=1.2, **look, **hollow)
        label = "objective - minimum" if case is cases[0] else ""
        plotting.tidy(panel, "1 + solves", label, case.name)
        panel.set(xscale="log", yscale="log")
    _legend(figure, panels)
    return figure


def _panels(cases: list[Case]) -> tuple[Figure, list[Axes]]:
    figure = plotting.new_figure(3.7 * len(cases) + 0.6, 3.9)
    return figure, list(figure.subplots(1, len(cases), squeeze=False)[0])


def _legend(figure: Figure, panels: list[Axes]) -> None:
    """One legend below all panels, each name once."""
    named: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            named.setdefault(label, handle)
    columns = min(4, len(named)) if len(panels) > 1 else 2
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


#: by file name
FIGURES = {"controls": controls, "hamiltonians": hamiltonians, "gaps": gaps}
