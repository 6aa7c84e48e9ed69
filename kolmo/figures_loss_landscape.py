"""Figures of the loss landscape: maps with noise and without, the line between optima, sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MultipleLocator, NullLocator

from kolmo import plotting
from kolmo.experiments.landscape_found import MEASURES, RADII
from kolmo.experiments.loss_landscape import LossLandscape
from kolmo.experiments.sharpness import Ratio
from kolmo.experiments.two_optima import BOTH, Map

#: of J without noise and with: in Okabe and Ito's colours
_PLAIN, _NOISY = "#009E73", "#D55E00"
_OPTIMA: dict[str, dict[str, Any]] = {
    "plain": {"marker": "o", "color": _PLAIN, "markersize": 10, "label": "optimum without noise"},
    "noisy": {"marker": "*", "color": _NOISY, "markersize": 16, "label": "optimum with noise"},
}
#: minima of a map: rings that leave what they surround to be seen
_MINIMUM: dict[str, Any] = {"marker": "o", "markersize": 17, "markerfacecolor": "none", "linestyle": ""}
#: contour lines of a column of maps, every third one labelled
_LEVELS, _LABELLED = 19, 3


def landscape(study: LossLandscape) -> Figure | None:
    """Both objectives over every plane, above each other on one scale; None without any plane."""
    if not study.found.maps:
        return None
    figure = plotting.new_figure(4.2 * len(study.found.maps) + 0.6, 9.0)
    figure.set_layout_engine("constrained", w_pad=0.1)
    panels = figure.subplots(2, len(study.found.maps), sharex="col", sharey="col", squeeze=False)
    for column, found in enumerate(study.found.maps):
        levels = _levels(found)
        for row in (0, 1):
            _map(panels[row, column], found, bool(row), levels)
        panels[0, column].set_title(found.title, fontsize=11)
        norm = BoundaryNorm(levels, plotting.VALUES.N)
        bar = figure.colorbar(
            ScalarMappable(norm, plotting.VALUES), ax=list(panels[:, column]), location="bottom",
            extend="max", spacing="uniform", aspect=28, pad=0.02, shrink=0.92,
        )  # fmt: skip
        ticks = levels[::_LABELLED].tolist()
        bar.set_ticks(ticks, labels=[f"{level:.3g}" for level in ticks])
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.set_label("$J$ + penalties", fontsize=9)
    for row, name in enumerate(("without noise", "with noise")):
        panels[row, 0].annotate(
            name, (-0.27, 0.5), xycoords="axes fraction", rotation=90, ha="center", va="center", fontsize=12
        )
    refused = any(found.noisy.refused for found in study.found.maps)
    figure.legend(handles=_legend(refused), loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    return figure


def _levels(found: Map) -> np.ndarray:
    """Log-spaced, shared by both maps of a plane; the highest values are beyond."""
    values = np.concatenate([found.plain.values.ravel(), found.noisy.values.ravel()])
    return np.geomspace(float(np.nanmin(values)), float(np.nanquantile(values, 0.97)), _LEVELS)


def _map(panel: Axes, found: Map, noise: bool, levels: np.ndarray) -> None:
    """One objective over one plane: refused weights hatched, optima and the map's own minima marked."""
    surface, lowest = (found.noisy, found.noisy_minima) if noise else (found.plain, found.plain_minima)
    plane, values = found.plane, np.ma.masked_invalid(surface.values.T)
    panel.set_facecolor("0.93")
    panel.patch.set(hatch="///", edgecolor="0.7")
    norm = BoundaryNorm(levels, plotting.VALUES.N)
    look: dict[str, Any] = {"levels": levels, "norm": norm, "extend": "max"}
    panel.contourf(plane.first, plane.second, values, cmap=plotting.VALUES, **look)
    # white on the dark half of the colours, dark on the other
    shades = ["white" if k < 0.6 * len(levels) else "0.2" for k in range(1, len(levels))]
    lines = panel.contour(plane.first, plane.second, values, levels[1:], colors=shades, linewidths=0.7)
    panel.clabel(lines, levels[_LABELLED::_LABELLED], fontsize=7.5, fmt=lambda level: f"{level:.3g}")
    if found.title == BOTH:
        panel.plot([0, 1], [0, 0], color="white", linewidth=1.2, linestyle=(0, (4, 3)))
    for name, at in found.optima.items():
        panel.plot(*at, linestyle="", markeredgecolor="white", markeredgewidth=1.0, **_OPTIMA[name])
    for minimum in lowest:
        panel.plot(*minimum.at, color="white", markeredgewidth=3.4, **_MINIMUM)
        panel.plot(*minimum.at, color="black", markeredgewidth=1.6, **_MINIMUM)
    words = (
        ("from one optimum to the other", "across") if found.title == BOTH else ("direction 1", "direction 2")
    )
    panel.set_xlabel(words[0] if noise else "")
    panel.set_ylabel(words[1])
    panel.set(xlim=plane.first[[0, -1]], ylim=plane.second[[0, -1]], aspect="equal")
    panel.xaxis.set_major_locator(MultipleLocator(0.5))
    panel.yaxis.set_major_locator(MultipleLocator(0.5))
    panel.tick_params(labelsize=9)


def _legend(refused: bool) -> list[Any]:
    edge = {"linestyle": "", "markeredgecolor": "white", "markeredgewidth": 1.0}
    handles: list[Any] = [Line2D([], [], **{**edge, **look}) for look in _OPTIMA.values()]
    ring = {**_MINIMUM, "markersize": 12, "color": "black", "markeredgewidth": 1.6}
    handles.append(Line2D([], [], **ring, label="minimum of the map"))
    if refused:
        handles.append(Patch(facecolor="0.93", edgecolor="0.7", hatch="///", label="refused by the equation"))
    return handles


