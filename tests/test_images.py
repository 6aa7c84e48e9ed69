"""Networks on images: places of the noise, architectures, training and its checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from kolmo.architectures import ARCHITECTURES
from kolmo.checkpoint import Checkpoint, State, pack, unpack
from kolmo.errors import InputError, NonFiniteError
from kolmo.images import (
    PLACEMENTS,
    ImageData,
    ImageNetwork,
    ImageSet,
    NetworkPlan,
    Noise,
    Schedule,
    digits,
    placement,
    train,
)
from kolmo.images.networks import Block
from kolmo.images.placement import Increments
from kolmo.images.training import refuse_other, weights_of
from kolmo.images.weak import Curve, moments
from kolmo.stream import Stream

# ------------------------------------------------------------------ places of the noise


def sampled(place: str, rate: float, block_only: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Increments of one block under noise, (S, 1, 4, 3, 3), and the one without."""
    noise = Noise(placement(place, rate))
    torch.manual_seed(1)
    block = Block(noise, 3, 4, 4).double().eval()
    with torch.no_grad():
        for normalise in block.normalisations:
            normalise.bias.normal_(0, 0.5)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    samples = 4096
    increment = Increments(noise, 0)
    with torch.no_grad():
        off = increment(block(x), 3)
        repeated = x.repeat(samples, 1, 1, 1)
        with noise.sampling(Stream(11, 0, samples, dtype=torch.float64)):
            return increment(block(repeated), 3), off


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("place", [p for p in PLACEMENTS if PLACEMENTS[p].rated])
def test_places_that_keep_the_mean(place: str, rate: float) -> None:
    """Where the mask enters linearly the mean is f, to five standard errors; elsewhere it is far from it."""
    drawn, off = sampled(place, rate)
    error = drawn.std(dim=0) / math.sqrt(len(drawn))
    away = ((drawn.mean(dim=0) - off[0]).abs() / error).max()
    assert (away < 5) == PLACEMENTS[place].keeps_mean, float(away)


@pytest.mark.parametrize(
    ("place", "covariance"),
    [
        ("output", lambda f, q: q * torch.diag(f**2)),
        ("stochastic_depth", lambda f, q: q * torch.outer(f, f)),
    ],
    ids=["output", "stochastic_depth"],
)
def test_the_covariance_is_that_of_the_equations(place: str, covariance: object) -> None:
    """q diag f^2 and q f f^T, entry by entry, to five standard errors."""
    rate = 0.2
    drawn, off = sampled(place, rate)
    f = off.flatten()
    centred = drawn.flatten(1) - f
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(dim=0) / math.sqrt(len(drawn)) + 1e-15
    expected = covariance(f, rate / (1 - rate))  # type: ignore[operator]
    assert float(((products.mean(dim=0) - expected).abs() / error).max()) < 5


def test_shake_shake_keeps_the_mean_of_two_branches() -> None:
    """Mean (f1 + f2)/2 and covariance (f1 - f2)(f1 - f2)^T / 12, and no noise without a stream."""
    network = ImageNetwork(NetworkPlan(depth=8, placement="shake_shake"), 1, 10).eval()
    block = network.stages[0].blocks[0]
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        first, second, off = block.first(x), block.second(x), block(x)
        torch.testing.assert_close(off, (first + second) / 2)
        with network.noise.sampling(Stream(1, 0, 4000, dtype=torch.float32)):
            drawn = block(x.repeat(4000, 1, 1, 1))
    along = ((drawn - off) * (first - second)).sum(dim=(1, 2, 3)) / (first - second).square().sum()
    assert float(along.abs().max()) <= 0.5 + 1e-5
    # of U(-1/2, 1/2): five standard errors
    assert abs(float(along.mean())) < 5 / math.sqrt(12 * 4000)
    assert abs(float(along.square().mean()) - 1 / 12) < 5 * math.sqrt(1 / 180 / 4000)


def test_bias_is_of_order_h_where_the_mean_is_kept() -> None:
    """Depth doubled twice: bias by a factor of 4 or so for masks on the output, not at all for others."""
    curve = Curve(0)
    found = {
        place: [curve.measure(depth, place, 0.5, 256) for depth in (8, 32)] for place in ("output", "between")
    }
    output, between = found["output"], found["between"]
    assert 2.5 < output[0].bias / output[1].bias < 6
    assert 0.9 < between[0].bias / between[1].bias < 1.1
    for few, many in found.values():
        assert 3.4 < (few.deviation / many.deviation) ** 2 < 4.6


