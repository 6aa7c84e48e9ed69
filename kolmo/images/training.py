"""Training on images: stochastic gradient descent with Nesterov momentum, cosine schedule, mixed precision.

The order of the images, their shifts and the noise follow from the seed and the number of the step. So a
training that was interrupted goes on bitwise as if it never had been, and several processes that share each
batch train as one does, to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kolmo import memory
from kolmo.checkpoint import Checkpoint, State
from kolmo.errors import InputError, NonFiniteError
from kolmo.images import parallel
from kolmo.images.augmentation import Augmentation
from kolmo.images.data import ImageData, ImageSet
from kolmo.images.networks import ImageNetwork, NetworkPlan
from kolmo.images.schedule import PRECISIONS, Schedule
from kolmo.stream import Stream, mix

#: images evaluated at once
_EVALUATED = 1000
_ORDER, _NOISE = 3, 4


@dataclass(frozen=True)
class Epoch:
    """A pass over the training images, as a callback sees it; loss: mean over its batches."""

    number: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """Of a network without noise: share of images that get a wrong label, and mean cross-entropy."""

    error: float
    loss: float


@dataclass(frozen=True)
class Outcome:
    """A training's end: both scores, the number of trainable parameters, and what it took."""

    train: Score
    test: Score
    parameters: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """On the test images."""
        return 1.0 - self.test.error


