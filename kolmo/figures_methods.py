"""Figures of the comparison of methods: what each took from one start, and ten starts of two of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kolmo import plotting
from kolmo.experiments.methods import Methods
from kolmo.plotting import tidy

#: quasi-Newton blue, Newton red, first order green: a colour for each kind, a dash for each library
_COLOURS = {
    "L-BFGS": "#0072B2", "Newton-Krylov": "#D55E00",
    "successive approx.": "#CC79A7", "continuation": "#56B4E9",
    "torch Adam": "#009E73", "torch SGD": "0.45", "torch LBFGS": "#0072B2",
    "scipy L-BFGS-B": "#0072B2", "scipy CG": "#009E73", "scipy Newton-CG": "#E69F00",
    "scipy trust-krylov": "#D55E00", "TAO lmvm": "#0072B2", "TAO ntr": "#D55E00",
}  # fmt: skip
_DASHES: dict[str, Any] = {"torch": (0, (5, 2)), "scipy": (0, (5, 2, 1, 2)), "TAO": (0, (1, 1.5))}
#: objectives nearer than this to the lowest are drawn as near as this
_NEAREST = 1e-6


def methods(study: Methods) -> Figure | None:
    """Objective above the lowest end and relative gradient, the best so far, against what they took."""
    ran = {method: found for method, found in study.races.items() if found.ran}
    if not ran:
        return None
    rows = [found.rows for found in ran.values()] + [found.rows for found in study.starts.values()]
    lowest = min(float(found[:, 2].min()) for found in rows)
    figure = plotting.new_figure(9.6, 7.4)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for method, found in ran.items():
        least = np.minimum.accumulate(found.rows[:, 2:], axis=0)
        heights = np.maximum(least[:, 0] - lowest, _NEAREST), least[:, 1]
        kept = plotting.log_spaced(len(least), 400)
        own = method.split()[0] not in _DASHES
        look: dict[str, Any] = {"color": _COLOURS[method], "linewidth": 1.8 if own else 1.3}
        look["linestyle"] = "-" if own else _DASHES[method.split()[0]]
        for (row, column), panel in np.ndenumerate(panels):
            spent = np.maximum(found.rows[kept, column], (1, 1e-2)[column])
            panel.plot(spent, heights[row][kept], label=method, **look)
    for column, what in enumerate(("solves", "seconds of the processor")):
        tidy(panels[0, column], "", "objective above the lowest of all" if column == 0 else "")
        tidy(panels[1, column], what, "gradient, relative to the first" if column == 0 else "")
    for panel in panels.flat:
        panel.set(xscale="log", yscale="log")
    for panel in panels[1]:
        panel.axhline(study.size.reached, color="0.3", linewidth=1, linestyle=":")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def starts(study: Methods) -> Figure | None:
    """Relative gradients against solves from all random starts, and where they end."""
    if not study.starts:
        return None
    figure = plotting.new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    marks = {"L-BFGS": "o", "Newton-Krylov": "^"}
    for method, mark in marks.items():
        found = [start for start in study.starts.values() if start.method == method]
        colour = _COLOURS[method]
        for number, start in enumerate(found):
            kept = plotting.log_spaced(len(start.rows), 400)
            least = np.minimum.accumulate(start.rows[:, 3])[kept]
            label = None if number else method
            left.plot(start.rows[kept, 0], least, color=colour, linewidth=1, alpha=0.8, label=label)
        look: dict[str, Any] = {"color": colour, "markersize": 7, "markerfacecolor": "none"}
        right.plot([s.seed for s in found], [s.value for s in found], mark, label=method, **look)
    left.axhline(study.size.reached, color="0.3", linewidth=1, linestyle=":")
    left.set(xscale="log", yscale="log")
    tidy(left, "solves", "gradient, relative to the first")
    tidy(right, "start", "objective at the end")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False, fontsize=9)
    right.legend(frameon=False, fontsize=9)
    return figure


#: by file name
FIGURES = {"methods": methods, "starts": starts}
