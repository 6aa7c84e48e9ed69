"""Where a page comes from: how to run it again, what it was made with, how to cite it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kolmo.config import Config
from kolmo.html.page import Section
from kolmo.html.tables import Table, shown


def rerun(
    name: str, folder: Path, config: Config, content: dict[str, Any], more: Sequence[tuple[str, str]] = ()
) -> Section:
    """The command that does the run again, its settings, versions and times.

    content: what results.json holds. more: further commands, each after what it does. The folder's run.json
    tells whether the run was a quick one.
    """
    verb = "reproduce" if name == "binary_classification" else f"experiment {shlex.quote(name)}"
    quick = " --quick" if _quick(folder) else ""
    again = f"kolmo {verb}{quick} --config config.toml --seed {config.run.seed} --out again"
    files = [path for path in (config.data.file, config.data.test_file) if path]
    text = [
        "config.toml is beside this page and, complete, below. The same versions on the same machine give "
        "the same numbers, bit by bit; on another machine they agree to rounding."
    ]
    if files:
        text.append(f"The data are not in the folder, they are read from {' and '.join(files)}.")
    made_with = {**content["versions"], **{k: content[k] for k in ("backend", "device") if k in content}}
    versions = Table("Made with", ["what", "version"], [[k, str(v)] for k, v in made_with.items()])
    seconds = {k: v for k, v in content["seconds"].items() if isinstance(v, (int, float))}
    times = Table("Wall time", ["part", "seconds"], [[k, f"{v:.1f}"] for k, v in seconds.items()])
    return Section(
        "rerun",
        "Run it again",
        text=text,
        listings=[(f"In this folder (seed {config.run.seed}):", again), *more],
        tables=[versions, times],
        folded=[("config.toml, complete", config.dumps())],
    )


def _quick(folder: Path) -> bool:
    """Whether run.json is that of a quick run; a folder without one was not made by the command line."""
    path = folder / "run.json"
    return path.exists() and bool(json.loads(path.read_text(encoding="utf-8"))["quick"])


def cite() -> Section:
    """CITATION.cff as text and BibTeX."""
    found = yaml.safe_load(Path(__file__).with_name("CITATION.cff").read_text(encoding="utf-8"))
    works = [{**found, "type": "software"}, *found["references"]]
    rows = [[w["title"], _authors(w), shown(w.get("year")), _identifier(w)] for w in works]
    return Section(
        "cite",
        "How to cite",
        text=[found["message"]],
        listings=[("BibTeX:", "\n\n".join(_bibtex(w) for w in works[:2]))],
        folded=[
            ("Kolmo and what it is built on", Table("Works", ["title", "authors", "year", "where"], rows))
        ],
    )


def _authors(work: dict[str, Any], joint: str = ", ") -> str:
    people = [a.get("name") or f"{a['given-names']} {a['family-names']}" for a in work["authors"]]
    return joint.join(people)


def _identifier(work: dict[str, Any]) -> str:
    if "doi" in work:
        return f"doi:{work['doi']}"
    if "identifiers" in work:
        return str(work["identifiers"][0]["value"])
    return f"version {work['version']}" if "version" in work else "-"


def _bibtex(work: dict[str, Any]) -> str:
    """One entry: a key of the first author and the year, and the fields that there are."""
    first = work["authors"][0]
    key = (first.get("family-names") or first["name"].split()[0]).lower() + str(work.get("year", ""))
    # a group's name is one name: in braces
    authors = " and ".join(
        f"{{{a['name']}}}" if "name" in a else f"{a['family-names']}, {a['given-names']}"
        for a in work["authors"]
    )
    fields = {
        "title": f"{{{work['title']}}}",
        "author": authors,
        "year": work.get("year"),
        "version": work.get("version"),
        "note": _identifier(work) if "identifiers" in work else None,
        "license": work.get("license"),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value is not None]
    kind = {"software": "software", "article": "article"}.get(work["type"], "misc")
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
