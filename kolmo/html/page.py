"""What a page is made of, and the page itself: one HTML file that asks for nothing from outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from kolmo.html.tables import POOR, Table


@dataclass(frozen=True)
class Picture:
    """A picture that is in the run's folder already: shown on paper, and where no script runs."""

    path: Path
    #: what it shows, for those who do not see it
    alternative: str

    @property
    def address(self) -> str:
        """The picture itself as a data URI, in 256 colours: a third of the size."""
        file = io.BytesIO()
        with Image.open(self.path) as image:
            image.convert("RGB").quantize(256).save(file, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Figure:
    """Charts that can be moved, side by side, above one caption; or pictures alone.

    name: of the element. label: what the group is, for screen readers. charts: bokeh models, each with its
    title as `name`. slider: shown above all charts and kept in sight. stills: stand in for the charts on
    paper; without charts they are shown everywhere. least: width of a chart in rem, below which the next one
    goes into a new row. hint: how the charts are moved.
    """

    name: str
    label: str
    caption: str
    charts: Sequence[Any] = ()
    slider: Any = None
    stills: Sequence[Picture] = ()
    least: float = 20.0
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it, in this order: text, formulas, figures, listings, tables.

    text: paragraphs. formulas: MathML with what it says in words before it. listings: (title, lines) as
    typed. folded: tables and listings that open on demand, by the words to click on.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    formulas: Sequence[tuple[str, Markup]] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    listings: Sequence[tuple[str, str]] = ()
    folded: Sequence[tuple[str, Table | str]] = ()


@dataclass(frozen=True)
class Page:
    """A title, one line below it, facts (name, text) with the status first, and the sections."""

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML: style, scripts and pictures are inside, everything that is not markup is escaped."""
    environment = Environment(
        loader=PackageLoader("kolmo.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))
    live: dict[str, Any] = {}
    for figure in (f for section in page.sections for f in section.figures):
        live |= {f"{figure.name}-{number}": chart for number, chart in enumerate(figure.charts)}
        if figure.slider is not None:
            live[f"{figure.name}-slider"] = figure.slider
    library, script, divs = "", "", {}
    if live:
        document = Document()
        with document.models.freeze():  # one look at what is linked to what, not one for each chart
            for model in live.values():
                document.add_root(model)
        # not `render_js`, which adds what other packages of the process, such as panel, load for themselves
        scripts = Resources(mode="inline", components=["bokeh", "bokeh-widgets"], minified=True).js_raw
        library = "\n".join(f"<script>\n{code}\n</script>" for code in scripts)
        script, divs = components(live)
    text: str = environment.get_template("page.html").render(
        page=page,
        style=style,
        library=Markup(library),
        script=Markup(script),
        divs={name: Markup(div) for name, div in divs.items()},
        poor=POOR,
        is_table=lambda item: isinstance(item, Table),
    )
    return text
