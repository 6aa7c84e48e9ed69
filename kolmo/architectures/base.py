r"""A residual network as a discretisation of x' = f(x, t): what all of them share.

Reference: Lu, Zhong, Li, Dong, Beyond finite layer neural networks, 1710.10121.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from kolmo.architectures.blocks import Layer
from kolmo.errors import InputError

if TYPE_CHECKING:
    from kolmo.network import LayeredNetwork

#: what a block's increment becomes, given it and the number of the block
Perturbation = Callable[[Tensor, int], Tensor]

Self = TypeVar("Self", bound="Discretisation")


class Discretisation(nn.Module, ABC):
    """Layers x_k -> x_{k+1} made of blocks f_k by a numerical scheme.

    blocks: the f_k, modules that keep the shape of x, (..., d) or (batch, channels, height, width); one may
    stand in several layers. step: h, in units of time. perturb: what a layer's increment becomes,
    perturb(increment, number of the block), which is how stochastic depth and dropout on a block's output
    come in; one that is a module is told of `train` and `eval`. Raises InputError on no blocks or a bad step,
    and in `forward` on a block that changes the shape.
    """

    #: the scheme, and its order against x' = f(x) at fixed T = L h
    scheme: ClassVar[str]
    order: ClassVar[int]
    #: blocks that one layer takes
    per_layer: ClassVar[int] = 1

    def __init__(
        self, blocks: Sequence[nn.Module], step: float = 1.0, perturb: Perturbation | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        count = len(self.blocks)
        if count == 0 or count % self.per_layer:
            each = "one or more" if self.per_layer == 1 else f"{self.per_layer} for each layer"
            raise InputError(f"{type(self).__name__}.blocks: {count} blocks, expected {each}")
        if not (math.isfinite(step) and step > 0):
            raise InputError(f"{type(self).__name__}.step: {step!r} is not a positive number")
        self.step = float(step)
        self.perturb = perturb

    @classmethod
    def of(cls: type[Self], network: LayeredNetwork, **options: Any) -> Self:
        """This scheme with the blocks, the weights and the step of a network on R^d, and options of its own.

        Raises InputError where a layer of the scheme takes several blocks.
        """
        if cls.per_layer > 1:
            raise InputError(
                f"{cls.__name__}: a layer takes {cls.per_layer} blocks, on parts of the features"
            )
        return cls([Layer(network, k) for k in range(network.depth)], network.step, **options)

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.blocks) // self.per_layer

    @abstractmethod
    def layers(self, x: Tensor) -> Iterator[Tensor]:
        """x_1, ..., x_L from x_0 = x, each of the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """x_L, the features after the last layer."""
        features = x
        for after in self.layers(x):
            features = after
        return features

    def increment(self, number: int, x: Tensor) -> Tensor:
        """h f_number(x)."""
        value = self.blocks[number](x)
        if value.shape != x.shape:
            raise InputError(
                f"{type(self).__name__}: block {number} makes {tuple(value.shape)} of {tuple(x.shape)}, "
                "expected the same shape"
            )
        return self.step * value

    def perturbed(self, number: int, increment: Tensor) -> Tensor:
        """The increment under the noise, if there is any."""
        return increment if self.perturb is None else self.perturb(increment, number)
