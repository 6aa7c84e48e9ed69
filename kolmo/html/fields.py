"""The value function u(x, t) and the density rho(x, t) of the control network, a slider for the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bokeh.models import ColumnDataSource, FixedTicker, LinearColorMapper, LogColorMapper, Range1d

from kolmo import plotting
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.figures import control_solution
from kolmo.html.charts import Frames, add_bar, add_map, chart, legend, shades
from kolmo.html.page import Figure, Picture
from kolmo.html.tables import Table
from kolmo.pde.kolmogorov import Solution
from kolmo.plotting import CLASS_COLOURS, DENSITIES, VALUES

#: moments that the slider knows at most, both ends included
MOMENTS = 11
#: nodes a direction at most: a coarser grid of the same nodes is shown otherwise
_NODES = 65


def fields(run: BinaryClassification, stills: list[Picture]) -> tuple[Figure, Table] | None:
    """The charts, and what they show as numbers; None where no mesh takes the control network."""
    solution = control_solution(run)
    if solution is None:
        return None
    moments = np.unique(np.rint(np.linspace(0, len(solution.times) - 1, MOMENTS)).astype(int))
    axes, value = plotting.node_grid(solution.points, np.moveaxis(solution.value[moments], 0, 1))
    mass = np.moveaxis(solution.density[moments] / solution.lumped_mass[:, None], 0, 1)
    density = np.maximum(plotting.smooth(plotting.node_grid(solution.points, mass)[1], len(axes)), 0)
    frames, dim = Frames(solution.times[moments]), run.train.dim
    if dim == 1:
        charts = _curves(axes[0], value, density, frames)
    else:
        every = -(-len(axes[0]) // _NODES)
        coarse = (slice(None, None, every),) * len(axes)
        level = float(run.problem.loss(torch.zeros(1, dim, dtype=torch.float64), 0))
        charts = _maps([a[::every] for a in axes], value[coarse], density[coarse], frames, level)
    caption = (
        "At t = 0 the densities are the data, at t = T the value function is the loss itself. Training bends "
        "the flow so that each class is carried to where its own loss u is small. "
    )
    if dim > 1:
        caption += (
            "White line: where u equals the loss at x₁ = 0, the boundary of decision carried back in time. u "
            "has a logarithmic scale, clipped at its 5% and 95% quantiles; densities have a root scale, and "
            "are means over 2 cells. "
        )
    if dim > 2:
        caption += "Shown is the slice " + " = ".join(f"x{'₃₄₅'[i - 3]}" for i in range(3, dim + 1)) + " = 0."
    label = "Value function and density of the control network over depth, with a slider for the time"
    hint = (
        "A finger, the mouse or the arrow keys move the slider. The pictures are moved and zoomed together."
    )
    figure = Figure("fields", label, caption, charts, frames.slider, stills, least=15.5, hint=hint)
    return figure, _in_numbers(solution, moments)


def _maps(
    axes: list[np.ndarray], value: np.ndarray, density: np.ndarray, frames: Frames, level: float
) -> list[Any]:
    """u_0, u_1, rho_0, rho_1 as maps; arrays (n, n, moments, 2)."""
    low, high = np.quantile(value, [0.05, 0.95])
    values = LogColorMapper(shades(VALUES), low=max(low, 1e-3 * high), high=high)
    decades = FixedTicker(ticks=[10.0**k for k in range(-9, 10) if values.low <= 10.0**k <= values.high])
    top = plotting.clipping(density)
    ranges = [Range1d(a[0], a[-1]) for a in axes]
    charts = []
    for row, label in np.ndindex(2, 2):
        title = (
            f"loss u{'₀₁'[label]} of label {label}"
            if row == 0
            else f"density ρ{'₀₁'[label]} of class {label}"
        )
        made = chart(title, "x₁", "x₂", width=300, height=390, x_range=ranges[0], y_range=ranges[1])
        made.grid.visible = False
        field = (value, density)[row][:, :, :, label]
        each = [field[:, :, k] for k in range(field.shape[2])]
        if row == 0:
            add_map(made, axes, each, values, "u", frames, level)
            add_bar(made, values, title="clipped, logarithmic", ticker=decades)
        else:
            colours = LinearColorMapper(shades(DENSITIES[label], 512, 0.5), low=0.0, high=top)
            add_map(made, axes, each, colours, "ρ", frames)
            add_bar(
                made,
                colours,
                title="clipped above",
                ticker=FixedTicker(ticks=[0, *plotting.root_ticks(top)[2:]]),
            )
        charts.append(made)
    return charts


def _curves(axis: np.ndarray, value: np.ndarray, density: np.ndarray, frames: Frames) -> list[Any]:
    """u and rho of both labels over x; arrays (n, moments, 2)."""
    charts: list[Any] = []
    high = 1.05 * float(density[:, 1:].max())
    for title, field, look in (
        ("expected final loss u of both labels", value, {"y_axis_type": "log"}),
        ("density ρ of both classes, mean over 2 cells", density, {"y_range": Range1d(0, high)}),
    ):
        shared = {"x_range": charts[0].x_range} if charts else {}
        made = chart(title, "x", "u" if not charts else "ρ", height=340, **look, **shared)
        for label in (0, 1):
            source = ColumnDataSource({"xs": [axis] * field.shape[1], "ys": list(field[:, :, label].T)})
            made.multi_line(
                "xs", "ys", source=source, view=frames.view, line_color=CLASS_COLOURS[label], line_width=2,
                line_dash=("solid", "dashed")[label], legend_label=f"label {label}",
            )  # fmt: skip
        legend(made)
        charts.append(made)
    return charts


def _in_numbers(solution: Solution, moments: np.ndarray) -> Table:
    """Where the classes are, how wide they are spread, and the expected loss, at every moment shown."""
    rows = []
    for k in moments:
        row = [f"{solution.times[k]:.3g}"]
        for mass in solution.density[k].T:
            share = mass / mass.sum()
            centre = share @ solution.points
            spread = np.sqrt(share @ ((solution.points - centre) ** 2).sum(axis=1))
            row += ["(" + ", ".join(f"{c:.2f}" for c in centre) + ")", f"{spread:.2f}"]
        rows.append([*row, f"{solution.duality[k]:.5f}"])
    columns = ["t", "centre, class 0", "spread, class 0", "centre, class 1", "spread, class 1", "Σ ⟨u, ρ⟩"]
    return Table("Where the classes are (spread: root mean square distance from the centre)", columns, rows)
