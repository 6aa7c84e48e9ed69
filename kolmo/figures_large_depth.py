"""The figure of very deep networks: differences of neighbouring layers, distances to the limit, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.experiments.large_depth import Course, LargeDepth

#: by start: colour and marker
_LOOKS = {"tied": ("#0072B2", "o"), "smooth": ("#009E73", "s"), "independent": ("#D55E00", "^")}
#: profiles, the limit's last: colour and width
_LINES = (("#E69F00", 1.8), ("#56B4E9", 1.8), ("black", 1.0))
_SLOPE: dict[str, Any] = {"color": "0.55", "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}


def large_depth(study: LargeDepth) -> Figure | None:
    """Differences over depth, distances over training and over depth, weights; None without a course."""
    courses = study.courses
    if not courses:
        return None
    figure = plotting.new_figure(9.8, 7.6)
    (left, right), (low, last) = figure.subplots(2, 2)
    _differences(left, courses)
    limited = {name: course for name, course in courses.items() if course.has_limit}
    for name, course in limited.items():
        colour, marker = _LOOKS[name]
        far, deep = course.distances[-1], course.depths.astype(float)
        low.plot(deep, far, marker, color=colour, markersize=6, label=f"{name}, time {course.times[-1]:g}")
        low.plot(deep, far[-2] * (deep / deep[-2]) ** -1.0, **_SLOPE)
    if limited:
        first = next(iter(limited))
        _along_training(right, first, limited[first])
        _profiles(last, first, limited[first])
        plotting.tidy(low, "layers $L$", "$\\max_k |Z_k - Z(k/L)|$", "distance to the deepest network")
        _powers(low)
        low.plot([], [], label="slope $-1$", **_SLOPE)
        low.legend(frameon=False, fontsize=9)
    else:
        for panel in (right, low, last):
            panel.set_axis_off()
    return figure


def _differences(panel: Axes, courses: dict[str, Course]) -> None:
    """All neighbours together (hollow) and the largest (filled), with their slopes."""
    for name, course in courses.items():
        colour, marker = _LOOKS[name]
        depths = course.depths.astype(float)
        look: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 6}
        slopes = course.slope(course.together), course.slope(course.worst)
        kinds = (("together", course.together, "white"), ("largest", course.worst, colour))
        for (kind, values, fill), slope in zip(kinds, slopes, strict=True):
            label = f"{name}, {kind}: slope ${slope:.2f}$"
            panel.plot(depths, values, marker=marker, markerfacecolor=fill, label=label, **look)
            order = round(2 * slope) / 2
            panel.plot(depths, values[-1] * (depths / depths[-1]) ** order, **_SLOPE)
    plotting.tidy(panel, "layers $L$", "$|Z_{k+1} - Z_k|$", "differences of neighbouring layers")
    _powers(panel)
    panel.set_ylim(bottom=panel.get_ylim()[0] / 30)
    panel.legend(frameon=False, fontsize=8, loc="lower left", handletextpad=0.2, labelspacing=0.3)


def _along_training(panel: Axes, name: str, course: Course) -> None:
    """Distances to the limit over training time, a line for each depth."""
    kept = [i for i in range(len(course.depths)) if np.isfinite(course.distances[-1, i])]
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(kept)))
    for shade, i in zip(shades, kept, strict=True):
        values = np.where(course.distances[:, i] > 0, course.distances[:, i], np.nan)
        panel.plot(course.times, values, color=shade, linewidth=1.4, label=f"$L = {course.depths[i]}$")
    plotting.tidy(panel, "training time", "$\\max_k |Z_k - Z(k/L)|$", f"distance to the limit, start {name}")
    panel.set_yscale("log")
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)


def _profiles(panel: Axes, name: str, course: Course) -> None:
    """The first entry of V over depth at the end of training."""
    for (colour, width), profile in zip(_LINES, course.profiles, strict=True):
        depth = course.depths[-1] if profile is course.profiles[-1] else len(profile)
        edges = np.linspace(0, 1, len(profile) + 1)
        look: dict[str, Any] = {"color": colour, "linewidth": width, "label": f"$L = {depth}$"}
        plotting.draw_steps(panel, edges, profile[:, None], **look)
    title = f"weights over depth, start {name}, time {course.times[-1]:g}"
    plotting.tidy(panel, "depth $k/L$", "one entry of $V_k$", title)
    panel.legend(frameon=False, fontsize=9)


def _powers(panel: Axes) -> None:
    """Logarithmic axes with powers of two below."""
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")


#: by file name
FIGURES = {"large_depth": large_depth}
