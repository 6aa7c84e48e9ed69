"""What all figures share: colours, axes, nodes on a grid, files that do not depend on the day.

Only matplotlib's object interface is used: no pyplot, no window, no settings changed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kolmo.files import write_atomically

#: Okabe and Ito's colours, told apart with any colour vision
COLOURS = {"control": "#0072B2", "stochastic": "#D55E00", "noiseless": "#009E73"}
DASHES = {"control": "-", "stochastic": "--", "noiseless": "-."}
#: classes 0 and 1: colour and marker
CLASS_COLOURS = ("#C25700", "#0B5FA5")
CLASS_MARKERS = ("o", "^")
#: score maps, from class 0 through white to class 1; densities of either class
SCORES = LinearSegmentedColormap.from_list("scores", ["#A84A00", "#F2B27A", "#FFFFFF", "#86B6DE", "#084A85"])
#: fewer shades than usual: files half the size, no visible steps
DENSITIES = (
    LinearSegmentedColormap.from_list("class 0", ["#FFFFFF", "#F6B77C", "#C25700", "#4A1F00"], N=64),
    LinearSegmentedColormap.from_list("class 1", ["#FFFFFF", "#8DBCE4", "#0B5FA5", "#02203B"], N=64),
)
VALUES = colormaps["cividis"].resampled(96)
DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with constrained layout, size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Labels, title and light grid of one line plot."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=11)
    axes.grid(True, color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def save(figure: Figure, folder: Path, name: str) -> None:
    """NAME.png and NAME.pdf, each whole or absent, the same bytes for the same figure."""
    settings: dict[str, dict[str, Any]] = {
        "png": {"dpi": DPI, "metadata": {"Software": None}, "pil_kwargs": {"optimize": True}},
        "pdf": {
            "dpi": 150,
            "metadata": {"CreationDate": None, "Producer": None, "Creator": "kolmo", "Title": name},
        },
    }
    for kind, options in settings.items():
        write = partial(figure.savefig, format=kind, **options)
        write_atomically(Path(folder) / f"{name}.{kind}", write)
        # the PDF takes the layout that the PNG found, which takes as long as drawing
        figure.set_layout_engine("none")


def running_mean(values: np.ndarray, window: int = 50) -> np.ndarray:
    """Mean over a centred window, narrow at first (it suits a logarithmic axis), cut off at the end."""
    values = np.asarray(values, dtype=float)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(window // 2, index // 4)
    first, last = index - half, np.minimum(index + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


def log_spaced(count: int, most: int = 1500) -> np.ndarray:
    """At most `most` + 1 of the numbers 0..count-1, dense at first: enough for a line over a log axis."""
    return np.unique(np.append(np.geomspace(1, count, min(count, most)).astype(int) - 1, count - 1))


def smooth(grid: np.ndarray, axes: int) -> np.ndarray:
    """Weights 1/4, 1/2, 1/4 along each of the first `axes` directions, edges repeated."""
    for axis in range(axes):
        padded = np.concatenate([grid.take([0], axis), grid, grid.take([-1], axis)], axis)
        left, right = (padded.take(range(i, i + grid.shape[axis]), axis) for i in (0, 2))
        grid = 0.5 * grid + 0.25 * (left + right)
    return grid


def node_grid(points: np.ndarray, values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Nodal values (Q, ...) of a box mesh, numbered in any order, as a grid.

    Gives the grid's axes (at most two) and values with one index per axis first. In 3-D the
    plane of nodes nearest to x3 = 0 is taken: x3 = 0 itself where the number of cells is even.
    """
    lower, dim = points.min(axis=0), points.shape[1]
    nodes = round(len(points) ** (1 / dim))
    spacing = np.ptp(points[:, 0]) / (nodes - 1)
    number = np.rint((points - lower) / spacing).astype(int)
    shape = (nodes,) * dim
    axes = [low + spacing * np.arange(nodes) for low in lower]
    grid = np.empty((*shape, *values.shape[1:]))
    grid[tuple(number.T)] = values
    if len(axes) == 3:
        grid = grid[:, :, int(np.argmin(np.abs(axes[2])))]
    return axes[:2], grid


