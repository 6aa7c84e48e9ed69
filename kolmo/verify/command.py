"""`kolmo verify`: the self-check from the command line."""

from __future__ import annotations

import argparse
import json
import logging

from kolmo.console import LiveProgress, console, print_table
from kolmo.errors import EXIT_CLAIM
from kolmo.verify import Report, verify


def command(options: argparse.Namespace) -> int:
    """Run, print, judge: 1 where a figure is out of its range."""
    logging.disable(logging.INFO)  # the form compiler's build tools set the root logger's level as they run
    try:
        with LiveProgress(options.quiet or options.json) as progress:
            report = verify(options.backend, progress=progress)
    finally:
        logging.disable(logging.NOTSET)
    if options.json:
        print(json.dumps(as_dict(report), allow_nan=False))
    else:
        print_report(report)
    return 0 if report.holds else EXIT_CLAIM


def as_dict(report: Report) -> dict[str, object]:
    """The report for JSON."""
    checks = [figure.as_dict(name) for name, figure in report.results]
    return {"name": "verify", "backend": report.backend, "checks": checks, "seconds": report.seconds}


def print_report(report: Report) -> None:
    """Every figure with its range, then how many are out of it."""
    rows = [
        (
            f"{name}: {figure.what}",
            f"{figure.measured:.3g}",
            figure.expected,
            "holds" if figure.holds else "FAILS",
        )
        for name, figure in report.results
    ]
    title = f"self-check, finite elements by {report.backend}"
    print_table(title, ("check", "measured", "expected", ""), rows)
    failed = sum(not figure.holds for _, figure in report.results)
    verdict = f"{failed} of {len(rows)} figures FAIL" if failed else f"all {len(rows)} figures hold"
    console().print(f"{verdict} ({report.seconds:.0f} s)")
