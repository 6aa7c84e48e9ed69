"""Where dropout is put in a residual network on images (1812.00174), and whether it matters.

First, on stages whose weights vary smoothly with depth: how far the mean under noise is from the network
without, and the variance, as the step h goes to 0 (`kolmo.images.weak`). Second, on data: trainings with
every place and rate over several seeds, their test errors with the noise off, and what noise does to trained
features.

Intervals are Student's over seeds; data and split are the same for all of them. Trainings of one seed begin
with the same weights (but for shake-shake, whose blocks are others) and see the same images in the same
order.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.config import Config
from kolmo.device import resolve as resolve_device
from kolmo.errors import InputError
from kolmo.experiments.claims import Claim
from kolmo.experiments.intervals import half_width
from kolmo.experiments.progress import Progress, Silent
from kolmo.images.data import ImageData
from kolmo.images.networks import NetworkPlan
from kolmo.images.placement import PLACEMENTS, NoNoise
from kolmo.images.training import Epoch, train_once
from kolmo.images.weak import Curve, Moments, trained_moments, variance_shift

#: of the curve: layers, samples, and the rate, at which antithetic pairs cancel what is linear
DEPTHS, DEPTHS_QUICK = (8, 16, 32, 64), (8, 16, 32)
SAMPLES, SAMPLES_QUICK = 1024, 512
RATE = 0.5
#: what a slope may be off by: of a bias of order 1, of one that stays, of the variance
WITHIN, STAYS, WITHIN_VARIANCE = 0.3, 0.1, 0.1
#: images at most that trained features are looked at on
_LOOKED_AT = 1000


def _rate(place: str) -> float:
    """The curve's rate for a place."""
    return RATE if PLACEMENTS[place].rated else 0.0


@dataclass(frozen=True)
class Training:
    """One training's end, and its features under its own noise.

    test_error, train_error: shares; losses: mean cross-entropies, all with the noise off. bias, deviation: of
    the test images' features under noise, relative to their deviation over the images. shift: the factor of
    the variances that normalisations see. seconds: of the training.
    """

    test_error: float
    test_loss: float
    train_error: float
    train_loss: float
    bias: float
    deviation: float
    shift: float
    parameters: int
    seconds: float


