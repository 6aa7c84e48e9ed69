"""Figures of chosen noise: schedules over the layers, and what each way to choose is worth on test points."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.experiments.noise_design import WAYS, NoiseDesign
from kolmo.experiments.noise_design_draw import LEAST, MOST

#: by way: colour, marker and line
_LOOKS = {
    "none": ("0.35", "x", "-"),
    "own": ("0.6", "v", ":"),
    "constant": ("#E69F00", "s", "--"),
    "decay": ("#009E73", "D", "-."),
    "line": ("#CC79A7", "^", "--"),
    "descent:constant": ("#E69F00", "o", "--"),
    "descent:line": ("#CC79A7", "o", "--"),
    "descent:layers": ("#0072B2", "o", "-"),
}
#: means that are drawn over the layers, and what they are called
_SCHEDULES = {
    "constant": "best constant of a grid",
    "decay": "best linear decay of a grid",
    "descent:layers": "every layer, by descent",
}


def schedules(study: NoiseDesign) -> Figure | None:
    """Keep probabilities over the layers, a panel for each set; None without two draws of one."""
    names = [name for name in study.plan.sets if len(study.draws(name)) > 1]
    if not names:
        return None
    figure = plotting.new_figure(2.5 * len(names) + 0.8, 3.6)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _means(panel, study, name)
        plotting.tidy(panel, "layer", "", f"{name}, {len(study.draws(name))} draws")
    panels[0].set_ylabel("keep probability")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(names) < 4 else 4,
        frameon=False,
        fontsize=9,
    )
    return figure


def _means(panel: Axes, study: NoiseDesign, name: str) -> None:
    """Every draw's schedule by descent, thin, and means of the three families."""
    draws = study.draws(name)
    layers = np.arange(len(draws[0]["constant"].strengths)) + 1
    colour = _LOOKS["descent:layers"][0]
    for number, draw in enumerate(draws):
        label = "... of each draw" if number == 0 else None
        values = draw["descent:layers"].strengths
        panel.plot(layers, values, color=colour, linewidth=0.7, alpha=0.4, label=label)
    for way, label in _SCHEDULES.items():
        mean = np.mean([draw[way].strengths for draw in draws], axis=0)
        colour, marker, dash = _LOOKS[way]
        panel.plot(
            layers,
            mean,
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=4.5,
            linewidth=2,
            label=label,
        )
    for bound in (LEAST, MOST):
        panel.axhline(bound, color="0.5", linewidth=0.8, linestyle=":")
    panel.set_xticks(layers)


def losses(study: NoiseDesign) -> Figure | None:
    """Test loss less that without noise, by way and set, with 95% intervals; None without two draws."""
    names: list[str | None] = [name for name in study.plan.sets if len(study.draws(name)) > 1]
    if not names:
        return None
    if len(names) > 1:
        names.append(None)
    figure = plotting.new_figure(2.0 * len(names) + 1.6, 3.6)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    ways = [way for way in WAYS if way != "none"]
    for panel, name in zip(panels, names, strict=True):
        for place, way in enumerate(ways):
            gain = study.gain(way, "none", name=name)
            colour, marker, _ = _LOOKS[way]
            panel.errorbar(
                gain.value, place, xerr=gain.half, color=colour, marker=marker, markersize=5, capsize=2.5
            )
        panel.locator_params(axis="x", nbins=4)
        panel.axvline(0, color="0.35", linewidth=0.9)
        plotting.tidy(panel, "", "", "all sets" if name is None else name)
    panels[0].set_yticks(range(len(ways)), [WAYS[way].replace("*", ", descent") for way in ways])
    panels[0].invert_yaxis()
    figure.supxlabel("test loss less that without noise, mean over draws and 95% interval", fontsize=10)
    return figure


#: by file name
FIGURES = {"schedules": schedules, "losses": losses}
