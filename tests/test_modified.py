"""The modified equation: jets and coefficients by formulas against automatic differentiation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import DEPTH, NOISES, PlainNetwork, cluster, strength, trained_size
from torch import Tensor

import kolmo
from kolmo import ResidualNetwork, noise
from kolmo.activation import ACTIVATIONS
from kolmo.errors import InputError
from kolmo.modified import Coefficients, indefinite, modified_equation
from kolmo.network import AutomaticJet, TwoLayerJet
from kolmo.noise.base import Noise
from kolmo.noise.structure import packed
from kolmo.stream import Stream

SMOOTH = sorted(name for name, a in ACTIVATIONS.items() if a.twice_differentiable)

every_noise = pytest.mark.parametrize("name", list(NOISES))
both_orders = pytest.mark.parametrize("order", [1, 2])


class AutomaticNetwork(ResidualNetwork):
    """The built-in block, its derivatives by automatic differentiation."""

    def jet(self, x: Tensor, layers: slice = slice(None)) -> AutomaticJet:  # type: ignore[override]
        return AutomaticJet(self, x, range(self.depth)[layers])


def twins(dim: int, activation: str = "tanh") -> tuple[ResidualNetwork, AutomaticNetwork]:
    """One network with its jet in closed form and by automatic differentiation."""
    ours = trained_size(dim, DEPTH, width=6, std=0.8, activation=activation)
    weights = (p.detach().clone() for p in (ours.W, ours.b, ours.V))
    return ours, AutomaticNetwork.from_weights(*weights, activation=activation)  # type: ignore[return-value]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


def sample(dim: int, count: int = 11) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def full(c: Coefficients) -> Tensor:
    """The diffusion as matrices."""
    return torch.diag_embed(c.diffusion) if c.diffusion.ndim == 3 else c.diffusion


def assert_alike(ours: ResidualNetwork, theirs: ResidualNetwork, model: Noise, order: int) -> None:
    """b, a and the derivatives of a random functional of them by the weights: to 1e-10."""
    found = []
    for network in (ours, theirs):
        c = modified_equation(network, model, sample(network.dim), order)
        generator = torch.Generator().manual_seed(7)
        terms = [torch.randn(t.shape, generator=generator, dtype=t.dtype) * t for t in (c.drift, c.diffusion)]
        total = sum(term.sum() for term in terms)
        parts = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
        found.append((c, [torch.zeros(1) if p is None else p for p in parts]))
    (one, g), (two, e) = found
    assert one.drift.shape == (DEPTH, 11, ours.dim)
    assert close(one.drift, two.drift, 1e-10) and close(full(one), full(two), 1e-10)
    assert all(close(a, b, 1e-10) for a, b in zip(g, e, strict=True))


# ------------------------------------------------------------------ by automatic differentiation


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_closed_form_jets_are_autograds(activation: str, dim: int) -> None:
    """f, (grad f) v, grad f and D : hess f by formulas and by forward-mode differentiation."""
    inner, _ = twins(dim, activation)
    x = sample(dim)
    for layers in (slice(None), slice(1, 3)):
        ours, theirs = inner.jet(x, layers), PlainNetwork(inner).jet(x, layers)
        assert isinstance(ours, TwoLayerJet) and isinstance(theirs, AutomaticJet)
        assert close(ours.value, theirs.value)
        v = torch.randn(ours.value.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        assert close(ours.directional(v), theirs.directional(v))
        assert close(ours.jacobian(), theirs.jacobian())
        root = torch.randn(2, len(ours.layers), dim, dim, generator=torch.Generator().manual_seed(6)).double()
        for D in (
            root[0, 0] @ root[0, 0].T,
            root[0] @ root[0].transpose(1, 2),
        ):  # one, and one for each layer
            assert close(ours.second(D), theirs.second(D))
            if activation not in ("identity", "relu"):
                assert ours.second(D).abs().max() > 1e-3


@every_noise
@both_orders
def test_modified_equation_by_formulas_and_by_autograd(name: str, order: int) -> None:
    """Coefficients and their weight gradients for every noise, in 2-D."""
    assert_alike(*twins(2), NOISES[name], order)


@pytest.mark.parametrize("name", ["depth-test-time+injections", "shake+injection"])
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("dim", [1, 3])
def test_modified_equation_for_every_activation(activation: str, name: str, dim: int) -> None:
    """The same at order 2 for C and D at once, all activations with two derivatives, in 1-D and 3-D."""
    assert_alike(*twins(dim, activation), NOISES[name], 2)


class DriftAndDiffusion(torch.nn.Module):
    """The coefficients of Gaussian injection at three points as a function of the weights."""

    def __init__(self, network: ResidualNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self) -> tuple[Tensor, Tensor]:
        c = modified_equation(self.network, noise.GaussianInjection(0.5), sample(2, 3), 2)
        return c.drift, c.diffusion


@pytest.mark.parametrize("activation", ["tanh", "gelu", "softplus"])
def test_modified_equation_passes_gradcheck(activation: str) -> None:
    """Second-order coefficients are differentiable in the weights: against central differences."""
    model = DriftAndDiffusion(trained_size(2, depth=2, width=3, activation=activation))
    names = [name for name, _ in model.named_parameters()]

    def coefficients(*weights: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), ())

    weights = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(coefficients, weights, atol=1e-7)


@every_noise
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_both_orders_by_their_definition(name: str, dim: int) -> None:
    """b = m - h/2 [J m + 1/2 D : hess m], a = h C + (I - h/2 J) D (I - h/2 J)^T, J = grad m, pointwise."""
    model, (network, _) = NOISES[name], twins(dim)
    x, h, jet = sample(dim, 3), network.step, network.jet(sample(dim, 3))
    found = {order: modified_equation(network, model, x, order) for order in (1, 2)}
    C, D = model.covariance(jet), model.diffusion(jet)
    spread = torch.zeros(DEPTH, 3, dim, dim) if C is None else packed(C)
    spread = torch.diag_embed(spread) if spread.ndim == 3 else spread
    for k in range(DEPTH):
        d = torch.zeros(dim, dim).double() if D is None else D[k]
        for q, point in enumerate(x):

            def m(z: Tensor, k: int = k) -> Tensor:
                return model.mean(network.jet(z[None], slice(k, k + 1))).value[0, 0]

            J, eye = torch.autograd.functional.jacobian(m, point), torch.eye(dim, dtype=torch.float64)
            curvature = torch.zeros(dim).double()
            if D is not None:
                hess = [torch.autograd.functional.hessian(lambda z, i=i: m(z)[i], point) for i in range(dim)]
                curvature = torch.stack([(d * matrix).sum() for matrix in hess])
            b = m(point) - h / 2 * (J @ m(point) + curvature / 2)
            a = h * spread[k, q] + (eye - h / 2 * J) @ d @ (eye - h / 2 * J).T
            assert close(found[2].drift[k, q], b) and close(full(found[2])[k, q], a)
            assert close(found[1].drift[k, q], m(point)) and close(full(found[1])[k, q], h * spread[k, q] + d)


# ------------------------------------------------------------------ relations between noises


@pytest.mark.parametrize(
    ("kind", "key", "strengths"),
    [
        (noise.GaussianInjection, "std", [0.1, 0.4, 0.0, 0.6]),
        (noise.DropConnect, "keep", [0.9, 0.5, 1.0, 0.3]),
        (noise.GaussianDropout, "std", [0.4, 0.0, 0.3, 0.2]),
        (noise.StochasticDepth, "keep", [0.5, 0.6, 0.7, 1.0]),
    ],
)
@both_orders
def test_schedules_are_constants_layer_by_layer(
    kind: type[Noise], key: str, strengths: list[float], order: int
) -> None:
    """Layer k under a schedule has the coefficients of a constant strength s_k, for any slice of layers."""
    network, x = trained_size(2, DEPTH, std=0.8), sample(2)
    scheduled = kind(**{key: strengths})  # type: ignore[call-arg]
    for layers in (slice(None), slice(1, 3)):
        found = modified_equation(network, scheduled, x, order, layers)
        for row, k in enumerate(range(DEPTH)[layers]):
            constant = kind(**{key: strengths[k]})  # type: ignore[call-arg]
            alone = modified_equation(network, constant, x, order, slice(k, k + 1))
            assert torch.equal(found.drift[row], alone.drift[0])
            assert close(found.diffusion[row], alone.diffusion[0], 1e-15)


@pytest.mark.parametrize("name", [n for n in NOISES if isinstance(NOISES[n], noise.Composition)])
def test_covariances_of_compositions_add(name: str) -> None:
    """C and D are the sums of the parts', m is that of the part which acts on the block."""
    model, jet = NOISES[name], twins(2)[0].jet(sample(2))
    assert isinstance(model, noise.Composition)
    acting = [p for p in model.parts if not isinstance(p, noise.GaussianInjection)]
    found = (model.covariance(jet), model.diffusion(jet))
    total_c, total_d = packed(found[0]), sum(D for p in model.parts if (D := p.diffusion(jet)) is not None)
    assert close(total_c, sum(packed(C) for p in model.parts if (C := p.covariance(jet)) is not None))
    assert close(found[1], total_d) and total_d.abs().min(dim=0).values.diagonal().min() > 1e-3
    assert torch.equal(model.mean(jet).value, acting[0].mean(jet).value)


