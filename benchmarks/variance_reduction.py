"""What antithetic numbers and the equation's control variate gain, at equal standard error.

    python benchmarks/variance_reduction.py CASE_DIR... [--paths N]

gain: seconds of the plain chain over seconds of the reduced one for the same standard error; all
are timed in turn in one run. The value function is solved once and its seconds are shown apart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from kolmo import Chain, case
from kolmo.pde import BackwardKolmogorov, value_gradient


def main() -> None:
    """Print one row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--paths", type=int, default=400_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':24s} {'antithetic':>10s} {'control':>9s} {'both':>9s}   {'solve':>6s}")
    for folder in options.cases:
        problem = case.load(folder)
        start = time.perf_counter()
        cells = {1: 256, 2: 64, 3: 24}[problem.network.dim]
        control = value_gradient(BackwardKolmogorov(problem, cells=cells, limit=False))
        solved = time.perf_counter() - start
        plain = Chain(problem, seed=1).estimate(options.paths)
        gains = []
        for antithetic, field in ((True, None), (False, control), (True, control)):
            chain = Chain(problem, seed=2, antithetic=antithetic, control=field)
            gains.append(chain.estimate(options.paths).gain(plain))
        row = " ".join(f"{gain:9.1f}" for gain in gains)
        print(f"{Path(folder).name:24s}  {row}   {solved:5.1f}s")


if __name__ == "__main__":
    main()
