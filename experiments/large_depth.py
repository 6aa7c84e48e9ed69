r"""Networks with more and more layers, trained for a given time, stay discretised ODEs (`kolmo.deep`).

The same steps of gradient descent, the learning rate scaled with L, for networks of 2 to 2^14 layers on 100
points in 16 dimensions with 32 hidden units (2309.01213). With Z_k the weights of layer k, from three starts:

tied          one Gaussian W for all layers, V = 0: the paper's
smooth        samples of random curves in depth, W and V
independent   a Gaussian W for each layer: no discretisation of anything, for contrast

Differences of neighbouring layers: the largest, max_{k,t} |Z_{k+1} - Z_k|, falls like 1/L; all of them
together, (sum_k int |Z_{k+1} - Z_k|^2 dt)^{1/2}, are L terms of size 1/L^2 under a root and fall like
L^{-1/2}. The distance max_k |Z_k(t) - Z(k/L, t)| to the deepest network falls like 1/L at every training
time. From independent weights neither happens: the largest difference stays, all together grow like L^{1/2}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.deep import Regression, Start, Weights, descend, independent, smooth, tied
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress, Silent

#: depths that slopes are fitted over, and what those may be off by: of differences, of distances
FITTED, WITHIN, WITHIN_DISTANCE = 8, 0.05, 0.1
STARTS: dict[str, Start] = {"tied": tied, "smooth": smooth, "independent": independent}


@dataclass(frozen=True)
class Plan:
    """Sizes. depths: from few layers on. limits: how many stand for infinitely many, by start; 0: none.

    steps: of gradient descent, each of `step` units of training time.
    """

    points: int
    dim: int
    width: int
    depths: tuple[int, ...]
    limits: dict[str, int]
    steps: int
    step: float = 0.01


def _powers(last: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(1, last + 1))


FULL = Plan(100, 16, 32, _powers(10), {"tied": 2**14, "smooth": 2**14, "independent": 0}, steps=50)
QUICK = Plan(20, 6, 16, _powers(7), {"tied": 2**10, "smooth": 2**10, "independent": 0}, steps=25)
#: layers of the limit that are kept for the figure, and depths that are shown beside it
_SHOWN, _BESIDE = 128, (4, 16)


@dataclass
class Course:
    """One start, all depths side by side, at the times 0, step, ... (T,).

    depths (D,), the limit's last where there is one. loss (T, D). squares (T, D): sum_k |Z_{k+1} - Z_k|^2;
    largest (T, D): max_k of the roots. distances (T, D): max_k to the limit, nan for itself and without one.
    profiles: the first entry of V over depth at the end, (L,), of a few depths and of the limit.
    """

    depths: np.ndarray
    times: np.ndarray
    loss: np.ndarray
    squares: np.ndarray
    largest: np.ndarray
    distances: np.ndarray
    profiles: list[np.ndarray]

    @property
    def together(self) -> np.ndarray:
        """(sum_k int |Z_{k+1} - Z_k|^2 dt)^{1/2} of every depth (D,)."""
        return np.asarray(np.sqrt(trapezoid(self.squares, self.times, axis=0)))

    @property
    def worst(self) -> np.ndarray:
        """max_{k,t} |Z_{k+1} - Z_k| of every depth (D,)."""
        return np.asarray(self.largest.max(axis=0))

    def slope(self, values: np.ndarray) -> float:
        """Least-squares slope over log L of values (D,), those that are finite, from FITTED layers on."""
        kept = np.isfinite(values) & (self.depths >= FITTED)
        return float(np.polyfit(np.log(self.depths[kept]), np.log(values[kept]), 1)[0])

    @property
    def has_limit(self) -> bool:
        return bool(np.isfinite(self.distances).any())


class LargeDepth:
    """One course for each start, courses[start].

    config: its seed, which draws points, targets and weights.
    """

    name = "large_depth"
    summary = "up to 2^14 layers: differences of neighbouring layers, and distances to the limit, over depth"
    shipped = "default"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.plan = config, QUICK if quick else FULL
        self.courses: dict[str, Course] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All starts that are not done yet. Raises NonFiniteError where a descent blows up."""
        progress = progress or Silent()
        progress.start("gradient descent at many depths", len(STARTS) * (self.plan.steps + 1))
        for name in STARTS:
            if name not in self.courses:
                kept = self.memo.remember(name, partial(self._descend, name, progress.advance))
                self.courses[name] = Course(**kept)

    @property
    def finished(self) -> bool:
        return len(self.courses) == len(STARTS)

    def _descend(self, name: str, advance: Callable[..., None], checkpoint: Checkpoint) -> State:
        """All depths in step with each other, so that only scalars of their trajectories are kept."""
        plan, seed = self.plan, self.config.run.seed
        regression = Regression.drawn(plan.points, plan.dim, seed)
        limit = plan.limits[name]
        depths = [*plan.depths, *([limit] if limit else [])]
        kept = checkpoint.load()
        if kept is None:
            done, size = 0, (plan.steps + 1, len(depths))
            loss, squares, largest, distances = (np.full(size, np.nan) for _ in range(4))
            times = plan.step * np.arange(plan.steps + 1.0)
            course = Course(np.array(depths), times, loss, squares, largest, distances, profiles=[])
            networks = [STARTS[name](depth, plan.width, plan.dim, seed) for depth in depths]
        else:
            done, course = kept["done"], Course(**kept["course"])
            networks = [Weights(*map(torch.from_numpy, pair)) for pair in kept["networks"]]
            advance("resumed", done)
        for number in range(done, plan.steps + 1):
            for i, weights in enumerate(networks):
                jumps = weights.jumps()
                course.squares[number, i] = float(jumps.square().sum())
                course.largest[number, i] = float(jumps.max())
                if limit and weights.depth < limit:
                    course.distances[number, i] = float(weights.distances(networks[-1]).max())
            for i, weights in enumerate(networks):
                if number < plan.steps:
                    course.loss[number, i] = descend(regression, weights, plan.step)
                else:
                    course.loss[number, i] = regression.loss(weights)
            advance(f"{name}, time {course.times[number]:.2f}: loss {course.loss[number, -1]:.4f}")
            checkpoint.offer(partial(_state, number + 1, course, networks))
        course.profiles = [_profile(weights) for weights in networks if weights.depth in (*_BESIDE, limit)]
        return asdict(course)

    def claims(self) -> list[Claim]:
        """The slopes of every start that is done."""
        claims = []
        for name, course in self.courses.items():
            orders = (0.5, 0.0) if name == "independent" else (-0.5, -1.0)
            for title, values, order in zip(
                ("all differences of neighbours", "the largest difference of neighbours"),
                (course.together, course.worst), orders, strict=True,
            ):  # fmt: skip
                slope = course.slope(values)
                text = f"{name}: {title}, slope over L"
                claims.append(Claim(text, slope, f"{order:g} +- {WITHIN:g}", abs(slope - order) <= WITHIN))
            if course.has_limit:
                slopes = self.distance_slopes(name)
                worst = float(slopes[np.abs(slopes + 1).argmax()])
                text = f"{name}: distance to {course.depths[-1]} layers, slope over L, the worst of all times"
                holds = abs(worst + 1) <= WITHIN_DISTANCE
                claims.append(Claim(text, worst, f"-1 +- {WITHIN_DISTANCE:g}", holds))
            rise = float((course.loss[1:] - course.loss[:-1]).max())
            claims.append(Claim(f"{name}: losses fall with every step (largest rise)", rise, "< 0", rise < 0))
        return claims

    def distance_slopes(self, name: str) -> np.ndarray:
        """The slope of the distance to the limit at every time at which all depths are off it."""
        course = self.courses[name]
        rows = [row for row in course.distances if np.nanmin(row) > 0]
        return np.array([course.slope(row) for row in rows])

    def results(self) -> dict[str, Any]:
        """Everything for results.json."""
        courses = {}
        for name, course in self.courses.items():
            listed = {k: v.tolist() for k, v in asdict(course).items() if k != "profiles"}
            slopes = {"together": course.slope(course.together), "largest": course.slope(course.worst)}
            if course.has_limit:
                slopes["distance"] = course.slope(course.distances[-1])
            courses[name] = {**listed, "slopes": slopes}
        return {"large_depth": {"plan": asdict(self.plan), "courses": courses}}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Per start: both kinds of differences, the distance to the limit and the loss over the depth."""
        tables: list[tuple[str, list[str], list[list[object]]]] = []
        for name, course in self.courses.items():
            rows: list[list[object]] = []
            for i, depth in enumerate(course.depths):
                far = course.distances[-1, i]
                shown = f"{far:.2e}" if np.isfinite(far) else ""
                pair = [f"{course.together[i]:.2e}", f"{course.worst[i]:.2e}"]
                rows.append([int(depth), *pair, shown, f"{course.loss[-1, i]:.5f}"])
            slopes = [f"{course.slope(v):.3f}" for v in (course.together, course.worst)]
            last = f"{course.slope(course.distances[-1]):.3f}" if course.has_limit else ""
            rows.append(["slope", *slopes, last, ""])
            columns = ["L", "all together", "largest", "to the limit", "loss"]
            tables.append((f"start {name}: differences over depth, training time {course.times[-1]:g}",
                           columns, rows))  # fmt: skip
        return tables


def _state(done: int, course: Course, networks: list[Weights]) -> State:
    """All that the next step depends on."""
    pairs = [(weights.W.numpy(), weights.V.numpy()) for weights in networks]
    return {"done": done, "course": asdict(course), "networks": pairs}


def _profile(weights: Weights) -> np.ndarray:
    """The first entry of V over depth, of at most _SHOWN layers."""
    every = max(1, weights.depth // _SHOWN)
    return np.array(weights.V[::every, 0, 0].numpy())
