"""The exact recursion: splines, closed forms for every noise, its gradient, its error estimate, refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from problems import (
    DEPTH,
    NOISES,
    affine_network,
    chain_loss,
    cluster,
    fitted_order,
    points,
    problem,
    trained_size,
)
from torch import Tensor

import kolmo
from kolmo import noise
from kolmo.control import Objective, taylor_test
from kolmo.errors import InfeasibleError, InputError, MaximumPrincipleError, ModelError, ResolutionError
from kolmo.loss import LeastSquares
from kolmo.noise.base import Noise
from kolmo.pde import ExactRecursion, resolve_exact
from kolmo.pde.exact import exact_half_width
from kolmo.pde.spline import TensorSpline, gather

# ------------------------------------------------------------------ splines


@pytest.mark.slow
def test_the_kernels_are_compiled_once() -> None:
    """What one process compiled the next one finds: numba's cache does not grow (closures' would)."""
    program = (
        "from kolmo.pde.spline import TensorSpline, gather; import numpy as np; s = TensorSpline(1, 4, 1.0);"
        "v = np.zeros((5, 2)); y = np.zeros((1, 1)); z = np.zeros((1, 1, 1));"
        "c = s.coefficients(v); o = v[:1].copy();"
        "gather(s.grid, y, y, z, y, np.ones(1), c, v, -1.0, 0.5, 4, False, o);"
        "print(sum(gather.stats.cache_misses.values()))"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert runs[1].stdout.strip() == "0", runs[1].stderr


def at(spline: TensorSpline, values: np.ndarray, y: np.ndarray, limit: bool = False) -> np.ndarray:
    """The spline through nodal values (nodes, 2) at points y (N, d)."""
    out = np.empty((len(y), 2))
    zero, factor = np.zeros_like(y), np.zeros((*y.shape, 1))
    one = np.zeros((1, 1)), np.ones(1)
    coefficients = spline.coefficients(values)
    gather(
        spline.grid,
        y,
        zero,
        factor,
        *one,
        coefficients,
        values,
        -spline.half_width,
        spline.spacing,
        spline.cells,
        limit,
        out,
    )
    return out


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_cubics_are_reproduced(dim: int) -> None:
    """Products of cubics in each variable are splines of this kind: exact everywhere, to the box's faces."""
    rng = np.random.default_rng(dim)
    c = rng.standard_normal((2, dim, 4))

    def cubic(x: np.ndarray) -> np.ndarray:
        powers = x[..., None] ** np.arange(4)
        return np.stack([np.prod((powers * c[k]).sum(-1), axis=-1) for k in (0, 1)], axis=-1)

    spline = TensorSpline(dim, 7, 1.3)
    y = rng.uniform(-1.3, 1.3, (200, dim))
    y[:2] = [[1.3] * dim, [-1.3] * dim]
    np.testing.assert_allclose(at(spline, cubic(spline.nodes), y), cubic(y), rtol=0, atol=1e-12 * 50)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_smooth_functions_at_fourth_order(dim: int) -> None:
    """max |u - spline| = O(dx^4)."""

    def smooth(x: np.ndarray) -> np.ndarray:
        u = np.sin(2 * x.sum(axis=1)) * np.exp(-0.3 * x[:, 0])
        return np.stack([u, u**2], axis=1)

    y = np.random.default_rng(0).uniform(-1, 1, (500, dim))
    cells = [12, 18, 27]
    errors = []
    for n in cells:
        spline = TensorSpline(dim, n, 1.0)
        errors.append(np.abs(at(spline, smooth(spline.nodes), y) - smooth(y)).max())
    assert -fitted_order(cells, errors) == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_transpose_of_collocation(dim: int) -> None:
    """<A u, v> = <u, A^T v>."""
    spline, rng = TensorSpline(dim, 6, 1.0), np.random.default_rng(1)
    u, v = rng.standard_normal((7**dim, 2)), rng.standard_normal((9**dim, 2))
    left, right = np.vdot(spline.coefficients(u), v), np.vdot(u, spline.coefficients_transposed(v))
    assert left == pytest.approx(right, rel=1e-12)


def test_limited_values_lie_between_their_corners() -> None:
    """A step is interpolated without overshoot; the free spline overshoots."""
    spline = TensorSpline(2, 20, 1.0)
    step = (spline.nodes[:, 0] + 0.3 * spline.nodes[:, 1] > 0.1).astype(float)
    values = np.stack([step, 1 - step], axis=1)
    y = np.random.default_rng(2).uniform(-1, 1, (2000, 2))
    limited, free = at(spline, values, y, limit=True), at(spline, values, y)
    assert limited.min() >= 0 and limited.max() <= 1
    assert free.max() > 1.02


