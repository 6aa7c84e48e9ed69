"""Noise models: how a residual network is perturbed, layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from kolmo.errors import InputError
from kolmo.noise.base import Noise
from kolmo.noise.bernoulli import BernoulliDropout
from kolmo.noise.depth import StochasticDepth
from kolmo.noise.gaussian import GaussianInjection
from kolmo.noise.hidden import DropConnect, HiddenDropout
from kolmo.noise.multiplicative import GaussianDropout, UniformNoise
from kolmo.noise.none import NoNoise
from kolmo.text import nearest

__all__ = [
    "KINDS",
    "BernoulliDropout",
    "DropConnect",
    "GaussianDropout",
    "GaussianInjection",
    "HiddenDropout",
    "NoNoise",
    "Noise",
    "StochasticDepth",
    "UniformNoise",
    "from_settings",
]

#: every noise that problem.toml can name
KINDS: dict[str, type[Noise]] = {
    c.kind: c
    for c in (
        NoNoise,
        BernoulliDropout,
        HiddenDropout,
        DropConnect,
        StochasticDepth,
        GaussianDropout,
        UniformNoise,
        GaussianInjection,
    )
}


def from_settings(settings: Mapping[str, Any]) -> Noise:
    """The noise that a [noise] table describes: `kind` and that kind's own keys.

    Raises InputError that names the unknown kind or key, or the value out of range.
    """
    keys = dict(settings)
    kind = keys.pop("kind", "none")
    if kind not in KINDS:
        raise InputError(f"noise.kind: {kind!r} is unknown{nearest(kind, KINDS)}")
    known = list(inspect.signature(KINDS[kind]).parameters)
    for key in keys:
        if key not in known:
            hint = nearest(key, known) if known else f"; {kind!r} takes no keys"
            raise InputError(f"noise.{key}: unknown key for {kind!r}{hint}")
    for key in known:
        if key not in keys:
            raise InputError(f"noise.{key}: missing, {kind!r} needs it")
    return KINDS[kind](**keys)
