"""Any torch module as the vector field: what it must agree with, and what it is told when it cannot serve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import points, trained_size
from torch import Tensor, nn

import kolmo
from kolmo import noise
from kolmo.control import Objective, taylor_test
from kolmo.errors import InputError, NonFiniteError
from kolmo.module_network import FieldNetwork
from kolmo.network import ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.exact import ExactRecursion
from kolmo.penalty import DepthSmoothness, StepPenalty

DEPTH = 6


class Wrapped(nn.Module):
    """The built-in network's blocks as forward(x, t): layer t / h of it."""

    def __init__(self, inner: ResidualNetwork) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner.block(round(float(t) / self.inner.step), x)


class TimeDependent(nn.Module):
    """V(t) tanh(W x + c t + b), V(t) = V_0 + sin(t) V_1: weights that depend on time."""

    def __init__(self, dim: int = 2, width: int = 8, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.still = nn.Linear(dim + 1, width), nn.Linear(width, dim, bias=False)
        self.moving = nn.Linear(width, dim, bias=False)
        self.double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        z = torch.tanh(self.first(torch.cat([x, t.expand(len(x), 1)], dim=1)))
        return self.still(z) + torch.sin(t) * self.moving(z)


def pair(model: Noise, horizon: float = 1.0) -> tuple[kolmo.Problem, kolmo.Problem]:
    """The built-in network and the same one as a module."""
    inner = trained_size(2, DEPTH)
    inner = ResidualNetwork.from_weights(inner.W.detach(), inner.b.detach(), inner.V.detach(), horizon)
    wrapped = FieldNetwork(Wrapped(inner), 2, DEPTH, horizon)
    return kolmo.Problem(points(2), inner, model), kolmo.Problem(points(2), wrapped, model)


def value_and_gradient(problem: kolmo.Problem, **options: object) -> tuple[float, list[Tensor]]:
    loss = BackwardKolmogorov(problem, cells=16, half_width=3.0, limit=False, **options).expected_loss()  # type: ignore[arg-type]
    return float(loss.detach()), list(torch.autograd.grad(loss, list(problem.network.parameters())))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(noise.BernoulliDropout(0.8), id="dropout"),
        pytest.param(noise.StochasticDepth(0.7, scaling="test_time"), id="depth"),
        pytest.param(noise.GaussianInjection(0.3), id="injection"),
    ],
)
def test_a_wrapped_network_is_the_network(model: Noise, order: int) -> None:
    """J and its gradient are those of the closed form to rounding; injection takes second derivatives."""
    ours, wrapped = (value_and_gradient(p, order=order) for p in pair(model, horizon=1.3))
    assert wrapped[0] == pytest.approx(ours[0], rel=1e-12)
    for found, expected in zip(wrapped[1], ours[1], strict=True):
        assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max() + 1)


def test_jets_agree() -> None:
    """Values, Jacobians and contracted second derivatives; the divergence is the Jacobian's trace."""
    ours, wrapped = (p.network for p in pair(noise.NoNoise()))
    x = points(2).points
    left, right = ours.jet(x), wrapped.jet(x)
    matrix = torch.tensor([[0.3, 0.1], [0.1, 0.7]], dtype=torch.float64)
    for found, expected in (
        (right.value, left.value),
        (right.jacobian(), left.jacobian()),
        (right.advection(), left.advection()),
        (right.second(matrix), left.second(matrix)),
    ):
        assert float((found - expected).detach().abs().max()) < 1e-13
    assert torch.allclose(wrapped(x), ours(x), rtol=0, atol=1e-14)
    assert torch.allclose(wrapped.step_size().detach(), (ours.step * left_norms(ours)).detach(), rtol=1e-12)


def left_norms(network: ResidualNetwork) -> Tensor:
    """The largest Jacobian of each layer on the sample that `step_size` takes."""
    sample = 4 * torch.quasirandom.SobolEngine(2, seed=0).draw(256).to(torch.float64) - 2
    return torch.linalg.matrix_norm(network.jet(sample).jacobian()).amax(dim=1)


def test_the_chain_agrees_path_by_path() -> None:
    """Under one seed the compiled chain and torch's of the wrapped module have the same losses."""
    ours, wrapped = (kolmo.Chain(p, seed=4).losses(5) for p in pair(noise.BernoulliDropout(0.8)))
    assert torch.allclose(ours, wrapped, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(noise.BernoulliDropout(0.8), id="dropout"),
        pytest.param(noise.GaussianInjection(0.3), id="injection"),
    ],
)
def test_taylor_of_time_dependent_weights(model: Noise, order: int) -> None:
    """The gradient by the module's parameters is exact: remainders of orders 1 and 2, penalty included."""
    network = FieldNetwork(TimeDependent(), 2, DEPTH)
    problem = kolmo.Problem(points(2), network, model)
    equation = BackwardKolmogorov(problem, cells=16, half_width=3.0, order=order, limit=False)
    penalties = [StepPenalty(threshold=0.0)]
    objective = Objective(network, equation.expected_loss, penalties)
    rates = taylor_test(objective, objective.theta)
    assert rates.order0 == pytest.approx(1, abs=0.1)
    assert rates.order1 == pytest.approx(2, abs=0.1)


