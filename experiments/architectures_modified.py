r"""The modified equation of LM-ResNet: (1 + k) x' + (1 - k) h/2 x'' = f, against the network.

From the head start of `TwoStep`, the network follows it to O(h^2), and the limit (1 + k) x' = f to O(h). On
the smooth branch x'' is that of the limit, to O(h), so that

    x' = F - (1-k)/(1+k) h/2 dF/dt,     F = f/(1+k):

the modified equation of a ResNet with blocks F and steps h (1-k)/(1+k). So an LM-ResNet of L layers is, to
O(h^2), a ResNet of L (1+k)/(1-k) layers: two at k = 1/3, nine at k = 4/5, for each of its own.

As k -> 1 the root -k of the scheme tends to -1. What the first step leaves beside the smooth branch
oscillates and dies out as k^n, that is over 1/log(1/k) layers, and the equation describes only what comes
after. At k = 1 it never dies out; beyond |k| = 1 it grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch

from kolmo.architectures import LMResNet, ResNet
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.experiments.architectures_field import SmoothField, TwoStep
from kolmo.experiments.architectures_orders import DIM, POINTS, UNITS, distance, run_network
from kolmo.experiments.architectures_part import Table, fitted_order, order_row, orders_claim
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress

#: multiples of 3: the equivalent ResNets have whole numbers of layers
DEPTHS, DEPTHS_QUICK = (24, 48, 96, 192, 384), (12, 24, 48)
KS = (Fraction(-1, 2), Fraction(-1, 5), Fraction(1, 3), Fraction(1, 2), Fraction(4, 5))
KS_QUICK = (Fraction(-1, 5), Fraction(1, 2))
#: of layers, from the first to the last
VARYING = TwoStep(0.0, 0.4)
#: what orders may be off by
WITHIN, WITHIN_QUICK = 0.2, 0.4
#: k at which x_1 is disturbed, on networks of these depths, by this much
UNSETTLED = (-1.1, -0.5, 0.5, 0.9, 1.0, 1.1)
SHALLOW, DEEP = 24, 96
DISTURBANCE = 1e-7
#: what the measured root may be off by, O(h); growth from SHALLOW to DEEP of a stable scheme, and of another
ROOT, STABLE, UNSTABLE = 0.1, 2.0, 100.0

#: what a network is compared with, and the order of the difference
AGAINST = {"limit": ("(1 + k) x' = f", 1), "modified": ("modified equation", 2), "deeper": ("ResNet", 2)}


@dataclass(frozen=True)
class Disturbed:
    """What becomes of a disturbance of x_1.

    root: increment of the third layer's disturbance by that of the second, mean over features. shallow, deep:
    the disturbance of the last features in units of that of x_1, largest.
    """

    root: float
    shallow: float
    deep: float


class ModifiedEquation:
    """errors[k][what] over the depths, what of AGAINST; disturbed[k]."""

    name = "modified_equation"

    def __init__(self, seed: int, quick: bool) -> None:
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.within = WITHIN_QUICK if quick else WITHIN
        self.field = SmoothField.random(DIM, UNITS, [seed, 11])
        self.points = np.random.default_rng([seed, 12]).uniform(-1, 1, (POINTS, DIM))
        self.ks: dict[str, tuple[TwoStep, Fraction | None]] = {
            f"k = {k}": (TwoStep(float(k)), (1 + k) / (1 - k)) for k in (KS_QUICK if quick else KS)
        }
        self.ks[f"k = {VARYING}"] = VARYING, None
        self.steps = len(self.ks) + len(UNSETTLED)
        self.errors: dict[str, dict[str, list[float]]] = {}
        self.disturbed: dict[float, Disturbed] = {}

    def run(self, memo: Memo, progress: Progress) -> None:
        for index, (title, (k, ratio)) in enumerate(self.ks.items()):
            kept = memo.remember(f"modified-{index}", partial(self._measured, k, ratio))
            self.errors[title] = kept
            progress.advance(f"LM-ResNet, {title}: {kept['modified'][-1]:.1e} off its modified equation")
        for index, value in enumerate(UNSETTLED):
            found = Disturbed(**memo.remember(f"disturbed-{index}", partial(self._disturbed, value)))
            self.disturbed[value] = found
            progress.advance(f"LM-ResNet, k = {value}: a disturbance times {found.root:.2f} in a layer")

    def _measured(self, k: TwoStep, ratio: Fraction | None, checkpoint: Checkpoint) -> State:
        limit = k.limit(self.field, self.points)
        errors: dict[str, list[float]] = {name: [] for name in AGAINST if ratio or name != "deeper"}
        for depth in self.depths:
            end = run_network(self.network(k, depth), self.points)
            errors["limit"].append(distance(end, limit))
            modified = k.modified(self.field, self.points, 1 / depth)
            errors["modified"].append(distance(end, modified))
            if ratio:
                layers, start = int(depth * ratio), k.head_start(self.field, self.points, 1 / depth)
                deeper = ResNet(self.field.blocks(layers, 0.0, 1 / (1 + k(0.0))), 1 / layers)
                errors["deeper"].append(distance(end, run_network(deeper, start)))
        return errors

    def network(self, k: TwoStep, depth: int) -> LMResNet:
        """The field's LM-ResNet with k_n = k(n h)."""
        return LMResNet(self.field.blocks(depth, 0.0), 1 / depth, k=[k(n / depth) for n in range(1, depth)])

    def states(self, k: float, depth: int, disturbance: float = 0.0) -> np.ndarray:
        """x_0, ..., x_L at a constant k, (L + 1, Q, d); disturbance: of all features of x_1."""
        network, x = self.network(TwoStep(k), depth), torch.from_numpy(self.points)
        with torch.no_grad():
            second = next(network.layers(x)) + disturbance
            return torch.stack([x, *network.layers(x, second)]).numpy()

    def _disturbed(self, k: float, checkpoint: Checkpoint) -> State:
        moved = {
            depth: (self.states(k, depth, DISTURBANCE) - self.states(k, depth)) / DISTURBANCE
            for depth in (SHALLOW, DEEP)
        }
        second, third = (np.diff(moved[DEEP][n : n + 2], axis=0) for n in (1, 2))
        last = {depth: float(np.abs(found[-1]).max()) for depth, found in moved.items()}
        return {"root": float((third / second).mean()), "shallow": last[SHALLOW], "deep": last[DEEP]}

    @property
    def finished(self) -> bool:
        return len(self.disturbed) == len(UNSETTLED)

    def claims(self) -> list[Claim]:
        if not self.finished:
            return []
        claims = []
        for name, (equation, order) in AGAINST.items():
            slopes = [fitted_order(self.depths, e[name]) for e in self.errors.values() if name in e]
            more = " of L (1 + k)/(1 - k) layers" if name == "deeper" else ""
            text = f"LM-ResNet, {len(slopes)} k: farthest order against {equation}{more}"
            claims.append(orders_claim(text, slopes, order, self.within))
        off = max(abs(found.root + k) for k, found in self.disturbed.items())
        text = f"LM-ResNet, {len(UNSETTLED)} k: a disturbance's factor in a layer is -k, off by"
        claims.append(Claim(text, off, f"<= {ROOT:g}", off <= ROOT))
        growth = {k: found.deep / found.shallow for k, found in self.disturbed.items()}
        most = max(growth[k] for k in growth if -1 < k <= 1)
        least = min(growth[k] for k in growth if not -1 < k <= 1)
        text = f"LM-ResNet: a disturbance at {DEEP} layers, by that at {SHALLOW},"
        claims.append(Claim(f"{text} -1 < k <= 1", most, f"<= {STABLE:g}", most <= STABLE))
        claims.append(Claim(f"{text} beyond", least, f">= {UNSTABLE:g}", least >= UNSTABLE))
        return claims

    def _named(self, name: str, title: str, equation: str) -> str:
        ratio = self.ks[title][1]
        return f"{equation} of {ratio} L layers" if name == "deeper" else equation

    def results(self) -> dict[str, Any]:
        orders = [
            {
                "k": title, "depths": list(self.depths), "errors": errors,
                "slopes": {name: fitted_order(self.depths, found) for name, found in errors.items()},
            }
            for title, errors in self.errors.items()
        ]  # fmt: skip
        disturbed = {str(k): vars(found) for k, found in self.disturbed.items()}
        return {"orders": orders, "disturbed": disturbed}

    def tables(self) -> list[Table]:
        columns = ["LM-ResNet", "against", *(f"L = {depth}" for depth in self.depths), "order"]
        lines = [
            order_row([title, self._named(name, title, AGAINST[name][0])], self.depths, found)
            for title, errors in self.errors.items()
            for name, found in errors.items()
        ]
        settled: list[list[object]] = [
            [k, f"{found.root:.3f}", f"{found.shallow:.1e}", f"{found.deep:.1e}"]
            for k, found in self.disturbed.items()
        ]
        heads = ["k", "factor in a layer", f"at the end, L = {SHALLOW}", f"L = {DEEP}"]
        return [
            ("LM-ResNet and its modified equation: largest difference of a feature", columns, lines),
            ("a disturbance of x_1 in LM-ResNet, in its own units", heads, settled),
        ]


def increments(states: Sequence[np.ndarray] | np.ndarray, step: float) -> np.ndarray:
    """(x_{n+1} - x_n) / h of states (L + 1, ...)."""
    return np.diff(np.asarray(states), axis=0) / step
