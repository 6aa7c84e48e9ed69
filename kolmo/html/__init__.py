"""report.html: a run or an experiment as one page that opens from disk, with figures that can be moved.

The page needs bokeh, jinja2 and latex2mathml: `pip install 'kolmo[report]'`. Nothing else of Kolmo does,
and nothing here is imported before a page is written.
"""

from __future__ import annotations

from importlib import import_module

#: the file in a run's folder
NAME = "report.html"
#: what a page is made with, as it is imported
NEEDED = ("bokeh", "jinja2", "latex2mathml", "yaml")
#: said at the end of a run that could write none
MISSING = f"no {NAME}: it needs pip install 'kolmo[report]'"


def unavailable() -> str | None:
    """Why no page can be written, in a few words; None where one can."""
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            return f"{name} cannot be imported: {error}"
    return None