class ImageDropout:
    """weak[place][depth], and trainings[(place, rate)], one for each seed.

    config: [images], and of [run] seed and device.
    """

    name = "image_dropout"
    summary = "where dropout is put in a residual network on images: orders in h, test errors over seeds"
    shipped = "image_dropout"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config, self.settings = config, config.images
        self.settings.check()
        self.plans = self.settings.plans()
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.samples = SAMPLES_QUICK if quick else SAMPLES
        self.confidence = 0.8 if quick else 0.95
        self.places = [p.name for p in PLACEMENTS.values() if p is not NoNoise]
        self.weak: dict[str, dict[int, Moments]] = {}
        self.trainings: dict[tuple[str, float], list[Training]] = {}
        self.memo = Memo()

    def run(self, progress: Progress | None = None) -> None:
        """All that is not done yet. InputError on bad data, NonFiniteError where a training diverges."""
        progress = progress or Silent()
        data = self.settings.load(self.config.run.seed)
        self._same(data)
        self._measure_orders(progress)
        first, count = self.config.run.seed, self.settings.seeds
        progress.start(f"{data.name}: trainings", count * len(self.plans))
        for seed in range(first, first + count):
            for plan in self.plans:
                done = self.trainings.setdefault((plan.placement, plan.rate), [])
                if len(done) == seed - first:
                    key = f"train-{plan.placement}-{plan.rate:g}-{seed}"
                    train = partial(self._train, plan, data, seed, progress)
                    done.append(Training(**self.memo.remember(key, train)))
                error = done[seed - first].test_error
                progress.advance(f"{plan}, seed {seed}: test error {error:.2%}")

    def _same(self, data: ImageData) -> None:
        """Raise InputError where the images are no longer those that the run was begun with."""

        def digest(_: Checkpoint | None = None) -> str:
            found = hashlib.sha256()
            for images in (data.train, data.test):
                for tensor in (images.images, images.labels):
                    found.update(tensor.contiguous().numpy().data)
            return found.hexdigest()

        if self.memo.remember("data", digest) != digest():
            raise InputError(f"{data.name}: the images have changed since the run was begun; begin anew")

    def _measure_orders(self, progress: Progress) -> None:
        progress.start("bias and variance against the step", len(self.places) * len(self.depths))
        curve = Curve(self.config.run.seed)
        for place in self.places:
            found = self.weak.setdefault(place, {})
            for depth in self.depths:
                measure = partial(self._moments, curve, place, depth)
                found[depth] = Moments(**self.memo.remember(f"weak-{place}-{depth}", measure))
                progress.advance(f"{place}, {depth} layers: mean off by {found[depth].bias:.1e}")

    def _moments(self, curve: Curve, place: str, depth: int, _: Checkpoint) -> State:
        return asdict(curve.measure(depth, place, _rate(place), self.samples))

    def _train(
        self, plan: NetworkPlan, data: ImageData, seed: int, progress: Progress, checkpoint: Checkpoint
    ) -> State:
        def tell(epoch: Epoch) -> None:
            progress.advance(f"{plan}, seed {seed}, epoch {epoch.number}: loss {epoch.loss:.4f}", steps=0)

        device = resolve_device(self.config.run.device)
        network, outcome = train_once(
            plan,
            data,
            self.settings.schedule(),
            seed=seed,
            device=device,
            callback=tell,
            checkpoint=checkpoint,
        )
        images = data.normalised(data.test.images[:_LOOKED_AT].to(device))
        moments = trained_moments(network, images, seed)
        training = Training(
            outcome.test.error,
            outcome.test.loss,
            outcome.train.error,
            outcome.train.loss,
            moments.bias,
            moments.deviation,
            variance_shift(network, images, seed),
            outcome.parameters,
            outcome.seconds,
        )
        return asdict(training)

    @property
    def finished(self) -> bool:
        orders = [len(self.weak.get(place, ())) == len(self.depths) for place in self.places]
        seeds = [len(found) == self.settings.seeds for found in self._by_plan()]
        return all(orders) and all(seeds)

    def _by_plan(self) -> list[list[Training]]:
        return [self.trainings.get((plan.placement, plan.rate), []) for plan in self.plans]

    def slope(self, place: str, name: str) -> float:
        """Least-squares slope in h of a Moments' attribute, nan where one is 0 or there are too few."""
        found = self.weak.get(place, {})
        values = np.array([getattr(m, name) for m in found.values()])
        if len(values) < 3 or not bool((values > 0).all()):
            return math.nan
        return -float(np.polyfit(np.log(list(found)), np.log(values), 1)[0])

    def half(self, values: np.ndarray, sides: int = 2) -> float:
        """Student's half-width of the interval for the mean of a value for each seed, of one or two sides."""
        return float(half_width(values, self.confidence, sides))

    def values(self, place: str, rate: float, name: str) -> np.ndarray:
        """One of a Training's attributes, for each seed that is done."""
        return np.array([getattr(t, name) for t in self.trainings.get((place, rate), [])])

    def claims(self) -> list[Claim]:
        """Orders in h by place; then masks on the output against masks after the first convolution.

        Features and variances at every rate; test errors at the largest: at small ones they need not differ.
        """
        claims = []
        for place in self.places:
            slope, keeps = self.slope(place, "bias"), PLACEMENTS[place].keeps_mean
            order, within = (1, WITHIN) if keeps else (0, STAYS)
            text = f"{PLACEMENTS[place].title}: order in h of the mean's bias"
            claims.append(Claim(text, slope, f"{order} +- {within:g}", abs(slope - order) <= within))
        slopes = [2 * self.slope(place, "deviation") for place in self.places]
        worst = max(slopes, key=lambda slope: abs(slope - 1))
        holds = all(abs(slope - 1) <= WITHIN_VARIANCE for slope in slopes)
        text = "order in h of the variance, all places (the one farthest from 1)"
        claims.append(Claim(text, worst, f"1 +- {WITHIN_VARIANCE:g}", holds))
        for rate in self.settings.rates:
            claims += self._compared(float(rate))
        return claims

    def _compared(self, rate: float) -> list[Claim]:
        """After the last convolution against after the first: features, variances, test errors."""
        both = [("output", rate), ("between", rate)]
        if not all(self.trainings.get(key) for key in both):
            return []
        claims = []
        for name, what in (("bias", "bias of trained features"), ("shift", "growth of variances")):
            output, between = (self.values(*key, name) for key in both)
            lower = int((output < between).sum())
            text = f"rate {rate:g}: {what} lower with masks on the output than between (seeds)"
            claims.append(Claim(text, lower, f"{len(output)} of {len(output)}", lower == len(output)))
        if rate < max(self.settings.rates):
            return claims
        gain = self.values(*both[1], "test_error") - self.values(*both[0], "test_error")
        margin = self.half(gain, sides=1)
        text = f"rate {rate:g}: test error between minus on the output, mean over {len(gain)} seeds"
        expected = f"> {margin:.2g} (one-sided {self.confidence:.0%} t interval)"
        claims.append(Claim(text, float(gain.mean()), expected, bool(gain.mean() > margin)))
        return claims

    def results(self) -> dict[str, Any]:
        """Moments by place and depth, every training, and the network, for results.json."""
        weak = [
            {
                "placement": place,
                "rate": _rate(place),
                "depths": list(found),
                "moments": [asdict(m) for m in found.values()],
                "slope_bias": self.slope(place, "bias"),
                "slope_variance": 2 * self.slope(place, "deviation"),
            }
            for place, found in self.weak.items()
        ]
        trainings = [
            {"placement": place, "rate": rate, "seeds": [asdict(t) for t in found]}
            for (place, rate), found in self.trainings.items()
        ]
        return {"weak": weak, "trainings": trainings, "images": asdict(self.settings)}

    def tables(self) -> list[tuple[str, list[str], list[list[object]]]]:
        """Bias and variance by place and depth; what trainings ended with."""
        columns = ["mask", *(f"L = {depth}" for depth in self.depths), "slope", "of variance"]
        orders: list[list[object]] = [
            [
                PLACEMENTS[place].title,
                *(f"{m.bias:.1e}" for m in found.values()),
                f"{self.slope(place, 'bias'):.2f}",
                f"{2 * self.slope(place, 'deviation'):.2f}",
            ]
            for place, found in self.weak.items()
        ]
        tables = [("|mean under noise - without|, relative; slopes in h", columns, orders)]
        rows: list[list[object]] = []
        for plan in self.plans:
            place, rate = plan.placement, plan.rate
            error = 100 * self.values(place, rate, "test_error")
            if len(error):
                train, loss = (self.values(place, rate, name) for name in ("train_error", "test_loss"))
                bias, shift = (self.values(place, rate, name) for name in ("bias", "shift"))
                rows.append(
                    [
                        PLACEMENTS[place].title, f"{rate:g}" if rate else "", f"{error.mean():.2f}",
                        f"{self.half(error):.2f}", f"{loss.mean():.4f}", f"{100 * train.mean():.2f}",
                        f"{bias.mean():.3f}", f"{shift.mean():.2f}",
                    ]
                )  # fmt: skip
        s = self.settings
        title = f"{s.architecture}-{s.depth} on {s.data}, {s.seeds} seeds"
        columns = ["mask", "rate", "test error %", "+-", "test loss", "train error %", "bias", "variance x"]
        tables.append((f"{title} (+-: {self.confidence:.0%} interval)", columns, rows))
        return tables
