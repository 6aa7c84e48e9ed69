"""The figures of the experiment `regularization`: the penalty on the plane and by rate, and the trainings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kolmo import plotting
from kolmo.experiments.optima import METHODS, excess
from kolmo.experiments.regularization import Regularization
from kolmo.experiments.remainder import SIGMAS, Forms, slope
from kolmo.plotting import CLASS_COLOURS, CLASS_MARKERS, tidy

#: trainings: Okabe and Ito's colours, markers and dashes, and what they minimise
LOOKS: dict[str, dict[str, Any]] = {
    "explicit": {"color": "#009E73", "marker": "s", "linestyle": "-", "label": "explicit penalty $J_0 + R$"},
    "exact": {"color": "#000000", "marker": "o", "linestyle": ":", "label": "exact recursion"},
    "control": {"color": "#0072B2", "marker": "^", "linestyle": "--", "label": "Kolmogorov equation"},
    "stochastic": {"color": "#D55E00", "marker": "v", "linestyle": "-.", "label": "random masks (Adam)"},
}
#: per cent of the objective below which its axis is linear
_LINEAR = 0.01
_RED, _GREEN, _BLUE = "#D55E00", "#009E73", "#0072B2"
#: from white to dark violet, which neither class has
_SHADES = LinearSegmentedColormap.from_list("penalty", ["#FFFFFF", "#D9C9E8", "#8E63B0", "#3A1259"], N=64)


def penalty(study: Regularization) -> Figure | None:
    """Where dropout acts, what it adds to the loss against q R, and what q R leaves; None without rates."""
    if study.forms is None or study.mesh is None or not study.rates:
        return None
    figure = plotting.new_figure(13.0, 4.9)
    grid = figure.add_gridspec(2, 3, width_ratios=[1.15, 1, 1], height_ratios=[1.4, 1])
    _density(figure.add_subplot(grid[:, 0]), study)
    top, bottom = (figure.add_subplot(grid[row, 1]) for row in (0, 1))
    bottom.sharex(top)
    _by_rate(top, bottom, study, study.forms)
    _remainders(figure.add_subplot(grid[:, 2]), study, study.forms)
    return figure


def _density(panel: Axes, study: Regularization) -> None:
    """The mesh's nodal contributions per volume, with the data and the decision boundary."""
    assert study.mesh is not None and study.network is not None
    nodal = study.mesh.nodal / study.mesh.space.lumped_mass
    axes, density = plotting.node_grid(study.mesh.space.coefficient_points, nodal)
    # transported point masses oscillate from node to node: means over a few cells, whose sum is the same
    density = plotting.smooth(plotting.smooth(density, len(axes)), len(axes))
    points, labels = study.data.points.numpy(), study.data.labels.numpy()
    if len(axes) == 1:
        panel.fill_between(axes[0], density, color="#8E63B0", alpha=0.6, linewidth=0)
        for label in (0, 1):
            here = points[labels == label, 0]
            look: dict[str, Any] = {"marker": CLASS_MARKERS[label], "color": CLASS_COLOURS[label]}
            panel.plot(here, np.zeros_like(here), linestyle="", markersize=5, label=f"class {label}", **look)
        tidy(panel, "$x$", "density of $R$, keep 0.5", "where dropout acts")
        panel.legend(frameon=False, fontsize=9)
        return
    top = float(np.quantile(density, 0.999))
    plotting.draw_map(panel, axes, density, _SHADES, Normalize(0, top))
    reach = 1.12 * float(np.abs(points).max())
    line = np.linspace(-reach, reach, 161)
    with torch.no_grad():
        score = study.network(torch.from_numpy(plotting.in_plane([line, line], 2)))[..., 0].numpy()
    if score.min() < 0 < score.max():
        panel.contour(line, line, score.T, levels=[0.0], colors="black", linewidths=1.5)
    for label in (0, 1):
        here = points[labels == label]
        panel.scatter(
            here[:, 0], here[:, 1], s=13, marker=CLASS_MARKERS[label], color=CLASS_COLOURS[label],
            edgecolors="white", linewidths=0.4, label=f"class {label}", zorder=3,
        )  # fmt: skip
    panel.plot([], [], color="black", linewidth=1.5, label="decision")
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    panel.set_title("where dropout acts: density of $R$, keep 0.5", fontsize=11)
    panel.legend(loc="upper right", fontsize=8, framealpha=0.85, handletextpad=0.3, borderpad=0.3)
    bar = panel.figure.colorbar(
        ScalarMappable(Normalize(0, top), _SHADES), ax=panel, extend="max", shrink=0.8
    )
    bar.set_label(r"$\int \sum_y \rho_y\; a : \nabla^2 u_y / 2 \; dt$, loss per area", fontsize=9)


