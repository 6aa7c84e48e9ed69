"""`kolmo export`: the network of a case directory for those without Kolmo."""

from __future__ import annotations

import argparse
import json

from kolmo import case
from kolmo.export.networks import write


def command(options: argparse.Namespace) -> int:
    """Write the network of a case in a format. Raises InputError on a bad case, format or folder."""
    problem = case.load(options.case)
    files = write(
        problem.network,
        options.out,
        options.format,
        loss=problem.loss,
        dtype=options.dtype,
        overwrite=options.overwrite,
    )
    if options.json:
        print(json.dumps({"case": options.case, "format": options.format, "files": [str(f) for f in files]}))
    else:
        print("\n".join(f"written: {path}" for path in files))
    return 0
