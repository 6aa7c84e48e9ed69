r"""A schedule of dropout chosen on validation data, by grids and by descent with exact hypergradients.

Every layer's keep probability is a control. On draws of five data sets (`noise_design_draw`) schedules are
chosen by the loss of the plain network on validation points: the best constant, the best linear decay and the
best line of a grid, and what `control.design` finds among constants, among lines, and layer by layer. Test
points decide what each is worth; solves of the equation (values with gradients, second derivatives, products
with them) are what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.special import stdtrit

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.errors import InfeasibleError
from kolmo.experiments.claims import Claim
from kolmo.experiments.noise_design_draw import DEPTH, LEAST, MOST, SETS, Choice, Draw
from kolmo.experiments.progress import Progress, Silent

#: ways to choose, and what tables call them: a star is for descent
WAYS = {
    "none": "none",
    "own": "start",
    "constant": "constant",
    "decay": "decay",
    "line": "line",
    "descent:constant": "constant*",
    "descent:line": "line*",
    "descent:layers": "layers*",
}
#: families that have a grid and a descent, and all that have a descent
PAIRS, FAMILIES = ("constant", "line"), ("constant", "line", "layers")
#: ways whose gain on validation points is shown beside that on test points
PAIRED = ("line", "descent:layers")


@dataclass(frozen=True)
class Plan:
    """Sizes, and what is claimed.

    sets: names of `SETS`. draws: of each. points: of a grid, in each direction. close: what a descent's
    validation loss may be above the grid's of the same family, relative, in the mean over draws. share: of
    the grid's solves that a descent over lines takes, median over draws. early: what stopping trainings early
    may be worth in V, relative. confidence: of the one-sided intervals that claims are about.
    """

    sets: tuple[str, ...]
    draws: int
    points: int
    close: float
    share: float
    early: float
    confidence: float


FULL = Plan(
    sets=tuple(SETS), draws=10, points=5, close=0.01, share=0.5, early=0.01, confidence=0.95,
)  # fmt: skip
QUICK = Plan(
    sets=("moons", "spirals"), draws=2, points=3, close=0.02, share=1.0, early=0.01, confidence=0.8,
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A mean over draws and its intervals by Student's t, which are nan of fewer than two.

    error: standard error. count: draws.
    """

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, values: np.ndarray) -> Mean:
        values, count = np.asarray(values, dtype=np.float64), len(values)
        if count < 2:
            return cls(float(values.mean()) if count else math.nan, math.nan, count)
        return cls(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count), count)

    @property
    def half(self) -> float:
        """Half of the 95% interval."""
        return self._quantile(0.975) * self.error

    def highest(self, confidence: float) -> float:
        """What the mean is below with this confidence: the end of a one-sided interval."""
        return self.value + self._quantile(confidence) * self.error

    def _quantile(self, probability: float) -> float:
        return float(stdtrit(self.count - 1, probability)) if self.count > 1 else math.nan

    def shown(self) -> str:
        """With its interval."""
        return f"{self.value:+.4f} +- {self.half:.4f}"