def in_plane(axes: list[np.ndarray], dim: int) -> np.ndarray:
    """Points (..., d) of the grid with these one or two axes; further coordinates are 0."""
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return np.concatenate([grid, np.zeros((*grid.shape[:-1], dim - len(axes)))], axis=-1)


def readable_log(axes: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_map(
    panel: Axes,
    axes: list[np.ndarray],
    field: np.ndarray,
    colours: Colormap,
    norm: Normalize,
    level: float | None = None,
) -> None:
    """One map of nodal values (n, n), with a white line where the field equals `level`."""
    half = [0.5 * (a[1] - a[0]) for a in axes]
    extent = (axes[0][0] - half[0], axes[0][-1] + half[0], axes[1][0] - half[1], axes[1][-1] + half[1])
    panel.imshow(field.T, origin="lower", extent=extent, cmap=colours, norm=norm, interpolation="bilinear")
    if level is not None and field.min() < level < field.max():
        panel.contour(*axes, field.T, levels=[level], colors="white", linewidths=1.3)
    panel.set(xlim=(axes[0][0], axes[0][-1]), ylim=(axes[1][0], axes[1][-1]))
    panel.tick_params(labelsize=9)


def clipping(density: np.ndarray) -> float:
    """Where densities are clipped: the 99.5% quantile of what is not negligible."""
    return float(np.quantile(density[density > 1e-3 * density.max()], 0.995))


def root_ticks(top: float) -> list[float]:
    """A few round numbers from 0 to `top`, spread evenly on a root scale."""
    return sorted({float(f"{top * share:.1g}") for share in (0, 0.06, 0.25, 0.55, 0.98)})


def draw_steps(panel: Axes, times: np.ndarray, values: np.ndarray, **look: Any) -> None:
    """Values (L, n) that are constant on every layer's interval of times (L + 1,)."""
    panel.plot(times, np.concatenate([values, values[-1:]]), drawstyle="steps-post", **look)


def draw_levels(panel: Axes, times: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Many such step functions at once: levels as lines, jumps only hinted at."""
    draw_steps(panel, times, values, color=colour, linewidth=0.4, alpha=0.35, rasterized=True)
    ends = [np.repeat(t, values.shape[1]) for t in (times[:-1], times[1:])]
    panel.hlines(values.ravel(), *ends, color=colour, linewidth=1.0, alpha=0.8, rasterized=True)


def slice_name(dim: int) -> str:
    """What a map of more than two features leaves out."""
    return "" if dim < 3 else "slice " + " = ".join(f"$x_{i}$" for i in range(3, dim + 1)) + " = 0"


def value_curves(axis: np.ndarray, times: np.ndarray, value: np.ndarray, density: np.ndarray) -> Figure:
    """Value functions and densities in one dimension, curves over x; arrays (n, times, 2)."""
    figure = new_figure(9.0, 6.0)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    shades = colormaps["viridis"](np.linspace(0, 0.88, len(times)))
    high = 1.05 * float(density[:, 1:].max())
    note = ", clipped" if density.max() > high else ""
    for label in (0, 1):
        for k, time in enumerate(times):
            for row, field in enumerate((value, density)):
                look: dict[str, Any] = {"color": shades[k], "linewidth": 1.5, "label": f"$t = {time:.3g}$"}
                panels[row, label].plot(axis, field[:, k, label], **look)
        tidy(panels[0, label], "", f"$u_{label}(x, t)$", f"expected final loss of label {label}")
        title = f"density of class {label}, mean over 2 cells"
        tidy(panels[1, label], "$x$", f"$\\rho_{label}(x, t)$" + note, title)
        panels[1, label].set_ylim(0, high)
    panels[0, 0].set_yscale("log")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(times), frameon=False)
    return figure
