"""The measured part of docs/performance.md, made of results.json: the page says what the last full run found.

python -m kolmo.benchmarks.page        # a full run does it too
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kolmo.benchmarks.results import seconds
from kolmo.benchmarks.targets import TARGETS
from kolmo.files import write_text

#: what is written lies between these lines
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def update(page: Path, content: dict[str, Any]) -> None:
    """Put the tables of results.json's content between the page's marks."""
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    write_text(page, f"{before}{BEGIN}\n{measured(content)}\n{END}{after}")


def measured(content: dict[str, Any]) -> str:
    """Ratios, seconds, roofline and scaling as Markdown."""
    machine, versions = content["machine"], content["versions"]
    libraries = ", ".join(f"{name} {found or 'absent'}" for name, found in versions.items())
    made = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_GiB']:.0f} GiB"
    parts = [
        f"{made}, {machine['system']}; {libraries}; the run took {content['total_seconds']:.0f} s.",
        _table(("key", "ratio", "quartiles", "target", "stretch", ""), _ratios(content)),
        "Correctness beside each ratio:",
        "\n".join(f"- `{key}`: {_note(content, key)}" for key in content["targets"]),
        _table(
            ("case", "contender", "median", "quartiles", "runs", "MiB", "error"),
            _seconds(content),
        ),
        _table(
            ("10^9 a second", "one core", "all cores"),
            [
                (name, *(f"{content['roofline'][where][name]:.3g}" for where in ("one_core", "all_cores")))
                for name in content["roofline"]["one_core"]
            ],
        ),
    ]
    if content["scaling"]:
        rows = [
            (name, f"{s['x'][0]} to {s['x'][-1]}", f"{s['exponent']:+.2f}")
            for name, s in content["scaling"].items()
        ]
        parts.append(_table(("cost against", "from, to", "exponent"), rows))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _ratios(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key, target in content["targets"].items():
        ratio, spread = content["ratios"].get(key), content["ratio_quartiles"].get(key)
        rows.append(
            (
                f"`{key}`",
                "-" if ratio is None else f"{ratio:.3g}",
                "" if spread is None else f"{spread[0]:.3g} to {spread[1]:.3g}",
                f"{target['bound']} {target['target']:g}",
                f"{target['stretch']:g}",
                target["verdict"],
            )
        )
    for key, ratio in content["ratios"].items():
        if key not in content["targets"]:
            low, high = content["ratio_quartiles"][key]
            rows.append((f"`{key}`", f"{ratio:.3g}", f"{low:.3g} to {high:.3g}", "", "", ""))
    return rows


def _note(content: dict[str, Any], key: str) -> str:
    """What is compared, and how well both sides answer."""
    note = content["targets"][key]["note"] or "missing: " + content["missing"].get(key, "?")
    return f"{TARGETS[key].meaning}. {note.replace('|', chr(92) + '|')}"


def _seconds(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for case, found in content["seconds"].items():
        for name, median in found.items():
            low, high = content["quartiles"][case][name]
            memory = content["memory_MiB"].get(case, {}).get(name)
            error = content["errors"].get(case, {}).get(name)
            rows.append(
                (
                    case,
                    name,
                    seconds(median),
                    f"{seconds(low)} to {seconds(high)}",
                    str(content["repetitions"][case][name]),
                    "" if memory is None else f"{memory:.0f}",
                    "" if error is None else f"{error:+.1e}",
                )
            )
    return rows


def main() -> None:
    """Write the page of the clone that this file lies in."""
    here = Path(__file__).resolve().parent
    content = json.loads((here / "results.json").read_text(encoding="utf-8"))
    update(here.parent / "docs" / "performance.md", content)


if __name__ == "__main__":
    main()