# ------------------------------------------------------------------ values


def recursion(given: kolmo.Problem, **options: Any) -> ExactRecursion:
    return ExactRecursion(given, **{"half_width": 12.0, "cells": 12, "limit": False, **options})


SOME = (
    "none",
    "dropout-line",
    "hidden",
    "depth-decay-test-time",
    "gaussian-dropout-list",
    "shake",
    "injection",
)


@pytest.mark.parametrize(("dim", "name"), [(d, n) for d in (1, 2) for n in NOISES] + [(3, n) for n in SOME])
def test_affine_blocks_have_their_closed_form(dim: int, name: str) -> None:
    """Affine block, quadratic loss: every u_k is quadratic, so spline and Gauss rule are exact."""
    network = affine_network(dim, DEPTH)
    given = kolmo.Problem(cluster(dim, 0.6), network, NOISES[name], LeastSquares())
    with torch.no_grad():  # the box's faces bend u, and a spline hands on 0.27 of that from cell to cell
        found = float(recursion(given, gauss=3, cells={1: 60, 2: 48, 3: 28}[dim]).expected_loss())
    assert found == pytest.approx(chain_loss(given), rel=1e-10 if dim < 3 else 1e-6)


def tree(given: kolmo.Problem) -> Tensor:
    """J by all paths of all masks from every data point, differentiable: nothing is interpolated."""
    network, x = given.network, given.data.points
    weights = torch.ones(len(x), dtype=torch.float64)
    labels = given.data.labels
    for layer in range(network.depth):
        o = given.noise.outcomes(network, layer, x)
        moved = (x + o.base)[:, None] + torch.einsum("nar,or->noa", o.factor, torch.from_numpy(o.table))
        x = moved.reshape(-1, network.dim)
        weights = (weights[:, None] * torch.from_numpy(o.weights)).reshape(-1)
        labels = labels.repeat_interleave(len(o.weights))
    return (weights * given.loss(x, labels)).sum() / len(given.data)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_all_paths_of_a_shallow_network(dim: int, depth: int) -> None:
    """Value and gradient against the tree of all masks: to rounding without a grid, else fourth order."""
    given = problem(dim, noise.StochasticDepth(0.7), depth=depth, samples=8, width=5)
    parameters = list(given.network.parameters())
    exact = tree(given)
    expected = torch.autograd.grad(exact, parameters)
    errors, slopes = [], []
    cells = [24, 48] if dim < 3 else [16, 32]
    for n in cells:
        loss = ExactRecursion(given, cells=n, half_width=3.5, limit=False).expected_loss()
        gradient = torch.autograd.grad(loss, parameters)
        errors.append(abs(float(loss.detach() - exact.detach())))
        slopes.append(
            float(sum((a - b).square().sum() for a, b in zip(gradient, expected, strict=True))) ** 0.5
        )
    if depth == 1:
        assert max(errors) < 1e-13 and max(slopes) < 1e-13
    else:
        assert errors[1] < errors[0] / 5 and slopes[1] < slopes[0] / 5
        assert errors[1] < 2e-5 * 16 ** (dim == 3) and slopes[1] < 2e-4 * 16 ** (dim == 3)


@pytest.mark.parametrize("name", [n for n in NOISES if "injections" not in n])
def test_the_chain_agrees(name: str) -> None:
    """|J_exact - J_chain| <= 4 standard errors for every noise on a network of trained size."""
    given = problem(2, NOISES[name], depth=DEPTH, samples=20, width=4)
    found = resolve_exact(given)
    sample = kolmo.Chain(given, seed=4).estimate(100_000)
    assert abs(found.value - sample.value) <= 4 * sample.standard_error + found.error + 1e-12


def test_fourth_order_in_the_grid() -> None:
    """The change of J between grids falls at fourth order, limited or not."""
    given = problem(2, depth=6)
    half_width = exact_half_width(given)
    cells = [24, 36, 54, 81]
    with torch.no_grad():
        for limit in (False, True):
            values = [
                float(ExactRecursion(given, cells=n, half_width=half_width, limit=limit).expected_loss())
                for n in cells
            ]
            changes = np.abs(np.diff(values))
            assert -fitted_order(cells[1:], changes) > 3


