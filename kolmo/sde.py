r"""Monte Carlo of the modified equation dX = b dt + a^{1/2} dW (MATHEMATICS section 2) by torchsde.

Every layer is one call of `torchsde.sdeint`, see `brownian`. Paths of several step sizes are driven by the
same Brownian path: their difference is the time error, with hardly any sampling noise, and they are
extrapolated to step zero. Source: Talay, Tubaro, Stochastic Analysis and Applications 8 (1990).

Standard errors are stratified over the data points, as the chain's are.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from kolmo.brownian import LayerPath, LayerSDE
from kolmo.chain import Chain, Estimate, _copies, degrees_of_freedom
from kolmo.errors import InputError
from kolmo.modified import modified_equation
from kolmo.network import AutomaticJet
from kolmo.problem import Problem
from kolmo.stream import Stream, mix
from kolmo.text import nearest

#: rows simulated at once where memory allows more: enough to hide torchsde's overhead, few enough for caches
BLOCK = 16384
#: what keeps these streams apart from the chain's under the same seed
_PURPOSE = 0x5DE


@dataclass(frozen=True)
class Scheme:
    """One of torchsde's methods for Ito equations, and how its paths make a value.

    noise_types: that it is valid for. levels: steps of each coupled path, relative to the coarsest.
    value, error: J and its estimated time error as combinations of the paths' losses.
    """

    noise_types: tuple[str, ...]
    levels: tuple[int, ...]
    value: tuple[float, ...]
    error: tuple[float, ...]


# Weak errors of Euler and Milstein expand in powers of the step: three paths remove the first two, and
# what the third one changed is the estimate. Of two paths, |J_2 - J_1| did not bound the error of
# 2 J_2 - J_1 where h |grad f| is about 1, and overrated it tenfold where it is 0.2.
_ROMBERG = ((1, 2, 4), (1 / 3, -2.0, 8 / 3), (1 / 3, -1.0, 2 / 3))
SCHEMES = {
    "euler": Scheme(("additive", "diagonal", "general", "scalar"), *_ROMBERG),
    "milstein": Scheme(("additive", "diagonal", "scalar"), *_ROMBERG),
    # measured order 2, as a = h C is small; in theory 1, g_i depends on more than x_i: the estimate is
    # that of (4 J_2 - J_1) / 3 at order 1
    "srk": Scheme(("additive", "diagonal", "scalar"), (1, 2), (-1 / 3, 4 / 3), (-2 / 3, 2 / 3)),
}
# Time errors by coupled paths on five trained networks with dropout or stochastic depth, in units of 1e-5
# with their sampling errors, and microseconds a path and layer:
#
#     steps of the paths      shells       xor     moons   spirals  interval     cost
#     euler    1, 2, 4      6.4(20)   1.1(9)  -2.2(10)  -0.8(5)    0.1(2)       2.1
#     euler    2, 4, 8      0.9(10)  -0.3(7)   1.1(9)    0.1(3)    0.0(1)       3.5
#     milstein 1, 2, 4     15.0(30)  -0.9(10) -1.3(20)   0.8(6)   -0.1(2)       3.0
#     srk      1, 2        -7.8(7)   -0.7(1)   0.0(9)   -0.1(3)    0.0(0)       4.5
#
# All are below the standard error of a million paths; where they are not, extrapolated Euler with twice
# the steps is cheaper and better than srk. It is also the only one for all noise types.
BEST = "euler"


@dataclass(frozen=True)
class SdeEstimate(Estimate):
    """A sampled J of the modified equation.

    standard_error: of the sampling. time_error: |bias| by steps in time, an estimate and no bound. method,
    noise_type: torchsde's names. steps: in a layer, of the coarsest path.
    """

    time_error: float
    method: str
    noise_type: str
    steps: int


class SDE:
    """Paths of a problem's modified equation of an order, on a torch device ('cpu' or 'cuda'), float64.

    method: torchsde's 'euler', 'milstein' or 'srk', or 'auto'. steps: in a layer, of the coarsest of the
    coupled paths. seed: of the Brownian paths. antithetic: paths in pairs W, -W, for losses close to
    linear. memory: bytes for the paths simulated at once, about; results do not depend on it.

    noise_type, one of torchsde's, follows from the noise: 'diagonal' where a = h C is diagonal, 'scalar'
    where a has a root of one column, 'additive' where a does not depend on x (no noise at all included),
    else 'general'. Raises InputError where the order does not exist, on an option out of range, and where
    torchsde's method is not valid for the noise type.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        order: int = 2,
        method: str = "auto",
        steps: int = 1,
        seed: int = 0,
        device: str = "cpu",
        antithetic: bool = False,
        memory: int = 256 * 2**20,
    ) -> None:
        for name, number in (("steps", steps), ("memory", memory)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"{name}: {number!r} is not a positive integer")
        if method != "auto" and method not in SCHEMES:
            raise InputError(f"method: {method!r} is unknown{nearest(str(method), ['auto', *SCHEMES])}")
        self.problem, self.order, self.steps, self.memory = problem, order, steps, memory
        self.seed, self.antithetic = int(seed), antithetic
        # the chain lends its data on the device, its threads and its check of the number of paths
        self._chain = Chain(problem, device=device)
        with torch.no_grad():
            x, here = self._chain._points[:1], self._problem_here()
            modified_equation(here.network, here.noise, x, order, slice(1))  # refuses a wrong order
            layer = LayerSDE(here, 0, order, 1.0, x)
            self.noise_type, self._channels = layer.noise_type, layer.channels
            self._automatic = isinstance(here.network.jet(x, slice(1)), AutomaticJet)
        self.method = BEST if method == "auto" else method
        self.scheme = SCHEMES[self.method]
        if self.noise_type not in self.scheme.noise_types:
            valid = [name for name, scheme in SCHEMES.items() if self.noise_type in scheme.noise_types]
            raise InputError(
                f"method: {method!r} is not valid for the noise type {self.noise_type!r} of noise "
                f"{problem.noise.kind!r} at order {order}; valid: {', '.join(valid)}"
            )

    def _problem_here(self) -> Problem:
        """The problem with its network on this estimator's device."""
        return self.problem.with_network(self._chain._here(self.problem.network))

    def estimate(self, paths: int = 200_000) -> SdeEstimate:
        """J from about `paths` paths, the same number from every point, by streaming moments.

        Without noise one path from each point says all, with standard error 0. Raises InputError where
        there are fewer than 2 paths (or pairs) per data point.
        """
        start = time.perf_counter()
        count, group = len(self.problem.data), 2 if self.antithetic else 1
        copies = _copies(paths, count, group)
        if not self._channels:
            copies = group = 1
        weights = torch.tensor([self.scheme.value, self.scheme.error], dtype=torch.float64)
        blocks = self._blocks(copies, count)

        def moments(block: tuple[int, int]) -> tuple[Tensor, Tensor]:
            """Means and summed squares of value and error over the copies in a block, (2, points) each."""
            table = weights @ self.losses(*block).mean(dim=-1).to("cpu")
            table = table.reshape(2, -1, min(block[1], count))
            return table.mean(dim=1), table.var(dim=1, correction=0) * table.shape[1]

        mean, square = torch.zeros(2, 2, count, dtype=torch.float64)
        # torch's forward-mode differentiation has one global level: threads would close each other's
        found = map(moments, blocks) if self._automatic else self._chain._in_threads(moments, blocks)
        for (first, rows), (average, spread) in zip(blocks, found, strict=True):
            part = slice(first % count, first % count + rows) if rows < count else slice(None)
            done, number = first // count, max(1, rows // count)
            shift = average - mean[:, part]
            square[:, part] += spread + shift**2 * (done * number / (done + number))
            mean[:, part] += shift * (number / (done + number))
        variance = square[0] / copies / max(1, copies - 1)
        return SdeEstimate(
            value=float(mean[0].mean()),
            standard_error=math.sqrt(float(variance.sum())) / count,
            paths=copies * group * count,
            seconds=time.perf_counter() - start,
            degrees=degrees_of_freedom(variance, copies),
            time_error=abs(float(mean[1].mean())),
            method=self.method,
            noise_type=self.noise_type,
            steps=self.steps,
        )

    def losses(self, first: int, rows: int, levels: tuple[int, ...] | None = None) -> Tensor:
        """Losses of coupled paths with steps * levels[i] steps a layer; each level divides the last.

        Rows first, ..., first + rows - 1 of the endless table copies x points. Shape (levels, rows, group):
        the paths of a group (a pair W, -W where antithetic) belong together. levels: by default the
        scheme's.
        """
        problem, chain = self._problem_here(), self._chain
        levels = self.scheme.levels if levels is None else levels
        group, finest = 2 if self.antithetic else 1, self.steps * levels[-1]
        index = torch.arange(first, first + rows, device=chain.device) % len(chain._points)
        index = index.repeat_interleave(group)
        stream = Stream(
            mix(self.seed, _PURPOSE), first * group, rows * group, 1, self.antithetic, chain.device
        )
        states = [chain._points[index]] * len(levels)
        with torch.no_grad():
            for k in range(problem.network.depth):
                path = LayerPath(stream.layer(k), finest, self._channels, integrals=self.method == "srk")
                layer = LayerSDE(problem, k, self.order, problem.network.step / finest, states[0][:1])
                states = [
                    layer.solve(x, path, self.method, finest, levels[-1] // level)
                    for x, level in zip(states, levels, strict=True)
                ]
            losses = [problem.loss(x, chain._labels[index]) for x in states]
        return torch.stack(losses).reshape(len(levels), rows, group)

    def _blocks(self, copies: int, count: int) -> list[tuple[int, int]]:
        """Rows of the table simulated at once, (first, rows): whole copies of the points, or parts of one."""
        network, kinds = self.problem.network, 2 if self.method == "srk" else 1
        normals = kinds * self.steps * self.scheme.levels[-1] * self._channels
        # held for each path, as measured: normal numbers and what they are made of, jets, torchsde's values
        floats = 6 * normals + 14 * getattr(network, "width", network.dim)
        floats += 20 * network.dim * (1 + self._channels)
        at_once = self.memory // (8 * floats * (os.cpu_count() or 1)) // (2 if self.antithetic else 1)
        size = max(1, min(BLOCK, at_once))
        if size >= count:
            size -= size % count
            return [(i, min(size, copies * count - i)) for i in range(0, copies * count, size)]
        parts = [(i, min(size, count - i)) for i in range(0, count, size)]
        return [(copy * count + i, rows) for copy in range(copies) for i, rows in parts]
