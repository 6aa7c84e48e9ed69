r"""Deep networks trained for a long time: the loss goes to zero and the weights stay smooth in depth.

The gradient flow of 2309.01213 (`kolmo.deep`) from tied weights, 50 points in 16 dimensions, 64 hidden units,
16 to 128 layers, until the loss is below 1e-7. Along it:

ratio   L |gradient|^2 / loss = -d log(loss)/dt, the Polyak-Lojasiewicz ratio
mu      its lower bound at those weights for any targets, by the tangent kernel's smallest eigenvalue
jump    L max_k |Z_{k+1} - Z_k|, the Lipschitz constant in depth: neither grows for ever nor depends on L
apart   max_k |Z_k - Z'_{2k}| between a network and one of twice the layers: O(1/L) at all times

Gradient descent would take long: the flow becomes stiff as it goes on, and a learning rate that is stable at
first ends at the edge of stability. Steps are Runge-Kutta-Chebyshev ones instead (`kolmo.chebyshev`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from kolmo.chebyshev import Chebyshev
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.deep import Regression, Weights, tied
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress, Silent

#: what is claimed: of the loss, of mu, and of jumps in the second half of the time (relative)
LOSS, LEAST_MU, SETTLED = 1e-7, 1e-3, 0.02


@dataclass(frozen=True)
class Plan:
    """Sizes. depths: each twice the one before. shown: the depth that claims of the loss and mu are about.

    end: of the training time. same: what jumps of the depth shown and of the deepest may differ by, relative;
    within: what an order may be off by. times: when things are measured, besides 0; mu at every `seldom`-th.
    tolerance: of a step's error in the weights, root mean square.
    """

    points: int
    dim: int
    width: int
    depths: tuple[int, ...]
    shown: int
    end: float
    same: float
    within: float
    times: int = 60
    seldom: int = 5
    tolerance: float = 1e-5


FULL = Plan(points=50, dim=16, width=64, depths=(16, 32, 64, 128), shown=64, end=500.0, same=0.1, within=0.2)
QUICK = Plan(points=10, dim=4, width=64, depths=(16, 32, 64), shown=32, end=120.0, same=0.2, within=0.3)


@dataclass
class Course:
    """What was measured at every time (T,), of every depth (T, D).

    loss; ratio and mu per unit of training time, mu (T,) of the depth shown and nan in between; jump; apart
    (T, D - 1) from each depth to the next; profiles (T, L): the first entry of V in every layer of the depth
    shown. gradients (D,): evaluated. stiffness (D,): the flow's largest spectral radius so far.
    """

    times: np.ndarray
    loss: np.ndarray
    ratio: np.ndarray
    jump: np.ndarray
    apart: np.ndarray
    mu: np.ndarray
    profiles: np.ndarray
    gradients: np.ndarray
    stiffness: np.ndarray

    @classmethod
    def empty(cls, plan: Plan) -> Course:
        times = np.append(0.0, np.geomspace(1e-2, plan.end, plan.times))
        T, D = len(times), len(plan.depths)
        sizes = ((T, D), (T, D), (T, D), (T, D - 1), (T,), (T, plan.shown), (D,), (D,))
        return cls(times, *(np.full(size, np.nan) for size in sizes))


class LongTime:
    """The flow of every depth from the same start, course.

    config: its seed, which draws points, targets and weights.
    """

    name = "long_time"
    summary = "deep networks trained to zero loss: weights stay smooth in depth, Polyak-Lojasiewicz ratio"
    shipped = "default"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.plan = config, QUICK if quick else FULL
        self.course: Course | None = None
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All depths side by side. Raises NonFiniteError where the flow leaves the numbers."""
        progress = progress or Silent()
        progress.start("gradient flow of deep networks", self.plan.times + 1)
        kept = self.memo.remember("flow", lambda checkpoint: self._flow(checkpoint, progress))
        self.course = Course(**kept)

    @property
    def finished(self) -> bool:
        return self.course is not None

    def _flow(self, checkpoint: Checkpoint, progress: Progress) -> State:
        plan, seed = self.plan, self.config.run.seed
        regression = Regression.drawn(plan.points, plan.dim, seed)
        starts = [tied(depth, plan.width, plan.dim, seed) for depth in plan.depths]
        fields = [regression.velocity(start) for start in starts]
        kept = checkpoint.load()
        if kept is None:
            done, course = 0, Course.empty(plan)
            flows = [
                Chebyshev(field, start.flat(), plan.tolerance)
                for field, start in zip(fields, starts, strict=True)
            ]
        else:
            done, course = kept["done"], Course(**kept["course"])
            resumed = zip(fields, kept["flows"], strict=True)
            flows = [Chebyshev.resumed(field, state) for field, state in resumed]
            progress.advance("resumed", done)
        for number in range(done, len(course.times)):
            pairs = zip(starts, flows, strict=True)
            weights = [start.like(flow.advance(course.times[number])) for start, flow in pairs]
            self._measure(course, number, regression, weights, flows)
            shown = course.loss[number, plan.depths.index(plan.shown)]
            progress.advance(f"time {course.times[number]:.3g}: loss {shown:.1e}")
            states = [flow.state() for flow in flows]
            checkpoint.offer(partial(dict, done=number + 1, course=asdict(course), flows=states))
        return asdict(course)

    def _measure(
        self,
        course: Course,
        number: int,
        regression: Regression,
        weights: list[Weights],
        flows: list[Chebyshev],
    ) -> None:
        """Fill in one time."""
        plan = self.plan
        for i, (found, flow) in enumerate(zip(weights, flows, strict=True)):
            loss = regression.loss(found)
            course.loss[number, i] = loss
            course.ratio[number, i] = float(flow.slope.square().sum()) / found.depth / loss
            course.jump[number, i] = found.depth * float(found.jumps().max())
            course.gradients[i] = flow.evaluations
            course.stiffness[i] = np.fmax(course.stiffness[i], flow.radius)
        for i, (found, deeper) in enumerate(pairwise(weights)):
            course.apart[number, i] = float(found.distances(deeper).max())
        shown = weights[plan.depths.index(plan.shown)]
        course.profiles[number] = shown.V[:, 0, 0].numpy()
        if number % plan.seldom == 0:
            course.mu[number] = regression.least_ratio(shown)

    def order(self, number: int = -1) -> float:
        """The slope of `apart` in 1/L at one of the times."""
        assert self.course is not None
        depths = np.log(self.plan.depths[:-1])
        return -float(np.polyfit(depths, np.log(self.course.apart[number]), 1)[0])

    def claims(self) -> list[Claim]:
        """Loss, ratio and smoothness of a finished study."""
        course, plan = self.course, self.plan
        if course is None:
            return []
        i = plan.depths.index(plan.shown)
        end, known = float(course.loss[-1, i]), np.isfinite(course.mu)
        rise = float((course.loss[1:] / course.loss[:-1]).max())
        above = float((course.ratio[known, i] / course.mu[known]).min())
        mu = float(course.mu[known].min())
        same = float(abs(course.jump[-1, i] / course.jump[-1, -1] - 1))
        half = int(np.searchsorted(course.times, plan.end / 2))
        settled = float((course.jump[-1] / course.jump[half] - 1).max())
        order = self.order()
        return [
            Claim(f"{plan.shown} layers: loss at the end", end, f"< {LOSS:g}", end < LOSS),
            Claim("losses only fall: largest ratio of one to the one before", rise, "< 1", rise < 1),
            Claim("Polyak-Lojasiewicz ratio over mu, smallest", above, ">= 1", above >= 1),
            Claim("mu along training, smallest", mu, f">= {LEAST_MU:g}", mu >= LEAST_MU),
            Claim(
                f"largest jump times L at the end, {plan.shown} against {plan.depths[-1]} layers, relative",
                same, f"<= {plan.same:g}", same <= plan.same,
            ),
            Claim(
                "largest jump times L: growth in the second half of the time, relative",
                settled, f"<= {SETTLED:g}", settled <= SETTLED,
            ),
            Claim(
                "weights of neighbouring depths at the end, order in 1/L",
                order, f"1.0 +- {plan.within:g}", abs(order - 1) <= plan.within,
            ),
        ]  # fmt: skip

    def results(self) -> dict[str, Any]:
        """Everything for results.json."""
        if self.course is None:
            return {"long_time": None}
        course = {key: value.tolist() for key, value in asdict(self.course).items()}
        return {"long_time": {"plan": asdict(self.plan), **course}}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Along training for the depth shown, and all depths at the end."""
        course, plan = self.course, self.plan
        if course is None:
            return []
        i = plan.depths.index(plan.shown)
        at = np.flatnonzero(np.isfinite(course.mu))
        rows: list[list[object]] = [
            [
                f"{course.times[k]:.3g}", f"{course.loss[k, i]:.1e}", f"{course.ratio[k, i]:.4f}",
                f"{course.mu[k]:.4f}", f"{course.jump[k, i]:.2f}",
            ]
            for k in at
        ]  # fmt: skip
        columns = ["time", "loss", "ratio", "mu", "L x jump"]
        along = f"{plan.shown} layers along training (ratio, mu: per unit of time)", columns, rows
        rows = []
        for i, depth in enumerate(plan.depths):
            apart = f"{course.apart[-1, i]:.4f}" if i < len(plan.depths) - 1 else ""
            # Euler's steps are at most 2 / rho long
            counts = [f"{course.gradients[i]:.0f}", f"{plan.end * course.stiffness[i] / 2:.0f}"]
            numbers = [f"{course.loss[-1, i]:.1e}", f"{course.ratio[-1, i]:.4f}", f"{course.jump[-1, i]:.2f}"]
            rows.append([depth, *numbers, apart, *counts])
        columns = ["L", "loss", "ratio", "L x jump", "to 2L", "gradients", "by descent"]
        last = (
            f"every depth at time {plan.end:g} (by descent: gradients that stable Euler steps would take)",
            columns, rows,
        )  # fmt: skip
        return [along, last]
