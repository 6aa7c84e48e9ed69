r"""Stochastic depth in LM-ResNet and its modified equation, by moments in closed form.

    x_{n+1} = (1 - k) x_n + k x_{n-1} + h (eta_n / p) f(x_n),     eta_n ~ B(p),     q = Var(eta/p) = (1-p)/p,

so that a layer's increment has the covariance h^2 q f f^T. With y_n = (x_n + k x_{n-1}) / (1 + k) this is
y_{n+1} = y_n + h/(1+k) (eta_n/p) f(x_n), a chain with independent noise, and its weak modified equation of
order 2 is the one without noise with that noise added,

    dX = X' dt,     (1 + k) X' dt + (1 - k) h/2 dX' = f(X) dt + (h q)^{1/2} f(X) dB,

from the same head start. (1710.10121 has masks that are not scaled: p f for f.) To O(h), X has the diffusion
h q f f^T / (1+k)^2. X', which forgets itself at the rate 2 (1+k)/(1-k) a layer, has the covariance
q f f^T / (1-k^2), as have the network's increments (x_{n+1} - x_n)/h; but those of neighbouring layers are
correlated by -k, so beyond one time the two agree in sums only.

As without noise, x'' may be eliminated: to O(h^2) in law, the network is a ResNet with blocks f/(1+k),
L (1+k)/(1-k) layers and masks of variance q (1+k)/(1-k).

On a linear field f = A x all second moments close, for networks and equations, and nothing is sampled. The
noise vanishes with h, as everywhere in Kolmo: without any one of x'', noise and head start, E x x^T at the
end is off by O(h).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import expm

from kolmo.checkpoint import Checkpoint, Memo
from kolmo.experiments.architectures_part import Table, fitted_order, order_row, orders_claim
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress

DEPTHS, DEPTHS_QUICK = (24, 48, 96, 192, 384), (24, 48, 96)
KS = (Fraction(-1, 3), Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(4, 5))
KS_QUICK = (Fraction(-1, 3), Fraction(1, 2))
KEEP = 0.8
WITHIN = 0.2
#: f = A x: features turn and grow
MATRIX = np.array([[0.4, -1.0], [1.0, 0.2]])
START = np.array([1.0, 0.5])

#: what is compared with the network, and the order of the difference
AGAINST = {
    "modified": ("modified equation", 2),
    "deeper": ("ResNet", 2),
    "first": ("without x''", 1),
    "quiet": ("without noise", 1),
    "late": ("without head start", 1),
    "velocity": ("X': covariance of increments", 1),
}


@dataclass(frozen=True)
class Moments:
    """Mean (n,) and second moments E z z^T (n, n) of a linear process z."""

    mean: np.ndarray
    second: np.ndarray

    @classmethod
    def at(cls, point: np.ndarray) -> Moments:
        """Of a point that is known."""
        return cls(point, np.outer(point, point))

    @property
    def covariance(self) -> np.ndarray:
        return self.second - np.outer(self.mean, self.mean)

    def mapped(self, matrix: np.ndarray) -> Moments:
        """Of matrix z."""
        return Moments(matrix @ self.mean, matrix @ self.second @ matrix.T)

    def jump(self, matrix: np.ndarray, noise: np.ndarray) -> Moments:
        """Of (matrix + e noise) z, e independent with mean 0 and variance 1."""
        return Moments(matrix @ self.mean, matrix @ self.second @ matrix.T + noise @ self.second @ noise.T)

    def evolved(self, drift: np.ndarray, noise: np.ndarray, time: float) -> Moments:
        """Of dz = drift z dt + noise z dB, a scalar Brownian motion, after a time."""
        eye = np.eye(len(drift))
        generator = np.kron(drift, eye) + np.kron(eye, drift) + np.kron(noise, noise)
        second = (expm(time * generator) @ self.second.ravel()).reshape(self.second.shape)
        return Moments(expm(time * drift) @ self.mean, second)


@dataclass(frozen=True)
class LinearChain:
    """LM-ResNet with blocks A x, k and stochastic depth on t in [0, 1], by L layers.

    variance: q of the masks eta/p.
    """

    k: float
    variance: float

    def network(self, depth: int) -> Moments:
        """Of (x_L, x_{L-1}), exact."""
        h, eye, zero = 1 / depth, np.eye(2), np.zeros((2, 2))
        layer = np.block([[(1 - self.k) * eye + h * MATRIX, self.k * eye], [eye, zero]])
        noise = h * np.sqrt(self.variance) * np.block([[MATRIX, zero], [zero, zero]])
        moments = Moments.at(np.concatenate([START, START]))
        for _ in range(depth):
            moments = moments.jump(layer, noise)
        return moments

    def head_start(self, depth: int) -> np.ndarray:
        """Where the smooth part starts, see `TwoStep`."""
        return START + self.k / (1 + self.k) ** 2 / depth * MATRIX @ START

    def modified(self, depth: int, noisy: bool = True, ahead: bool = True) -> Moments:
        """Of (X, X') at the end, by the modified equation; or without noise, or from x_0 itself."""
        h, rate, eye, zero = 1 / depth, 1 + self.k, np.eye(2), np.zeros((2, 2))
        inertia = (1 - self.k) * h / 2
        drift = np.block([[zero, eye], [MATRIX / inertia, -rate / inertia * eye]])
        noise = np.sqrt(h * self.variance) / inertia * np.block([[zero, zero], [MATRIX, zero]])
        start = self.head_start(depth) if ahead else START
        field = MATRIX / rate
        velocity = field @ start - inertia / rate * field @ field @ start
        begin = Moments.at(np.concatenate([start, velocity]))
        return begin.evolved(drift, noise if noisy else 0 * noise, 1.0)

    def first(self, depth: int) -> Moments:
        """Of X at the end, by (1 + k) dX = f dt + (h q)^{1/2} f dB from the head start."""
        field = MATRIX / (1 + self.k)
        noise = np.sqrt(self.variance / depth) * field
        return Moments.at(self.head_start(depth)).evolved(field, noise, 1.0)

    def deeper(self, depth: int, ratio: Fraction) -> Moments:
        """Of the last features of a ResNet with L ratio layers and masks of variance q ratio."""
        layers = int(depth * ratio)
        step = MATRIX / (1 + self.k) / layers
        moments = Moments.at(self.head_start(depth))
        for _ in range(layers):
            moments = moments.jump(np.eye(2) + step, np.sqrt(self.variance * ratio) * step)
        return moments


class StochasticDepth:
    """errors[k][what] over the depths, what of AGAINST; spreads[k]: of increments, see `_measured`."""

    name = "stochastic_depth"

    def __init__(self, seed: int, quick: bool) -> None:
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.ks = KS_QUICK if quick else KS
        self.steps = len(self.ks)
        self.errors: dict[Fraction, dict[str, list[float]]] = {}

    def run(self, memo: Memo, progress: Progress) -> None:
        for k in self.ks:
            key = f"moments-{KS.index(k)}"
            self.errors[k] = memo.remember(key, partial(self._measured, k))
            found = self.errors[k]["modified"][-1]
            progress.advance(f"stochastic depth, k = {k}: {found:.1e} off the modified equation")

    def _measured(self, k: Fraction, checkpoint: Checkpoint) -> dict[str, list[float]]:
        """Largest differences of E x x^T; and of the covariance of increments, relative."""
        chain, ratio = LinearChain(float(k), (1 - KEEP) / KEEP), (1 + k) / (1 - k)
        names = [name for name in AGAINST if k or name not in ("late", "deeper")]
        errors: dict[str, list[float]] = {name: [] for name in names}
        for depth in self.depths:
            exact, modified = chain.network(depth), chain.modified(depth)
            found = {
                "modified": modified,
                "deeper": chain.deeper(depth, ratio),
                "first": chain.first(depth),
                "quiet": chain.modified(depth, noisy=False),
                "late": chain.modified(depth, ahead=False),
            }
            features, eye = exact.second[:2, :2], np.eye(2)
            moved = exact.mapped(depth * np.hstack([eye, -eye])).covariance
            apart = {name: np.abs(m.second[:2, :2] - features).max() for name, m in found.items()}
            apart["velocity"] = np.abs(modified.covariance[2:, 2:] - moved).max() / np.abs(moved).max()
            for name in names:
                errors[name].append(float(apart[name]))
        return errors

    @property
    def finished(self) -> bool:
        return len(self.errors) == len(self.ks)

    def claims(self) -> list[Claim]:
        if not self.finished:
            return []
        claims = []
        for name, (title, order) in AGAINST.items():
            slopes = [fitted_order(self.depths, e[name]) for e in self.errors.values() if name in e]
            more = " of L (1 + k)/(1 - k) layers" if name == "deeper" else ""
            text = f"stochastic depth, {len(slopes)} k: farthest order, {title}{more}"
            claims.append(orders_claim(text, slopes, order, WITHIN))
        return claims

    def _named(self, name: str, k: Fraction) -> str:
        title = AGAINST[name][0]
        if name != "deeper":
            return title
        ratio = (1 + k) / (1 - k)
        return f"{title} of {ratio} L layers, {ratio} q"

    def results(self) -> list[dict[str, Any]]:
        return [
            {
                "k": str(k), "keep": KEEP, "depths": list(self.depths), "errors": errors,
                "slopes": {name: fitted_order(self.depths, found) for name, found in errors.items()},
            }
            for k, errors in self.errors.items()
        ]  # fmt: skip

    def tables(self) -> list[Table]:
        columns = ["k", "against the network", *(f"L = {depth}" for depth in self.depths), "order"]
        lines = [
            order_row([k, self._named(name, k)], self.depths, found)
            for k, errors in self.errors.items()
            for name, found in errors.items()
        ]
        title = f"stochastic depth in LM-ResNet, keep {KEEP:g}, linear blocks: largest difference of E x x^T"
        return [(title, columns, lines)]