@pytest.mark.parametrize("keep", [0.6, [0.9, 0.7, 0.5, 1.0], {"last": 0.4}], ids=str)
def test_test_time_scaling_is_inverted_scaling_of_other_weights(keep: Any) -> None:
    """h f eta = h (p f) eta/p: V_k times p_k under inverted scaling has the same b, a and paths."""
    network, x = twins(2)[0], sample(2)
    kept = torch.tensor([strength(keep, k, DEPTH, 1.0) for k in range(DEPTH)], dtype=torch.float64)
    scaled = ResidualNetwork.from_weights(network.W, network.b, kept[:, None, None] * network.V)
    published, inverted = noise.StochasticDepth(keep, "test_time"), noise.StochasticDepth(keep)
    pairs = [(network, published), (scaled, inverted)]
    for order in (1, 2):
        ours, theirs = (modified_equation(n, model, x, order) for n, model in pairs)
        assert close(ours.drift, theirs.drift) and close(ours.diffusion, theirs.diffusion)
    with torch.no_grad():
        losses = [kolmo.Chain(kolmo.Problem(cluster(2, 0.8), n, m)).losses(500) for n, m in pairs]
    assert losses[0].std() > 0.01 and close(losses[0], losses[1], 1e-14)


class Branches(PlainNetwork):
    """A block of two branches of one's own: f = (f1 + f2)/2."""

    def branches(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.inner.block(layer, x)
        return 2 * whole - torch.sin(x), torch.sin(x)


def test_shake_shake_takes_the_branches_of_a_network() -> None:
    """h (alpha f1 + (1-alpha) f2), alpha ~ U(0, 1), and C = (f1-f2)(f1-f2)^T / 12, with branches given."""
    network, x = Branches(trained_size(2, DEPTH)), torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    with torch.no_grad():
        f1, f2 = network.branches(1, x)
        found = (
            noise.ShakeShake().sample(network, 1, x.expand(2000, 2), Stream(0, 0, 2000).layer(1))
            / network.step
        )
        alpha = (found - f2) / (f1 - f2)
        C = packed(noise.ShakeShake().covariance(network.jet(x)))[1, 0]
    assert (alpha[:, 0] - alpha[:, 1]).abs().max() < 1e-12
    assert 0 <= float(alpha.min()) < 0.01 and 0.99 < float(alpha.max()) <= 1
    assert close(C, (f1 - f2).T @ (f1 - f2) / 12)


# ------------------------------------------------------------------ definiteness and refusals


@every_noise
def test_diffusion_is_positive_semidefinite_whatever_the_weights(name: str) -> None:
    """The product form of order 2 keeps a >= 0 even where h grad m is large."""
    network = trained_size(2, DEPTH, std=5.0)
    a = full(modified_equation(network, NOISES[name], sample(2, 200), 2)).detach()
    assert torch.linalg.eigvalsh(a).min() >= -1e-12 * a.abs().max()


def test_indefinite_says_where_the_plain_form_loses_definiteness() -> None:
    """f = c x in 1-D: plain s^2 (1 - h c) < 0 from h c > 1 on, its share counted; the product form stays."""

    def linear(*slopes: float) -> ResidualNetwork:
        c = torch.tensor(slopes)[:, None, None]
        return ResidualNetwork.from_weights(torch.ones_like(c), 0 * c[:, 0], c, activation="identity")

    x, injection = sample(1), noise.GaussianInjection(0.5)
    assert indefinite(linear(1.9, 1.9), injection, x) is None  # h = 1/2
    found = indefinite(linear(1.9, 2.1, 7.0, 9.0), injection, x)  # h = 1/4: h c = 1.75, 2.25 in two layers
    assert found is not None and found.share == 0.5 and found.worst < 0
    product = modified_equation(linear(1.9, 2.1, 7.0, 9.0), injection, x, 2).diffusion[..., 0, 0]
    exact = 0.25 * (1 - torch.tensor([1.9, 2.1, 7.0, 9.0]) / 8).square()
    assert close(product, exact[:, None].double(), 1e-6)


@pytest.mark.parametrize("name", ["injection", "shake+injection", "depth-test-time+injections"])
def test_indefinite_is_the_smallest_eigenvalue_of_the_plain_form(name: str) -> None:
    """D + hC - h/2 (J D + D J^T) by its definition: share and worst ratio over layers and points."""
    model, network, x = NOISES[name], trained_size(2, DEPTH, std=2.5, seed=3), sample(2, 40)
    jet, h = network.jet(x), network.step
    D, C, J = model.diffusion(jet)[:, None], model.covariance(jet), model.mean(jet).jacobian()
    plain = D - h / 2 * (J @ D + D @ J.transpose(-1, -2)) + (0 if C is None else h * packed(C))
    values = np.linalg.eigvalsh(plain.detach().numpy())
    found = indefinite(network, model, x)
    assert found is not None and 0 < found.share < 1
    assert found.share == pytest.approx(np.mean(values[..., 0] < 0))
    assert found.worst == pytest.approx((values[..., 0] / np.abs(values[..., 1])).min(), rel=1e-10)
    assert torch.linalg.eigvalsh(full(modified_equation(network, model, x, 2))).min() >= -1e-14
    assert indefinite(trained_size(2, 40), model if name == "injection" else NOISES["injection"], x) is None


def test_without_diffusion_nothing_is_indefinite() -> None:
    """h C is positive semidefinite by itself, whatever the weights."""
    assert indefinite(trained_size(2, DEPTH, std=5.0), NOISES["depth"], sample(2)) is None


def test_order_two_needs_two_derivatives() -> None:
    """ReLU: order 1 only, for any noise."""
    network = trained_size(2, DEPTH, activation="relu")
    for model in NOISES.values():
        with pytest.raises(InputError, match=r"^order: 2 .* order 1"):
            modified_equation(network, model, sample(2), 2)
        assert bool(torch.isfinite(modified_equation(network, model, sample(2), 1).diffusion).all())
