r"""What a noise is: how one layer's increment is drawn, and its first two moments.

    increment = h G(x, theta_k, omega) + sqrt(h) Sigma xi,
    m = E[G],   C = Cov[G],   D = Sigma Sigma^T                 (MATHEMATICS section 1).

A noise of one's own gives `sample`, `mean` and `covariance` and nothing else; `outcomes` too where
the exact recursion should take it. Every noise here is linear in independent centred numbers,

    G = m(x) + S(x) e,     Cov e = v I,

and follows from m, S and the law of e: `LinearNoise`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.law import GAUSS, Law
from kolmo.noise.structure import Structure
from kolmo.stream import Draws

#: outcomes of one layer beyond which an exact expectation is refused
MOST_OUTCOMES = 8192


@dataclass(frozen=True)
class Outcomes:
    """One layer's increment as base + factor @ table[o] with probability weights[o].

    base (Q, d) and factor (Q, d, r): at the points, in units of length, differentiable in the
    weights. table (O, r), weights (O,): the values of the r random numbers.
    """

    base: Tensor
    factor: Tensor
    table: np.ndarray
    weights: np.ndarray


class Noise(ABC):
    """Noise injected in every layer of a residual network."""

    #: name in problem.toml; a noise of one's own may leave it
    kind: str = "custom"
    #: whether the samples of a batch share their random numbers
    shared: bool = False

    @abstractmethod
    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        """One increment of `layer` for each row of x (N, d), random numbers from draws: shape (N, d)."""

    def mean(self, jet: Jet) -> Jet:
        """The jet of m = E[G]; the block itself unless the noise is biased."""
        return jet

    def covariance(self, jet: Jet) -> Structure | Tensor | None:
        """C = Cov[G], per unit step squared; None for 0.

        A Structure, or a tensor: its diagonal (L, Q, d), or full (L, Q, d, d).
        """
        return None

    def diffusion(self, jet: Jet) -> Tensor | None:
        """D = Sigma Sigma^T, length^2 per unit time; None for 0.

        Constant in x: (L, d, d). Varying with x, for which there is no order 2: (L, Q, d, d).
        """
        return None

    def outcomes(self, network: LayeredNetwork, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        """The increments from x (Q, d) with their probabilities, for the exact recursion.

        gauss: points for each continuous random number. Raises InputError where the noise has too
        many outcomes or does not say.
        """
        raise InputError(
            f"noise {self.kind!r}: its outcomes are not given, so there is no exact expectation; "
            "give the noise `outcomes`, or take the chain estimator"
        )

    @property
    def controls(self) -> tuple[Tensor, ...]:
        """The strengths that require gradients."""
        return ()

    def settings(self) -> dict[str, Any]:
        """The keys of [noise] in problem.toml that make this noise again, without `kind`."""
        return {}


class LinearNoise(Noise):
    """G = m + S e with independent centred units e of one law in each layer.

    Subclasses give `law` and `spread`, and `mean` where m is not the block. `diffusive` noises
    scale with sqrt(h) in place of h, and their S must not depend on x: they are added to whatever
    the block gives.
    """

    diffusive = False
    #: the argument that says how strong the noise is in each layer; None where there is none
    strength: str | None = None

    def variance_at(self, strengths: Tensor) -> Tensor:
        """E e^2 of units of these strengths, differentiable; shapes alike. For noises with a `strength`."""
        raise InputError(f"noise {self.kind!r}: it has no strength that could be a control")

    def strength_of(self, variance: float) -> float:
        """The inverse of `variance_at`, with the same mean. Raises InputError where there is none."""
        raise InputError(
            f"noise {self.kind!r}: no strength of it has variance {variance:.3g} and the same mean"
        )

    def mean_at(self, strengths: Tensor) -> Tensor | None:
        """What the block is multiplied by in the mean, None for 1."""
        return None

    @abstractmethod
    def law(self, layer: int, depth: int) -> Law:
        """The law of each unit of a layer."""

    @abstractmethod
    def spread(self, jet: Jet) -> Structure:
        """S at every layer and point of the jet."""

    def fluctuation(self, network: LayeredNetwork, layer: int, jet: Jet, draws: Draws) -> Tensor:
        """What is added to h m: shape (N, d); jet of this layer at N points, one for each sample."""
        spread, law = self.spread(jet), self.law(layer, network.depth)
        units = law.draw(draws, spread.units, self.shared).to(jet.value)
        return self.scale(network.time_step) * spread.apply(units[None])[0]

    def scale(self, step: Any) -> Any:
        """h, or sqrt(h) where the noise is diffusive; of what `step` is, a number or a tensor."""
        return step**0.5 if self.diffusive else step

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        jet = network.jet(x, slice(layer, layer + 1))
        return network.time_step * self.mean(jet).value[0] + self.fluctuation(network, layer, jet, draws)

    def _deviations(self, jet: Jet) -> Tensor:
        variances = [self.law(k, jet.depth).variance for k in jet.layers]
        return torch.tensor(variances, dtype=torch.float64).sqrt().to(jet.value)

    def covariance(self, jet: Jet) -> Structure | Tensor | None:
        return None if self.diffusive else self.spread(jet).scaled(self._deviations(jet))

    def diffusion(self, jet: Jet) -> Tensor | None:
        if not self.diffusive:
            return None
        full = self.spread(jet).scaled(self._deviations(jet)).dense()[:, 0]
        return full @ full.transpose(-1, -2)

    def outcomes(self, network: LayeredNetwork, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        jet = network.jet(x, slice(layer, layer + 1))
        spread = self.spread(jet)
        table, weights = product_rule(*self.law(layer, network.depth).points(gauss), spread.units, self.kind)
        factor = self.scale(network.step) * spread.dense()[0]
        return Outcomes(network.step * self.mean(jet).value[0], factor, table, weights)


def product_rule(
    values: np.ndarray, weights: np.ndarray, units: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """All combinations of `units` independent numbers: table (O, units) and weights (O,).

    Raises InputError where there are more than MOST_OUTCOMES.
    """
    count = len(values) ** units
    if count > MOST_OUTCOMES:
        raise InputError(
            f"noise {kind!r}: {units} random numbers with {len(values)} values each make "
            f"{count if count < 10**9 else f'{len(values)}^{units}'} outcomes of one layer, at most "
            f"{MOST_OUTCOMES} are summed; take Gaussian increments with the same mean and covariance "
            "(rule 'gauss', off by O(h^2), its error is estimated), or the chain estimator"
        )
    index = np.zeros((1, 0), dtype=int)
    for _ in range(units):
        rows = np.repeat(index, len(values), axis=0)
        index = np.column_stack([rows, np.tile(np.arange(len(values)), len(index))])
    return values[index], weights[index].prod(axis=1)