def test_moments_of_known_numbers() -> None:
    """Normal numbers about 0.3: bias and deviation, and an estimate of the error that covers."""
    draw, off = torch.Generator().manual_seed(0), torch.zeros(50)
    away = 0.0
    for _ in range(20):
        found = moments(lambda _: 0.3 + 2 * torch.randn(40, 50, generator=draw), off, 8)
        away += ((found.bias**2 - 0.09) / found.square_error) ** 2
        assert abs(found.deviation - 2) < 0.1  # 16,000 numbers
    assert 8 < away < 50  # chi-square with 20 degrees of freedom, and jackknifed errors of eight batches


def test_noise_is_off_outside_and_checked_inside() -> None:
    network = ImageNetwork(NetworkPlan(depth=8, placement="output", rate=0.5), 1, 10).train()
    x = torch.randn(6, 1, 8, 8)
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        with (
            pytest.raises(InputError, match="6 images, expected 5"),
            network.noise.sampling(Stream(0, 0, 5, dtype=torch.float32)),
        ):
            network(x)
        off = network(x)
        with network.noise.sampling(Stream(0, 0, 6, dtype=torch.float32)):
            on = network(x)
        with network.noise.sampling(Stream(0, 2, 3, dtype=torch.float32)):
            part = network(x[2:5])
    assert not torch.allclose(on, off)
    torch.testing.assert_close(part, on[2:5])


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("place", PLACEMENTS)
def test_every_architecture_takes_every_noise(architecture: str, place: str) -> None:
    """Forward and backward: finite, every weight has a gradient, and the noise changes the scores."""
    rate = 0.3 if PLACEMENTS[place].rated else 0.0
    plan = NetworkPlan.of_layers(architecture, 2, 8, place, rate)
    network = ImageNetwork(plan, 3, 7, seed=2).train()
    x = torch.randn(4, 3, 8, 12)
    with network.noise.sampling(Stream(5, 0, 4, dtype=torch.float32)):
        scores = network(x)
    assert scores.shape == (4, 7) and bool(torch.isfinite(scores).all())
    scores.square().sum().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    missing = [n for n, g in grads.items() if g is None or not bool(torch.isfinite(g).all()) or not g.any()]
    assert missing == []
    off = network(x)
    assert torch.allclose(scores, off) == (place == "none")


def test_depth_counts_convolutions() -> None:
    """6 n + 2, and what the plan's count says is what a path through the network has."""
    for architecture, depths in {
        "resnet": (20, 32, 44, 56),
        "revnet": (14, 38),
        "lm_resnext": (11, 29),
    }.items():
        for depth in depths:
            plan = NetworkPlan(architecture, depth)
            assert NetworkPlan.of_layers(architecture, plan.layers).depth == depth
    network = ImageNetwork(NetworkPlan("resnet", 20, 16), 3, 10)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 20 - 1 + 2  # the linear map is counted, the two transitions are not
    assert NetworkPlan("lm_resnet", 20).layers == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnets"}, "did you mean 'resnet'"),
        ({"depth": 21}, "depth: 21 for resnet, expected 6 n + 2: 8, 14, 20"),
        ({"architecture": "revnet"}, "expected 12 n + 2: 14, 26, 38"),
        ({"width": 6}, "width: 6, expected a multiple of 4"),
        ({"placement": "betwen"}, "did you mean 'between'"),
        ({"placement": "output", "rate": 1.0}, "rate: 1.0 is not a number from 0 to 1"),
        ({"placement": "none", "rate": 0.1}, "'none' has none"),
        ({"step": 0.0}, "step: 0.0 is not a positive"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_plans_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(NetworkPlan(), **change)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_weights_follow_from_the_seed() -> None:
    """And not from torch's global one, nor from the place of the noise."""
    torch.manual_seed(1)
    first = ImageNetwork(NetworkPlan("lm_resnet", placement="output", rate=0.5), 1, 10, seed=4)
    torch.manual_seed(2)
    second = ImageNetwork(NetworkPlan("lm_resnet"), 1, 10, seed=4)
    other = ImageNetwork(NetworkPlan("lm_resnet"), 1, 10, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.entry.weight, other.entry.weight)
    assert not torch.equal(first.stages[0].k, other.stages[0].k)


# ------------------------------------------------------------------ training


def small() -> ImageData:
    """A few digits."""
    data = digits(0)
    parts = [ImageSet(s.images[:48], s.labels[:48] % 3, "few") for s in (data.train, data.test)]
    return ImageData(parts[0], parts[1], 3, 1, False, "few")


PLAN = NetworkPlan(depth=8, width=4, placement="output", rate=0.3)
SCHEDULE = Schedule(epochs=3, batch=16, learning_rate=0.05, warmup=1.0)


class Kept(Checkpoint):
    """Keeps every state as bytes; begins with one of them, and stops the training after `stop` states."""

    def __init__(self, state: bytes | None = None, stop: int = 10**9) -> None:
        super().__init__()
        self._state, self._stop = state, stop
        self.states: list[bytes] = []

    def load(self) -> State:
        return None if self._state is None else unpack(self._state)

    def offer(self, make: object) -> None:
        self.states.append(pack(make()))  # type: ignore[operator]
        if len(self.states) == self._stop:
            raise KeyboardInterrupt


def trained(
    plan: NetworkPlan = PLAN, schedule: Schedule = SCHEDULE, **options: object
) -> dict[str, np.ndarray]:
    network = ImageNetwork(plan, 1, 3, seed=1)
    train(network, small(), schedule, seed=1, **options)  # type: ignore[arg-type]
    return weights_of(network)  # type: ignore[no-any-return]


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    assert [n for n in first if first[n].tobytes() != second[n].tobytes()] == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["resnet", "lm_resnext", "polynet"])
def test_a_resumed_training_ends_bitwise_the_same(architecture: str, precision: str) -> None:
    """Stopped within and between epochs; every state goes through bytes."""
    plan = NetworkPlan.of_layers(architecture, 1, 4, "between", 0.3)
    schedule = replace(SCHEDULE, precision=precision)
    whole = trained(plan, schedule)
    for stop in (3, 4):
        first = Kept(stop=stop)
        with pytest.raises(KeyboardInterrupt):
            trained(plan, schedule, checkpoint=first)
        assert_same(trained(plan, schedule, checkpoint=Kept(first.states[-1])), whole)


