"""Whether adaptive meshes pay for J, against uniform ones, in 2-D.

    python benchmarks/adaptive_mesh.py CASE_DIR... [--cells 160] [--nodes 10000] [--halvings 4]

The indicator is a goal-oriented one, |rho| h^2 |D^2 u| of each mesh's own march; one mesh serves all times.
On the five shared 2-D cases that are mild, uniform meshes need 1.2 to 7.5 times the nodes for the same error
of J, but only 0.2 to 3.5 times the seconds (2 to 3.5 on three cases, below 1 on two): small elements ask for
more substeps everywhere. With J + eta, the value that `--tolerance` states, they need 0.1 to 2.7 times the
nodes and 0.04 to 1.5 times the seconds (below a half on four cases), and have an estimate of their error
besides: Kolmo refines uniformly. Seconds are scikit-fem's for both kinds of mesh.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from skfem import MeshTri

from kolmo import case
from kolmo.errors import InfeasibleError
from kolmo.pde import (
    BackwardKolmogorov,
    Effort,
    Explicit,
    Mesh,
    Space,
    box_mesh,
    linear_march,
    residuals,
    resolve_value,
    space_on,
)
from kolmo.pde.space import Steps
from kolmo.problem import Problem

#: cells a direction of the first mesh, and the share of the indicator that is refined at a time
FIRST, DOERFLER = 32, 0.5
#: small elements may take as many substeps as they need: their seconds are what is measured
SCHEME = Explicit(cap=10**6)


@dataclass
class Series:
    """Meshes of one kind, coarse to fine: nodes, |J - J_ref| and the seconds to get there."""

    nodes: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, nodes: int, error: float, seconds: float) -> None:
        """One more mesh."""
        self.nodes.append(nodes)
        self.errors.append(error)
        self.seconds.append(seconds)

    @property
    def envelope(self) -> np.ndarray:
        """The largest error from each mesh on: errors change sign, a lucky zero is not an accuracy."""
        return np.maximum.accumulate(self.errors[::-1])[::-1]

    def needs(self, error: float) -> np.ndarray:
        """Nodes and seconds from which on the error stays below this one, log-log between meshes."""
        both, bound = np.log([self.nodes, self.seconds]), self.envelope
        i = int(np.argmax(bound <= error))
        if i == 0 or not np.isfinite(bound[i - 1]):
            return np.exp(both[:, i])
        share = np.log(bound[i - 1] / error) / np.log(bound[i - 1] / bound[i])
        return np.exp(both[:, i - 1] + share * (both[:, i] - both[:, i - 1]))


def march(problem: Problem, mesh: Mesh) -> tuple[float, Space, list[Steps], list[np.ndarray], np.ndarray]:
    """J, space, substeps, u at every layer and mu; linear, without the guards that coarse meshes fail."""
    equation = BackwardKolmogorov(problem, space=space_on("skfem", mesh), limit=False, propagator=SCHEME)
    with torch.no_grad():
        b, a = (c.numpy() for c in vars(equation.coefficients()).values())
    steps = list(equation.steps(b, a, problem.network.step))
    values = [equation.terminal]
    for layer in reversed(steps):
        u = values[-1]
        for _ in range(layer.count):
            u = layer.backward(u)
        values.append(u)
    return float(np.vdot(u, equation.initial)), equation.space, steps, values[::-1], equation.initial


def indicator(
    space: Space, steps: list[Steps], values: list[np.ndarray], rho: np.ndarray, areas: np.ndarray
) -> np.ndarray:
    """sum_k int |rho_k| h^2 |D^2 u_k| over each element, (E,); u's gradient is recovered twice."""
    lumped, still = space.lumped_mass[:, None], np.zeros_like(space.coefficient_points)
    slopes = [space.generator(still + unit, still) for unit in np.eye(2)]
    total = np.zeros(len(lumped))
    for k, u in enumerate(values):
        gradients = [slope.apply(u) / lumped for slope in slopes]
        hessian = [slope.apply(g) / lumped for slope in slopes for g in gradients]
        total += (np.sqrt(sum(d * d for d in hessian)) * np.abs(rho) / lumped).sum(axis=1)
        if k < len(steps):
            for _ in range(steps[k].count):
                rho = steps[k].forward(rho)
    return 2 * areas**2 * total[space.mesh.cells].mean(axis=1)


