r"""Where the noise of a residual block is put, and what its place means.

A block in pre-activation form is f(x) = C2 r(N2 C1 r(N1 x)): convolutions C, normalisations N (affine maps
once their statistics are fixed), r = relu. Masks e have independent entries B(p)/p: E e = 1,
Var e = q = (1-p)/p, p = 1 - rate. A layer is x+ = x + h f, and after L = T/h of them the stage ends.

After the last convolution (`output`), x+ = x + h e f(x), the mask enters linearly, so that

    E[x+ | x] = x + h f(x),      Cov[x+ | x] = h^2 q diag f(x)^2.

The chain is a weak approximation of dX = f dt + sqrt(h q) diag(f) dW: over all layers its variance is O(h),
and its mean is off by O(h) from the network without noise, which is what is used at test time. The same holds
for stochastic depth (one e for a whole block: h^2 q f f^T), for shake-shake (h^2 (f1 - f2)(f1 - f2)^T / 12),
and, with h^2 q C2 diag(z)^2 C2^T, for a mask on z = r(N2 C1 r(N1 x)), right before the last convolution
(`hidden`).

After the first convolution (`between`), x+ = x + h g(e z) with z = C1 r(N1 x) and g(z) = C2 r(N2 z), and
before the block (`before`), x+ = x + h f(e x), the mask passes r, which does not commute with the mean. For
smooth r

    E[x+ | x] = x + h ( f(x) + (q/2) sum_i z_i^2 d^2 g / dz_i^2 + O(q^2) ),

and for relu Jensen's inequality says the same: a drift of its own, off by O(1) however small h is. Variance
is still O(h): a deep network forgets the noise, but not its bias. Batch normalisation adds to it. In
training N2 divides by the deviation of e z, whose variance is Var z + q E z^2; with the noise off it meets z
alone, and its output is scaled by (1 + q E z^2 / Var z)^(-1/2). After `output` it is x that N1 sees, whose
variance differs by O(h).

Sources: Sun, Tao, Du, 1812.00174 (masks on the output); Zagoruyko, Komodakis, 1605.07146 (between
convolutions); Huang et al., 1603.09382 (stochastic depth); Gastaldi, 1705.07485 (shake-shake); Li, Chen, Hu,
Yang, 1801.05134 (variance shift).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor

from kolmo.errors import InputError
from kolmo.stream import Draws, Stream
from kolmo.text import nearest


class Placement(ABC):
    """One place for the noise: what it does to numbers that pass there; everywhere else nothing.

    rate: 1 - p, in [0, 1). Raises InputError on others. Masks are scaled by 1/p in training, so that nothing
    is scaled when the noise is off.
    """

    name: ClassVar[str]
    #: for tables and figures
    title: ClassVar[str]
    #: whether E[x+ | x] is that of the network without noise
    keeps_mean: ClassVar[bool] = True
    #: whether it has a rate
    rated: ClassVar[bool] = True
    #: whether blocks have two branches
    branched: ClassVar[bool] = False

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise InputError(f"images.rate: {rate!r} is not a number from 0 to 1, 1 excluded")
        if rate > 0 and not self.rated:
            raise InputError(f"images.rate: {rate:g}, but {self.name!r} has none; expected 0")
        self.keep = 1.0 - rate

    def before(self, x: Tensor, draws: Draws) -> Tensor:
        """What enters a block."""
        return x

    def between(self, z: Tensor, draws: Draws) -> Tensor:
        """What comes out of the first convolution."""
        return z

    def hidden(self, z: Tensor, draws: Draws) -> Tensor:
        """What enters the last convolution."""
        return z

    def output(self, increment: Tensor, draws: Draws) -> Tensor:
        """h f(x), as it is added to x."""
        return increment

    def share(self, x: Tensor, draws: Draws) -> Tensor | None:
        """The share of the first of two branches, (N, 1, 1, 1); None: a half."""
        return None

    def masked(self, x: Tensor, draws: Draws) -> Tensor:
        """e x with one mask entry for each number of x (N, C, H, W)."""
        count, channels, height, width = x.shape
        mask = draws.bernoulli(self.keep, height * width * channels)
        # channels last in memory, as x is
        return x * (mask.view(count, height, width, channels).permute(0, 3, 1, 2) / self.keep).to(x.dtype)


class NoNoise(Placement):
    """Nothing is drawn."""

    name, title, rated = "none", "none", False


class Output(Placement):
    """A mask on the block's output, after its last convolution (1812.00174)."""

    name, title = "output", "after the last convolution"

    def output(self, increment: Tensor, draws: Draws) -> Tensor:
        return self.masked(increment, draws)


