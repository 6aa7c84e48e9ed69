"""The exact recursion by torch, as on an accelerator: the compiled one's numbers, chunks, devices."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from problems import DEPTH, NOISES, PlainNetwork, problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kolmo
from kolmo import noise
from kolmo.control import Objective, taylor_test
from kolmo.errors import InfeasibleError, MaximumPrincipleError, NonFiniteError
from kolmo.loss import LeastSquares
from kolmo.pde import ExactRecursion, exact_device, resolve_exact
from kolmo.pde.exact_device import DeviceGrid, DeviceLayers
from kolmo.pde.spline import TensorSpline

CELLS = {1: 37, 2: 13, 3: 6}


def both(given: kolmo.Problem, **options: Any) -> tuple[ExactRecursion, ExactRecursion]:
    """By kernels and by torch."""
    options = {"cells": CELLS[given.network.dim], "half_width": 3.0, "gauss": 3, **options}
    return ExactRecursion(given, **options), ExactRecursion(given, compiled=False, **options)


def evaluated(recursion: ExactRecursion) -> tuple[float, list[Tensor]]:
    """J and its gradient."""
    loss = recursion.expected_loss()
    parameters = [p for p in recursion.problem.network.parameters() if p.requires_grad]
    return float(loss.detach()), [g.cpu() for g in torch.autograd.grad(loss, parameters)]


def agree(one: ExactRecursion, other: ExactRecursion, tolerance: float = 1e-12) -> None:
    """The same numbers to rounding, which a few layers hand on."""
    (value, gradient), (again, found) = evaluated(one), evaluated(other)
    assert again == pytest.approx(value, rel=tolerance)
    for expected, g in zip(gradient, found, strict=True):
        np.testing.assert_allclose(g, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize(
    ("dim", "name"),
    [(1, n) for n in NOISES]
    + [(2, n) for n in ("none", "dropout", "hidden", "depth-decay-test-time", "injection", "shake+injection")]
    + [(2, "dropconnect"), (3, "dropout"), (3, "depth")],
)
def test_the_compiled_numbers(dim: int, name: str, limit: bool) -> None:
    """Value and gradient by every weight, with paths that end at the box's faces."""
    given = problem(dim, NOISES[name], depth=DEPTH, samples=12, width=4, std=0.8)
    for half_width in (3.0, 1.0):  # beyond the latter there are data and departure points
        agree(*both(given, half_width=half_width, limit=limit))


@pytest.mark.parametrize("depth", [1, 2])
def test_other_losses_networks_and_rules(depth: int) -> None:
    """The data's own layer may be the last; Gaussian increments; a block without a closed-form jet."""
    given = problem(2, NOISES["dropout"], depth=depth, width=3)
    agree(*both(given, rule="gauss"))
    given.loss = LeastSquares()
    agree(*both(given))
    given.network = PlainNetwork(given.network)  # type: ignore[arg-type]
    agree(*both(given))


@pytest.mark.parametrize("name", ["dropout", "injection"])
def test_taylor(name: str) -> None:
    """|J(theta + e d) - J - e J'd| = O(e^2)."""
    given = problem(2, NOISES[name], depth=DEPTH, samples=10, width=4)
    exact = both(given, cells=20, half_width=4.0, limit=False)[1]
    objective = Objective(given.network, exact.expected_loss)
    rates = taylor_test(objective, objective.theta, steps=(4e-3, 2e-3, 1e-3))
    assert rates.order0 == pytest.approx(1, abs=0.2) and rates.order1 > 1.85


@pytest.mark.parametrize(("dim", "cells"), [(1, 4), (1, 253), (1, 254), (1, 700), (2, 9), (3, 5)])
def test_coefficients(dim: int, cells: int) -> None:
    """Those of the compiled elimination, whether one dense block has all rows of an axis or several have."""
    spline = TensorSpline(dim, cells, 1.3)
    values = np.random.default_rng(cells).standard_normal((len(spline.nodes), 2))
    grid = DeviceGrid(spline, torch.zeros(1, dim), torch.device("cpu"))
    (found,) = grid.fitted(torch.from_numpy(values), False)
    # a product has up to 320 terms, the largest of them 8 on each axis
    np.testing.assert_allclose(found.T, spline.coefficients(values), rtol=0, atol=3e-14 * 8 ** (dim - 1))


def test_the_first_of_equal_corners() -> None:
    """A cell's least value is that of one corner, the kernels' one: its derivative is not shared."""
    spline = TensorSpline(2, 4, 1.0)
    values = torch.ones(5, 5, 2, dtype=torch.float64)
    values[0, 1], values[1, 0] = 0, 0
    values.requires_grad_()
    grid = DeviceGrid(spline, torch.zeros(1, 2), torch.device("cpu"))
    least, most = grid.fitted(values.reshape(-1, 2), True)[1:]
    for ends, corner in ((least, (0, 1)), (most, (0, 0))):
        (pull,) = torch.autograd.grad(ends[0, 0], values, retain_graph=True)
        assert pull.nonzero().tolist() == [[*corner, 0]]


