r"""Noise whose strength in every layer is a control: differentiated exactly through the modified equation.

    C_k = v(s_k) S S^T,   D_k = v(s_k) Sigma Sigma^T,   m_k = f or s_k f

are smooth in the strengths s_k (a probability, a standard deviation), so J is, and torch finds dJ/ds along
with dJ/dtheta.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kolmo.errors import InfeasibleError, InputError
from kolmo.network import Jet, LayeredNetwork, ScaledJet
from kolmo.noise.base import LinearNoise, Noise, Outcomes
from kolmo.noise.law import GAUSS
from kolmo.noise.structure import packed
from kolmo.stream import Draws


class Controlled(Noise):
    """A noise with strengths s (L,), a float64 tensor that may require gradients.

    noise: whose strengths they take the place of (masks, factors, stochastic depth, Gaussian injection). The
    chain and the exact recursion see their present values. Raises InputError on a noise without a strength
    or a tensor of another shape; InfeasibleError where a value is out of range.
    """

    kind = "controlled"

    def __init__(self, noise: LinearNoise, strengths: Tensor) -> None:
        if not isinstance(noise, LinearNoise) or noise.strength is None:
            raise InputError(f"noise {noise.kind!r}: it has no strength that could be a control")
        if strengths.ndim != 1 or strengths.dtype != torch.float64:
            raise InputError(
                f"strengths: {strengths.dtype} of shape {tuple(strengths.shape)}, not float64 (layers,)"
            )
        self.noise, self.strengths = noise, strengths
        self.shared = noise.shared

    @property
    def controls(self) -> tuple[Tensor, ...]:
        return (self.strengths,) if self.strengths.requires_grad else ()

    def fixed(self) -> LinearNoise:
        """The noise with the present strengths as its schedule. Raises InfeasibleError."""
        values = [float(s) for s in self.strengths.detach()]
        keys = {**self.noise.settings(), str(self.noise.strength): values if len(values) > 1 else values[0]}
        try:
            return type(self.noise)(**keys)
        except InputError as error:
            raise InfeasibleError(f"strengths: {error}") from error

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        return self.fixed().sample(network, layer, x, draws)

    def outcomes(self, network: LayeredNetwork, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        return self.fixed().outcomes(network, layer, x, gauss)

    def _here(self, jet: Jet) -> Tensor:
        if jet.depth != len(self.strengths):
            raise InputError(f"strengths: {len(self.strengths)} values, the network has {jet.depth} layers")
        return self.strengths[list(jet.layers)]

    def _variances(self, jet: Jet) -> Tensor:
        variances = self.noise.variance_at(self._here(jet))
        if not bool((variances >= 0).all()) or not bool(torch.isfinite(variances).all()):
            self.fixed()  # says which value is out of range
            raise InfeasibleError("strengths: a variance is not a finite number >= 0")
        return variances

    def mean(self, jet: Jet) -> Jet:
        factors = self.noise.mean_at(self._here(jet))
        return jet if factors is None else ScaledJet(jet, factors)

    def covariance(self, jet: Jet) -> Tensor | None:
        if self.noise.diffusive:
            return None
        unit, variances = packed(self.noise.spread(jet)), self._variances(jet)
        # not through a root, which has no derivative at 0
        return variances.reshape(-1, *(1,) * (unit.ndim - 1)) * unit

    def diffusion(self, jet: Jet) -> Tensor | None:
        if not self.noise.diffusive:
            return None
        unit = self.noise.spread(jet).dense()[:, 0]
        return self._variances(jet)[:, None, None] * (unit @ unit.transpose(-1, -2))
