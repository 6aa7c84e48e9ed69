"""Figures of Feynman-Kac ensembles: probabilities over the plane, spread by size, accuracy under attack."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kolmo import plotting
from kolmo.experiments.feynman_kac import MEMBERS, NAMES, RADII, FeynmanKac

_LOOKS = {
    "plain": ("#009E73", "D", "-."),
    "single": ("#E69F00", "v", ":"),
    "ensemble of 1": ("#CC79A7", "s", "--"),
    "ensemble of 4": ("#56B4E9", "s", "--"),
    "ensemble of 16": ("#D55E00", "s", "--"),
    "limit": ("#0072B2", "o", "-"),
}
_WORDS = {"plain": "trained without noise", "single": "trained with noise, one pass without"}


def boundaries(study: FeynmanKac) -> Figure | None:
    """The probability of label 1 over the plane, by one pass, averages, and their limit."""
    if not study.map:
        return None
    axis, maps = study.map["axis"], study.map["maps"]
    figure = plotting.new_figure(3.0 * len(maps) + 0.6, 3.5)
    panels = figure.subplots(1, len(maps), sharey=True)
    for panel, (name, field) in zip(panels, maps.items(), strict=True):
        plotting.draw_map(panel, [axis, axis], field, plotting.SCORES, Normalize(0, 1))
        if name != "one noisy pass":  # a pass is noise of its own at every point: no line
            panel.contour(axis, axis, field.T, levels=[0.5], colors="black", linewidths=1.2)
        for label in (0, 1):
            x = study.map["points"][study.map["labels"] == label]
            look = {"color": plotting.CLASS_COLOURS[label], "marker": plotting.CLASS_MARKERS[label]}
            panel.scatter(x[:, 0], x[:, 1], s=14, edgecolors="white", linewidths=0.6, **look)
        panel.set(title=name, xlabel="$x_1$", aspect="equal")
    panels[0].set_ylabel("$x_2$")
    bar = figure.colorbar(panels[-1].images[0], ax=panels, shrink=0.85, pad=0.01)
    bar.set_label("probability of label 1")
    return figure


def attacks(study: FeynmanKac) -> Figure | None:
    """Spread of ensembles about the limit by their size; accuracy against the attack's radius."""
    if len(study.rows) < 2:
        return None
    figure = plotting.new_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    sizes = np.array(MEMBERS)
    measured = np.array([row["spread"] for row in study.rows])
    predicted = np.array([np.sqrt(row["variance"] / sizes) for row in study.rows])
    for index, (one, other) in enumerate(zip(measured, predicted, strict=True)):
        label = (
            ("sampled, each seed", "by the equation: $\\sqrt{\\mathrm{Var} / N}$")
            if index == 0
            else (None, None)
        )
        left.plot(sizes, one, "o", color=plotting.COLOURS["stochastic"], markersize=4, label=label[0])
        left.plot(sizes, other, "-", color="0.45", linewidth=0.8, label=label[1])
    plotting.tidy(left, "passes $N$", "root mean square of $p_N - u$", "averages tend to $u$")
    left.set(xscale="log")
    plotting.readable_log(left)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.xaxis.set_minor_locator(NullLocator())
    left.legend(frameon=False, fontsize=9)
    for index, name in enumerate(NAMES):
        values = study.table(name)
        colour, marker, dash = _LOOKS[name]
        at = np.array(RADII) + 0.004 * (index - 2.5)
        right.errorbar(
            at, values.mean(axis=0), study.margin(values), color=colour, marker=marker, linestyle=dash,
            markersize=5, linewidth=1.4, capsize=2, label=_WORDS.get(name, name),
        )  # fmt: skip
    plotting.tidy(
        right, "radius of the attack", "accuracy", f"mean and 95% interval, {len(study.rows)} seeds"
    )
    right.legend(frameon=False, fontsize=9)
    return figure


#: by file name
FIGURES = {"boundaries": boundaries, "attacks": attacks}
