"""Figures of the architectures: orders, LM-ResNet's modified equation, stochastic depth, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from kolmo import plotting
from kolmo.experiments import architectures_modified
from kolmo.experiments.architectures import Architectures
from kolmo.experiments.architectures_images import MULTISTEP, PLAIN
from kolmo.experiments.architectures_part import fitted_order

#: Okabe and Ito's colours with a marker each
_LOOKS = (
    ("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "v"),
    ("#000000", "P"),
)  # fmt: skip
#: panels in a row
_COLUMNS = 3
#: k of the first layers that are shown, how many, and of how deep a network
_SHOWN, _FIRST, _DEPTH = (-0.5, 0.5, 0.9, 1.0), 30, 96

Errors = Mapping[str, Sequence[float]]


def orders(study: Architectures) -> Figure | None:
    """Errors of every architecture against the number of layers; None without all of them."""
    part = study.orders
    if not part.finished:
        return None
    figure = plotting.new_figure(10.4, 5.2)
    panels = list(figure.subplots(1, 2, sharex=True, sharey=True))
    rows = [row for row in part.rows if row.order is not None and row.equation != "backward Euler"]
    groups = {
        "one step: a layer sees the last one": [row.title for row in rows if not row.title.startswith("LM")],
        "two steps: a layer sees the last two": [row.title for row in rows if row.title.startswith("LM")],
    }
    for panel, (title, names) in zip(panels, groups.items(), strict=True):
        _errors(panel, part.depths, {name: part.errors[name] for name in names}, title)
        # slopes last
        pairs = sorted(
            zip(*panel.get_legend_handles_labels(), strict=True), key=lambda pair: pair[1].startswith("slope")
        )
        look: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "loc": "lower left"}
        panel.legend(*zip(*pairs, strict=True), title="fitted order", alignment="left", **look)
    _label(panels, 2, "largest error of a feature")
    _ticks(panels[0], part.depths)
    return figure


def modified_equation(study: Architectures) -> Figure | None:
    """Differences of LM-ResNet from its limit, its modified equation and a deeper ResNet, one panel a k."""
    names = {
        "limit": "$(1+k) x' = f$",
        "modified": "modified equation",
        "deeper": "ResNet, $(1+k)/(1-k)$ layers",
    }
    part = study.modified
    return _by_k(part.errors, part.depths, names, "largest difference of a feature")


def stochastic_depth(study: Architectures) -> Figure | None:
    """Differences in E x x^T of LM-ResNet under stochastic depth, one panel a k."""
    names = {
        "modified": "modified equation",
        "deeper": "ResNet, $(1+k)/(1-k)$ layers and variance",
        "first": "without $x''$",
        "quiet": "without noise",
        "late": "without head start",
    }
    part = study.depth
    errors = {f"k = {k}": found for k, found in part.errors.items()}
    return _by_k(errors, part.depths, names, "difference of $E\\,x x^T$")


def first_layers(study: Architectures) -> Figure | None:
    """Increments of the first layers beside the limit's velocity; None before the modified equations."""
    part = study.modified
    if not part.finished:
        return None
    figure = plotting.new_figure(11.0, 3.2)
    panels = list(figure.subplots(1, len(_SHOWN)))
    for panel, k in zip(panels, _SHOWN, strict=True):
        states = part.states(k, _DEPTH)
        moved = architectures_modified.increments(states, 1 / _DEPTH)[:_FIRST, 0, 0]
        layers = np.arange(_FIRST)
        limit = [part.field(x, n / _DEPTH)[0, 0] / (1 + k) for n, x in enumerate(states[:_FIRST])]
        # the network's own features, so that only what oscillates tells the two apart
        panel.plot(layers, limit, color="0.55", linewidth=1.5, label="$f(x_n)/(1+k)$")
        panel.plot(layers, moved, "o", color="#0072B2", markersize=3.5, label="$(x_{n+1}-x_n)/h$")
        plotting.tidy(panel, "layer $n$", "", f"$k = {k:g}$")
    panels[0].set_ylabel("velocity of a feature")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def images(study: Architectures) -> Figure | None:
    """Test errors against the number of parameters; None before the trainings are done."""
    part = study.images
    if not part.finished:
        return None
    figure = plotting.new_figure(7.4, 4.4)
    panel = figure.subplots()
    groups = {**part.compared, **{plan.architecture: [plan] for plan in part.others}}
    for (name, plans), (colour, marker) in zip(groups.items(), _LOOKS, strict=True):
        at = np.array([part.found[plan][0].parameters for plan in plans]) / 1e3
        errors = [100 * part.errors(plan) for plan in plans]
        # two of the same depth have nearly as many parameters: one stands a little to the right
        shift = 1.02 if name == MULTISTEP else 1.0
        half = [part.half(found) for found in errors]
        means = [found.mean() for found in errors]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 7, "markerfacecolor": "none"}
        panel.errorbar(shift * at, means, yerr=half, label=name, linewidth=1.2, capsize=3, **look)
    for plan in part.compared[PLAIN]:
        beside = part.found[plan][0].parameters / 1e3
        panel.annotate(
            str(plan.depth), (beside, 0), xycoords=("data", "axes fraction"), xytext=(0, 4), ha="center",
            fontsize=8, textcoords="offset points", color="0.35",
        )  # fmt: skip
    title = f"{part.settings.data}, {part.seeds} seeds, 95% intervals (below: layers of ResNet)"
    plotting.tidy(panel, "parameters, thousands", "test error, %", title)
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=9)
    return figure


