"""Figures of dropout on images: bias and variance against the step, test errors by place and rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from kolmo import plotting
from kolmo.experiments.image_dropout import ImageDropout
from kolmo.images.placement import PLACEMENTS

#: by place: colour and marker, told apart with any colour vision
_LOOKS = {
    "none": ("0.35", "x"),
    "output": ("#0072B2", "o"),
    "hidden": ("#56B4E9", "s"),
    "between": ("#D55E00", "^"),
    "before": ("#E69F00", "v"),
    "stochastic_depth": ("#009E73", "D"),
    "shake_shake": ("#CC79A7", "P"),
}


def orders(study: ImageDropout) -> Figure | None:
    """Bias and variance of each place against the number of layers; None without any."""
    if not any(study.weak.values()):
        return None
    figure = plotting.new_figure(8.6, 4.3)
    left, right = figure.subplots(1, 2)
    depths = np.array(study.depths, dtype=float)
    for index, (place, found) in enumerate((p, m) for p, m in study.weak.items() if m):
        colour, marker = _LOOKS[place]
        # some coincide: the first ones are larger, hollow, and show around the others
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 10 - index}
        look |= {"markerfacecolor": "none", "markeredgewidth": 1.3, "linewidth": 1.2}
        at = list(found)
        bias, deviation = (np.array([getattr(m, n) for m in found.values()]) for n in ("bias", "deviation"))
        left.plot(at, bias, label=PLACEMENTS[place].title, **look)
        right.plot(at, deviation**2, **look)
    for panel in (left, right):
        _guide(panel, depths)
    unit = "$|X_L - X_0|$"
    plotting.tidy(left, "layers $L = 1/h$", f"in units of {unit}", "mean of $X_L$, distance from noise off")
    plotting.tidy(right, "layers $L = 1/h$", f"in units of {unit}$^2$", "variance of $X_L$")
    for panel in (left, right):
        panel.set(xscale="log", yscale="log")
        panel.xaxis.set_major_locator(FixedLocator(list(depths)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _guide(panel: Axes, depths: np.ndarray) -> None:
    """A line of slope 1 in h below everything."""
    low = min(float(np.min(np.asarray(line.get_ydata(), dtype=float))) for line in panel.lines)
    guide = 0.6 * low * depths[-1] / depths
    panel.plot(depths, guide, color="0.55", linewidth=1, linestyle=(0, (4, 3)), label="slope of $h$")


def errors(study: ImageDropout) -> Figure | None:
    """Test error of every training, means and intervals, by place and rate; None without any training."""
    rows = [p for p in study.plans if study.trainings.get((p.placement, p.rate))]
    if not rows:
        return None
    figure = plotting.new_figure(7.4, 0.36 * len(rows) + 1.3)
    panel = figure.subplots()
    for k, plan in enumerate(rows):
        colour, marker = _LOOKS[plan.placement]
        values = 100 * study.values(plan.placement, plan.rate, "test_error")
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        panel.plot(values, k + spread, ".", color=colour, alpha=0.55, markersize=5)
        half = study.half(values)
        error = None if np.isnan(half) else [half]
        panel.errorbar(
            values.mean(), k, xerr=error, fmt=marker, color=colour, markersize=7, capsize=4, elinewidth=1.5
        )
    names = [PLACEMENTS[p.placement].title + (f", {p.rate:g}" if p.rate else "") for p in rows]
    panel.set_yticks(range(len(rows)), names)
    panel.invert_yaxis()
    confidence = f"{study.confidence:.0%} intervals over {study.settings.seeds} seeds"
    title = f"{study.settings.architecture}-{study.settings.depth} on {study.settings.data}: {confidence}"
    plotting.tidy(panel, "test error, %", "", title)
    panel.set_xlim(left=0)
    return figure


#: by file name
FIGURES: dict[str, Callable[[ImageDropout], Figure | None]] = {
    "image_orders": orders,
    "image_errors": errors,
}