@pytest.mark.parametrize(
    ("plan", "schedule", "message"),
    [
        (replace(PLAN, architecture="lm_resnet"), SCHEDULE, "of lm_resnet-8, width 4, noise output 0.3; exp"),
        (replace(PLAN, width=8), SCHEDULE, "of resnet-8, width 8, noise output 0.3; expected resnet-8, wid"),
        (replace(PLAN, rate=0.5), SCHEDULE, "noise output 0.5; expected resnet-8, width 4, noise output 0.3"),
        (PLAN, replace(SCHEDULE, epochs=4), "its schedule is"),
    ],
    ids=["architecture", "width", "rate", "schedule"],
)
def test_a_checkpoint_of_another_training_is_refused(
    plan: NetworkPlan, schedule: Schedule, message: str
) -> None:
    """In one line that says which it is, and which was expected."""
    other = Kept(stop=1)
    with pytest.raises(KeyboardInterrupt):
        trained(plan, schedule, checkpoint=other)
    with pytest.raises(InputError) as caught:
        trained(checkpoint=Kept(other.states[0]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"network": 3}, {"network": {"depth": 20, "colour": 1}}, [1]])
def test_what_is_no_networks_checkpoint_is_refused(content: State) -> None:
    with pytest.raises(InputError, match="no image network"):
        refuse_other(content, PLAN)


def test_the_learning_rate_rises_and_falls() -> None:
    """Linearly over the warm-up, then a cosine to nearly 0."""
    schedule = Schedule(epochs=10, learning_rate=0.2, warmup=2.0)
    rates = [schedule.rate(step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.02) and max(rates) < 0.2
    assert int(np.argmax(rates)) == 9
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 49 / 50)))
    assert Schedule(warmup=0.0, learning_rate=0.2).rate(0, 5) == 0.2


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(NonFiniteError, match="smaller learning rate"):
        trained(schedule=replace(SCHEDULE, learning_rate=1e30, warmup=0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 49}, "batch: 49, but few has 48 images"),
        ({"precision": "float16"}, "float16 needs CUDA"),
    ],
    ids=["batch", "precision"],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(schedule=replace(SCHEDULE, **change))  # type: ignore[arg-type]


def test_a_network_for_other_images_is_refused() -> None:
    with pytest.raises(InputError, match="1 channels and 3 classes, the network has 3 and 10"):
        train(ImageNetwork(PLAN, 3, 10), small(), SCHEDULE)