class NoiseDesign:
    """Choices chosen[set][draw][way], or None where a draw was refused, with its reason in `refused`.

    config: its noise, whose keep probability is where descents begin, weight decay, loss, numbers of points,
    first seed and backend.
    """

    name = "noise_design"
    summary = "dropout rates of every layer chosen on validation data: descent with hypergradients, and grids"
    shipped = "noise_design"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.plan = config, QUICK if quick else FULL
        self.chosen: dict[str, list[dict[str, Choice] | None]] = {}
        self.refused: dict[str, str] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All draws. Those on which a training or a descent does not begin are noted in `refused`."""
        progress, plan = progress or Silent(), self.plan
        progress.start("choosing schedules", len(plan.sets) * plan.draws)
        first = self.config.run.seed
        for number in range(plan.draws):
            for name in plan.sets:
                key, done = f"{name}-{first + number}", self.chosen.setdefault(name, [])
                if len(done) > number:
                    continue
                state = self.memo.remember(key, self._draw(name, first + number))
                if "refused" in state:
                    self.refused[key] = state["refused"]
                    done.append(None)
                    progress.advance(f"{key}: refused")
                    continue
                found = {way: Choice(**choice) for way, choice in state.items()}
                done.append(found)
                progress.advance(f"{key}: V {found['descent:layers'].validation:.4f}")

    @property
    def finished(self) -> bool:
        return all(len(self.chosen.get(name, [])) == self.plan.draws for name in self.plan.sets)

    def _draw(self, name: str, seed: int) -> Callable[[Checkpoint], State]:
        def choose(checkpoint: Checkpoint) -> State:
            try:
                found = every_way(Draw(self.config, name, seed), self.plan.points)
            except InfeasibleError as error:
                return {"refused": str(error)}
            return {way: asdict(choice) for way, choice in found.items()}

        return choose

    # what they show

    def draws(self, name: str | None = None) -> list[dict[str, Choice]]:
        """Those of one set, or of all, that were not refused."""
        names = self.plan.sets if name is None else (name,)
        return [draw for n in names for draw in self.chosen.get(n, []) if draw is not None]

    def values(self, way: str, what: str = "test", name: str | None = None) -> np.ndarray:
        """One of a Choice's numbers for each draw."""
        return np.array([getattr(draw[way], what) for draw in self.draws(name)], dtype=np.float64)

    def gain(self, way: str, over: str, what: str = "test", name: str | None = None) -> Mean:
        """A loss less that of another way, paired: the mean over draws."""
        return Mean.of(self.values(way, what, name) - self.values(over, what, name))

    def above(self, family: str) -> Mean:
        """A descent's validation loss above that of its family's grid, relative."""
        return Mean.of(self.values(f"descent:{family}", "validation") / self._grid(family, "validation") - 1)

    def share(self, family: str) -> float:
        """Solves of a descent over those of its family's grid, median."""
        return float(np.median(self.values(f"descent:{family}", "solves") / self._grid(family, "solves")))

    def _grid(self, family: str, what: str) -> np.ndarray:
        """Of the grid of a family; of all layers solves alone: as many for a training as for lines."""
        if family in PAIRS:
            return self.values(family, what)
        assert what == "solves"
        points = self.plan.points
        return self.values("line", what) / points**2 * points**DEPTH

    def claims(self) -> list[Claim]:
        """Of a finished study: what descent reaches and what it costs. Whether noise helps the tables say."""
        if not self.finished or len(self.draws()) < 2:
            return []
        plan, sure = self.plan, self.plan.confidence
        one_sided = f"one-sided {sure:.0%} t interval"
        count, least = len(self.draws()), 0.8 * plan.draws * len(plan.sets)
        claims = [
            Claim("draws on which every way to choose had a result", count, f">= {least:g}", count >= least)
        ]
        for family in PAIRS:
            most = self.above(family).highest(sure)
            text = f"{family}: validation loss by descent above the grid's best, relative, mean over draws"
            claims.append(Claim(text, most, f"<= {plan.close:g} ({one_sided})", most <= plan.close))
        share = self.share("line")
        text = "line: solves of descent over those of the grid, median"
        claims.append(Claim(text, share, f"<= {plan.share:g}", share <= plan.share))
        most = self.gain("descent:layers", "constant", "validation").highest(sure)
        text = "layers by descent: validation loss less that of the best constant, mean over draws"
        claims.append(Claim(text, most, f"< 0 ({one_sided})", most < 0))
        excess = max(self._excess(family) for family in FAMILIES)
        text = "what stopping trainings early is worth in V, relative, 90% of descents"
        claims.append(Claim(text, excess, f"<= {plan.early:g}", excess <= plan.early))
        return claims

    def _excess(self, family: str) -> float:
        """|first-order excess| over V of 90% of a family's descents."""
        way = f"descent:{family}"
        return float(np.quantile(np.abs(self.values(way, "excess")) / self.values(way, "validation"), 0.9))

    def results(self) -> dict[str, Any]:
        """Every choice for results.json."""
        chosen = {
            name: [
                None if draw is None else {way: _plain(choice) for way, choice in draw.items()}
                for draw in draws
            ]
            for name, draws in self.chosen.items()
        }
        return {"noise_design": {"plan": asdict(self.plan), "chosen": chosen, "refused": self.refused}}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Losses by set, differences with intervals, and what choosing costs."""
        if len(self.draws()) < 2:
            return []
        sets = [name for name in self.plan.sets if self.draws(name)]
        note = "mean over draws (*: by descent, the others by grid)"
        rows: list[list[object]] = [
            [name, *(f"{self.values(way, name=name).mean():.4f}" for way in WAYS)] for name in sets
        ]
        tables = [(f"test loss of the plain network, {note}", ["set", *WAYS.values()], rows)]
        note = "mean over draws +- 95% interval (*: by descent)"
        for over, ways in (
            ("none", ("constant", "decay", "descent:line", "descent:layers")),
            ("constant", ("decay", "line", "descent:line", "descent:layers")),
        ):
            shown = {name: [self.gain(way, over, name=name) for way in ways] for name in (*sets, None)}
            rows = [[name or "all", *(gain.shown() for gain in gains)] for name, gains in shown.items()]
            what = "without noise" if over == "none" else "with the best constant"
            tables.append((f"test loss less that {what}, {note}", ["set", *(WAYS[w] for w in ways)], rows))
        rows = []
        for name in (*sets, None):
            pairs = [(way, what) for way in PAIRED for what in ("validation", "test")]
            gains = [self.gain(way, "constant", what, name) for way, what in pairs]
            rows.append([name or "all", *(gain.shown() for gain in gains)])
        columns = ["set", *(f"{WAYS[way]} {what}" for way in PAIRED for what in ("valid.", "test"))]
        tables.append(("less the best constant's, on validation and on test points", columns, rows))
        return [*tables, self._costs()]

    def _costs(self) -> tuple[str, list[str], list[list[object]]]:
        """Grid against descent for each family."""
        rows: list[list[object]] = []
        for family in FAMILIES:
            descent, known = f"descent:{family}", family in PAIRS
            solves, seconds = self._grid(family, "solves"), ""
            if known:
                seconds = f"{np.median(self.values(family, 'seconds')):.1f}"
            row = [
                family,
                self.plan.points ** {"constant": 1, "line": 2, "layers": DEPTH}[family],
                f"{np.median(solves):.0f}{'' if known else ' *'}",
                f"{np.median(self.values(descent, 'solves')):.0f}",
                f"{self.share(family):.2g}",
                seconds,
                f"{np.median(self.values(descent, 'seconds')):.1f}",
            ]
            if known:
                above, refused = self.above(family), self.values(family, "refused").sum()
                row += [f"{100 * above.value:+.2f} +- {100 * above.half:.2f}", f"{refused:.0f}"]
            rows.append([*row, *[""] * (9 - len(row))])
        columns = [
            "family",
            "grid",
            "solves",
            "descent",
            "ratio",
            "seconds",
            "descent",
            "V above, %",
            "refused",
        ]
        title = "grid against descent, medians over draws (*: computed, by a training's solves for lines)"
        return title, columns, rows


def every_way(draw: Draw, points: int) -> dict[str, Choice]:
    """All ways of `WAYS` on one draw. Raises InfeasibleError where one cannot begin."""
    grid = np.linspace(LEAST, MOST, points)
    found = {"own": draw.begin(), "none": draw.plain()}
    found["constant"] = draw.search([draw.constant(keep) for keep in grid])
    found["decay"] = draw.search([draw.decay(last) for last in grid])
    found["line"] = draw.search([draw.lines @ ends for ends in product(grid, repeat=2)])
    modes = {"constant": np.ones((draw.depth, 1)), "line": draw.lines, "layers": np.eye(draw.depth)}
    for family in FAMILIES:
        found[f"descent:{family}"] = draw.descend(modes[family])
    return {way: found[way] for way in WAYS}


def _plain(choice: Choice) -> dict[str, Any]:
    content = asdict(choice)
    return {**content, "strengths": choice.strengths.tolist(), "trials": choice.trials.tolist()}
