r"""Training as optimal control where the optimum is known: affine layers, quadratic loss (`affine`).

First, every method minimises one objective, the modified equation of order 2 by finite elements, from the
same random weights, and ends at the optimum in closed form. Second, over the depth: that optimum tends to
Riccati's of continuous time and to the network's own, at the orders of the modified equation; Pontryagin's
Hamiltonian is constant along it, and its derivative by a layer's weights is the objective's.

The derivative of H_k is taken by differences of marches through single layers, u and rho held: no adjoint and
no automatic differentiation enter, and as H_k is a parabola in theta_k, differences are exact.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.control import Objective, lbfgs, optimality
from kolmo.experiments.affine import AffineSystem
from kolmo.experiments.claims import Claim
from kolmo.experiments.descents import METHODS, SUCCESSIVE, TOLERANCE, CountedSteps, Descent, descend
from kolmo.experiments.pontryagin import hamiltonian_slope
from kolmo.experiments.progress import Progress, Silent
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.backend import resolve as resolve_backend
from kolmo.penalty import WeightDecay

#: relative: of a method's weights, and of Pontryagin's residual
REACHED, AGREE = 1e-6, 1e-8
#: order of the modified equation that is trained on; points of each problem, the first of class 0
ORDER, POINTS = 2, 6
DEPTHS, DEPTHS_QUICK = (10, 20, 40, 80), (20, 40, 80)


@dataclass(frozen=True)
class Case:
    """One system and its mesh.

    A, B, decay, std, horizon: as of `AffineSystem`. cells, half_width: of the box. substeps: of all layers
    together. depth: that methods are compared at. successive: whether layer by layer as well, which takes
    hundreds of solves; quick: also in the small version.
    """

    name: str
    A: tuple[tuple[float, ...], ...]
    B: tuple[tuple[float, ...], ...]
    decay: float
    std: float
    horizon: float
    cells: int
    half_width: float
    substeps: int
    depth: int
    successive: bool = True
    quick: bool = False

    @property
    def dim(self) -> int:
        return len(self.A)

    @property
    def methods(self) -> list[str]:
        return [*METHODS, *([SUCCESSIVE] if self.successive else [])]

    def system(self, seed: int) -> AffineSystem:
        """Its points drawn by the seed, in a cube of side 1/2."""
        points = np.random.default_rng([seed, self.dim]).uniform(-0.25, 0.25, (POINTS, self.dim))
        labels = np.arange(POINTS) > 0  # were they even, there would be little to control
        A, B = np.array(self.A), np.array(self.B)
        return AffineSystem(A, B, points, labels, self.decay, self.std, self.horizon)


CASES = (
    Case("growth, 1-D", ((0.5,),), ((1.0,),), 0.3, 0.1, 1.0, 80, 2.5, 80, 5, quick=True),
    Case("decay, 1-D", ((-1.0,),), ((1.0,),), 0.15, 0.2, 1.5, 80, 3.0, 160, 5),
    Case(
        "turning, 2-D", ((-0.3, 2.0), (-2.0, -0.3)), ((0.0,), (1.0,)), 0.3, 0.3, 1.5, 56, 3.5, 160, 10,
        successive=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """The optimum of one depth, as L-BFGS finds it through the equation.

    reached: distance to the closed form of the same equation, relative. continuous, chain: largest distance
    of a weight to the optimum of continuous time at the layer's middle, and to the network's own.
    pontryagin: of random weights, |dH/dtheta - gradient / h| relative to the latter. hamiltonian (L,): at the
    optimum, loss per time. spread: its max - min, relative to Riccati's constant. verdict: of `optimality`.
    """

    depth: int
    theta: np.ndarray
    reached: float
    continuous: float
    chain: float
    pontryagin: float
    hamiltonian: np.ndarray
    spread: float
    verdict: str


#: what tends to zero with the depth, by a Point's attribute: title, order in h, what a slope may be off by
RATES = {
    "continuous": ("weights, to continuous time", 1, 0.15),
    "chain": ("weights, to the network's own", 2, 0.25),
    "spread": ("spread of the Hamiltonian", 1, 0.15),
}


class LinearQuadratic:
    """Methods by case and name, descents[case][method], and optima over the depth, points[case].

    config: its seed, which draws points and initial weights, and its backend; systems are the experiment's.
    """

    name = "linear_quadratic"
    summary = "methods of control against the optimum in closed form (Riccati), and Pontryagin's conditions"
    shipped = "default"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config = config
        self.cases = [case for case in CASES if case.quick or not quick]
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.descents: dict[str, dict[str, Descent]] = {}
        self.points: dict[str, list[Point]] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All that is not done yet. Raises KolmoError where the equation refuses weights."""
        progress = progress or Silent()
        steps = sum(len(case.methods) + len(self.depths) for case in self.cases)
        progress.start("linear-quadratic control", steps)
        for case in self.cases:
            number = CASES.index(case)
            descents = self.descents.setdefault(case.name, {})
            for index, method in enumerate(case.methods):
                key = f"{number}-method-{index}"
                found = self.memo.remember(key, partial(self._descend, case, method))
                descents[method] = Descent(**found)
                progress.advance(f"{case.name}, {method}: {descents[method].gaps[-1]:.0e} above the optimum")
            points = self.points.setdefault(case.name, [])
            for depth in self.depths[len(points) :]:
                kept = self.memo.remember(f"{number}-depth-{depth}", partial(self._measure, case, depth))
                points.append(Point(**kept))
                progress.advance(f"{case.name}, {depth} layers: {points[-1].continuous:.1e} from Riccati's")

    @property
    def finished(self) -> bool:
        return all(len(self.points.get(case.name, [])) == len(self.depths) for case in self.cases)

    def equation(self, case: Case, depth: int) -> BackwardKolmogorov:
        """The case's modified equation; the loss is unbounded, so nothing is clipped."""
        return BackwardKolmogorov(
            case.system(self.config.run.seed).problem(depth),
            cells=case.cells,
            half_width=case.half_width,
            order=ORDER,
            backend=resolve_backend(self.config.run.backend),
            propagator=CountedSteps(case.substeps // depth),
            limit=False,
        )

    def start(self, case: Case, depth: int) -> np.ndarray:
        """Random weights (L m,), the same for every method."""
        rng = np.random.default_rng([self.config.run.seed, CASES.index(case), depth])
        return np.asarray(0.3 * rng.standard_normal(depth * len(case.B[0])))

    def _descend(self, case: Case, method: str, checkpoint: Checkpoint) -> State:
        equation, start = self.equation(case, case.depth), self.start(case, case.depth)
        optimum = case.system(self.config.run.seed).modified(case.depth, ORDER)
        penalties = (WeightDecay(case.decay),)
        return asdict(descend(method, equation, penalties, start, optimum.gap, time.perf_counter))

    def _measure(self, case: Case, depth: int, checkpoint: Checkpoint) -> State:
        equation, system = self.equation(case, depth), case.system(self.config.run.seed)
        penalties = (WeightDecay(case.decay),)
        objective = Objective(equation.problem.network, equation.expected_loss, penalties)
        start = self.start(case, depth)
        gradient = objective.value_and_gradient(start)[1] / equation.problem.network.step
        slope = hamiltonian_slope(equation, penalties)
        theta = lbfgs(objective, start, tolerance=TOLERANCE).theta
        at = optimality(equation, penalties, eigenvalues=0)
        exact = system.modified(depth, ORDER).minimiser
        point = Point(
            depth,
            theta,
            reached=_relative(theta, exact),
            continuous=float(np.abs(theta - system.midpoints(depth)).max()),
            chain=float(np.abs(theta - system.chain(depth).minimiser).max()),
            pontryagin=_relative(slope, gradient),
            hamiltonian=at.hamiltonian,
            spread=float(np.ptp(at.hamiltonian) / abs(system.hamiltonian())),
            verdict=at.verdict,
        )
        return asdict(point)

    def away(self, case: Case, method: str) -> float:
        """Distance of a method's end to the closed form, relative."""
        exact = case.system(self.config.run.seed).modified(case.depth, ORDER).minimiser
        return _relative(self.descents[case.name][method].theta, exact)

    def slope(self, case: Case, name: str) -> float:
        """Least-squares slope in h = T / L of one of RATES, nan below three depths."""
        points = self.points.get(case.name, [])
        if len(points) < 3:
            return math.nan
        values = [getattr(point, name) for point in points]
        return -float(np.polyfit(np.log([p.depth for p in points]), np.log(values), 1)[0])

    def claims(self) -> list[Claim]:
        """Of every case that is done: the optimum is reached, its rates, and Pontryagin's conditions."""
        claims = []
        for case in self.cases:
            points = self.points.get(case.name, [])
            if len(points) < len(self.depths):
                continue
            worst = max(self.away(case, method) for method in case.methods)
            text = f"{case.name}: {len(case.methods)} methods at the closed form, relative"
            claims.append(Claim(text, worst, f"<= {REACHED:g}", worst <= REACHED))
            worst = max(point.reached for point in points)
            stationary = all(point.verdict == "stationary" for point in points)
            text = f"{case.name}: optima of all depths stationary, at the closed form"
            claims.append(Claim(text, worst, f"<= {REACHED:g}", worst <= REACHED and stationary))
            for name, (title, order, within) in RATES.items():
                slope = self.slope(case, name)
                holds = abs(slope - order) <= within
                text = f"{case.name}: {title}, order in h"
                claims.append(Claim(text, slope, f"{order:.1f} +- {within:g}", holds))
            worst = max(point.pontryagin for point in points)
            text = f"{case.name}: dH/dtheta is the objective's gradient, relative"
            claims.append(Claim(text, worst, f"<= {AGREE:g}", worst <= AGREE))
        return claims

    def results(self) -> dict[str, Any]:
        """Everything for results.json; `seconds` alone are the clock's."""
        rows = []
        for case in self.cases:
            system, points = case.system(self.config.run.seed), self.points.get(case.name, [])
            descents = self.descents.get(case.name, {})
            row: dict[str, Any] = {"case": asdict(case), "hamiltonian": system.hamiltonian()}
            row["methods"] = {
                method: {**_listed(found), "relative_error": self.away(case, method)}
                for method, found in descents.items()
            }
            row["depths"] = [_listed(point) for point in points]
            slopes = {name: self.slope(case, name) for name in RATES}
            row["slopes"] = {k: v if math.isfinite(v) else None for k, v in slopes.items()}
            rows.append(row)
        return {"linear_quadratic": rows}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """What each method took; and, over the depth, distances to the optima and the Hamiltonian."""
        taken: list[list[object]] = []
        for case in self.cases:
            for method, d in self.descents.get(case.name, {}).items():
                counts = [d.evaluations, d.curvatures, d.products, f"{d.solves[-1]:.0f}", f"{d.seconds:.1f}"]
                taken.append([case.name, method, f"{self.away(case, method):.0e}", *counts])
        columns = ["case", "method", "error", "evaluations", "curvatures", "products", "solves", "seconds"]
        tables = [("every method from the same weights (error: of the weights, relative)", columns, taken)]
        rows: list[list[object]] = []
        for case in self.cases:
            points = self.points.get(case.name, [])
            for name, (title, _, _) in RATES.items():
                values = [f"{getattr(point, name):.1e}" for point in points]
                cells = [*values, *[""] * (len(self.depths) - len(values))]
                rows.append([case.name, title, *cells, f"{self.slope(case, name):.2f}"])
        depths = [f"L = {depth}" for depth in self.depths]
        tables.append(("the optimum over the depth", ["case", "what", *depths, "order"], rows))
        rows = []
        for case in self.cases:
            points = self.points.get(case.name, [])
            values = [f"{point.hamiltonian.mean():.5f}" for point in points]
            cells = [*values, *[""] * (len(self.depths) - len(values))]
            rows.append([case.name, *cells, f"{case.system(self.config.run.seed).hamiltonian():.5f}"])
        tables.append(("the Hamiltonian's mean at the optimum", ["case", *depths, "Riccati"], rows))
        return tables


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _listed(found: Descent | Point) -> dict[str, Any]:
    """Fields for JSON, arrays as lists."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(found).items()}
