"""Figures of the limit of deep noisy networks: distances to the equation's control, controls, the flow."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kolmo import plotting
from kolmo.experiments.depth_limit import DepthLimit
from kolmo.experiments.depth_optima import CASES, WIDTH
from kolmo.experiments.smooth_controls import steepness

#: by case: colour, marker and name
_LOOKS = {
    "factors": ("#0072B2", "o", "Gaussian factors, $h s^2$ fixed"),
    "injection": ("#009E73", "s", "Gaussian injection"),
    "fixed": ("#CC79A7", "D", "masks, $p$ fixed"),
    "masks": ("#D55E00", "^", "masks, $h (1-p)/p$ fixed: another limit"),
}
_STEPS = ((5, "#E69F00"), (20, "#56B4E9"))
_SLOPE: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 3))}
_DISTANCE = "$|\\theta^L - \\theta| / |\\theta|$"


def limit(study: DepthLimit) -> Figure | None:
    """Distances of trained weights over the depth, and weights over time; None without a limit."""
    if not study.limits:
        return None
    figure = plotting.new_figure(10.2, 4.9)
    left, right = figure.subplots(1, 2)
    for case in study.cases:
        found = study.distances(case)
        if not found:
            continue
        colour, marker, name = _LOOKS[case.name]
        depths, values = np.array(list(found), dtype=float), np.array(list(found.values()))
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "label": name}
        left.plot(depths, values, linestyle="-" if not case.converges else "none", linewidth=1, **look)
        if case.converges:
            left.plot(depths, values[-1] * depths[-1] / depths, color=colour, **_SLOPE)
    if study.finished:
        sampled = study.sampled()
        depths, (means, spreads) = np.array(list(sampled), dtype=float), np.array(list(sampled.values())).T
        left.errorbar(
            1.06 * depths, means, yerr=2 * spreads, fmt="x", color="black", markersize=6, capsize=2.5,
            linewidth=1, label="Gaussian factors, trained on fresh noise (bars: 2 std)",
        )  # fmt: skip
    left.plot([], [], color="0.4", label="slope of $h$", **_SLOPE)
    plotting.tidy(left, "layers $L$", _DISTANCE, "trained weights and the limit's control")
    _depth_axis(left, study.plan.depths)
    left.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    _controls(right, study)
    return figure


def _controls(panel: Axes, study: DepthLimit) -> None:
    """The entries of V of the first component: networks with Gaussian factors, and the equation's."""
    case = CASES[0]
    theta = study.limits[case.limit]
    first = slice(3 * WIDTH, 4 * WIDTH)
    for depth, colour in _STEPS:
        if depth in study.minima.get(case.name, {}):
            found = study.minima[case.name][depth].theta[:, first]
            edges, look = np.linspace(0, 1, depth + 1), {"color": colour, "linewidth": 1.8}
            plotting.draw_steps(panel, edges, found[:, :1], label=f"{depth} layers", **look)
            plotting.draw_steps(panel, edges, found[:, 1:], **look)
    times = (np.arange(len(theta)) + 0.5) / len(theta)
    panel.plot(times, theta[:, first], color="black", linewidth=1.1)
    panel.plot([], [], color="black", linewidth=1.1, label="Kolmogorov equation")
    plotting.tidy(panel, "$t$", "entries $V_{1j}(t)$", f"optimal controls, {_LOOKS[case.name][2]}")
    panel.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)


def flow(study: DepthLimit) -> Figure | None:
    """Distances along training and the Lipschitz constant in depth; None before the flow is done."""
    if study.flow is None:
        return None
    found = study.flow
    figure = plotting.new_figure(9.8, 3.9)
    left, right = figure.subplots(1, 2)
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(found.paths)))
    for shade, (depth, path), distances in zip(shades, found.paths.items(), found.distances().T, strict=True):
        look: dict[str, Any] = {"color": shade, "linewidth": 1.5, "label": f"{depth} layers"}
        left.plot(found.times[1:], distances, marker="o", markersize=4, **look)
        right.plot(found.times, [steepness(theta) for theta in path.theta], **look)
    limit_jumps = [steepness(theta) for theta in found.limit]
    right.plot(found.times, limit_jumps, color="black", linewidth=1.1, linestyle="--", label="equation")
    title = "networks against the equation along training"
    plotting.tidy(left, "training time", _DISTANCE, title)
    jump = "$L\\,\\max_k |\\theta_{k+1} - \\theta_k|$"
    plotting.tidy(right, "training time", jump, "Lipschitz constant in depth")
    left.set_yscale("log")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=9)
    return figure


def _depth_axis(panel: Axes, depths: tuple[int, ...]) -> None:
    """Logarithmic axes whose ticks are the depths."""
    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_major_locator(FixedLocator(depths))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())


#: by file name
FIGURES = {"limit": limit, "flow": flow}
