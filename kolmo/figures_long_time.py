"""The figure of long training: loss, Polyak-Lojasiewicz ratio, smoothness in depth, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.experiments.long_time import LOSS, LongTime

#: profiles are drawn at so many times; the first time on a logarithmic axis
_LINES, _FIRST = 9, 1e-2


def long_time(study: LongTime) -> Figure | None:
    """Four panels over training time and depth; None before the flow is done."""
    course, plan = study.course, study.plan
    if course is None:
        return None
    figure = plotting.new_figure(9.8, 7.4)
    (left, right), (low, last) = figure.subplots(2, 2)
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(plan.depths)))
    later = slice(1, None)
    for i, depth in enumerate(plan.depths):
        look: dict[str, Any] = {"color": shades[i], "linewidth": 1.5, "label": f"$L = {depth}$"}
        left.plot(course.times[later], course.loss[later, i], **look)
        right.plot(course.times[later], course.ratio[later, i], **look)
        low.plot(course.times[later], course.jump[later, i], **look)
    left.axhline(LOSS, color="0.4", linewidth=1, linestyle=":")
    left.text(course.times[1], 1.4 * LOSS, f"{LOSS:g}", fontsize=9, color="0.3")
    known = np.isfinite(course.mu) & (course.times > 0)
    label = f"$\\mu$, $L = {plan.shown}$"
    right.plot(course.times[known], course.mu[known], "o--", color="#D55E00", markersize=4.5, label=label)
    plotting.tidy(left, "training time", "loss", "mean squared error")
    title = "ratio $L\\,|\\nabla\\ell|^2/\\ell$ and its lower bound $\\mu$"
    plotting.tidy(right, "training time", "per unit of training time", title)
    plotting.tidy(low, "training time", "$L\\,\\max_k |Z_{k+1} - Z_k|$", "Lipschitz constant in depth")
    for panel in (left, right, low):
        panel.set_xscale("log")
        panel.legend(frameon=False, fontsize=9)
    left.set_yscale("log")
    right.set_yscale("log")
    _profiles(last, study)
    return figure


def _profiles(panel: Axes, study: LongTime) -> None:
    """The first entry of V over depth at several times."""
    course, plan = study.course, study.plan
    assert course is not None
    norm, colours = LogNorm(_FIRST, plan.end), colormaps["plasma"]
    wanted = np.geomspace(0.3, plan.end, _LINES)
    edges = np.linspace(0, 1, plan.shown + 1)
    for number in np.unique(np.searchsorted(course.times, 0.999 * wanted)):
        values = course.profiles[number][:, None]
        shade = colours(0.92 * norm(course.times[number]))
        plotting.draw_steps(panel, edges, values, color=shade, linewidth=1.4)
    panel.figure.colorbar(ScalarMappable(norm, colours), ax=panel, label="training time", pad=0.02)
    plotting.tidy(panel, "depth $k/L$", "one entry of $V_k$", f"weights over depth, $L = {plan.shown}$")


#: by file name
FIGURES = {"long_time": long_time}
