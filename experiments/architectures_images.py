r"""Architectures on images: accuracy against parameters.

ResNet and LM-ResNet with 20, 32, 44 and 56 layers, as in 1710.10121's comparison (a k for every layer but a
stage's first is all that LM-ResNet has more), and the other architectures with three layers a stage. Over
several seeds, which draw the weights, the order of the images and their shifts; the split of the digits is
the same for all.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kolmo.architectures import ARCHITECTURES
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.device import resolve as resolve_device
from kolmo.experiments.architectures_part import Table
from kolmo.experiments.claims import Claim
from kolmo.experiments.intervals import half_width
from kolmo.experiments.progress import Progress
from kolmo.images.networks import NetworkPlan
from kolmo.images.settings import ImageSettings
from kolmo.images.training import Epoch, train_once

#: the two that are compared layer by layer, and with how many layers
PLAIN, MULTISTEP = "resnet", "lm_resnet"
DEPTHS, DEPTHS_QUICK = (20, 32, 44, 56), (14,)
#: layers a stage of the others
LAYERS, LAYERS_QUICK = 3, 1
#: of a quick run, at most
EPOCHS_QUICK, SEEDS_QUICK = 8, 2
#: test accuracy that every architecture reaches on the digits: full, and quick
ACCURATE, ACCURATE_QUICK = 0.97, 0.9
#: what LM-ResNet's test error may be above ResNet's, with confidence; of a quick run, which has too few
#: seeds for an interval, in the mean
MARGIN, MARGIN_QUICK = 0.005, 0.03
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Training:
    """One training's end: shares of wrong labels, trainable numbers, the mean of all k (None without any)."""

    test_error: float
    train_error: float
    parameters: int
    k: float | None
    seconds: float


class Images:
    """found[plan], a training for each seed.

    settings: data, width, training and the number of seeds; depths and architectures are the experiment's.
    """

    name = "images"

    def __init__(self, settings: ImageSettings, seed: int, device: str, quick: bool) -> None:
        settings.check()
        self.settings, self.quick, self._seed, self._device = settings, quick, seed, device
        width = settings.width
        depths, layers = (DEPTHS_QUICK, LAYERS_QUICK) if quick else (DEPTHS, LAYERS)
        self.compared = {
            name: [NetworkPlan(name, depth, width) for depth in depths] for name in (PLAIN, MULTISTEP)
        }
        self.others = [
            NetworkPlan.of_layers(name, layers, width) for name in ARCHITECTURES if name not in self.compared
        ]
        self.plans = [plan for plans in self.compared.values() for plan in plans] + self.others
        self.seeds = min(SEEDS_QUICK, settings.seeds) if quick else settings.seeds
        self.steps = self.seeds * len(self.plans)
        self.found: dict[NetworkPlan, list[Training]] = {plan: [] for plan in self.plans}

    def run(self, memo: Memo, progress: Progress) -> None:
        """All trainings. Raises InputError on bad data, NonFiniteError where one diverges."""
        data = self.settings.load(self._seed)
        schedule = self.settings.schedule()
        if self.quick:
            schedule = replace(schedule, epochs=min(EPOCHS_QUICK, schedule.epochs))

        def train(plan: NetworkPlan, seed: int, checkpoint: Checkpoint) -> State:
            def tell(epoch: Epoch) -> None:
                text = f"{plan}, seed {seed}, epoch {epoch.number}: loss {epoch.loss:.4f}"
                progress.advance(text, steps=0)

            network, outcome = train_once(
                plan, data, schedule, seed=seed, device=resolve_device(self._device),
                callback=tell, checkpoint=checkpoint,
            )  # fmt: skip
            k = [float(p.detach().mean()) for name, p in network.named_parameters() if name.endswith(".k")]
            k = [value for value in k if math.isfinite(value)]  # a stage of one layer has none
            return asdict(
                Training(
                    outcome.test.error,
                    outcome.train.error,
                    outcome.parameters,
                    float(np.mean(k)) if k else None,
                    outcome.seconds,
                )
            )

        for seed in range(self._seed, self._seed + self.seeds):
            for plan in self.plans:
                key = f"images-{plan.architecture}-{plan.depth}-{seed}"
                kept = Training(**memo.remember(key, partial(train, plan, seed)))
                self.found[plan].append(kept)
                progress.advance(f"{plan}, seed {seed}: test error {kept.test_error:.2%}")

    @property
    def finished(self) -> bool:
        return all(len(found) == self.seeds for found in self.found.values())

    def errors(self, plan: NetworkPlan) -> np.ndarray:
        """Test errors of the seeds that are done."""
        return np.array([training.test_error for training in self.found[plan]])

    def half(self, values: np.ndarray, sides: int = 2) -> float:
        """Student's half-width of the interval for the mean, of one or two sides."""
        return float(half_width(values, CONFIDENCE, sides))

    def gap(self) -> np.ndarray:
        """LM-ResNet's test error minus ResNet's, the mean over depths, for each seed."""
        plain, multistep = (
            np.mean([self.errors(plan) for plan in self.compared[name]], axis=0)
            for name in (PLAIN, MULTISTEP)
        )
        return np.asarray(multistep - plain)

    def claims(self) -> list[Claim]:
        if not self.finished:
            return []
        claims = []
        if self.settings.data == "digits":
            accurate = ACCURATE_QUICK if self.quick else ACCURATE
            worst = min(1 - float(self.errors(plan).mean()) for plan in self.plans)
            text = f"digits: test accuracy of {len(self.plans)} networks, the worst mean"
            claims.append(Claim(text, worst, f">= {accurate:g}", worst >= accurate))
        gap = self.gap()
        if self.quick:
            most, margin, how = float(gap.mean()), MARGIN_QUICK, "in the mean"
        else:
            most, margin = float(gap.mean()) + self.half(gap, sides=1), MARGIN
            how = f"at most (one-sided {CONFIDENCE:.0%} t interval)"
        text = f"LM-ResNet's test error above ResNet's, {how}"
        claims.append(Claim(text, most, f"<= {margin:g}", most <= margin))
        return claims

    def results(self) -> dict[str, Any]:
        trainings = [
            {"architecture": plan.architecture, "depth": plan.depth, "seeds": [asdict(t) for t in found]}
            for plan, found in self.found.items()
        ]
        return {"settings": asdict(self.settings), "trainings": trainings}

    def tables(self) -> list[Table]:
        rows: list[list[object]] = []
        for plan, found in self.found.items():
            if len(found) < 2:
                continue
            error = 100 * self.errors(plan)
            k = [training.k for training in found if training.k is not None]
            rows.append(
                [
                    f"{plan.architecture}-{plan.depth}", found[0].parameters, f"{error.mean():.2f}",
                    f"{self.half(error):.2f}", f"{100 * np.mean([t.train_error for t in found]):.2f}",
                    f"{np.mean(k):+.3f}" if k else "", f"{np.median([t.seconds for t in found]):.0f}",
                ]
            )  # fmt: skip
        title = (
            f"{self.settings.data}, width {self.settings.width}, {self.seeds} seeds (+-: {CONFIDENCE:.0%})"
        )
        columns = ["network", "parameters", "test error %", "+-", "train error %", "mean k", "seconds"]
        return [(title, columns, rows)] if rows else []