def line(study: LossLandscape) -> Figure | None:
    """Both objectives along the line between the optima, and what the noise costs there; None without it."""
    found = study.found.line
    if found is None:
        return None
    figure = plotting.new_figure(10.0, 4.2)
    left, right = figure.subplots(1, 2)
    left.plot(found.s, found.noisy, color=_NOISY, linewidth=1.8, label="with noise")
    left.plot(found.s, found.plain, color=_PLAIN, linewidth=1.8, linestyle="--", label="without noise")
    for name, s in (("plain", 0.0), ("noisy", 1.0)):
        values = getattr(found, name)
        at = float(np.interp(s, found.s, values))
        left.plot(s, at, linestyle="", markeredgecolor="white", zorder=3, **_OPTIMA[name])
    plotting.tidy(left, "", "$J$ + penalties", "the two objectives")
    left.legend(frameon=False, fontsize=9)
    right.plot(found.s, found.noisy - found.plain, color="black", linewidth=1.8)
    plotting.tidy(right, "", "$J$ with noise $-$ $J$ without", "what the noise costs")
    right.set_ylim(bottom=0)
    for panel in (left, right):
        panel.set_xticks(
            [-0.5, 0, 0.5, 1, 1.5], ["-0.5", "0\noptimum\nwithout", "0.5", "1\noptimum\nwith noise", "1.5"]
        )
        panel.set_xlim(found.s[0], found.s[-1])
    return figure


def sharpness(study: LossLandscape) -> Figure | None:
    """Spectra of the first start, average increase, and ratios of all starts; None without spectra."""
    if study.found.spectra is None or not study.found.starts:
        return None
    figure = plotting.new_figure(14.0, 4.5)
    spectra, increase, ratios = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    _spectra(spectra, study)
    _increase(increase, study)
    _ratios(ratios, study)
    return figure


def _spectra(panel: Axes, study: LossLandscape) -> None:
    found = study.found.spectra
    assert found is not None
    number = np.arange(1, len(found.noisy) + 1)
    for values, look, text in (
        (found.plain_at_plain, (_PLAIN, "o", "--"), "without noise, at the optimum without"),
        (found.plain_at_noisy, ("black", "s", ":"), "without noise, at the optimum with"),
        (found.noisy, (_NOISY, "^", "-"), "with noise, at the optimum with"),
    ):
        colour, marker, dash = look
        drawn: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 6}
        panel.plot(number, np.abs(values), markerfacecolor="white", label=text, **drawn)
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(list(number)))
    plotting.tidy(
        panel, "number", "eigenvalue, modulus", f"Hessian of $J$, seed {study.found.starts[0].seed}"
    )
    panel.legend(frameon=False, fontsize=8.5)


def _increase(panel: Axes, study: LossLandscape) -> None:
    """Of all starts and their geometric means, over r^2 / 2: at r = 0 it is the filter-normalised trace."""
    radii = np.array([0.0, *RADII])
    for index, (colour, dash, text) in enumerate(
        ((_PLAIN, "--", "at the optimum without noise"), (_NOISY, "-", "at the optimum with noise"))
    ):
        found = [start.sharpness[index] for start in study.found.starts]
        bends = np.array([[at.filtered, *(2 * at.increase / radii[1:] ** 2)] for at in found])
        panel.plot(radii, bends.T, dash, color=colour, linewidth=0.7, alpha=0.5)
        middle = np.exp(np.log(bends).mean(axis=0))
        panel.plot(radii, middle, dash, color=colour, linewidth=2.2, marker="o", markersize=4, label=text)
    panel.set_ylim(bottom=0)
    panel.set_xticks(radii, [f"{r:g}" for r in radii])
    title = "along filter-normalised directions, mean"
    plotting.tidy(
        panel, "radius $r$, 1: as long as the weights", "increase of $J$ without noise / $(r^2/2)$", title
    )
    panel.legend(frameon=False, fontsize=8.5)


def _ratios(panel: Axes, study: LossLandscape) -> None:
    """Optimum with noise over optimum without: every start, the geometric mean and its interval."""
    rows: list[tuple[str, np.ndarray]] = [
        (words, study.found.ratios(name)) for name, words in MEASURES.items()
    ]
    rises = np.array([[at.increase[-1] for at in start.sharpness] for start in study.found.starts])
    rows.append((f"mean increase, $r = {RADII[-1]:g}$", rises[:, 1] / rises[:, 0]))
    for place, (_, ratios) in enumerate(rows):
        spread = np.linspace(-0.16, 0.16, len(ratios)) if len(ratios) > 1 else np.zeros(1)
        panel.plot(ratios, place + spread, "o", color="0.6", markersize=4)
        if len(ratios) > 1:
            found = Ratio.of(ratios, study.found.confidence)
            panel.plot([found.low, found.high], [place, place], color="black", linewidth=2.2)
            panel.plot(found.mean, place, "D", color="black", markersize=6)
    panel.axvline(1, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if low <= t <= high]
    panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_yticks(range(len(rows)), [words for words, _ in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    title = f"sharpness of $J$ without noise, {len(study.found.starts)} starts"
    text = f"optimum with noise over optimum without, {study.found.confidence:.0%} interval"
    plotting.tidy(panel, text, "", title)


FIGURES = {"landscape": landscape, "line": line, "sharpness": sharpness}
