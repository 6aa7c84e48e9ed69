r"""Monte Carlo of the noisy network itself: the Markov chain of MATHEMATICS section 1.

Every data point gets the same number of paths. The paths of one copy of the data are one batch;
copies (or antithetic pairs of them) are independent. Where points are independent within a copy too,
the estimator is stratified and its standard error sqrt(sum_i var_i / n_i) / M is that of the
sampling alone; otherwise it is that of the copies' means.

Random numbers are addressed by (seed, sample, layer, unit), see `stream`: results do not depend on
blocks, threads or device, and two networks under one seed share their noise. Where `compiled` has kernels
for a problem they simulate it, else torch does: `Chain.is_compiled` chooses. Both draw the same numbers, so
that a path's loss is the same to rounding.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from kolmo.compiled.forward import moments
from kolmo.errors import InputError
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.problem import Problem
from kolmo.stream import Stream, mix

if TYPE_CHECKING:
    from kolmo.compiled.chain import CompiledChain
    from kolmo.compiled.gpu import FusedChain

#: paths simulated at once by torch, whose features then stay in cache, and by kernels on the CPU and on an
#: accelerator, which have blocks of their own
BLOCK, KERNEL_BLOCK, DEVICE_BLOCK = 4096, 65536, 2**22
#: paths differentiated at once, and the least number of batches for a standard error
GRADIENT_BLOCK, _BATCHES = 4096, 16

#: grad u_y(., t_{k+1}) for layer k: (k, mean of the next state (N, d), label (N,)) -> (N, d)
ValueGradient = Callable[[int, Tensor, Tensor], Tensor]
#: (copies, number of the first) -> losses (copies, M)
Losses = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A sampled J: value, its standard error (sampling only), paths used, seconds.

    degrees: of freedom of the standard error (infinite: it is known), see `degrees_of_freedom`.
    """

    value: float
    standard_error: float
    paths: int
    seconds: float
    degrees: float = field(default=math.inf, kw_only=True)

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval, by Student's quantile: of few copies the normal one covers too little."""
        half = float(stdtrit(self.degrees, 0.975)) * self.standard_error
        return self.value - half, self.value + half

    def gain(self, plain: Estimate) -> float:
        """How many times fewer seconds than `plain` this one takes for the same standard error."""
        ours = self.standard_error**2 * self.seconds
        return plain.standard_error**2 * plain.seconds / ours if ours > 0 else math.inf


@dataclass(frozen=True)
class GradientEstimate:
    """A sampled gradient by parameter name: values and their standard errors."""

    value: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    paths: int
    seconds: float


