"""The page of an experiment: its claims, tables and figures, then where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from kolmo.experiments.claims import Claim
from kolmo.experiments.study import Study
from kolmo.html import tables
from kolmo.html.origin import cite, rerun
from kolmo.html.page import Figure, Page, Picture, Section
from kolmo.html.run import facts

#: matplotlib's markup in words, for those who hear it
_WORDS = {r"\theta": "θ", r"\rho": "ρ", r"\partial": "∂", r"\lambda": "λ", r"\mu": "μ", r"\Phi": "Φ",
          r"\|": "|", r"\infty": "∞", r"\leq": "≤", r"\geq": "≥", r"\times": "×", r"\Delta": "Δ",
          r"\kappa": "κ", r"\sigma": "σ", r"\to": "to"}  # fmt: skip


def page(
    study: Study,
    claims: Sequence[Claim],
    folder: Path,
    content: dict[str, Any],
    drawings: Mapping[str, tuple[Drawing, str]],
) -> Page:
    """All that there is of an experiment.

    folder: has the figures' files. content: what results.json holds. drawings: figures by file name, each
    with its maker's docstring, which says what it shows.
    """
    figures = []
    for name, (drawing, docstring) in drawings.items():
        caption = first_sentence(docstring)
        still = Picture(folder / f"{name}.png", in_words(drawing))
        figures.append(Figure(f"figure-{name}", caption, caption, stills=[still]))
    shown = tables.study_tables(study.tables())
    sections = [
        Section(
            "verdicts",
            "Verdicts",
            text=[tables.summary(claims, content["status"])],
            tables=[tables.claims_table(claims)] if claims else [],
        ),
        Section("results", "Tables", tables=shown) if shown else None,
        Section("figures", "Figures", figures=figures) if figures else None,
        rerun(study.name, folder, study.config, content),
        cite(),
    ]
    title = f"Kolmo: {study.name.replace('_', ' ')}"
    return Page(
        title,
        f"{study.summary[:1].upper()}{study.summary[1:]}.",
        facts(content),
        [section for section in sections if section],
    )


def first_sentence(docstring: str) -> str:
    """What a maker of figures says it draws, without when it draws nothing."""
    line = docstring.strip().split("\n")[0]
    line = re.sub(r"; None [^;]*$", "", line).rstrip(". ")
    return line[:1].upper() + line[1:] + "."


def in_words(drawing: Drawing) -> str:
    """The panels of a figure: titles, axes, and the curves that its legends name."""
    panels = []
    for axes in drawing.axes:
        x, y, title = (plain(text) for text in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()))
        parts = [f"{title}:" if title else "", f"{y} against {x}" if x and y else y or x]
        names = dict.fromkeys(plain(label) for label in axes.get_legend_handles_labels()[1])
        parts.append(f"({', '.join(names)})" if names else "")
        panels.append(" ".join(part for part in parts if part).rstrip(":"))
    return "; ".join(dict.fromkeys(panel for panel in panels if panel)) or "no axes are named"


def plain(text: str) -> str:
    """A label of matplotlib without its markup."""
    for markup, word in _WORDS.items():
        text = text.replace(markup, word)
    text = re.sub(r"\\(?:mathrm|mathbf|mathcal|text|sqrt|hat|bar)\b", "", text)
    text = re.sub(r"\\[,;!: ]", " ", text)
    return " ".join(re.sub(r"[${}]|\\[a-zA-Z]+", "", text).split())
