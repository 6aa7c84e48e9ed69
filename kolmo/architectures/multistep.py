"""Linear multi-step networks: LM-ResNet and LM-ResNeXt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kolmo.architectures.base import Discretisation, Perturbation
from kolmo.architectures.blocks import Aggregated
from kolmo.errors import InputError


class LMResNet(Discretisation):
    r"""Two-step scheme with a trainable k_n in every layer but the first, which is an Euler step.

        x_1 = x_0 + h f_0(x_0),     x_{n+1} = (1 - k_n) x_n + k_n x_{n-1} + h f_n(x_n).

    Expanded about x_n: (1 + k) x' + (1 - k) h/2 x'' = f + O(h^2), t = n h, for constant and for varying k. So
    the limit is (1 + k) x' = f, of order 1; the term with x'' is absent at k = 1 only, leap-frog over two
    layers, of order 2 with a second value x_1 to match. Roots 1 and -k: stable for -1 < k <= 1, and what does
    not fit the limit, as the first step, dies out by a factor -k in every layer, at k = 1 not at all. The
    Euler step is the scheme's own with x_{-1} = x_0.
    k: (L - 1,), or one number for all layers, or None: drawn from U(-0.1, 0) by the seed.
    Source: Lu, Zhong, Li, Dong, 1710.10121. Raises InputError on a wrong number of k.
    """

    scheme, order = "linear two-step", 1

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        step: float = 1.0,
        perturb: Perturbation | None = None,
        k: float | Sequence[float] | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(blocks, step, perturb)
        count = self.depth - 1
        if k is None:
            draw = torch.Generator().manual_seed(seed)
            given = -0.1 * torch.rand(count, generator=draw, dtype=torch.float64)
        else:
            given = torch.as_tensor(k, dtype=torch.float64)
            given = given.expand(count) if given.ndim == 0 else given
        if given.shape != (count,) or not bool(torch.isfinite(given).all()):
            shown = f"shape {tuple(given.shape)}" if given.shape != (count,) else "a value is not finite"
            raise InputError(
                f"{type(self).__name__}.k: {shown}, expected {count} finite numbers, one for each layer but "
                "the first"
            )
        self.k = nn.Parameter(given.clone())

    def forward(self, x: Tensor, second: Tensor | None = None) -> Tensor:
        """x_L; second: as of `layers`."""
        features = x
        for after in self.layers(x, second):
            features = after
        return features

    def layers(self, x: Tensor, second: Tensor | None = None) -> Iterator[Tensor]:
        """x_1, ..., x_L from x_0 = x; second: x_1, where it is known better than by an Euler step."""
        before, x = x, x + self.perturbed(0, self.increment(0, x)) if second is None else second
        yield x
        for n in range(1, self.depth):
            k = self.k[n - 1]
            before, x = x, (1 - k) * x + k * before + self.perturbed(n, self.increment(n, x))
            yield x


class LMResNeXt(LMResNet):
    """LM-ResNet with aggregated blocks: each the sum of parallel branches.

    blocks: for each layer a list of branches, which are summed, or a module that is aggregated already (on
    images a grouped convolution is). Source: Lu, Zhong, Li, Dong, 1710.10121; Xie et al., 1611.05431.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module | Sequence[nn.Module]],
        step: float = 1.0,
        perturb: Perturbation | None = None,
        k: float | Sequence[float] | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        summed = [b if isinstance(b, nn.Module) else Aggregated(b) for b in blocks]
        super().__init__(summed, step, perturb, k, seed)
