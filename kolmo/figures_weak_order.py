"""The figure of the weak orders: modelling errors over depth, one panel for each noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from kolmo import plotting
from kolmo.experiments.weak_order import ORDERS, Case, WeakOrder

#: by order: colour and marker
_LOOKS = {1: ("#0072B2", "o"), 2: ("#D55E00", "^")}
_COLUMNS = 5


def weak_order(study: WeakOrder) -> Figure | None:
    """|J_modified - J_exact| against L for both orders, and slopes 1 and 2; None without any point."""
    cases = [case for case in study.cases if study.points.get(case.title)]
    if not cases:
        return None
    columns = min(_COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    figure = plotting.new_figure(2.3 * columns + 0.7, 2.35 * rows + 0.9)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for index, (panel, case) in enumerate(zip(panels.flat, cases, strict=False)):
        _panel(panel, study, case)
        # ticks are shown in every row: the last one may not be full
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("layers $L$" if index >= (rows - 1) * columns else "")
        panel.set_ylabel("$|J_\\mathrm{modified} - J_\\mathrm{exact}|$" if index % columns == 0 else "")
    for panel in panels.flat[len(cases) :]:
        panel.set_axis_off()
    _axes(panels[0, 0], sorted({p.depth for case in cases for p in study.points[case.title]}))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5 if columns > 2 else 2, frameon=False, fontsize=10
    )
    return figure


def _panel(panel: Axes, study: WeakOrder, case: Case) -> None:
    """One noise: errors of both orders (hollow where not fitted), the numerical errors below, slopes."""
    points = study.points[case.title]
    depths = np.array([p.depth for p in points], dtype=float)
    plotting.tidy(panel, "", "", case.title)
    panel.title.set_fontsize(10)
    slopes = []
    for order in ORDERS:
        colour, marker = _LOOKS[order]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "none"}
        errors = np.array([p.error(order) for p in points])
        fitted = np.array([p.counts(order) for p in points])
        # through the deepest point, where the errors should have come to it
        line = errors[-1] * (depths / depths[-1]) ** -order
        name = "slope of $h$" if order == 1 else f"slope of $h^{order}$"
        panel.plot(depths, line, color=colour, linewidth=1, linestyle=(0, (4, 3)), label=name)
        panel.plot(depths[fitted], errors[fitted], label=f"order {order}", **look)
        panel.plot(depths[~fitted], errors[~fitted], markerfacecolor="white", **look)
        slopes.append(study.slope_text(case, order))
    numerical = [max(p.numerical(order) for order in ORDERS) for p in points]
    panel.plot(depths, numerical, "x", color="0.45", markersize=5, label="numerical error, estimated")
    note = f"slopes {' and '.join(slopes)}"
    panel.text(0.97, 0.95, note, transform=panel.transAxes, ha="right", va="top", fontsize=9)


def _axes(panel: Axes, depths: list[int]) -> None:
    """Logarithmic axes for all panels, which share them; the depths themselves are the ticks."""
    panel.set(xscale="log", yscale="log", xlim=(depths[0] / 1.3, depths[-1] * 1.3))
    panel.xaxis.set_major_locator(FixedLocator(depths))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(numticks=12))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylim(top=3 * panel.get_ylim()[1])


#: by file name
FIGURES = {"weak_order": weak_order}