@pytest.mark.parametrize("name", ["dropout", "injection"])
def test_the_number_of_threads_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of work are summed in a fixed order."""
    given = problem(2, NOISES[name], depth=4)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        loss = ExactRecursion(given, cells=120, half_width=3.0).expected_loss()
        gradient = torch.autograd.grad(loss, list(given.network.parameters()))
        results.append((float(loss.detach()), [g.clone() for g in gradient]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_values_at_the_data_are_the_losses_of_both_labels() -> None:
    """J is the mean over the data of u_0 at the point's own label."""
    given = problem(1, depth=3)
    found = ExactRecursion(given, cells=64)
    values = found.values()
    own = values[np.arange(len(values)), given.data.labels.numpy()]
    with torch.no_grad():
        assert own.mean() == pytest.approx(float(found.expected_loss()), rel=1e-14)
    assert values.shape == (len(given.data), 2)


# ------------------------------------------------------------------ gradient


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize(
    ("dim", "name"),
    [
        (2, n)
        for n in ("dropout", "hidden", "depth-test-time", "gaussian-dropout", "uniform", "shake+injection")
    ]
    + [(1, "dropconnect"), (1, "injection-line"), (3, "dropout")],
)
def test_taylor(dim: int, name: str, limit: bool) -> None:
    """|J(theta + e d) - J - e J'd| = O(e^2) for the recursion as it is computed."""
    given = problem(dim, NOISES[name], depth=DEPTH, samples=10, width=4)
    exact = ExactRecursion(given, cells=30 if dim < 3 else 14, half_width=4.0, limit=limit)
    objective = Objective(given.network, exact.expected_loss)
    rates = taylor_test(objective, objective.theta, steps=(4e-3, 2e-3, 1e-3))
    assert rates.order0 == pytest.approx(1, abs=0.2)
    if limit:  # a limiter has kinks: here and there one is crossed between two steps
        assert rates.remainders1[-1] < 2e-3 * rates.remainders0[-1]
    else:
        assert rates.order1 > 1.85


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    """The gradient needs the weights that gave the value."""
    given = problem(1, depth=3)
    loss = ExactRecursion(given, cells=32).expected_loss()
    with torch.no_grad():
        given.network.V.add_(0.1)  # type: ignore[operator, union-attr]
    with pytest.raises(RuntimeError, match="modified"):
        loss.backward()


def test_training_lowers_the_exact_loss() -> None:
    """L-BFGS on the exact expectation of the noisy loss; the end agrees with the chain."""
    given = kolmo.Problem(points(2, 30), trained_size(2, 6, std=0.2), noise.BernoulliDropout(0.7))
    before = resolve_exact(given).value
    outcome = kolmo.control.train(given, estimator="exact", cells=(24, 36), iterations=(15, 5))
    after = resolve_exact(given)
    assert after.value < 0.7 * before
    assert outcome.audits == ["24 cells: passed", "36 cells: passed"]
    sample = kolmo.Chain(given, seed=8).estimate(200_000)
    assert abs(after.value - sample.value) <= 4 * sample.standard_error + after.error
    with pytest.raises(InputError, match=r"^estimator: 'exakt'.*'exact'"):
        kolmo.control.train(given, estimator="exakt")


# ------------------------------------------------------------------ error estimate