def _by_rate(top: Axes, bottom: Axes, study: Regularization, forms: Forms) -> None:
    """J - J_0 by three estimators and q R, then all relative to q R along the paths."""
    q = np.array([rate.rate for rate in study.rates])
    line = np.geomspace(q.min(), q.max(), 50)
    exact, chain, error, equation = (
        np.array([getattr(rate, name) for rate in study.rates])
        for name in ("exact", "chain", "standard_error", "equation")
    )
    for panel, scale in ((top, 1.0), (bottom, None)):
        unit = q * forms.path / 100 if scale is None else scale
        shift = 100.0 if scale is None else 0.0
        look: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1, "markersize": 5, "markerfacecolor": "white"}
        text = f"chain, {SIGMAS:g} standard errors"
        panel.errorbar(
            q, chain / unit - shift, yerr=SIGMAS * error / unit, fmt="v", color=_RED, label=text, **look
        )
        panel.plot(q, equation / unit - shift, "^", color=_BLUE, markersize=6, label="Kolmogorov equation")
        panel.plot(q, exact / unit - shift, "o", color="black", markersize=4, label="exact recursion")
    top.plot(line, line * forms.path, color=_GREEN, linewidth=1.6, label="$qR$ along the paths", zorder=1)
    bottom.axhline(0, color=_GREEN, linewidth=1.6, zorder=1)
    for value, dash, text in ((forms.flow, "--", "$R$ along the flow"), (forms.mesh, ":", "$R$ on the mesh")):
        bottom.axhline(
            100 * (value / forms.path - 1), color="0.35", linestyle=dash, linewidth=1.2, label=text
        )
    for panel in (top, bottom):
        panel.set_xscale("log")
    top.set_yscale("log")
    tidy(top, "", "$J(q) - J_0$", "what dropout adds to the loss")
    top.tick_params(labelbottom=False)
    tidy(bottom, "$q = (1-p)/p$", "over $qR$, %")
    top.legend(frameon=False, fontsize=8.5)
    lines = [line for line in bottom.get_lines() if str(line.get_label()).startswith("$R$")]
    bottom.legend(handles=lines, frameon=False, fontsize=8.5, ncols=2, loc="lower left")
    low, high = bottom.get_ylim()
    bottom.set_ylim(low - 0.25 * (high - low), high)


def _remainders(panel: Axes, study: Regularization, forms: Forms) -> None:
    """|J - J_0 - q R| over q, with fitted slopes."""
    small = [rate for rate in study.rates if rate.rate <= study.plan.small]
    q = np.array([rate.rate for rate in study.rates])
    for value, words, line, colour in (
        (forms.path, "$R$ along the paths (curvature)", "s-", _GREEN),
        (forms.mask, "$R$ by single masks", "o--", "black"),
    ):
        left = np.array([rate.remainder(value) for rate in study.rates])
        text = f"{words}: slope {slope(small, value):.2f}"
        panel.plot(q, left, line, color=colour, markersize=5, markerfacecolor="white", label=text)
    least = small[0]
    guide = np.array([least.rate, study.plan.small])
    start = 0.45 * least.remainder(forms.mask)
    panel.plot(guide, start * (guide / guide[0]) ** 2, color="0.5", linewidth=1, label="slope 2")
    panel.set_xscale("log")
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** 0.22)  # room for the legend
    title = f"what $qR$ leaves (slopes: $q \\leq {study.plan.small:g}$)"
    tidy(panel, "$q = (1-p)/p$", "$|J(q) - J_0 - qR|$", title)
    panel.legend(frameon=False, fontsize=8.5)


def optima(study: Regularization) -> Figure | None:
    """The excess objective of each training against the rate of dropout; None without trainings."""
    if not study.optima:
        return None
    figure = plotting.new_figure(7.2, 4.4)
    panel = figure.subplots()
    for method in METHODS:
        points = [
            ((1 - keep) / keep, 100 * excess(found, method))
            for keep, found in sorted(study.optima.items(), reverse=True)
            if method in found
        ]
        if points:
            look: dict[str, Any] = {**LOOKS[method], "markerfacecolor": "white", "markersize": 6}
            panel.plot(*np.array(points).T, linewidth=1.6, **look)
    panel.set_xscale("log")
    # the best one has no excess: linear below a hundredth of a per cent
    panel.set_yscale("symlog", linthresh=_LINEAR, linscale=0.4)
    panel.set_ylim(-0.25 * _LINEAR, 1.4 * panel.get_ylim()[1])
    keeps = sorted(study.optima)
    panel.set_xticks([(1 - keep) / keep for keep in keeps], [f"{keep:g}" for keep in keeps], minor=False)
    panel.set_xticks([], minor=True)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    title = f"training for noise four ways, {study.plan.depth} layers"
    tidy(
        panel,
        "keep probability $p$, rate $q = (1-p)/p$ on a log scale",
        "excess of $J$ + penalties, %",
        title,
    )
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


#: by file name
FIGURES = {"penalty": penalty, "optima": optima}
