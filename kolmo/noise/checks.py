"""Parameters of noises, looked at once."""

from __future__ import annotations

import math

import torch

from kolmo.errors import InputError
from kolmo.network import Jet, LayeredNetwork, ResidualNetwork, TwoLayerJet


def probability(value: object, name: str = "noise.keep") -> float:
    """A probability in (0, 1]; raises InputError that names the key."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise InputError(f"{name}: {value!r} is not a probability in (0, 1]")
    return float(value)


def strength(value: object, name: str) -> float:
    """A finite number >= 0; raises InputError that names the key."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InputError(f"{name}: {value!r} is not a finite number >= 0")
    return float(value)


def with_hidden_units(network: LayeredNetwork, kind: str) -> ResidualNetwork:
    """The network, where it has hidden units z and an output matrix V; raises InputError."""
    if not isinstance(network, ResidualNetwork):
        raise InputError(f"noise.kind: {kind!r} needs the block V sigma(W x + b), this network has another")
    return network


def hidden_jet(jet: Jet, kind: str) -> TwoLayerJet:
    """The jet, where it holds the hidden units; raises InputError."""
    if not isinstance(jet, TwoLayerJet):
        raise InputError(f"noise.kind: {kind!r} needs the block V sigma(W x + b), this network has another")
    return jet


def bernoulli(
    keep: float, shape: tuple[int, ...], x: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """eta / p with eta ~ B(p), independent entries of the given shape, like x in type and place."""
    uniform = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
    return (uniform < keep).to(x.dtype) / keep