@pytest.mark.parametrize("std", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_estimate_covers_the_error(std: float, seed: int) -> None:
    """|J - J_fine| is at most what resolve_exact states, and that meets the tolerance."""
    given = kolmo.Problem(points(2, 20), trained_size(2, 8, std=std, seed=seed), noise.BernoulliDropout(0.7))
    half_width = exact_half_width(given)
    found = resolve_exact(given, half_width=half_width)
    with torch.no_grad():
        fine = float(ExactRecursion(given, cells=3 * found.cells, half_width=half_width).expected_loss())
    assert abs(found.value - fine) <= 2 * found.grid_error + 1e-7
    assert found.grid_error <= 3e-3 * found.value + 1e-6


def test_what_no_grid_resolves_is_refused() -> None:
    """On few cells the error is known to be large, and said with the remedy."""
    given = kolmo.Problem(points(2, 20), trained_size(2, 12, std=1.2, width=12), noise.BernoulliDropout(0.7))
    with pytest.raises((ResolutionError, InfeasibleError), match="take more cells"):
        resolve_exact(given, cells=12)


# ------------------------------------------------------------------ Gaussian increments


def test_the_gauss_rule_is_exact_for_gaussian_noise() -> None:
    """Gaussian dropout's increments are Gaussian: both rules are the same Gauss rule."""
    given = problem(2, noise.GaussianDropout(0.4), depth=4)
    with torch.no_grad():
        values = [
            float(ExactRecursion(given, cells=40, half_width=3.0, rule=r).expected_loss())
            for r in ("outcomes", "gauss")
        ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_the_gauss_rule_states_its_error() -> None:
    """8 hidden units: J by Gaussian increments is off by no more than stated, and by what is estimated."""
    given = problem(2, noise.HiddenDropout(0.6), depth=4, samples=20, width=8, std=0.8)
    own = resolve_exact(given)
    gauss = resolve_exact(given, rule="gauss")
    assert own.outcomes == 256 and gauss.outcomes < 100
    assert abs(own.value - gauss.value) <= gauss.rule_error + gauss.grid_error
    defect, spread = gauss.recursion.gauss_error(paths=2000)
    assert abs(own.value - gauss.value - defect) <= 4 * spread + 1e-6


def test_a_jump_is_not_gaussian() -> None:
    """Blocks that are rarely kept jump: Gaussian increments do not describe them, and are refused."""
    given = problem(2, noise.StochasticDepth(0.08), depth=4)
    with pytest.raises(ModelError, match="do not describe this noise"):
        resolve_exact(given, rule="gauss")


# ------------------------------------------------------------------ refusals


def test_sixteen_hidden_units_are_refused_with_alternatives() -> None:
    """2^16 masks: the number, the limit, and what may be taken instead, in one line."""
    given = problem(2, noise.HiddenDropout(0.8), width=16)
    with pytest.raises(InputError) as caught:
        resolve_exact(given)
    message = str(caught.value)
    assert "65536 outcomes" in message and "8192" in message
    assert "gauss" in message and "chain" in message and "\n" not in message
    assert resolve_exact(given, rule="gauss").rule_error > 0


def test_bad_options() -> None:
    given = problem(2, depth=2)
    for options, words in (
        ({"cells": 3}, "cells: 3"),
        ({"cells": 10.5}, "cells"),
        ({"rule": "simpson"}, "rule: 'simpson'"),
        ({"gauss": 1}, "gauss: 1"),
    ):
        with pytest.raises(InputError, match=words):
            ExactRecursion(given, half_width=3.0, **options)
    with pytest.raises(InputError, match="cells: 5"):
        resolve_exact(given, cells=5)
    four = kolmo.Problem(cluster(4, 1.0), trained_size(4, 2), noise.NoNoise())
    with pytest.raises(InputError, match="1, 2 or 3 dimensions"):
        ExactRecursion(four)


def test_an_overshoot_is_refused() -> None:
    """Without the limiter a grid that is too coarse makes u leave its bounds: said, not returned."""
    given = problem(2, noise.BernoulliDropout(0.7), depth=12, std=3.0, width=12)
    with pytest.raises(MaximumPrincipleError, match="take more cells"):
        ExactRecursion(given, cells=8, half_width=4.0, limit=False).expected_loss()


def test_limited_values_stay_in_the_range_of_the_loss() -> None:
    """Whatever the weights and the grid, min Phi <= J <= max Phi on the box."""
    given = problem(2, noise.BernoulliDropout(0.7), depth=12, std=2.0, width=12)
    values = ExactRecursion(given, cells=8, half_width=4.0).values()
    assert values.min() >= 0


class _Own(Noise):
    """Sign flips with probability 0.1: two outcomes, given by hand."""

    def sample(self, network: Any, layer: int, x: Tensor, draws: Any) -> Tensor:
        return network.step * network.block(layer, x) * (1 - 2 * draws.bernoulli(0.1, 1))

    def outcomes(self, network: Any, layer: int, x: Tensor, gauss: int = 5) -> noise.Outcomes:
        f = network.step * network.block(layer, x)
        table, weights = np.array([[1.0], [-1.0]]), np.array([0.9, 0.1])
        return noise.Outcomes(torch.zeros_like(f), f[..., None], table, weights)


def test_a_noise_of_ones_own_with_outcomes() -> None:
    """`outcomes` is all that the recursion asks for."""
    given = problem(2, _Own(), depth=4, samples=10)
    found = resolve_exact(given)
    sample = kolmo.Chain(given, seed=2).estimate(100_000)
    assert abs(found.value - sample.value) <= 4 * sample.standard_error + found.error
    assert float(tree(given).detach()) == pytest.approx(found.value, abs=2 * found.grid_error + 1e-9)