def test_time_reaches_the_module() -> None:
    """Layer k sees t_k = k h, h = T / L."""
    seen: list[float] = []

    class Clock(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert t.shape == () and t.dtype == x.dtype
            seen.append(float(t))
            return -x

    network = FieldNetwork(Clock(), 2, 4, horizon=2.0)
    seen.clear()
    network(torch.zeros(3, 2, dtype=torch.float64))
    assert seen == [0.0, 0.5, 1.0, 1.5]


def test_the_horizon_may_be_a_control() -> None:
    """dJ/dT of a time-dependent field goes through h and through t_k: as by differences."""

    def loss(horizon: Tensor) -> Tensor:
        network = FieldNetwork(TimeDependent(), 2, DEPTH, horizon)
        return network(points(2).points).square().mean()

    horizon = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(horizon), [horizon])
    e = 1e-5  # central: off by e^2, rounding 1e-16 / e
    with torch.no_grad():
        assert float(slope) == pytest.approx(
            float((loss(horizon + e) - loss(horizon - e)) / (2 * e)), rel=1e-8
        )


def test_equation_recursion_and_chain_agree() -> None:
    """J of a time-dependent field three ways: order 2 is off by O(h^2), sampling by its standard error."""
    problem = kolmo.Problem(
        points(2, 20), FieldNetwork(TimeDependent(), 2, DEPTH), noise.BernoulliDropout(0.8)
    )
    chain = kolmo.Chain(problem).estimate(40_000)
    with torch.no_grad():
        exact = float(ExactRecursion(problem, cells=48).expected_loss())
        pde = float(BackwardKolmogorov(problem, cells=64).expected_loss())
    assert abs(chain.value - exact) < 4 * chain.standard_error + 1e-4
    assert abs(pde - exact) < 0.01 * exact  # mesh and h^2


def test_it_trains_by_any_method() -> None:
    """control.train lowers J of a module, and leaves its own parameters changed."""
    module = TimeDependent()
    before = [p.detach().clone() for p in module.parameters()]
    problem = kolmo.Problem(points(2, 20), FieldNetwork(module, 2, 4), noise.BernoulliDropout(0.9))
    with torch.no_grad():
        start = float(BackwardKolmogorov(problem, cells=24).expected_loss())
    found = kolmo.control.train(problem, cells=(24,), iterations=(4,))
    assert found.result.value < 0.9 * start
    assert all(bool((p != q).any()) for p, q in zip(module.parameters(), before, strict=True))


class _Wrong(nn.Module):
    """A module that gives what a function says."""

    def __init__(self, give: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor, t: Tensor) -> object:
        return self.give(x, t)


class _XAlone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "words"),
    [
        pytest.param(_Wrong(lambda x, t: x[:, :1]), r"shape \(16, 1\) for x of shape \(16, 2\)", id="shape"),
        pytest.param(_Wrong(lambda x, t: (x, t)), "gives tuple", id="tuple"),
        pytest.param(_Wrong(lambda x, t: x.float()), "gives torch.float32", id="type"),
        pytest.param(_Wrong(lambda x, t: x / 0), r"not finite at x = \(.*\), t = 0.75", id="infinite"),
        pytest.param(_Wrong(lambda x, t: torch.rand_like(x)), "is random", id="random"),
        pytest.param(
            nn.Linear(2, 2), r"weight is torch.float32, expected float64; call module.double", id="f32"
        ),
        pytest.param(_XAlone(), r"forward\(x, t\) fails", id="arguments"),
        pytest.param(_Wrong(lambda x, t: x - x.mean(0)), "other points of the batch", id="batch"),
        pytest.param(lambda x, t: x, "function is no torch.nn.Module", id="function"),
    ],
)
def test_what_does_not_serve_is_told_so(module: nn.Module, words: str) -> None:
    """One line that says what is wrong with the module."""
    with pytest.raises(InputError, match=words) as told:
        FieldNetwork(module, 2, 4)
    assert str(told.value).startswith("module: ") and "\n" not in str(told.value)


def test_values_that_are_not_finite_later() -> None:
    """log of what becomes negative far out: refused when it is met, with the layer."""
    network = FieldNetwork(_Wrong(lambda x, t: torch.log(3 + x)), 2, 4)
    far = torch.full((1, 2), -4.0, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="module: its value in layer 2 is not finite") as told:
        network.block(2, far)
    assert told.value.layer == 2
    with pytest.raises(NonFiniteError):
        network.jet(far).jacobian()


def test_a_kink_allows_order_1_only() -> None:
    """ReLU in the module: order 2 is refused, unless its author knows better."""

    class Kinked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.act(x)

    problem = kolmo.Problem(points(2), FieldNetwork(Kinked(), 2, 4))
    with pytest.raises(InputError, match="two derivatives"):
        BackwardKolmogorov(problem, cells=8)
    assert FieldNetwork(Kinked(), 2, 4, twice_differentiable=True).twice_differentiable


def test_penalties_by_layer_need_layers() -> None:
    """Smoothness over depth compares layers' weights: a module that has none of them is refused."""
    with pytest.raises(InputError, match=r"module.first.weight has shape \(8, 3\), not 6 layers first"):
        DepthSmoothness(0.1)(FieldNetwork(TimeDependent(), 2, DEPTH))


def test_noise_inside_a_block_is_refused() -> None:
    """Dropout of hidden units needs the built-in block."""
    problem = kolmo.Problem(points(2), FieldNetwork(TimeDependent(), 2, DEPTH), noise.HiddenDropout(0.8))
    with pytest.raises(InputError, match="hidden units need the block"):
        BackwardKolmogorov(problem, cells=8).expected_loss()


def test_single_precision_paths() -> None:
    """A chain in float32 runs a copy of the module in float32; the module itself stays."""
    module = TimeDependent()
    problem = kolmo.Problem(points(2), FieldNetwork(module, 2, DEPTH), noise.BernoulliDropout(0.8))
    double, single = (kolmo.Chain(problem, seed=1, dtype=d).losses(2) for d in (torch.float64, torch.float32))
    assert single.dtype == torch.float32
    assert np.allclose(double.detach(), single.detach(), atol=1e-4)  # rounding through 6 layers
    assert all(p.dtype == torch.float64 for p in module.parameters())