def train(
    network: ImageNetwork,
    data: ImageData,
    schedule: Schedule | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    callback: Callable[[Epoch], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a network in place; it ends on the device.

    seed: of the images' order, their shifts and the noise. checkpoint: what an interrupted training with the
    same arguments left, and where this one leaves its state. Under torchrun every process takes its part of
    each batch (`kolmo.images.parallel`). Raises InputError on bad settings and on a checkpoint of another
    training, NonFiniteError where the loss is not finite.
    """
    run = _Run(network, data, schedule or Schedule(), seed, device)
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    start, done = time.perf_counter(), 0
    kept = parallel.agreed(checkpoint.load())
    if kept is not None:
        done, start = run.restore(kept), start - checkpoint.seconds
    total = run.schedule.epochs * run.per_epoch
    losses = torch.zeros((), device=device)
    counted = 0
    for step in range(done, total):
        losses += run.step(step)
        counted += 1
        if parallel.number() == 0:
            checkpoint.offer(partial(run.state, step + 1))
        if (step + 1) % run.per_epoch == 0:
            loss = float(losses) / counted
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"epoch {1 + step // run.per_epoch}: the loss is not finite; take a smaller learning rate"
                )
            if callback is not None:
                callback(Epoch(1 + step // run.per_epoch, loss, time.perf_counter() - start))
            losses.zero_()
            counted = 0


class _Run:
    """One training: its optimiser, a step at a time."""

    def __init__(
        self, network: ImageNetwork, data: ImageData, schedule: Schedule, seed: int, device: str
    ) -> None:
        self.network, self.data, self.schedule, self.device = network, data, schedule, device
        self._seed = seed
        processes = parallel.count()
        if schedule.batch > len(data.train):
            raise InputError(f"images.batch: {schedule.batch}, but {data.name} has {len(data.train)} images")
        if schedule.batch % processes:
            raise InputError(f"images.batch: {schedule.batch} is no multiple of {processes} processes")
        if data.shape[0] != network.channels or data.classes != network.classes:
            raise InputError(
                f"{data.name}: {data.shape[0]} channels and {data.classes} classes, the network has "
                f"{network.channels} and {network.classes}"
            )
        self.per_epoch = len(data.train) // schedule.batch
        self._share = schedule.batch // processes
        self._first = parallel.number() * self._share
        network.to(device)
        self._spread = parallel.spread(network, device)
        self._autocast = _autocast(schedule.precision, device)
        self._scaler = _scaler(schedule.precision == "float16", device)
        matrices = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        self._optimiser = torch.optim.SGD(
            [
                {"params": matrices, "weight_decay": schedule.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            nesterov=schedule.momentum > 0,
        )
        self._augment = Augmentation(data, seed)
        self._images, self._labels = data.train.images.to(device), data.train.labels.to(device)

    def step(self, number: int) -> Tensor:
        """A step of descent; its loss."""
        self.network.train()
        first = number * self.schedule.batch + self._first
        chosen = self._order(number // self.per_epoch)[first % (self.per_epoch * self.schedule.batch) :]
        chosen = chosen[: self._share].to(self.device)
        images = self._augment(self.data.normalised(self._images[chosen]), first)
        stream = Stream(
            mix(self._seed, _NOISE), first, self._share, device=images.device, dtype=torch.float32
        )
        for group in self._optimiser.param_groups:
            group["lr"] = self.schedule.rate(number, self.per_epoch)
        self._optimiser.zero_grad()
        with self._autocast, self.network.noise.sampling(stream):
            loss = cross_entropy(self._spread(images), self._labels[chosen])
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return parallel.mean(loss.detach())

    def _order(self, epoch: int) -> Tensor:
        """The images of an epoch."""
        generator = torch.Generator().manual_seed(mix(self._seed, _ORDER, epoch))
        return torch.randperm(len(self.data.train), generator=generator)

    def _settings(self) -> dict[str, Any]:
        return {
            "network": self.network.plan.as_dict(),
            "schedule": asdict(self.schedule),
            "data": self.data.name,
            "seed": self._seed,
        }

    def state(self, steps: int) -> State:
        """All that the next step depends on."""
        state = self._optimiser.state
        # a weight without a gradient, such as the k of a single layer, has no momentum
        momenta = {
            name: state[p]["momentum_buffer"].cpu().numpy()
            for name, p in self.network.named_parameters()
            if state.get(p, {}).get("momentum_buffer") is not None
        }
        return {
            **self._settings(),
            "steps": steps,
            "weights": weights_of(self.network),
            "momenta": momenta,
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, kept: State) -> int:
        """Go on from such a state: the number of its steps. Raises InputError at another training's."""
        refuse_other(kept, self.network.plan)
        for name, now in self._settings().items():
            if kept.get(name) != now:
                raise InputError(f"checkpoint: its {name} is {kept.get(name)}, expected {now}")
        set_weights(self.network, kept["weights"])
        self._scaler.load_state_dict(kept["scaler"])
        for name, p in self.network.named_parameters():
            if name in kept["momenta"]:
                momentum = torch.from_numpy(kept["momenta"][name])
                self._optimiser.state[p]["momentum_buffer"] = momentum.to(p.device)
        return int(kept["steps"])


def refuse_other(kept: State, plan: NetworkPlan) -> None:
    """Raise InputError where a file's content is not of a network of this plan."""
    found: Any = kept.get("network") if isinstance(kept, dict) else None
    if found != plan.as_dict():
        try:
            what = str(NetworkPlan(**found))
        except (TypeError, InputError):
            what = "no image network"
        raise InputError(f"checkpoint: of {what}; expected {plan}")


def _autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The context of a forward pass. Raises InputError for what a device does not do well."""
    kind = device.partition(":")[0]
    if precision == "float16" and kind == "cpu":
        raise InputError("images.precision: float16 needs CUDA; take bfloat16 or float32 on the CPU")
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype)


def _scaler(enabled: bool, device: str) -> Any:
    """Keeps small gradients in float16's range; where it is not enabled it does nothing."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.partition(":")[0], enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)  # torch before 2.3


def weights_of(network: ImageNetwork) -> State:
    """Weights and statistics by name, as arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def set_weights(network: ImageNetwork, weights: State) -> None:
    """Give a network what `weights_of` took from one like it. Raises InputError at others."""
    own = network.state_dict()
    if own.keys() != weights.keys() or any(own[n].shape != w.shape for n, w in weights.items()):
        raise InputError(f"checkpoint: its weights do not fit {network.plan}")
    network.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})


@torch.no_grad()
def score(network: ImageNetwork, data: ImageData, images: ImageSet, device: str = "cpu") -> Score:
    """Error and loss of the network without noise, statistics of normalisations as trained."""
    network.to(device).eval()
    wrong, total = 0, 0.0
    for first in range(0, len(images), _EVALUATED):
        part = slice(first, first + _EVALUATED)
        scores = network(data.normalised(images.images[part].to(device)))
        labels = images.labels[part].to(device)
        wrong += int((scores.argmax(dim=1) != labels).sum())
        total += float(cross_entropy(scores.double(), labels, reduction="sum"))
    return Score(wrong / len(images), total / len(images))


def train_once(
    plan: NetworkPlan,
    data: ImageData,
    schedule: Schedule | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    callback: Callable[[Epoch], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ImageNetwork, Outcome]:
    """A network of this plan, drawn and trained by the seed, and its scores; arguments as of `train`."""
    start = time.perf_counter()
    earlier = 0.0 if checkpoint is None else checkpoint.seconds
    schedule = schedule or Schedule()
    if device == "cpu":
        batch = schedule.batch // parallel.count()
        needed = plan.footprint(data.shape, batch)
        memory.require(needed, f"images: {plan}, {batch} images a step", "take a smaller network or batch")
    network = ImageNetwork(plan, data.shape[0], data.classes, seed)
    train(network, data, schedule, seed=seed, device=device, callback=callback, checkpoint=checkpoint)
    scores = [score(network, data, images, device) for images in (data.train, data.test)]
    seconds = earlier + time.perf_counter() - start
    return network, Outcome(scores[0], scores[1], network.parameter_count, seconds)
