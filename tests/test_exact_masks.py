"""Bernoulli masks in the plane: their kernels against those of any multiple, and who takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import problem

from kolmo import noise
from kolmo.noise.base import Noise
from kolmo.pde import ExactRecursion
from kolmo.pde.exact_jumps import Combinations, Jumps, jumps
from kolmo.pde.exact_layers import Stage
from kolmo.pde.exact_masks import MaskedStage, masks
from kolmo.pde.exact_multiplicative import MultiplicativeLayers

DEPTH = 5
#: noises that are masks in all layers but where nothing is ever dropped
MASKS: dict[str, Noise] = {
    "dropout": noise.BernoulliDropout(0.7),
    "rarely-kept": noise.BernoulliDropout(0.1),
    "dropout-list": noise.BernoulliDropout([0.9, 0.5, 1.0, 0.8, 0.6]),
    "depth": noise.StochasticDepth(0.6),
    "depth-test-time": noise.StochasticDepth({"last": 0.5}, scaling="test_time"),
}


def layers_of(recursion: ExactRecursion, masked: bool = True) -> MultiplicativeLayers:
    """The compiled layers, by the kernels of any multiple where not masked."""
    found = recursion._layers(recursion.problem.network, True)
    assert isinstance(found, MultiplicativeLayers)
    if not masked:
        found._masks = [None] * recursion.problem.network.depth
    return found


def evaluated(recursion: ExactRecursion, masked: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """u_0 at the data, and the gradient of J."""
    layers, network = layers_of(recursion, masked), recursion.problem.network
    stages: list[Stage] = []
    data = recursion._value(network, stages, layers)[1]
    return data, [g.numpy() for g in recursion._gradient(network, stages, layers)]


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_the_kernels_of_any_multiple_give_the_same_numbers(name: str, limit: bool) -> None:
    """To rounding: smooth u on a fine grid, steps that are cut on a coarse one, paths beyond the faces."""
    for std, cells, half_width in ((0.5, 33, 3.0), (1.5, 12, 3.0), (1.5, 12, 1.0)):
        given = problem(2, MASKS[name], depth=DEPTH, samples=12, width=5, std=std)
        recursion = ExactRecursion(given, cells=cells, half_width=half_width, limit=limit)
        if std > 1 and not limit and half_width > 1:
            cut = ExactRecursion(given, cells=cells, half_width=half_width)
            assert np.abs(cut.values() - recursion.values()).max() > 1e-4
        found, expected = (evaluated(recursion, masked) for masked in (True, False))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
        for one, two in zip(found[1], expected[1], strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-12 * np.abs(two).max())


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("name", ["dropout", "depth"])
def test_duality(name: str, limit: bool) -> None:
    """<E u, w> = <u, E^T w>: without a limiter E is linear; with it still of degree 1, by Euler's theorem."""
    given = problem(2, MASKS[name], depth=3, std=1.5)
    recursion = ExactRecursion(given, cells=11, half_width=2.0, limit=limit)
    layers, rng = layers_of(recursion), np.random.default_rng(3)
    u, w = rng.standard_normal((2, 144, 2))
    stage = layers.stage(u)
    assert isinstance(stage, MaskedStage) == (name == "dropout")
    left = np.vdot(layers.expectation(1, stage), w)
    assert left == pytest.approx(np.vdot(u, layers.transposed(1, stage, w)), rel=1e-12)


def test_the_derivative_by_the_weights() -> None:
    """Differences of one layer's expectations of a random u, which a limiter cuts here and there."""
    given = problem(2, MASKS["dropout"], depth=3, std=0.7)
    recursion = ExactRecursion(given, cells=11, half_width=2.0)
    network, rng = given.network, np.random.default_rng(4)
    u, w = rng.standard_normal((2, 144, 2))
    direction = [torch.from_numpy(rng.standard_normal(tuple(p.shape))) for p in network.parameters()]

    def value(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(network.parameters(), direction, strict=True):
                p.add_(step * d)
            layers = layers_of(recursion)
            found = float(np.vdot(layers.expectation(1, layers.stage(u)), w))
            for p, d in zip(network.parameters(), direction, strict=True):
                p.sub_(step * d)
        return found

    layers = layers_of(recursion)
    layers.expectation(1, layers.stage(u))
    layers.transposed(1, layers.stage(u), w)
    expected = sum(float((g * d).sum()) for g, d in zip(layers.gradient(), direction, strict=True))
    # a step so small that a kink is seldom crossed: rounding of 1e-16 / 1e-7, and the second derivative
    assert (value(1e-7) - value(-1e-7)) / 2e-7 == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ who takes them


@pytest.mark.parametrize("name", ["dropout", "depth"])
def test_masks_are_recognised(name: str) -> None:
    """0 or h f / keep along each axis, with the probabilities of what is kept."""
    given, keep = problem(2, MASKS[name], depth=4), {"dropout": 0.7, "depth": 0.6}[name]
    for layer in jumps(given.network, given.noise, 3) or ():
        found = masks(layer)
        assert found is not None
        assert found.shift == pytest.approx(given.network.step / keep, rel=1e-14)
        drop = 1 - keep
        expected = [drop**2, drop * keep, drop * keep, keep**2] if name == "dropout" else [drop, 0, 0, keep]
        assert found.weights == pytest.approx(expected, rel=1e-14)
        assert found.alone == (name == "dropout")


def test_the_last_axis_alone_is_the_second_weight() -> None:
    """Weights are in the order none, the last axis, the first axis, both, whichever number is the zero."""
    layer = (jumps(problem(2, depth=2).network, noise.BernoulliDropout(0.7), 3) or [])[0]
    places, weights = layer.combinations.places, np.array([0.1, 0.2, 0.3, 0.4])
    for shifts, at in ((layer.shifts, places), (layer.shifts[::-1], 1 - places)):
        found = masks(Jumps(shifts, Combinations(at, weights, 2)))
        kept = [tuple(row) for row in shifts[at] > 0.01]
        order = [kept.index(k) for k in ((False, False), (False, True), (True, False), (True, True))]
        assert found is not None
        np.testing.assert_array_equal(found.weights, weights[order])


@pytest.mark.parametrize(
    ("dim", "other"),
    [
        (1, noise.BernoulliDropout(0.7)), (3, noise.BernoulliDropout(0.7)), (2, noise.BernoulliDropout(1.0)),
        (2, noise.GaussianDropout(0.4)), (2, noise.UniformNoise(0.5)), (2, noise.NoNoise()),
    ],
    ids=["1-D", "3-D", "kept", "gaussian", "uniform", "none"],
)  # fmt: skip
def test_who_does_not(dim: int, other: Noise) -> None:
    """Other dimensions, and numbers of which none is zero."""
    recursion = ExactRecursion(problem(dim, other, depth=3), cells=8, half_width=2.0, gauss=2)
    assert layers_of(recursion)._masks == [None] * 3


def test_the_data_are_no_nodes() -> None:
    """The first layer goes through the kernels of any multiple, the others through those of masks."""
    recursion = ExactRecursion(problem(2, MASKS["dropout"], depth=3), cells=8, half_width=2.0)
    assert [m is None for m in layers_of(recursion)._masks] == [True, False, False]