def adaptive(problem: Problem, half_width: float, reference: float, most: int, halvings: int) -> Series:
    """March, mark and refine from a uniform mesh up to `most` nodes; prints one row per mesh."""
    start = box_mesh(2, FIRST, half_width)
    mesh, series, spent = MeshTri(start.points.T.copy(), start.cells.T.copy()), Series(), 0.0
    while True:
        began = time.perf_counter()
        plain = Mesh(mesh.p.T, mesh.t.T)
        value, space, steps, values, mu = march(problem, plain)
        marched = time.perf_counter() - began
        series.add(len(plain.points), abs(value - reference), spent + marched)
        row(f"{series.nodes[-1]:7d}", series.errors[-1], marched, f"{sum(s.count for s in steps):9d}")
        edges = plain.points[plain.cells[:, 1:]] - plain.points[plain.cells[:, :1]]
        areas = np.abs(np.linalg.det(edges)) / 2
        eta = indicator(space, steps, values, mu, areas)
        eta[areas < 1.5 * areas.max() / 4**halvings] = 0
        order = np.argsort(-eta)
        marked = order[: np.searchsorted(np.cumsum(eta[order]), DOERFLER * eta.sum()) + 1]
        if len(plain.points) >= most or not eta.any():
            return series
        mesh = mesh.refined(marked)
        spent += time.perf_counter() - began


def uniform(problem: Problem, half_width: float, reference: float, most: int) -> tuple[Series, Series]:
    """March on uniform meshes of up to `most` cells a direction: J as it is, and J with its residuals."""
    series, corrected = Series(), Series()
    for cells in [n for n in (32, 40, 48, 64, 80, 96, 128, 160, 192) if n <= most]:
        began = time.perf_counter()
        value, _, steps, _, _ = march(problem, box_mesh(2, cells, half_width))
        middle = time.perf_counter()
        try:
            equation = BackwardKolmogorov(
                problem, cells=cells, half_width=half_width, backend="skfem", limit=False, propagator=SCHEME
            )
            error = abs(residuals(linear_march(equation)).corrected - reference)
        except InfeasibleError:  # these do not pass the guards
            error = float("inf")
        nodes, end = (cells + 1) ** 2, time.perf_counter()
        series.add(nodes, abs(value - reference), middle - began)
        corrected.add(nodes, error, end - middle)
        both = f"{sum(s.count for s in steps):9d}   corrected {error:.1e} {end - middle:8.2f}"
        row(f"{nodes:7d}", series.errors[-1], middle - began, both)
    return series, corrected


def row(name: str, error: float, seconds: float, more: str) -> None:
    """Print one mesh."""
    print(f"{name} {error:10.1e} {seconds:8.2f} {more}", flush=True)


def main() -> None:
    """Print a table for each case and what the two kinds of meshes need for the same error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--cells", type=int, default=160)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--halvings", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in options.cases:
        problem = case.load(folder)
        # the box is one whose own effect on J is below what is measured here
        tight = resolve_value(problem, backend="skfem", aim=(1e-5, 1e-4), effort=Effort(seconds=0))
        half_width, most = tight.half_width, options.cells
        found = resolve_value(
            problem, cells=3 * most // 2, half_width=half_width, backend="skfem", aim=(0, 0), corrected=True
        )
        J, floor = found.value, found.mesh_error
        print(f"{Path(folder).name}: J = {J:.6f} +- {floor:.0e}, half width {half_width:.2f}")
        print("  nodes  |J - J_ref| seconds  substeps   adaptive")
        refined = adaptive(problem, half_width, J, options.nodes, options.halvings)
        print("uniform")
        for name, series in zip(("", " corrected"), uniform(problem, half_width, J, most), strict=True):
            # the smallest error that both reach and that the reference can tell from none
            error = max(refined.envelope[-1], series.envelope[-1], floor)
            nodes, seconds = series.needs(error) / refined.needs(error)
            print(f"uniform{name} / adaptive at {error:.1e}: nodes {nodes:.2f}, seconds {seconds:.2f}")


if __name__ == "__main__":
    main()
