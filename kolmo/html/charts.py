"""What all charts of a page share: axes, colours, step functions, maps, frames that a slider chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    CategoricalSlider,
    CDSView,
    ColorBar,
    ColorMapper,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    IndexFilter,
)
from bokeh.plotting import figure
from contourpy import contour_generator
from matplotlib.colors import Colormap, to_hex

#: matplotlib's dashes by bokeh's names
DASHES = {"-": "solid", "--": "dashed", "-.": "dotdash"}


def chart(title: str, x: str, y: str, *, height: int, width: int = 460, **options: Any) -> Any:
    """An empty chart as wide as the page allows, in these proportions.

    No gesture is taken at first: on a phone a finger scrolls the page until a tool is chosen.
    """
    made = figure(
        name=title,  # set by the page, above the tools
        x_axis_label=x,
        y_axis_label=y,
        width=width,
        height=height,
        sizing_mode="scale_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,
        active_scroll=None,
        output_backend="canvas",
        **options,
    )
    made.toolbar.logo = None
    made.toolbar_location = "above"
    made.axis.axis_label_text_font_style = "normal"
    made.axis.axis_label_text_font_size = "0.9rem"
    made.axis.major_label_text_font_size = "0.8rem"
    made.grid.grid_line_color = "#e0e0e0"
    return made


def legend(made: Any) -> None:
    """The legend below the axes, where it hides nothing; its entries hide and show what they name."""
    (found,) = made.legend
    found.orientation = "horizontal"
    found.click_policy = "hide"
    found.label_text_font_size = "0.8rem"
    found.border_line_color = None
    found.padding = found.margin = 2
    found.spacing = 14
    made.add_layout(found, "below")


def shades(colours: Colormap, count: int = 256, power: float = 1.0) -> list[str]:
    """A colour map as hexadecimal texts; power 1/2 spreads its lower end, as a root scale does."""
    return [to_hex(colours(i / (count - 1)) if power == 1 else colours((i / (count - 1)) ** power))
            for i in range(count)]  # fmt: skip


def steps(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners (2 L,) and (2 L, n) of values (L, n) that are constant between times (L + 1,)."""
    x = np.repeat(times, 2)[1:-1]
    return x.astype(np.float32), np.repeat(values, 2, axis=0).astype(np.float32)


class Frames:
    """One of several moments is shown: every renderer that is told `view` draws one row of its source."""

    def __init__(self, times: np.ndarray) -> None:
        self._filter = IndexFilter(indices=[0])
        self.view = CDSView(filter=self._filter)
        names = [f"{time:.3g}" for time in times]
        self.slider = CategoricalSlider(
            title="time t",
            categories=names,
            value=names[0],
            sizing_mode="stretch_width",
            bar_color="#0072B2",
        )
        choose = CustomJS(
            args={"filter": self._filter},
            code="filter.indices = [cb_obj.categories.indexOf(cb_obj.value)]",
        )
        self.slider.js_on_change("value", choose)


def add_map(
    made: Any,
    axes: Sequence[np.ndarray],
    fields: Sequence[np.ndarray],
    colours: ColorMapper,
    quantity: str,
    frames: Frames | None = None,
    level: float | None = None,
) -> None:
    """Maps of nodal values (n, n), one a frame: the line where they equal `level`, values on hovering."""
    half = [0.5 * (a[1] - a[0]) for a in axes]
    count = len(fields)
    place = {
        "x": [axes[0][0] - half[0]] * count,
        "y": [axes[1][0] - half[1]] * count,
        "dw": [np.ptp(axes[0]) + 2 * half[0]] * count,
        "dh": [np.ptp(axes[1]) + 2 * half[1]] * count,
    }
    source = ColumnDataSource({"image": [field.T.astype(np.float32) for field in fields], **place})
    seen: dict[str, Any] = {} if frames is None else {"view": frames.view}
    shown = made.image("image", "x", "y", "dw", "dh", source=source, color_mapper=colours, **seen)
    made.add_tools(
        HoverTool(
            renderers=[shown], tooltips=[("x₁, x₂", "$x{0.00}, $y{0.00}"), (quantity, "@image{0.0000}")]
        )
    )
    if level is not None:
        lines = [_contour(axes, field, level) for field in fields]
        source = ColumnDataSource({"xs": [x for x, _ in lines], "ys": [y for _, y in lines]})
        colour = "white" if frames is not None else "black"
        made.multi_line("xs", "ys", source=source, line_color=colour, line_width=2, **seen)


def _contour(axes: Sequence[np.ndarray], field: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the field equals `level`: x and y (n,), pieces parted by nan."""
    pieces = contour_generator(*axes, field.T).lines(level)
    parted = [np.concatenate([piece, [[np.nan, np.nan]]]) for piece in pieces]
    line = np.concatenate(parted) if parted else np.empty((0, 2))
    return line[:, 0].astype(np.float32), line[:, 1].astype(np.float32)


def add_bar(made: Any, colours: ColorMapper, ticks: int = 5, **options: Any) -> None:
    """The colour bar below a map."""
    options.setdefault("ticker", BasicTicker(desired_num_ticks=ticks))
    made.add_layout(ColorBar(color_mapper=colours, height=12, padding=4, **options), "below")
