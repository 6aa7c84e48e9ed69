"""The table [images] of a configuration: what is trained on images, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field

from kolmo.errors import InputError
from kolmo.images.data import ImageData, load
from kolmo.images.networks import NetworkPlan
from kolmo.images.placement import PLACEMENTS, placement
from kolmo.images.schedule import Schedule
from kolmo.settings import count, number, positive
from kolmo.text import shown


@dataclass
class ImageSettings:
    """[images]: data, network, places and rates of the noise, training.

    data: digits, cifar10 or cifar100, the latter in `folder`. placements, rates: every place with every rate,
    where it has one. seeds: trainings of each. The others: as of `NetworkPlan` and `Schedule`.
    """

    data: str = "digits"
    folder: str = ""
    architecture: str = "resnet"
    depth: int = count(20, 8, 10_000)
    width: int = count(8, 4, 4096)
    placements: list[str] = field(default_factory=lambda: list(PLACEMENTS))
    rates: list[float] = field(default_factory=lambda: [0.2, 0.5])
    seeds: int = count(5, 2, 1000)
    epochs: int = count(40, 1, 10**5)
    batch: int = count(64, 2, 10**6)
    learning_rate: float = positive(0.1)
    warmup: float = number(2.0)
    weight_decay: float = number(5e-4)
    precision: str = "float32"

    def load(self, seed: int) -> ImageData:
        """The images; seed: of the split of the digits."""
        return load(self.data, self.folder, seed)

    def plan(self, place: str = "none", rate: float = 0.0) -> NetworkPlan:
        """The network with noise at a place."""
        return NetworkPlan(self.architecture, self.depth, self.width, place, rate)

    def plans(self) -> list[NetworkPlan]:
        """Every place with every rate, where it has one."""
        return [
            self.plan(place, float(rate))
            for place in self.placements
            for rate in (self.rates if PLACEMENTS[place].rated else [0.0])
        ]

    def schedule(self) -> Schedule:
        """How it is trained."""
        return Schedule(
            self.epochs, self.batch, self.learning_rate, self.warmup, self.weight_decay,
            precision=self.precision,
        )  # fmt: skip

    def check(self) -> None:
        """Raise InputError that names the first wrong entry; no data are read."""
        for name, entries in (("placements", self.placements), ("rates", self.rates)):
            if not entries:
                raise InputError(f"images.{name}: empty, expected one entry or more")
            if len({str(entry) for entry in entries}) < len(entries):
                raise InputError(f"images.{name}: {shown(entries)} has an entry twice")
        for rate in self.rates:
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
                raise InputError(f"images.rates: {shown(rate)} is not a number between 0 and 1")
        for place in self.placements:
            placement(str(place))
        self.plan()
        self.schedule()
