r"""Residual architectures as discretisations of differential equations (Lu, Zhong, Li, Dong, 1710.10121).

Observed orders of every architecture (`architectures_orders`), the modified equation of LM-ResNet
(`architectures_modified`) and what it becomes under stochastic depth, by moments in closed form
(`architectures_noise`) and on a nonlinear field (`architectures_expectations`), the inverse of RevNet
(`architectures_reversible`), and accuracy against parameters on images (`architectures_images`).
"""

from __future__ import annotations

from typing import Any

from kolmo.checkpoint import Memo
from kolmo.config import Config
from kolmo.experiments.architectures_expectations import Expectations
from kolmo.experiments.architectures_images import Images
from kolmo.experiments.architectures_modified import ModifiedEquation
from kolmo.experiments.architectures_noise import StochasticDepth
from kolmo.experiments.architectures_orders import Orders
from kolmo.experiments.architectures_part import Part, Table
from kolmo.experiments.architectures_reversible import Reversible
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress, Silent


class Architectures:
    """Its parts, run in turn.

    config: its seed, which draws fields, points, masks and paths, its backend, and of [images] the data, the
    width, the training and the number of seeds; other sizes are the experiment's.
    """

    name = "architectures"
    summary = (
        "ResNet, PolyNet, FractalNet, RevNet, LM-ResNet as discretisations; LM-ResNet's modified equation; "
        "accuracy on images"
    )
    shipped = "architectures"

    def __init__(self, config: Config, quick: bool = False) -> None:
        self.config = config
        seed = config.run.seed
        self.orders = Orders(seed, quick)
        self.modified = ModifiedEquation(seed, quick)
        self.depth = StochasticDepth(seed, quick)
        self.expectations = Expectations(seed, quick, config.run.backend)
        self.reversible = Reversible(seed, quick)
        self.images = Images(config.images, seed, config.run.device, quick)
        self.memo = Memo()

    @property
    def parts(self) -> list[Part]:
        """In the order in which they run."""
        return [self.orders, self.modified, self.depth, self.expectations, self.reversible, self.images]

    def run(self, progress: Progress | None = None) -> None:
        """All that is not done yet. Raises KolmoError where a number is refused or images are bad."""
        progress = progress or Silent()
        progress.start("architectures", sum(part.steps for part in self.parts))
        for part in self.parts:
            part.run(self.memo, progress)

    @property
    def finished(self) -> bool:
        return all(part.finished for part in self.parts)

    def claims(self) -> list[Claim]:
        """Of every part, as far as it is done."""
        return [claim for part in self.parts for claim in part.claims()]

    def results(self) -> dict[str, Any]:
        """Everything for results.json."""
        return {part.name: part.results() for part in self.parts}

    def tables(self) -> list[Table]:
        """Of every part."""
        return [table for part in self.parts for table in part.tables()]