class Hidden(Placement):
    """A mask right before the last convolution, which is linear (1605.07146)."""

    name, title = "hidden", "before the last convolution"

    def hidden(self, z: Tensor, draws: Draws) -> Tensor:
        return self.masked(z, draws)


class Between(Placement):
    """A mask after the first convolution: normalisation and relu follow."""

    name, title, keeps_mean = "between", "after the first convolution", False

    def between(self, z: Tensor, draws: Draws) -> Tensor:
        return self.masked(z, draws)


class Before(Placement):
    """A mask on what enters the block; x itself is passed on unmasked."""

    name, title, keeps_mean = "before", "before the block", False

    def before(self, x: Tensor, draws: Draws) -> Tensor:
        return self.masked(x, draws)


class StochasticDepth(Placement):
    """One entry for a whole block and sample (1603.09382, with inverted scaling)."""

    name, title = "stochastic_depth", "stochastic depth"

    def output(self, increment: Tensor, draws: Draws) -> Tensor:
        kept = draws.bernoulli(self.keep, 1) / self.keep
        return increment * kept.view(-1, 1, 1, 1).to(increment.dtype)


class ShakeShake(Placement):
    """a f1 + (1 - a) f2 with a ~ U(0, 1) for each sample, backward through the same a (1705.07485)."""

    name, title, rated, branched = "shake_shake", "shake-shake", False, True

    def share(self, x: Tensor, draws: Draws) -> Tensor:
        return draws.uniform(1).view(-1, 1, 1, 1).to(x.dtype)


#: every place by name
PLACEMENTS: dict[str, type[Placement]] = {
    p.name: p for p in (NoNoise, Output, Hidden, Between, Before, StochasticDepth, ShakeShake)
}


def placement(name: str, rate: float = 0.0) -> Placement:
    """A place by name; raises InputError that names the nearest right one."""
    if name not in PLACEMENTS:
        raise InputError(f"images.placement: {name!r} is unknown{nearest(name, PLACEMENTS)}")
    return PLACEMENTS[name](rate)


class Noise:
    """The noise of one network, off but inside `sampling`.

    Its numbers are addressed by (seed, sample, block, evaluation), so that they do not depend on batches,
    devices or processes.
    """

    def __init__(self, place: Placement) -> None:
        self.place = place
        self._stream: Stream | None = None

    @contextmanager
    def sampling(self, stream: Stream) -> Iterator[None]:
        """Noise of the stream's samples, one for each image that passes, in order."""
        self._stream = None if isinstance(self.place, NoNoise) else stream
        try:
            yield
        finally:
            self._stream = None

    def draws(self, x: Tensor, block: int, evaluation: int = 0) -> Draws | None:
        """The numbers of a block for the images x; None while the noise is off."""
        if self._stream is None:
            return None
        if len(x) != self._stream.count:
            raise InputError(f"images.noise: {len(x)} images, expected {self._stream.count}, one a sample")
        return self._stream.layer(block).part(evaluation)


class Increments:
    """The noise on increments of the blocks first, first + 1, ..., as `Discretisation` asks for it."""

    def __init__(self, noise: Noise, first: int) -> None:
        self._noise, self._first = noise, first

    def __call__(self, increment: Tensor, number: int) -> Tensor:
        draws = self._noise.draws(increment, self._first + number)
        return increment if draws is None else self._noise.place.output(increment, draws)