def _by_k(
    errors: Mapping[str, Errors], depths: Sequence[int], names: Mapping[str, str], label: str
) -> Figure | None:
    """A panel for each k, lines by `names`; None without any."""
    if not errors:
        return None
    columns = min(_COLUMNS, len(errors))
    rows = -(-len(errors) // columns)
    figure = plotting.new_figure(3.1 * columns + 0.7, 2.8 * rows + 0.9)
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for panel, (title, found) in zip(panels, errors.items(), strict=False):
        shown = {name: found[name] for name in names if name in found}
        _errors(panel, depths, shown, f"${title}$" if "to" not in title else title, names)
    used = panels[: len(errors)]
    for panel in panels[len(errors) :]:
        panel.set_axis_off()
    _label(used, columns, label)
    _ticks(used[0], depths)
    looks: dict[str, Any] = {}
    for panel in used:
        looks.update(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    slopes = {name: looks[name] for name in looks if name.startswith("slope")}
    drawn = {title: looks[title] for title in names.values() if title in looks}
    both = {**drawn, **slopes}
    figure.legend(
        list(both.values()), list(both), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def _errors(
    panel: Axes, depths: Sequence[int], errors: Errors, title: str, names: Mapping[str, str] | None = None
) -> None:
    """Errors over depth by name, and lines of slope 1 and 2 below the first of each order.

    names: what the legend calls them, whose place in it gives the look; by default as they are, with the
    fitted order.
    """
    plotting.tidy(panel, "", "", title)
    L = np.array(depths, dtype=float)
    drawn: set[int] = set()
    for index, (name, found) in enumerate(errors.items()):
        slope = fitted_order(depths, found)
        place = index if names is None else list(names).index(name)
        colour, marker = _LOOKS[place]
        label = f"{name}: {slope:.2f}" if names is None else names[name]
        # some coincide: the first ones are larger, hollow, and show around the others
        look: dict[str, Any] = {"marker": marker, "markersize": 9 - place, "markerfacecolor": "none"}
        panel.plot(L, found, color=colour, linewidth=1.2, label=label, **look)
        order = round(slope)
        if order not in drawn:
            drawn.add(order)
            line = 0.5 * found[-1] * (L / L[-1]) ** -order
            dashes = (0, (4, 3)) if order == 1 else (0, (1, 2))
            text = "slope of $h$" if order == 1 else f"slope of $h^{order}$"
            panel.plot(L, line, color="0.6", linewidth=1, linestyle=dashes, label=text)


def _label(panels: Sequence[Axes], columns: int, label: str) -> None:
    for index, panel in enumerate(panels):
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("layers $L$" if index + columns >= len(panels) else "")
        panel.set_ylabel(label if index % columns == 0 else "")


def _ticks(panel: Axes, depths: Sequence[int]) -> None:
    """Logarithmic axes for all panels, which share them; the depths themselves are the ticks."""
    panel.set(xscale="log", yscale="log", xlim=(depths[0] / 1.3, depths[-1] * 1.3))
    panel.xaxis.set_major_locator(FixedLocator(list(depths)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(numticks=12))
    panel.yaxis.set_minor_formatter(NullFormatter())


#: by file name
FIGURES = {
    "orders": orders,
    "modified_equation": modified_equation,
    "first_layers": first_layers,
    "stochastic_depth": stochastic_depth,
    "images": images,
}
