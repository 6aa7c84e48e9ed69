r"""The same control and the same diffusion with more layers.

Weights constant on [kh, (k+1)h) are weights of a network with `factor` times the layers (nested controls),
and a noise whose variance is `factor` times as large keeps the diffusion h C; D needs nothing. For dropout,
(1 - p')/p' = factor (1 - p)/p (MATHEMATICS section 1). The two problems have the same continuous limit.
"""

from __future__ import annotations

from kolmo.errors import InputError
from kolmo.network import ResidualNetwork
from kolmo.noise import Composition, LinearNoise, Noise, NoNoise
from kolmo.problem import Problem


def refined(problem: Problem, factor: int) -> Problem:
    """The problem with `factor` times the layers, each layer's weights repeated, and h C as it is.

    The network is a new one. Raises InputError on a network that is not a ResidualNetwork, and on a noise
    that cannot be made stronger with the same mean (shake-shake, stochastic depth with test-time scaling).
    """
    network = problem.network
    if int(factor) != factor or factor < 1:
        raise InputError(f"factor: {factor!r} is not a positive integer")
    if not isinstance(network, ResidualNetwork):
        raise InputError(f"network: {type(network).__name__} cannot be refined, a ResidualNetwork can")
    W, b, V = (w.detach().repeat_interleave(factor, dim=0) for w in (network.W, network.b, network.V))
    finer = ResidualNetwork.from_weights(W, b, V, network.horizon, network.activation.name)
    noise = _stronger(problem.noise, network.depth, factor)
    return Problem(problem.data, finer, noise, problem.loss)


def _stronger(noise: Noise, depth: int, factor: int) -> Noise:
    if isinstance(noise, NoNoise) or factor == 1:
        return noise
    if isinstance(noise, Composition):
        return Composition([_stronger(part, depth, factor) for part in noise.parts])
    if not isinstance(noise, LinearNoise) or noise.strength is None:
        raise InputError(f"noise {noise.kind!r}: it has no strength that could grow with the layers")
    growth = 1 if noise.diffusive else factor
    values = [noise.strength_of(growth * noise.law(k, depth).variance) for k in range(depth)]
    repeated = [value for value in values for _ in range(factor)]
    keys = {**noise.settings(), noise.strength: repeated if len(set(repeated)) > 1 else repeated[0]}
    return type(noise)(**keys)
