"""The page's six plots: made once for a session, then only their data change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper, LogColorMapper, Range1d
from bokeh.models.glyphs import Line
from bokeh.plotting import figure
from matplotlib import colormaps
from matplotlib.colors import Colormap, to_hex

from kolmo import plotting
from kolmo.explore import pixels
from kolmo.explore.model import Frames, Lesson
from kolmo.explore.settings import RATES
from kolmo.plotting import CLASS_COLOURS, COLOURS, VALUES

#: pixels of a plot's frame on the screen, a direction
FRAME = 290
#: copies of a chosen point that are followed, and largest radius of a circle, in pixels
FOLLOWED, _LARGEST = 20, 11.0
#: from green, where noise lowers the loss, through white to violet
_PENALTIES = colormaps["PRGn_r"]
_INDICES = "\u2080\u2081"
_MARKERS = ("circle", "triangle")


class Plots:
    """Value function, densities, paths, penalty over the plane; J by rate; the objective by step."""

    def __init__(self) -> None:
        self._x, self._y, self._reach = Range1d(-2, 2), Range1d(-2, 2), 2.0
        self._sources: dict[str, ColumnDataSource] = {}
        self._values = LogColorMapper(_palette(VALUES), low=1e-3, high=1.0)
        self._penalties = LinearColorMapper(_palette(_PENALTIES), low=-1.0, high=1.0)
        self.value = self._plane("value function")
        self.value.image("image", **_corner("image"), source=self._source("value"), color_mapper=self._values)
        _bar(self.value, self._values, "expected final loss")
        self.density = self._plane("densities and Monte Carlo")
        self.density.image_rgba("image", **_corner("image"), source=self._source("density"))
        for label in (0, 1):
            self._dots(self.density, f"dots{label}", label, size=2.5, alpha=0.55)
        self.paths = self._plane("paths of single points", "tap,reset")
        for label in (0, 1):
            self._dots(self.paths, f"data{label}", label, size=6, alpha=0.3)
        self._followed()
        self.penalty = self._plane("where the penalty acts")
        self.penalty.image(
            "image", **_corner("image"), source=self._source("penalty"), color_mapper=self._penalties
        )
        self.penalty.scatter(
            "x", "y", size="size", fill_color=None, line_color="black", line_width=0.9,
            source=self._source("terms", "x", "y", "size"),
        )  # fmt: skip
        _bar(self.penalty, self._penalties, "R per area")
        for plot in (self.value, self.density, self.paths, self.penalty):
            self._boundary(plot)
        self.rate, self.training = self._rate_plot(), self._training_plot()
        self.all = (self.value, self.density, self.paths, self.penalty, self.rate, self.training)
        for plot in self.all:
            _tidy(plot)

    # ------------------------------------------------------------------ what is drawn

    def lesson(self, lesson: Lesson, found: Frames) -> None:
        """A new network: the plane's range, the colours' range, the data, the training."""
        points, labels = lesson.problem.data.points.numpy(), lesson.problem.data.labels.numpy()
        reach = 1.08 * max(float(np.abs(points).max()), float(np.quantile(np.abs(found.paths), 0.999)))
        reach = min(reach, float(found.axis[-1]))
        self._reach = reach
        for axis in (self._x, self._y):
            axis.update(start=-reach, end=reach)
        # as in the figures of a run: nearly all of u, on a logarithmic scale
        low, high = np.quantile(pixels.shown(found.axis, found.value, reach), [0.05, 0.95])
        self._values.update(low=float(max(low, 1e-3 * high)), high=float(high))
        for label in (0, 1):
            x, y = points[labels == label].T
            self._sources[f"data{label}"].data = {"x": x, "y": y}
        steps = np.arange(1, len(lesson.history) + 1)
        self._sources["training"].data = {"x": steps, "y": np.array(lesson.history)}
        _span(self.training.x_range, steps)
        _span(self.training.y_range, lesson.history)

    def frames(self, found: Frames) -> None:
        """Another strength of noise: the penalty, which belongs to no one time."""
        reach = self._reach
        image = pixels.shown(found.axis, found.penalty, reach)
        top = float(np.quantile(np.abs(image), 0.998)) or 1.0
        self._penalties.update(low=-top, high=top)
        self._sources["penalty"].data = pixels.image(image, reach)

    def frame(self, found: Frames, number: int, label: int, chosen: list[int], labels: np.ndarray) -> None:
        """One of the times: value function of a label, densities, dots, lines and paths up to it."""
        reach, layer = self._reach, int(found.layers[number])
        self._sources["value"].data = pixels.image(
            pixels.shown(found.axis, found.value[number, :, :, label], reach), reach
        )
        self.value.title.text = f"value function u{_INDICES[label]}(x, t)"
        top = plotting.clipping(found.density[1:])
        self._sources["density"].data = pixels.image(
            pixels.blended(pixels.shown(found.axis, found.density[number], reach), top), reach
        )
        for y in (0, 1):
            dots = found.paths[layer][:, labels == y].reshape(-1, 2)
            self._sources[f"dots{y}"].data = {"x": dots[:, 0], "y": dots[:, 1]}
        lines = found.boundary(number)
        self._sources["boundary"].data = {"xs": [k[:, 0] for k in lines], "ys": [k[:, 1] for k in lines]}
        self._circles(found, layer)
        self._follow(found, layer, chosen, labels)

    def rates(self, known: dict[float, Frames], rate: float) -> None:
        """J at all strengths looked at so far, the present one marked."""
        found = list(known.values())
        chain = np.array([k.chain.interval for k in found]).reshape(-1, 2)
        self._sources["rates"].data = {
            "rate": np.array(list(known)),
            "equation": np.array([k.pde for k in found]),
            "chain": np.array([k.chain.value for k in found]),
            "low": chain[:, 0],
            "high": chain[:, 1],
            "first": np.array([k.loss + k.regulariser for k in found]),
        }
        _span(
            self.rate.y_range,
            [*chain.ravel(), *(k.pde for k in found), *(k.loss + k.regulariser for k in found)],
        )
        here = [known[rate]] if rate in known else []
        self._sources["here"].data = {"x": [k.rate for k in here], "y": [k.pde for k in here]}

    def _circles(self, found: Frames, layer: int) -> None:
        last = min(layer, len(found.contributions) - 1)
        terms, x = np.abs(found.contributions[last]), found.noiseless[last]
        size = 2 * _LARGEST * np.sqrt(terms / (np.abs(found.contributions).max() or 1.0))
        self._sources["terms"].data = {"x": x[:, 0], "y": x[:, 1], "size": size}

    def _follow(self, found: Frames, layer: int, chosen: list[int], labels: np.ndarray) -> None:
        colours = [CLASS_COLOURS[labels[i]] for i in chosen]
        noisy = [found.paths[: layer + 1, copy, i] for i in chosen for copy in range(FOLLOWED)]
        plain = [found.noiseless[: layer + 1, i] for i in chosen]
        for name, paths in (("noisy", noisy), ("plain", plain)):
            repeated = len(paths) // max(1, len(chosen))
            self._sources[name].data = {
                "xs": [path[:, 0] for path in paths],
                "ys": [path[:, 1] for path in paths],
                "colour": np.repeat(colours, repeated).tolist(),
            }
        for name, paths in (("noisy ends", noisy), ("plain ends", plain), ("starts", plain)):
            ends = np.array([path[0 if name == "starts" else -1] for path in paths]).reshape(-1, 2)
            repeated = len(paths) // max(1, len(chosen))
            self._sources[name].data = {
                "x": ends[:, 0],
                "y": ends[:, 1],
                "colour": np.repeat(colours, repeated).tolist(),
            }

    # ------------------------------------------------------------------ how it is made

    def _source(self, name: str, *columns: str) -> ColumnDataSource:
        columns = columns or ("image", "corner", "side")
        self._sources[name] = ColumnDataSource({column: [] for column in columns}, name=name)
        return self._sources[name]

    def _plane(self, title: str, tools: str = "reset,box_zoom") -> Any:
        plot = figure(
            title=title, frame_width=FRAME, frame_height=FRAME, x_range=self._x, y_range=self._y, tools=tools,
            toolbar_location=None, x_axis_label="x\u2081", y_axis_label="x\u2082", name=title,
        )  # fmt: skip
        return plot

    def _dots(self, plot: Any, name: str, label: int, **look: Any) -> None:
        plot.scatter(
            "x", "y", source=self._source(name, "x", "y"), marker=_MARKERS[label], line_color=None,
            fill_color=CLASS_COLOURS[label], legend_label=f"class {label}", **look,
        )  # fmt: skip

    def _followed(self) -> None:
        for name, width, alpha in (("noisy", 1.1, 0.55), ("plain", 3.0, 1.0)):
            source = self._source(name, "xs", "ys", "colour")
            self.paths.multi_line(
                "xs", "ys", line_color="colour", line_width=width, line_alpha=alpha, source=source
            )
        for name, size in (("noisy ends", 4), ("plain ends", 10), ("starts", 9)):
            source = self._source(name, "x", "y", "colour")
            fill: Any = "white" if name == "starts" else "colour"
            self.paths.scatter(
                "x", "y", size=size, fill_color=fill, line_color="colour", line_width=1.5, source=source
            )

    def _boundary(self, plot: Any) -> None:
        """Black on white, to be seen on every map."""
        source = self._sources.get("boundary") or self._source("boundary", "xs", "ys")
        for colour, width in (("white", 3.6), ("black", 1.6)):
            plot.multi_line("xs", "ys", line_color=colour, line_width=width, source=source)

    def _rate_plot(self) -> Any:
        plot = figure(
            title="loss by the strength of noise", frame_width=FRAME, frame_height=FRAME, tools="",
            toolbar_location=None, x_axis_label="rate", y_axis_label="J", name="loss by rate",
            x_range=Range1d(-0.02, RATES[-1] + 0.02), y_range=Range1d(0, 1),
        )  # fmt: skip
        source = self._source("rates", "rate", "equation", "chain", "low", "high", "first")
        plot.line(
            "rate",
            "equation",
            source=source,
            color=COLOURS["control"],
            line_width=2.2,
            legend_label="equation",
        )
        plot.line(
            "rate", "first", source=source, color=COLOURS["noiseless"], line_width=1.8, line_dash="dashed",
            legend_label="J\u2080 + R",
        )  # fmt: skip
        plot.segment(
            "rate", "low", "rate", "high", source=source, color=COLOURS["stochastic"], line_width=1.5
        )
        plot.scatter(
            "rate", "chain", source=source, color=COLOURS["stochastic"], size=6, legend_label="network"
        )
        here = self._source("here", "x", "y")
        plot.scatter("x", "y", source=here, size=15, fill_color=None, line_color="black", line_width=1.8)
        return plot

    def _training_plot(self) -> Any:
        plot = figure(
            title="training", frame_width=FRAME, frame_height=FRAME, tools="", toolbar_location=None,
            x_axis_label="step", y_axis_label="J + penalties", name="objective by step",
            x_range=Range1d(0, 1), y_range=Range1d(0, 1),
        )  # fmt: skip
        plot.add_glyph(
            self._source("training", "x", "y"),
            Line(x="x", y="y", line_color=COLOURS["control"], line_width=2.2),
        )
        return plot


def _corner(image: str) -> dict[str, str]:
    return {"x": "corner", "y": "corner", "dw": "side", "dh": "side"}


def _span(axis: Range1d, values: Sequence[float] | np.ndarray) -> None:
    """All of the values, with a little room."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.05 * (high - low) or 0.5
    axis.update(start=low - room, end=high + room)


def _tidy(plot: Any) -> None:
    plot.title.update(text_font_size="13px", text_font_style="bold")
    for axis in plot.axis:
        axis.update(axis_label_text_font_style="normal", minor_tick_line_color=None)
    for grid in plot.grid:
        grid.grid_line_color = "#E5E5E5"
    for legend in plot.legend:
        legend.update(
            location="top_left",
            label_text_font_size="11px",
            padding=4,
            spacing=0,
            margin=4,
            background_fill_alpha=0.6,
        )


def _bar(plot: Any, mapper: Any, title: str) -> None:
    plot.add_layout(
        ColorBar(color_mapper=mapper, title=title, height=9, padding=3, title_text_font_style="normal"),
        "below",
    )


def _palette(colours: Colormap) -> list[str]:
    return [to_hex(colours(x)) for x in np.linspace(0, 1, 96)]
