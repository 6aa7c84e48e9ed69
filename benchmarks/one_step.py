"""What a step of the modified equation differs by from a step of the chain, case by case.

    python benchmarks/one_step.py CASE_DIR...

The tolerances of `kolmo.consistency` are several times these.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kolmo import case
from kolmo.consistency import one_step
from kolmo.errors import InputError


def main() -> None:
    """Print one row for each case and order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+")
    print(f"{'case':24s} {'order':>5s} {'h |VW|':>7s} {'drift':>8s} {'correction':>10s} {'covariance':>10s}")
    for folder in parser.parse_args().cases:
        problem = case.load(folder)
        with torch.no_grad():
            size = float(problem.network.step_size().max())
        for order in (1, 2):
            try:
                step = one_step(problem, order)
            except InputError as error:
                print(f"{Path(folder).name:24s} {order:5d} {error}")
                continue
            found = f"{step.drift:8.4f} {step.correction:10.3f} {step.covariance:10.4f}"
            print(f"{Path(folder).name:24s} {order:5d} {size:7.2f} {found}")


if __name__ == "__main__":
    main()
