"""How the size of the box and the clip act on J_pde: the measurements behind two defaults.

    python benchmarks/box_and_clip.py CASE_DIR [--cells 64]

For a case with reference.json: the error of J_pde in a box that holds 99% of the paths
against the smaller box that the coupled-path audit accepts, each with and without the clip.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from kolmo import case
from kolmo.errors import InfeasibleError
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import choose_half_width
from kolmo.problem import Problem
from kolmo.stream import Stream


def holding(problem: Problem, share: float, paths: int = 8192, seed: int = 0) -> float:
    """The half width that holds a share of the chain's paths at all layers, and 1.25 times the data."""
    x = problem.data.points.repeat(-(-paths // len(problem.data)), 1)
    stream = Stream(seed, 0, len(x))
    reach = x.abs().amax(dim=1)
    with torch.no_grad():
        for layer in range(problem.network.depth):
            x = x + problem.noise.sample(problem.network, layer, x, stream.layer(layer))
            reach = torch.maximum(reach, x.abs().amax(dim=1))
    return max(1.25 * problem.data.radius, float(torch.quantile(reach, share)))


def main() -> None:
    """Print one row per box."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--cells", type=int, default=64)
    options = parser.parse_args()
    problem = case.load(options.case)
    reference = json.loads((Path(options.case) / "reference.json").read_text())["J"]
    print(f"{Path(options.case).name}, {options.cells} cells a direction, J = {reference:.6f}")
    boxes = {
        "holds 99% of the paths": holding(problem, 0.99),
        "audited (default)": choose_half_width(problem),
    }
    for name, half_width in boxes.items():
        errors = []
        for limit in (True, False):
            equation = BackwardKolmogorov(problem, cells=options.cells, half_width=half_width, limit=limit)
            try:
                with torch.no_grad():
                    error = float(equation.expected_loss()) / reference - 1
                errors.append(f"{error:+8.2%}")
            except InfeasibleError:
                errors.append(" refused")
        print(f"{name:24s} R = {half_width:5.2f}   clipped {errors[0]}   linear {errors[1]}")


if __name__ == "__main__":
    main()