class _Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def test_chunks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points and outcomes in turns: the same numbers, and no tensor is larger than what may be gathered."""
    given = problem(2, NOISES["hidden"], depth=3, width=4)
    whole, parts = (both(given, cells=11)[1] for _ in range(2))
    expected = evaluated(whole)
    monkeypatch.setattr(exact_device, "POINTS", 60)  # of 144 nodes
    monkeypatch.setattr(exact_device, "GATHERED", 6000)  # 3 of 16 outcomes
    with _Largest() as seen:
        found = evaluated(parts)
    assert 5000 < seen.numbers <= 6000
    assert found[0] == pytest.approx(expected[0], rel=1e-13)
    for one, two in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-13 * float(two.abs().max()))


def test_values_and_which_way_is_taken() -> None:
    """Kernels unless they are declined; u_0 at the data as numbers of the processor."""
    given = problem(1, depth=3)
    kernels, plain = both(given)
    assert not isinstance(kernels._layers(given.network, True), DeviceLayers)
    assert isinstance(plain._layers(given.network, True), DeviceLayers)
    np.testing.assert_allclose(plain.values(), kernels.values(), rtol=1e-12)


def test_a_gradient_twice_and_of_some_weights() -> None:
    """A loss that waits keeps its own numbers; weights that are held fixed have no derivative."""
    given = problem(2, NOISES["dropout"], depth=3)
    given.network.b.requires_grad_(False)  # type: ignore[operator, union-attr]
    kernels, plain = both(given)
    agree(kernels, plain)
    weights = [given.network.W, given.network.V]
    waiting = plain.expected_loss()
    with torch.no_grad():
        plain.expected_loss(problem(2, depth=3, std=0.5).network)
    one, two = (torch.autograd.grad(waiting, weights, retain_graph=True) for _ in range(2))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "rule"), [(n, "outcomes") for n in ("none", "dropout", "injection")] + [("hidden", "gauss")]
)
def test_weights_that_are_not_finite_are_named(name: str, rule: str) -> None:
    """The layer, whether the bounds are looked at on the way or at the end; the box hides no infinity."""
    given = problem(2, NOISES[name], depth=4, width=3)
    for recursion in both(given, rule=rule):
        for value in (np.nan, np.inf):
            for layer in (3, 1, 0):
                network = kolmo.ResidualNetwork.from_weights(*given.network.parameters())
                with torch.no_grad():
                    network.V[layer, 0, 0] = value
                with pytest.raises(NonFiniteError, match=f"^layer {layer}:"):
                    recursion.expected_loss(network)


def test_an_overshoot_is_refused() -> None:
    """In the same words."""
    given = problem(2, noise.BernoulliDropout(0.7), depth=12, std=3.0, width=12)
    said = []
    for recursion in both(given, cells=8, half_width=4.0, limit=False):
        with pytest.raises(MaximumPrincipleError, match="take more cells") as caught:
            recursion.expected_loss()
        said.append(str(caught.value))
    assert said[0] == said[1]


# ------------------------------------------------------------------ on a device


def elsewhere(given: kolmo.Problem, device: str) -> kolmo.Problem:
    """The same problem with a copy of the weights on a device."""
    return given.with_network(copy.deepcopy(given.network).to(device))


@pytest.mark.parametrize(
    ("name", "rule"), [(n, "outcomes") for n in NOISES] + [(n, "gauss") for n in ("hidden", "injection")]
)
def test_nothing_waits_for_the_device(name: str, rule: str) -> None:
    """Both passes on torch's device without memory, where asking for a number or mixing devices fails."""
    given = problem(2, NOISES[name], depth=DEPTH, samples=9, width=2)
    network = elsewhere(given, "meta").network
    recursion = ExactRecursion(given, cells=7, half_width=3.0, gauss=3, rule=rule)
    layers = recursion._layers(network, True)
    assert isinstance(layers, DeviceLayers)
    stages: list[Tensor | None] = [None]
    for layer in range(DEPTH - 1, -1, -1):
        stages.insert(0, layers.expectation(layer, stages[0]))
    assert [len(s) for s in stages if s is not None] == [9] + [64] * (DEPTH - 1)
    cotangent = torch.zeros(9, 2)
    for layer in range(DEPTH):
        cotangent = layers.transposed(layer, stages[layer + 1], cotangent)
    for found, p in zip(layers.gradient(), network.parameters(), strict=True):
        assert found.device.type == "meta" and found.shape == p.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dim", "name"), [
    (1, "injection"), (1, "dropconnect"), (2, "dropout"), (2, "hidden"), (2, "depth-test-time"), (2, "shake"),
    (3, "dropout"),
])  # fmt: skip
def test_an_accelerator_has_the_numbers_of_the_processor(dim: int, name: str) -> None:
    """J and its gradient, both on the device of the weights; sums are in another order there."""
    given = problem(dim, NOISES[name], depth=DEPTH, samples=12, width=4, std=0.8)
    there = elsewhere(given, "cuda")
    options: Any = {"cells": CELLS[dim], "half_width": 3.0, "gauss": 3}
    recursion = ExactRecursion(there, **options)
    assert recursion.expected_loss().device.type == "cuda"
    agree(ExactRecursion(given, **options), recursion, 1e-11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_accelerator_from_the_box_to_the_error() -> None:
    """Box, refinement and the Gaussian rule's error for weights on the device; refusals name the layer."""
    given = problem(2, noise.HiddenDropout(0.6), depth=4, samples=20, width=8, std=0.5)
    there = elsewhere(given, "cuda")
    here = resolve_exact(given, rule="gauss")
    found = resolve_exact(there, rule="gauss")
    assert found.value == pytest.approx(here.value, rel=1e-10) and found.cells == here.cells
    assert found.rule_error == pytest.approx(here.rule_error, rel=1e-6)
    with torch.no_grad():
        there.network.V[2, 0, 0] = np.nan  # type: ignore[index, operator, union-attr]
    with pytest.raises(InfeasibleError, match=r"^layer 2:"):
        found.recursion.expected_loss()