class Chain:
    """Paths of a problem's chain on a torch device ('cpu' or 'cuda'), float64 or float32.

    seed: of the noise. antithetic: odd copies of the data mirror the random numbers of the copy
    before them. control: grad u of the Kolmogorov equation (`kolmo.pde.value_gradient`) for the control
    variate sum_k grad u(m_k, t_{k+1}) . (X_{k+1} - m_k), m_k = E[X_{k+1} | X_k], whose mean is exactly
    zero whatever u is.
    Raises InputError where the device is absent.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
        antithetic: bool = False,
        control: ValueGradient | None = None,
    ) -> None:
        from kolmo.device import resolve

        self.problem, self.device, self.dtype = problem, torch.device(resolve(device)), dtype
        self.seed, self.antithetic, self.control = int(seed), antithetic, control
        self._points = problem.data.points.to(self.device, dtype)
        self._labels = problem.data.labels.to(self.device)
        self._drawn = 0

    def losses(self, copies: int, first: int | None = None, network: LayeredNetwork | None = None) -> Tensor:
        """Loss of `copies` paths from every data point, shape (copies, M).

        first: number of the first copy; by default copies not drawn before. network: another one
        under the same noise.
        """
        if first is None:
            first, self._drawn = self._drawn, self._drawn + copies
        return self._losses(self.problem.network if network is None else network)(copies, first)

    def _losses(self, network: LayeredNetwork) -> Losses:
        """`losses` of a network, prepared for many calls."""
        network = self._here(network)
        kernels, shape = self.kernels(network), (-1, len(self._points))
        if kernels is not None:
            return lambda copies, first: kernels.losses(self.stream(copies, first)).reshape(shape)
        return lambda copies, first: self.plain(network, self.stream(copies, first)).reshape(shape)

    def is_compiled(self, network: LayeredNetwork) -> bool:
        """Whether there are kernels for a network's paths in this chain's precision and on its device."""
        from kolmo.compiled.chain import has_kernels

        there = self.device.type == "cpu" or (self.dtype == torch.float32 and find_spec("triton") is not None)
        return there and self.control is None and has_kernels(self.problem, network)

    def kernels(self, network: LayeredNetwork) -> CompiledChain | FusedChain | None:
        """The kernels for a network in this chain's precision and on its device; None: torch it is."""
        if not self.is_compiled(network):
            return None
        assert isinstance(network, ResidualNetwork)
        if self.device.type == "cpu":
            from kolmo.compiled.chain import CompiledChain

            return CompiledChain(self.problem, network, self.dtype)
        from kolmo.compiled.gpu import FusedChain

        return FusedChain(self.problem, network)

    def stream(self, copies: int, first: int) -> Stream:
        """The random numbers of a number of copies of the data from the first on."""
        count = len(self._points)
        return Stream(
            mix(self.seed), first * count, copies * count, count, self.antithetic, self.device, self.dtype
        )

    def plain(self, network: LayeredNetwork, stream: Stream) -> Tensor:
        """The loss of each of the stream's samples by torch, for any noise, network and loss."""
        problem, copies = self.problem, stream.count // stream.batch
        x, labels = self._points.repeat(copies, 1), self._labels.repeat(copies)
        martingale = torch.zeros(len(x), dtype=self.dtype, device=self.device)
        for layer in range(network.depth):
            increment = problem.noise.sample(network, layer, x, stream.layer(layer))
            if self.control is not None:
                mean = network.step * problem.noise.mean(network.jet(x, slice(layer, layer + 1))).value[0]
                martingale += ((increment - mean) * self.control(layer, x + mean, labels)).sum(dim=-1)
            x = x + increment
        return problem.loss(x, labels) - martingale

    def estimate(self, paths: int = 1_000_000) -> Estimate:
        """J from about `paths` paths (the same number from every point), by streaming moments.

        Raises InputError where there are fewer than 2 paths (or pairs) per data point.
        """
        return self._estimate(paths, self._losses(self.problem.network))

    def difference(self, network: LayeredNetwork, paths: int = 1_000_000) -> Estimate:
        """J of another network minus J of the problem's, by paths that share their random numbers."""
        ours, theirs = self._losses(self.problem.network), self._losses(network)

        def both(copies: int, first: int) -> Tensor:
            return theirs(copies, first) - ours(copies, first)

        return self._estimate(paths, both)

    def _estimate(self, paths: int, losses: Losses) -> Estimate:
        count, group = len(self._points), 2 if self.antithetic else 1
        groups = _copies(paths, count, group)
        start = time.perf_counter()
        block_size = BLOCK
        if self.is_compiled(self.problem.network):
            block_size = KERNEL_BLOCK if self.device.type == "cpu" else DEVICE_BLOCK
        size = max(1, block_size // (count * group))
        blocks = [(done, min(size, groups - done)) for done in range(0, groups, size)]
        columns = 1 if self.problem.noise.shared else count
        done, mean = 0, torch.zeros(columns, dtype=torch.float64)
        square = torch.zeros_like(mean)

        def block(item: tuple[int, int]) -> tuple[Tensor, Tensor]:
            first, number = item
            with torch.no_grad():
                table = losses(number * group, first * group).reshape(number, group, count)
            table = table[:, 0] if group == 1 else table.double().mean(dim=1)
            if columns == 1:
                table = table.double().mean(dim=1, keepdim=True)
            if self.device.type != "cpu":
                table = table.double()
                return table.mean(dim=0).cpu(), (table.var(dim=0, correction=0) * number).cpu()
            average, spread = moments(table.numpy())
            return torch.from_numpy(average), torch.from_numpy(spread)

        for (_, number), (average, spread) in zip(blocks, self._in_threads(block, blocks), strict=True):
            shift = average - mean
            square += spread + shift**2 * (done * number / (done + number))
            mean += shift * (number / (done + number))
            done += number
        variance = square / (groups - 1) / groups
        error = math.sqrt(float(variance.sum())) / columns
        return Estimate(
            value=float(mean.mean()),
            standard_error=error,
            paths=groups * group * count,
            seconds=time.perf_counter() - start,
            degrees=degrees_of_freedom(variance, groups),
        )

    def _in_threads(
        self, block: Callable[[tuple[int, int]], tuple[Tensor, Tensor]], blocks: list[tuple[int, int]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Moments of each block, in order."""
        if self.device.type != "cpu":
            yield from map(block, blocks)
            return
        # threads of ours with one torch thread each: torch's own share too little work per operation
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(block, blocks)

    def _here(self, network: LayeredNetwork) -> LayeredNetwork:
        """The network in this chain's precision and on its device: itself, or a copy."""
        first = next(network.parameters(), self._points)
        if first.dtype == self.dtype and first.device == self.device:
            return network
        return copy.deepcopy(network).to(self.device, self.dtype)

    def gradient(self, paths: int = 200_000) -> GradientEstimate:
        """dJ/dtheta by pathwise differentiation of about `paths` paths, with standard errors.

        The errors come from the spread of independent batches (at least 16). float64 only.
        """
        count, network = len(self._points), self._here(self.problem.network)
        parameters = dict(network.named_parameters())
        group = 2 if self.antithetic else 1
        groups = max(_BATCHES, _copies(paths, count, group))
        per_batch = min(max(1, GRADIENT_BLOCK // (count * group)), groups // _BATCHES)
        batches = groups // per_batch
        start = time.perf_counter()
        mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
        square = {name: torch.zeros_like(p) for name, p in parameters.items()}
        differentiate = self._gradients(network)
        for done in range(batches):
            gradients = differentiate(per_batch * group, done * per_batch * group)
            for name, gradient in zip(parameters, gradients, strict=True):
                shift = gradient - mean[name]
                mean[name] += shift / (done + 1)
                square[name] += shift * (gradient - mean[name])
        error = {name: (s / (batches - 1) / batches).sqrt() for name, s in square.items()}
        paths = batches * per_batch * group * count
        mean, error = ({name: g.cpu() for name, g in found.items()} for found in (mean, error))
        return GradientEstimate(mean, error, paths, time.perf_counter() - start)

    def _gradients(self, network: LayeredNetwork) -> Callable[[int, int], Sequence[Tensor]]:
        """Gradients of the mean of `losses` by each parameter, prepared for many calls."""
        from kolmo.compiled.chain import CompiledChain

        kernels = self.kernels(network)
        if not isinstance(kernels, CompiledChain) or len(list(network.parameters())) != 3:
            losses, parameters = self._losses(network), list(network.parameters())
            return lambda copies, first: torch.autograd.grad(losses(copies, first).mean(), parameters)

        def gradients(copies: int, first: int) -> Sequence[Tensor]:
            found, stream = kernels.zeros(), self.stream(copies, first)
            kernels.gradient(stream, np.full(stream.count, 1 / stream.count), found)
            return [torch.from_numpy(g).to(self.dtype) for g in found]

        return gradients


def coupled(problem: Problem, layer: int, x: Tensor, seed: int) -> Tensor:
    """Increments of coupled copies x (copies, N, d) driven by the same random numbers."""
    draws = Stream(mix(seed), 0, x.shape[1], x.shape[1]).layer(layer)
    return torch.stack([problem.noise.sample(problem.network, layer, copy, draws) for copy in x])


def degrees_of_freedom(variances: Tensor, groups: int) -> float:
    """Degrees of freedom of the summed variances of strata, each from `groups` values.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    squares = float(variances.square().sum())
    return (groups - 1) * float(variances.sum()) ** 2 / squares if squares > 0 else math.inf


def _copies(paths: int, points: int, group: int = 1) -> int:
    """Independent groups of paths for each data point."""
    if not paths >= 2 * points * group:
        need = "2 each" if group == 1 else f"2 groups of {group} each"
        raise InputError(f"paths: {paths!r} is too few, the {points} data points need at least {need}")
    return round(paths / (points * group))
