"""Noise models: how a residual network is perturbed, layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from kolmo.errors import InputError
from kolmo.noise.base import LinearNoise, Noise, Outcomes
from kolmo.noise.composition import Composition
from kolmo.noise.controlled import Controlled
from kolmo.noise.depth import StochasticDepth
from kolmo.noise.hidden import DropConnect, HiddenDropout, ShakeShake
from kolmo.noise.output import BernoulliDropout, GaussianDropout, GaussianInjection, NoNoise, UniformNoise
from kolmo.text import nearest

__all__ = [
    "KINDS",
    "BernoulliDropout",
    "Composition",
    "Controlled",
    "DropConnect",
    "GaussianDropout",
    "GaussianInjection",
    "HiddenDropout",
    "LinearNoise",
    "NoNoise",
    "Noise",
    "Outcomes",
    "ShakeShake",
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
        ShakeShake,
        Composition,
    )
}


def from_settings(settings: Mapping[str, Any]) -> Noise:
    """The noise that a [noise] table describes: `kind` and that kind's own keys.

    Raises InputError that names the unknown kind or key, or the value out of range.
    """
    if not isinstance(settings, Mapping):
        raise InputError(f"noise: {settings!r} is not a table with a kind")
    keys = dict(settings)
    kind = keys.pop("kind", "none")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"noise.kind: {kind!r} is unknown{nearest(kind, KINDS)}")
    parameters = inspect.signature(KINDS[kind]).parameters
    known = list(parameters)
    for key in keys:
        if key not in known:
            hint = nearest(key, known) if known else f"; {kind!r} takes no keys"
            raise InputError(f"noise.{key}: unknown key for {kind!r}{hint}")
    for key, parameter in parameters.items():
        if key not in keys and parameter.default is parameter.empty:
            raise InputError(f"noise.{key}: missing, {kind!r} needs it")
    return KINDS[kind](**keys)
