"""The error budgets of a run: one panel for each network, one bar for each source of error."""

from __future__ import annotations

from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.estimators import SOURCES
from kolmo.experiments.three_ways import METHODS
from kolmo.plotting import COLOURS

#: the shortest bar, relative to the longest: what is less does not matter
_DECADES = 1e-5


def errors(run: BinaryClassification) -> Figure | None:
    """Estimated errors of J_pde and J_chain by source, and how far the two values are apart."""
    measured = {name: run.measured[name] for name in METHODS if name in run.measured}
    if not measured:
        return None
    figure = plotting.new_figure(3.1 * len(measured) + 0.8, 3.4)
    panels = figure.subplots(1, len(measured), sharex=True, sharey=True, squeeze=False)[0]
    largest = max(max(_sizes(m).values()) for m in measured.values()) or 1.0
    for column, (panel, (name, m)) in enumerate(zip(panels, measured.items(), strict=True)):
        sizes = _sizes(m)
        shown = [max(sizes[source], 1e-2 * _DECADES * largest) for source in SOURCES]
        panel.barh(range(len(SOURCES)), shown, color=COLOURS[name], height=0.62)
        for row, source in enumerate(SOURCES):
            inside = sizes[source] > 1e-2 * largest
            panel.annotate(
                f"{sizes[source]:.0e}",
                (max(sizes[source], _DECADES * largest), row),
                xytext=(-4 if inside else 4, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=9,
                color="white" if inside else "0.2",
            )
        apart = abs(m["pde"]["value"] - m["chain"]["value"])
        panel.axvline(apart, color="0.25", linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        panel.set_xscale("log")
        panel.set_xlim(_DECADES * largest, 4 * largest)
        panel.set_yticks(range(len(SOURCES)), SOURCES)
        plotting.tidy(panel, "estimated error of $J$", "", name)
        panel.tick_params(labelleft=column == 0)
    panels[0].invert_yaxis()
    line = panels[0].lines[0]
    figure.legend(
        [line],
        [r"$|J_\mathrm{pde} - J_\mathrm{chain}|$"],
        loc="outside lower center",
        frameon=False,
        fontsize=10,
    )
    return figure


def _sizes(measured: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """The equation's errors, and the chain's sampling."""
    return {**measured["pde"]["error"], "sampling": measured["chain"]["error"]["sampling"]}
