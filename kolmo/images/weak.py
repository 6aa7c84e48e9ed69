r"""What noise does to the mean: a network's features under noise against those with the noise off.

Sampled means are compared without the bias of squares: of B independent batches of samples, with means m_b,
the average of (m_b - off)(m_c - off) over pairs b != c estimates (E - off)^2, without a share of the
variance.

`Curve` is a stage whose weights vary smoothly with depth, so that it makes sense to ask for h -> 0: at L
layers and h = T/L it tends to one differential equation, and the orders in h of bias and variance tell which
places for the noise are weak approximations of a stochastic one (`kolmo.images.placement`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.architectures import ResNet
from kolmo.errors import InputError
from kolmo.images.networks import Block, Branches, ImageNetwork
from kolmo.images.normalisation import BatchNorm
from kolmo.images.placement import Increments, Noise, placement
from kolmo.stream import Stream, mix

_PURPOSE = 5
#: the curve's stage: channels and pixels a side
_CHANNELS, _SIDE = 8, 4


@dataclass(frozen=True)
class Moments:
    """Of features under noise: |mean - off| and standard deviation, root mean squares over all features.

    bias: 0 where the estimate of its square is not positive, as sampling noise may make it. square_error: the
    standard error of bias^2, by leaving out one batch at a time.
    """

    bias: float
    deviation: float
    square_error: float

    def over(self, unit: float) -> Moments:
        """The same in other units."""
        return Moments(self.bias / unit, self.deviation / unit, self.square_error / unit**2)


def moments(sample: Callable[[int], Tensor], off: Tensor, batches: int) -> Moments:
    """sample(b): features (S, ...) of S independent samples, for b = 0, ..., batches - 1; off: (...)."""
    if batches < 3:
        raise InputError(f"weak.batches: {batches}, expected 3 or more: products of independent means")
    means, squares, count = [], torch.zeros_like(off), 0
    for b in range(batches):
        drawn = sample(b) - off
        means.append(drawn.mean(dim=0).flatten())
        squares += drawn.square().sum(dim=0)
        count += len(drawn)
    m = torch.stack(means).double()
    gram = (m @ m.T) / m.shape[1]
    pairs, own = float(gram.sum() - gram.trace()), gram.sum(dim=1) - gram.diagonal()
    square = pairs / (batches * (batches - 1))
    without = (pairs - 2 * own) / ((batches - 1) * (batches - 2))
    error = math.sqrt((batches - 1) / batches * float((without - without.mean()).square().sum()))
    variance = float((squares / count).mean()) - float(m.mean(dim=0).square().mean())
    return Moments(math.sqrt(max(0.0, square)), math.sqrt(max(0.0, variance)), error)


class Curve:
    """Weights theta(t) of a stage of residual blocks, t in [0, 1], and images that it begins with.

    Every weight is c_0 + c_1 cos(pi t) + c_2 sin(pi t), the c drawn by the seed. Normalisations are affine
    maps with fixed statistics. horizon: T.
    """

    def __init__(self, seed: int, images: int = 4, horizon: float = 1.0) -> None:
        rng = np.random.default_rng([seed, _PURPOSE])
        self.horizon, self._seed = horizon, mix(seed, _PURPOSE)
        kernel = (_CHANNELS, _CHANNELS, 3, 3)
        size = 1 / math.sqrt(9 * _CHANNELS)

        def terms(base: float, deviation: float, *shape: int) -> np.ndarray:
            drawn = deviation * rng.standard_normal((3, *shape))
            drawn[1:] /= 2
            drawn[0] += base
            return np.asarray(drawn)

        # two sets: the second one is that of a second branch
        self._terms = [
            {
                **{f"convolutions.{k}.weight": terms(0, size, *kernel) for k in range(2)},
                **{f"normalisations.{k}.weight": terms(1, 0.2, _CHANNELS) for k in range(2)},
                **{f"normalisations.{k}.bias": terms(0, 0.3, _CHANNELS) for k in range(2)},
            }
            for _ in range(2)
        ]
        start = rng.standard_normal((images, _CHANNELS, _SIDE, _SIDE))
        self.start = torch.from_numpy(start).float().contiguous(memory_format=torch.channels_last)

    def stage(self, depth: int, place: str, rate: float) -> tuple[ResNet, Noise]:
        """Forward Euler with L = depth layers, and its noise."""
        noise = Noise(placement(place, rate))
        blocks = []
        for k in range(depth):
            t = (k + 0.5) / depth
            first, second = (self._block(noise, k, t, terms) for terms in self._terms)
            blocks.append(Branches(noise, k, first, second) if noise.place.branched else first)
        stage = ResNet(blocks, self.horizon / depth, Increments(noise, 0))
        stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        return stage.eval(), noise

    @staticmethod
    def _block(noise: Noise, number: int, t: float, terms: dict[str, np.ndarray]) -> Block:
        waves = np.array([1.0, math.cos(math.pi * t), math.sin(math.pi * t)])
        block = Block(noise, number, _CHANNELS, _CHANNELS)
        with torch.no_grad():
            for name, weights in terms.items():
                block.get_parameter(name).copy_(torch.from_numpy(np.tensordot(waves, weights, 1)))
        return block

    @torch.no_grad()
    def measure(self, depth: int, place: str, rate: float, samples: int, batches: int = 16) -> Moments:
        """Moments of X_L by `samples` samples in equal batches, in units of |X_L - X_0| without noise.

        Samples are drawn in antithetic pairs: at a rate of 1/2 one drops what the other keeps, all that is
        linear in the masks cancels, and what is left of the sampling noise is of the order of the bias
        itself.
        """
        if samples % (2 * batches):
            raise InputError(f"weak.samples: {samples}, expected whole pairs in each of {batches} batches")
        stage, noise = self.stage(depth, place, rate)
        off, each = stage(self.start), samples // batches
        inputs = self.start.repeat(each, 1, 1, 1)

        def sample(b: int) -> Tensor:
            first, size = b * len(inputs), len(self.start)
            stream = Stream(self._seed, first, len(inputs), size, antithetic=True, dtype=torch.float32)
            with noise.sampling(stream):
                return stage(inputs).reshape(each, *off.shape)

        return moments(sample, off, batches).over(float((off - self.start).square().mean().sqrt()))


@torch.no_grad()
def trained_moments(network: ImageNetwork, images: Tensor, seed: int, batches: int = 16) -> Moments:
    """Moments of a trained network's features under its own noise, in units of their deviation over images.

    images: normalised, on the network's device; a sample of the noise for each of them in every batch.
    """
    network.eval()
    off = network.features(images)

    def sample(b: int) -> Tensor:
        stream = Stream(
            mix(seed, _PURPOSE), b * len(images), len(images), device=images.device, dtype=torch.float32
        )
        with network.noise.sampling(stream):
            return network.features(images)[None]

    return moments(sample, off, batches).over(float(off.std(dim=0).square().mean().sqrt()))


@torch.no_grad()
def variance_shift(network: ImageNetwork, images: Tensor, seed: int) -> float:
    """By what factor noise multiplies the variance that normalisations see: geometric mean over all channels.

    1: what they have learnt under noise is right without it. images: normalised, on the network's device.
    Source: Li, Chen, Hu, Yang, 1801.05134.
    """
    network.eval()
    found: list[Tensor] = []
    layers = [module for module in network.modules() if isinstance(module, BatchNorm)]
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0].var(dim=(0, 2, 3))))
        for layer in layers
    ]
    try:
        network(images)
        off = torch.cat(found)
        found.clear()
        stream = Stream(mix(seed, _PURPOSE), 0, len(images), device=images.device, dtype=torch.float32)
        with network.noise.sampling(stream):
            network(images)
        on = torch.cat(found)
    finally:
        for hook in hooks:
            hook.remove()
    counts = (off > 0) & (on > 0)  # channels that are dead have no variance either way
    return float((on[counts] / off[counts]).log().mean().exp())
