r"""Monte Carlo of the noisy network itself: the Markov chain of MATHEMATICS section 1.

Every data point gets the same number of paths, so the estimator is stratified: its standard
error is that of the sampling alone, sqrt(sum_i var_i / n_i) / M.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.problem import Problem

#: paths simulated at once: a block of features stays in cache
BLOCK = 4096
#: paths differentiated at once, and the least number of batches for a standard error
GRADIENT_BLOCK, _BATCHES = 4096, 16
#: 97.5% quantile of the normal distribution
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A sampled J: value, its standard error (sampling only), paths used, seconds."""

    value: float
    standard_error: float
    paths: int
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval."""
        half = Z95 * self.standard_error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class GradientEstimate:
    """A sampled gradient by parameter name: values and their standard errors."""

    value: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    paths: int
    seconds: float


def stream(*key: int) -> int:
    """A 64-bit seed for the noise stream of a key such as (seed, block): well mixed, reproducible."""
    return int(np.random.SeedSequence([k % 2**63 for k in key]).generate_state(1, np.uint64)[0]) >> 1


def increments(problem: Problem, layer: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Increments of coupled copies x (copies, N, d) driven by the same masks."""
    state = generator.get_state()
    parts = []
    for copy in x:
        generator.set_state(state)
        parts.append(problem.noise.sample(problem.network, layer, copy, generator))
    return torch.stack(parts)


class Chain:
    """Paths of a problem's chain on a torch device ('cpu' or 'cuda'), float64 or float32.

    seed: of the noise. Raises InputError where the device is absent.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        from kolmo.device import resolve

        self.problem, self.device, self.dtype = problem, torch.device(resolve(device)), dtype
        self.seed = int(seed)
        self.generator = torch.Generator(self.device).manual_seed(stream(self.seed))
        self._points = problem.data.points.to(self.device, dtype)
        self._labels = problem.data.labels.to(self.device)

    def features(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """X_L of one path from each row of x (N, d)."""
        for layer in range(self.problem.network.depth):
            x = x + self.problem.noise.sample(self.problem.network, layer, x, generator)
        return x

    def losses(self, copies: int, generator: torch.Generator | None = None) -> Tensor:
        """Loss of `copies` paths from every data point, shape (copies, M)."""
        final = self.features(self._points.repeat(copies, 1), generator or self.generator)
        return self.problem.loss(final, self._labels.repeat(copies)).reshape(copies, -1)

    def estimate(self, paths: int = 1_000_000) -> Estimate:
        """J from about `paths` paths (the same number from every point), by streaming moments.

        Blocks of paths have noise streams of their own, so the result does not depend on the
        number of threads. Raises InputError where there are fewer than 2 paths per data point.
        """
        count = len(self._points)
        copies = _copies(paths, count)
        start = time.perf_counter()
        size = max(1, BLOCK // count)
        blocks = [min(size, copies - done) for done in range(0, copies, size)]
        done, mean = 0, torch.zeros(count, dtype=torch.float64)
        square = torch.zeros_like(mean)
        with self._network_here():
            for block, (average, spread) in zip(blocks, self._moments(blocks), strict=True):
                shift = average - mean
                square += spread + shift**2 * (done * block / (done + block))
                mean += shift * (block / (done + block))
                done += block
        variance = square / (copies - 1) / copies
        error = math.sqrt(float(variance.sum())) / count
        return Estimate(float(mean.mean()), error, copies * count, time.perf_counter() - start)

    def _moments(self, blocks: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean and sum of squared deviations, by data point, of each block of copies in order."""

        def block(item: tuple[int, int]) -> tuple[Tensor, Tensor]:
            number, copies = item
            generator = torch.Generator(self.device).manual_seed(stream(self.seed, number))
            with torch.no_grad():
                losses = self.losses(copies, generator).to("cpu", torch.float64)
            return losses.mean(dim=0), losses.var(dim=0, correction=0) * copies

        if self.device.type != "cpu":
            yield from map(block, enumerate(blocks))
            return
        # threads of ours with one torch thread each: torch's own share too little work per operation
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(block, enumerate(blocks))

    @contextlib.contextmanager
    def _network_here(self) -> Iterator[None]:
        """The network in this chain's precision and on its device, for a while."""
        network = self.problem.network
        original = next(network.parameters(), self._points)
        if original.dtype == self.dtype and original.device == self.device:
            yield
            return
        network.to(self.device, self.dtype)
        try:
            yield
        finally:
            network.to(original.device, original.dtype)

    def gradient(self, paths: int = 200_000) -> GradientEstimate:
        """dJ/dtheta by pathwise differentiation of about `paths` paths, with standard errors.

        The errors come from the spread of independent batches (at least 16). float64 only.
        """
        count, network = len(self._points), self.problem.network
        parameters = dict(network.named_parameters())
        copies = max(_BATCHES, _copies(paths, count))
        per_batch = min(max(1, GRADIENT_BLOCK // count), copies // _BATCHES)
        batches = copies // per_batch
        start = time.perf_counter()
        mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
        square = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for done in range(batches):
            loss = self.losses(per_batch).mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                shift = gradient - mean[name]
                mean[name] += shift / (done + 1)
                square[name] += shift * (gradient - mean[name])
        error = {name: (s / (batches - 1) / batches).sqrt() for name, s in square.items()}
        return GradientEstimate(mean, error, batches * per_batch * count, time.perf_counter() - start)


def _copies(paths: int, points: int) -> int:
    if not paths >= 2 * points:
        raise InputError(f"paths: {paths!r} is too few, the {points} data points need at least 2 each")
    return round(paths / points)
