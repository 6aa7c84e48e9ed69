"""Several independent noises in one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import Jet, LayeredNetwork
from kolmo.noise.base import MOST_OUTCOMES, LinearNoise, Noise, Outcomes
from kolmo.noise.law import GAUSS
from kolmo.noise.output import NoNoise
from kolmo.noise.structure import Structure
from kolmo.stream import Draws


class Composition(Noise):
    r"""Independent noises in one layer: means of the one that acts on the block, C and D add.

    Gaussian injection composes with every other noise and with itself: it is added to whatever the
    block gives. Two noises that act on the block (masks, factors, branches) do not compose: their
    random numbers multiply, so that the covariances do not add and the modified equation is
    another one; such a pair is refused. parts: two or more noises, or their settings.
    Raises InputError that names the pair.
    """

    kind = "composition"

    def __init__(self, parts: Sequence[Any]) -> None:
        from kolmo.noise import from_settings

        if not isinstance(parts, Sequence) or isinstance(parts, str) or len(parts) < 2:
            raise InputError(f"noise.parts: {parts!r} is not a list of two or more noises")
        self.parts = [part if isinstance(part, Noise) else from_settings(part) for part in parts]
        if any(isinstance(part, Composition) for part in self.parts):
            raise InputError("noise.parts: a composition inside a composition; list all parts in one")
        added = [part for part in self.parts if isinstance(part, LinearNoise) and part.diffusive]
        acting = [part for part in self.parts if part not in added and not isinstance(part, NoNoise)]
        if len(acting) > 1:
            raise InputError(
                f"noise.parts: {acting[0].kind!r} and {acting[1].kind!r} do not compose: both act on the "
                "block, so their random numbers multiply and the covariances do not add; keep one of them "
                "and add gaussian_injection at most"
            )
        self._acting: Noise = acting[0] if acting else NoNoise()
        self._added = added
        self.shared = any(part.shared for part in self.parts)

    @property
    def controls(self) -> tuple[Tensor, ...]:
        return tuple(control for part in self.parts for control in part.controls)

    def sample(self, network: LayeredNetwork, layer: int, x: Tensor, draws: Draws) -> Tensor:
        total = self._acting.sample(network, layer, x, draws.part(0))
        jet = network.jet(x, slice(layer, layer + 1))
        for number, part in enumerate(self._added, 1):
            total = total + part.fluctuation(network, layer, jet, draws.part(number))
        return total

    def mean(self, jet: Jet) -> Jet:
        return self._acting.mean(jet)

    def covariance(self, jet: Jet) -> Structure | Tensor | None:
        return self._acting.covariance(jet)

    def diffusion(self, jet: Jet) -> Tensor | None:
        found = [D for part in self.parts if (D := part.diffusion(jet)) is not None]
        if any(D.ndim == 4 for D in found):  # one varies with x: the others are the same at all points
            found = [D if D.ndim == 4 else D[:, None] for D in found]
        return torch.stack(torch.broadcast_tensors(*found)).sum(dim=0) if found else None

    def outcomes(self, network: LayeredNetwork, layer: int, x: Tensor, gauss: int = GAUSS) -> Outcomes:
        first = self._acting.outcomes(network, layer, x, gauss)
        factor, table, weights = first.factor, first.table, first.weights
        for part in self._added:
            other = part.outcomes(network, layer, x, gauss)
            count = len(weights) * len(other.weights)
            if count > MOST_OUTCOMES:
                raise InputError(
                    f"noise {self.kind!r}: {count} outcomes of one layer, at most {MOST_OUTCOMES} are "
                    "summed; take the chain estimator"
                )
            table = np.hstack(
                [np.repeat(table, len(other.table), axis=0), np.tile(other.table, (len(table), 1))]
            )
            weights = np.outer(weights, other.weights).reshape(-1)
            factor = torch.cat([factor, other.factor], dim=-1)
        return Outcomes(first.base, factor, table, weights)

    def settings(self) -> dict[str, Any]:
        return {"parts": [{"kind": part.kind, **part.settings()} for part in self.parts]}
