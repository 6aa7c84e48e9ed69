r"""Residual networks on images: three stages of blocks, each stage by the scheme of an architecture.

A convolution makes `width` channels of an image; between the stages a convolution of stride 2 halves height
and width and doubles the channels; normalisation, relu, the mean over pixels and a linear map make scores of
what comes out. Blocks are in pre-activation form (He et al., 1603.05027), 3 x 3 convolutions without bias.

The depth counts convolutions along the way and the linear map: 6 n + 2 with n layers a stage, 12 n + 2 for
`revnet`, whose layers have two blocks, on half of the channels each, and 9 n + 2 for `lm_resnext`, whose
blocks have three convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from kolmo.architectures import ARCHITECTURES, Discretisation
from kolmo.errors import InputError
from kolmo.images.normalisation import BatchNorm
from kolmo.images.placement import Increments, Noise, placement
from kolmo.stream import mix
from kolmo.text import nearest

STAGES = 3
#: convolutions along the way in a layer, where it is not one block of two
_CONVOLUTIONS = {"revnet": 4, "lm_resnext": 3}
#: points of a layer at which its block is evaluated, where it is not one
_EVALUATIONS = {"polynet": 2, "fractalnet": 2}
#: groups of the middle convolution of `lm_resnext`, and its channels by those of the block
_GROUPS, _WIDER = 4, 2
_PURPOSE = 2
#: copies of the weights (gradient, momentum), and of what a convolution makes, that a step keeps
_WEIGHTS, _KEPT = 3, 4


@dataclass(frozen=True)
class NetworkPlan:
    """What a network is like. Raises InputError that names the wrong entry.

    architecture: a name of ARCHITECTURES. depth: see above. width: channels of the first stage. placement,
    rate: of the noise. step: h.
    """

    architecture: str = "resnet"
    depth: int = 20
    width: int = 8
    placement: str = "none"
    rate: float = 0.0
    step: float = 1.0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            near = nearest(self.architecture, ARCHITECTURES)
            raise InputError(f"images.architecture: {self.architecture!r} is unknown{near}")
        each = STAGES * self.convolutions
        if self.depth < each + 2 or (self.depth - 2) % each:
            raise InputError(
                f"images.depth: {self.depth} for {self.architecture}, expected {each} n + 2: "
                f"{each + 2}, {2 * each + 2}, {3 * each + 2}, ..."
            )
        if self.width < 4 or self.width % 4:
            raise InputError(f"images.width: {self.width}, expected a multiple of 4")
        if not (math.isfinite(self.step) and self.step > 0):
            raise InputError(f"images.step: {self.step!r} is not a positive number")
        placement(self.placement, self.rate)

    @property
    def convolutions(self) -> int:
        """Convolutions along the way in a layer."""
        return _CONVOLUTIONS.get(self.architecture, 2)

    @property
    def layers(self) -> int:
        """n, the layers of a stage."""
        return (self.depth - 2) // (STAGES * self.convolutions)

    @classmethod
    def of_layers(
        cls, architecture: str, layers: int, width: int = 8, place: str = "none", rate: float = 0.0
    ) -> NetworkPlan:
        """The plan with n layers a stage, whatever depth that is."""
        return cls(architecture, STAGES * _CONVOLUTIONS.get(architecture, 2) * layers + 2, width, place, rate)

    def footprint(self, shape: tuple[int, int, int], batch: int) -> int:
        """Bytes of a training: weights and what a step keeps of its images, good to a factor of about two.

        shape: channels, height and width of an image. batch: images of a step in this process.
        """
        evaluations = _EVALUATIONS.get(self.architecture, 1)
        weights = numbers = 0
        for stage in range(STAGES):
            width, pixels = self.width << stage, math.prod(shape[1:]) >> 2 * stage
            weights += self.layers * self.convolutions * 9 * width**2
            numbers += self.layers * self.convolutions * evaluations * width * max(1, pixels)
        return 4 * (_WEIGHTS * weights + _KEPT * batch * numbers)

    def __str__(self) -> str:
        noise = self.placement + (f" {self.rate:g}" if self.rate else "")
        step = f", h = {self.step:g}" if self.step != 1 else ""
        return f"{self.architecture}-{self.depth}, width {self.width}{step}, noise {noise}"

    def as_dict(self) -> dict[str, str | int | float]:
        """The entries, for files."""
        return asdict(self)


class Block(nn.Module):
    """f = C_m r(N_m ... C_1 r(N_1 x)), m convolutions, with places for noise.

    number: of the block in the network, which addresses its noise. channels: of x and f(x). hidden: between.
    kernels: sizes of the convolutions; groups: of all but the first and last. evaluations: points at which a
    layer evaluates the block; what comes in is distributed differently at each, so that each has
    normalisations of its own, and masks.
    """

    def __init__(
        self,
        noise: Noise,
        number: int,
        channels: int,
        hidden: int,
        kernels: Sequence[int] = (3, 3),
        groups: int = 1,
        evaluations: int = 1,
    ) -> None:
        super().__init__()
        self.noise, self.number = noise, number
        sizes = [channels, *[hidden] * (len(kernels) - 1), channels]
        grouped = [1, *[groups] * (len(kernels) - 2), 1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=g, bias=False)
            for (a, b), kernel, g in zip(pairwise(sizes), kernels, grouped, strict=True)
        )
        #: of the first evaluation, then of the second
        self.normalisations = nn.ModuleList(BatchNorm(size) for size in sizes[:-1] * evaluations)
        self.evaluations = evaluations
        #: the next evaluation's number; the network sets it back to 0
        self.evaluation = 0

    def forward(self, x: Tensor) -> Tensor:
        draws = self.noise.draws(x, self.number, self.evaluation)
        count, place = len(self.convolutions), self.noise.place
        first = self.evaluation * count
        self.evaluation = (self.evaluation + 1) % self.evaluations
        if draws is not None:
            x = place.before(x, draws)
        for k, convolve in enumerate(self.convolutions):
            x = torch.relu(self.normalisations[first + k](x))
            if draws is not None and k == count - 1:
                x = place.hidden(x, draws)
            x = convolve(x)
            if draws is not None and k == 0:
                x = place.between(x, draws)
        return x


class Branches(nn.Module):
    """f = a f1 + (1 - a) f2 of two blocks; a = 1/2 with the noise off."""

    def __init__(self, noise: Noise, number: int, first: Block, second: Block) -> None:
        super().__init__()
        self.noise, self.number = noise, number
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        draws = self.noise.draws(x, self.number, self.first.evaluation)
        share = None if draws is None else self.noise.place.share(x, draws)
        first, second = self.first(x), self.second(x)
        return torch.lerp(second, first, 0.5) if share is None else second + share * (first - second)


class ImageNetwork(nn.Module):
    """A network by its plan; weights drawn by the seed.

    channels: of the images, (N, channels, H, W). classes: K.
    """

    def __init__(self, plan: NetworkPlan, channels: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.plan, self.channels, self.classes = plan, channels, classes
        self.noise = Noise(placement(plan.placement, plan.rate))
        widths = [plan.width << stage for stage in range(STAGES)]
        self.entry = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList(self._stage(k, width, seed) for k, width in enumerate(widths))
        self.transitions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.normalisation = BatchNorm(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        self.float()
        self._draw(seed)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self._blocks = [module for module in self.modules() if isinstance(module, Block)]

    def _stage(self, stage: int, width: int, seed: int) -> Discretisation:
        plan = self.plan
        kind = ARCHITECTURES[plan.architecture]
        count = plan.layers * kind.per_layer
        first = stage * count
        channels = width // kind.per_layer
        blocks = [self._block(first + k, channels) for k in range(count)]
        perturb = Increments(self.noise, first)
        options = {}
        if plan.architecture == "revnet":
            options["axis"] = 1
        if plan.architecture.startswith("lm_"):
            options["seed"] = mix(seed, _PURPOSE, stage) % 2**31
        return kind(blocks, plan.step, perturb, **options)

    def _block(self, number: int, channels: int) -> nn.Module:
        """A block, or two of half its hidden channels: as many weights either way."""
        wide = self.plan.architecture == "lm_resnext"
        hidden = _WIDER * channels if wide else channels
        kernels, groups = ((1, 3, 1), _GROUPS) if wide else ((3, 3), 1)
        evaluations = _EVALUATIONS.get(self.plan.architecture, 1)

        def make(hidden: int) -> Block:
            return Block(self.noise, number, channels, hidden, kernels, groups, evaluations)

        if not self.noise.place.branched:
            return make(hidden)
        return Branches(self.noise, number, make(hidden // 2), make(hidden // 2))

    def _draw(self, seed: int) -> None:
        """Gaussian weights of variance 2 / (kernel size * channels out), the head's as torch has them."""
        generator = torch.Generator().manual_seed(mix(seed, _PURPOSE))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.out_channels * math.prod(module.kernel_size) / module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan), generator=generator)
        bound = 1 / math.sqrt(self.head.in_features)
        for tensor in (self.head.weight, self.head.bias):
            nn.init.uniform_(tensor, -bound, bound, generator=generator)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees of images (N, channels, H, W): (N, 4 width)."""
        for block in self._blocks:
            block.evaluation = 0  # an interrupt may have left it anywhere
        x = self.entry(x)
        for k, stage in enumerate(self.stages):
            x = stage(self.transitions[k - 1](x) if k else x)
        return torch.relu(self.normalisation(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes)."""
        return self.head(self.features(x))

    @property
    def parameter_count(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())
