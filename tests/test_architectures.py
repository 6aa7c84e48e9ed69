"""Architectures as discretisations: the schemes, the experiment's claims, faults that they must notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kolmo import network as networks
from kolmo.architectures import (
    ARCHITECTURES,
    Aggregated,
    Discretisation,
    Field,
    FractalNet,
    LMResNet,
    LMResNeXt,
    PolyNet,
    ResNet,
    RevNet,
    TwoLayer,
)
from kolmo.checkpoint import Memo
from kolmo.config import Config, load
from kolmo.errors import InputError
from kolmo.experiments import architectures_expectations as expectations
from kolmo.experiments import architectures_field as fields
from kolmo.experiments import architectures_noise as noises
from kolmo.experiments import architectures_orders as orders_module
from kolmo.experiments.architectures import Architectures
from kolmo.experiments.architectures_expectations import Expectations, Langevin, Masked
from kolmo.experiments.architectures_field import SmoothField, TwoStep
from kolmo.experiments.architectures_images import Training
from kolmo.experiments.architectures_modified import ModifiedEquation
from kolmo.experiments.architectures_noise import LinearChain, StochasticDepth
from kolmo.experiments.architectures_orders import Orders, rows
from kolmo.experiments.architectures_part import Part, fitted_order
from kolmo.experiments.progress import Silent
from kolmo.experiments.weak_order import Curve
from kolmo.network import ResidualNetwork
from kolmo.report import study_figures

#: rounding of a few dozen sums of numbers of size 1
ROUNDING = 1e-13


def study(quick: bool = True) -> Architectures:
    """The experiment on scikit-fem."""
    config = Config()
    config.run.backend = "skfem"
    return Architectures(config, quick)


class WithoutImages(Architectures):
    """Trainings on images take longer than all the rest."""

    @property
    def parts(self) -> list[Part]:
        return [part for part in super().parts if part is not self.images]


@pytest.fixture(scope="module")
def finished() -> Architectures:
    """The quick version but for the images, run once."""
    config = Config()
    config.run.backend = "skfem"
    made = WithoutImages(config, quick=True)
    made.run()
    return made


def test_the_claims_of_the_quick_version_hold(finished: Architectures) -> None:
    assert finished.finished
    claims = finished.claims()
    assert len(claims) == 35
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]


@pytest.mark.slow
def test_the_claims_of_the_full_version_hold() -> None:
    made = WithoutImages(study(quick=False).config)
    made.run()
    claims = made.claims()
    assert len(claims) == 35
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]


def test_the_shipped_configuration() -> None:
    assert Architectures(load(Architectures.shipped)).config.run.seed == 0


def test_results_tables_and_figures(finished: Architectures) -> None:
    """Numbers that JSON holds, a row for each network, a panel for each k."""
    found = json.loads(json.dumps(finished.results(), allow_nan=False))
    assert set(found) == {part.name for part in finished.parts}
    assert [row["depth"] for row in found["expected_loss"]] == [4, 8, 12]
    for title, columns, table in finished.tables():
        assert table and all(len(line) == len(columns) for line in table), title
    makers = dict(study_figures(finished.name))
    assert makers.pop("images")(finished) is None
    panels = {name: len(make(finished).axes) for name, make in makers.items()}
    assert panels == {"orders": 2, "modified_equation": 3, "first_layers": 4, "stochastic_depth": 2}
    assert all(make(study()) is None for make in makers.values())


# ------------------------------------------------------------------ images


def on_images(seeds: int = 5) -> Architectures:
    """The experiment as if its trainings were done: every error 2%, LM-ResNet's a little above or below."""
    config = load(Architectures.shipped)
    config.images.seeds = seeds
    made = Architectures(config)
    for plan, found in made.images.found.items():
        for seed in range(seeds):
            error = 0.02 + (0.001 * (seed - 2) if plan.architecture == "lm_resnet" else 0.0)
            found.append(Training(error, 0.0, 70_000 + plan.depth, 0.1, 10.0))
    return made


def test_claims_on_images_can_fail() -> None:
    """One network that misses 97%; an LM-ResNet that is worse; seeds that disagree too much to tell."""
    made = on_images()
    assert made.images.finished and all(claim.holds for claim in made.images.claims())
    poor, worse, apart = on_images(), on_images(), on_images()
    last = poor.images.others[-1]
    poor.images.found[last] = [replace(t, test_error=0.031) for t in poor.images.found[last]]
    assert [claim.holds for claim in poor.images.claims()] == [False, True]
    for study, change in ((worse, lambda seed: 0.006), (apart, lambda seed: 0.005 * (seed - 2))):
        for plan in study.images.compared["lm_resnet"]:
            found = study.images.found[plan]
            study.images.found[plan] = [replace(t, test_error=0.02 + change(k)) for k, t in enumerate(found)]
        assert [claim.holds for claim in study.images.claims()] == [True, False]


def test_the_table_and_the_figure_of_the_images() -> None:
    made = on_images()
    ((title, columns, rows),) = made.images.tables()
    assert title.startswith("digits, width 8, 5 seeds") and all(len(row) == len(columns) for row in rows)
    names = [row[0] for row in rows]
    assert names[:8] == [f"{name}-{depth}" for name in ("resnet", "lm_resnet") for depth in (20, 32, 44, 56)]
    assert names[8:] == ["polynet-20", "fractalnet-20", "revnet-38", "lm_resnext-29"]
    figure = study_figures(made.name)["images"](made)
    assert len(figure.axes) == 1 and len(figure.axes[0].containers) == 6
    json.dumps(made.images.results(), allow_nan=False)


def test_bad_images_are_refused_before_anything_runs() -> None:
    config = Config()
    config.images.data = "cifar10"
    config.images.folder = "/nowhere"
    with pytest.raises(InputError, match="/nowhere"):
        Architectures(config, quick=True).images.run(Memo(), Silent())
    config.images.width = 6
    with pytest.raises(InputError, match=r"images\.width: 6"):
        Architectures(config)


@pytest.mark.slow
def test_the_claims_on_images_hold_at_a_small_size() -> None:
    made = study().images
    made.run(Memo(), Silent())
    assert made.finished and len(made.claims()) == 2
    assert all(claim.holds for claim in made.claims()), made.claims()


# ------------------------------------------------------------------ schemes


DIM, DEPTH, STEP = 4, 5, 0.1
_RNG = np.random.default_rng(0)
MATRIX = torch.from_numpy(_RNG.uniform(-1, 1, (DIM, DIM)))
POINTS = torch.from_numpy(_RNG.uniform(-1, 1, (3, DIM)))


def linear(matrix: Tensor) -> nn.Linear:
    """f(x) = matrix x."""
    block = nn.Linear(*matrix.shape, bias=False, dtype=torch.float64)
    block.weight.data = matrix.clone()
    return block


def powers(layer: Tensor) -> Tensor:
    """The points after DEPTH layers x -> layer x."""
    return POINTS @ torch.linalg.matrix_power(layer, DEPTH).T


@pytest.mark.parametrize("kind", [ResNet, PolyNet, FractalNet])
def test_one_step_networks_are_polynomials_of_linear_blocks(kind: type[Discretisation]) -> None:
    """I + F, I + F + F^2 and I + F + F^2 / 2."""
    F, eye = STEP * MATRIX, torch.eye(DIM, dtype=torch.float64)
    layer = {ResNet: eye + F, PolyNet: eye + F + F @ F, FractalNet: eye + F + F @ F / 2}[kind]
    found = kind([linear(MATRIX)] * DEPTH, STEP)(POINTS)
    assert torch.allclose(found, powers(layer), rtol=0, atol=ROUNDING)


def test_revnet_is_the_product_of_its_shears() -> None:
    """(p, q) -> (p + h A q, q) -> (p, q + h B p)."""
    half = DIM // 2
    A, B = MATRIX[:half, :half], MATRIX[half:, half:]
    eye, zero = torch.eye(half, dtype=torch.float64), torch.zeros(half, half, dtype=torch.float64)
    first = torch.cat([torch.cat([eye, STEP * A], 1), torch.cat([zero, eye], 1)])
    second = torch.cat([torch.cat([eye, zero], 1), torch.cat([STEP * B, eye], 1)])
    found = RevNet([linear(A), linear(B)] * DEPTH, STEP)(POINTS)
    assert torch.allclose(found, powers(second @ first), rtol=0, atol=ROUNDING)


def test_lm_resnet_is_its_recursion() -> None:
    """Different k in every layer, the first one an Euler step; and all states by `layers`."""
    ks = [0.3, -0.4, 0.9, -0.05]
    network = LMResNet([linear(MATRIX)] * DEPTH, STEP, k=ks)
    states = [POINTS, POINTS + STEP * POINTS @ MATRIX.T]
    for k in ks:
        before, now = states[-2:]
        states.append((1 - k) * now + k * before + STEP * now @ MATRIX.T)
    assert torch.allclose(torch.stack(list(network.layers(POINTS))), torch.stack(states[1:]), atol=ROUNDING)
    assert torch.equal(network(POINTS), list(network.layers(POINTS))[-1])
    # from two values the first block has no say
    other = LMResNet([nn.Identity(), *[linear(MATRIX)] * (DEPTH - 1)], STEP, k=ks)
    assert torch.allclose(other(POINTS, second=states[1]), states[-1], atol=ROUNDING)


def test_lm_resnet_without_k_is_resnet() -> None:
    blocks = [TwoLayer.random(DIM, 6, seed=k) for k in range(DEPTH)]
    assert torch.allclose(LMResNet(blocks, STEP, k=0.0)(POINTS), ResNet(blocks, STEP)(POINTS), atol=ROUNDING)
    assert torch.equal(LMResNet(blocks[:1], STEP)(POINTS), ResNet(blocks[:1], STEP)(POINTS))


def test_k_is_drawn_by_the_seed_and_trained() -> None:
    """From U(-0.1, 0), one for every layer but the first; gradients reach it and the blocks."""
    blocks = [TwoLayer.random(DIM, 6, seed=k) for k in range(40)]
    network = LMResNet(blocks, STEP)
    k = network.k.detach()
    assert k.shape == (39,) and -0.1 <= float(k.min()) < -0.09 and -0.02 < float(k.max()) <= 0
    assert torch.equal(network.k, LMResNet(blocks).k) and not torch.equal(
        network.k, LMResNet(blocks, seed=1).k
    )
    network(POINTS).square().sum().backward()
    assert network.k.grad is not None and bool((network.k.grad != 0).all())
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_lm_resnext_sums_its_branches() -> None:
    """Branches as lists; a module counts as aggregated already."""
    blocks = [TwoLayer.random(DIM, 6, seed=k) for k in range(DEPTH)]
    whole = LMResNet(blocks, STEP, k=0.4)(POINTS)
    split = LMResNeXt([orders_module.branches(block) for block in blocks], STEP, k=0.4)
    assert all(isinstance(block, Aggregated) for block in split.blocks)
    assert torch.allclose(split(POINTS), whole, atol=ROUNDING)
    assert torch.equal(LMResNeXt(blocks, STEP, k=0.4)(POINTS), whole)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "revnet"])
def test_networks_on_features_have_every_scheme(name: str) -> None:
    """`of` shares the weights; ResNet's is the network itself."""
    network = ResidualNetwork(2, 6, 4, horizon=2.0)
    made = ARCHITECTURES[name].of(network)
    assert made.depth == 4 and made.step == network.step == 0.5
    x = POINTS[:, :2]
    assert name != "resnet" or torch.equal(made(x), network(x))
    made(x).sum().backward()
    assert network.W.grad is not None and bool((network.W.grad != 0).any())
    assert getattr(networks, type(made).__name__) is type(made)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_on_images(name: str) -> None:
    """Blocks of convolutions, an odd height; single precision stays so."""
    kind = ARCHITECTURES[name]
    options: dict[str, Any] = {"axis": 1} if name == "revnet" else {}
    channels = 6 // kind.per_layer
    blocks = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3 * kind.per_layer)]
    network = kind(blocks, 0.5, **options)
    x = torch.randn(2, 6, 7, 4, generator=torch.Generator().manual_seed(0))
    y = network(x)
    assert y.shape == x.shape and y.dtype == x.dtype and network.depth == 3
    y.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_increment_passes_the_perturbation(name: str) -> None:
    """Once for each block, in order; where all increments are dropped, features stay."""
    kind = ARCHITECTURES[name]
    calls: list[int] = []

    def drop(increment: Tensor, number: int) -> Tensor:
        calls.append(number)
        return 0 * increment

    dim = DIM // kind.per_layer
    blocks = [TwoLayer.random(dim, 5, seed=k) for k in range(4 * kind.per_layer)]
    assert torch.allclose(kind(blocks, STEP, drop)(POINTS), POINTS, rtol=0, atol=ROUNDING)
    assert calls == list(range(len(blocks)))


def test_a_perturbation_may_be_a_module() -> None:
    """It learns of train and eval."""

    class Halved(nn.Module):
        def forward(self, increment: Tensor, number: int) -> Tensor:
            return increment / 2 if self.training else increment

    network = ResNet([linear(MATRIX)], STEP, Halved())
    assert torch.allclose(2 * (network(POINTS) - POINTS), network.eval()(POINTS) - POINTS, atol=ROUNDING)


@settings(max_examples=20, deadline=None)
@given(
    depth=st.integers(1, 60), step=st.floats(0.01, 0.3), seed=st.integers(0, 10**6), size=st.floats(0.1, 10)
)
def test_revnet_is_inverted_exactly(depth: int, step: float, seed: int, size: float) -> None:
    """Up to rounding, which the layers may enlarge by the Lipschitz constants of forward and inverse."""
    blocks = [TwoLayer.random(3, 6, seed=seed + k) for k in range(2 * depth)]
    x = size * torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        y = RevNet(blocks, step)(x)
        back = RevNet(blocks, step).inverse(y)
        slopes = sum(float(torch.linalg.matrix_norm(b.V @ b.W, 2)) for b in blocks)
    most = 2**-50 * (1 + depth) * max(float(y.abs().max()), size) * np.exp(step * slopes)
    assert float((back - x).abs().max()) <= max(most, 1e-14)


@pytest.mark.parametrize("shared", [False, True], ids=["each its own block", "one block"])
def test_recomputed_gradients_are_the_kept_ones(shared: bool) -> None:
    """Also of blocks in several layers, next to frozen weights, and for points that need none."""
    half = DIM // 2
    blocks = [TwoLayer.random(half, 6, seed=k) for k in range(20)]
    blocks = blocks[:1] * 20 if shared else blocks
    blocks[0].b.requires_grad_(False)
    found = []
    for recompute in (False, True):
        x = POINTS.clone().requires_grad_()
        network = RevNet(blocks, STEP, recompute=recompute)
        network.zero_grad()
        network(x).pow(3).sum().backward()
        network(POINTS).sum().backward()
        gradients = [p.grad for p in network.parameters()]
        assert (gradients[1] is None) and x.grad is not None
        found.append([x.grad, *(g.clone() for g in gradients if g is not None)])
    for kept, again in zip(*found, strict=True):
        assert torch.allclose(kept, again, rtol=1e-12, atol=1e-12)


def test_recomputed_gradients_by_differences() -> None:
    """A block that does not depend on its input gives none."""
    blocks: list[nn.Module] = [TwoLayer.random(2, 3), Field(lambda x, t: torch.full_like(x, t), 0.7)]
    network = RevNet(blocks, STEP, recompute=True)
    assert torch.autograd.gradcheck(network, (POINTS.clone().requires_grad_(),))
    with torch.no_grad():
        assert torch.equal(network(POINTS), RevNet(blocks, STEP)(POINTS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet([]), "0 blocks, expected one or more"),
        (lambda: RevNet([nn.Identity()]), "1 blocks, expected 2 for each layer"),
        (lambda: ResNet([nn.Identity()], 0.0), "not a positive number"),
        (lambda: ResNet([nn.Identity()], float("nan")), "not a positive number"),
        (lambda: ResNet([linear(MATRIX[:2])])(POINTS), r"block 0 makes \(3, 2\) of \(3, 4\)"),
        (lambda: LMResNet([nn.Identity()] * 3, k=[0.1]), r"shape \(1,\), expected 2 finite numbers"),
        (lambda: LMResNet([nn.Identity()] * 3, k=float("inf")), "a value is not finite"),
        (lambda: LMResNeXt([[]]), "no branches"),
        (lambda: RevNet([nn.Identity()] * 2)(POINTS[:, :3]), "3 features, expected an even number"),
        (lambda: RevNet([nn.Identity()] * 2, perturb=lambda x, n: x, recompute=True), "drawn again"),
        (lambda: RevNet.of(ResidualNetwork(2, 4, 4)), "a layer takes 2 blocks"),
        (lambda: TwoLayer(MATRIX, MATRIX[0, :2], MATRIX), r"expected \(m, d\), \(m,\), \(d, m\)"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# ------------------------------------------------------------------ what the experiment stands on


def test_the_field_along_its_flow() -> None:
    """Against central differences, which are off by e^2 and by rounding / e."""
    field, e = SmoothField.random(DIM, 6, 3), 1e-5
    x = POINTS.numpy()
    v, t = field(x, 0.3), 0.3
    differences = (field(x + e * v, t + e) - field(x - e * v, t - e)) / (2 * e)
    assert np.abs(field.along(x, t, v) - differences).max() < 1e-8


def test_the_field_is_its_block_and_its_curve() -> None:
    curve = Curve(2, 0)
    field = SmoothField.through(curve)
    for t in (0.0, 0.13, 0.8, 1.0):
        assert all(np.allclose(a, b, atol=ROUNDING) for a, b in zip(field.weights(t), curve(t), strict=True))
        x = POINTS[:, :2]
        assert np.allclose(field.block(t, 2.0)(x).detach(), 2 * field(x.numpy(), t), atol=ROUNDING)
    assert np.abs(SmoothField.random(3, 5, 0, offset=False)(np.zeros((1, 3)), 0.4)).max() == 0


@pytest.mark.parametrize("k", [-0.5, 0.3, 0.8])
def test_stochastic_depth_by_moments_is_that_of_the_network(k: float) -> None:
    """Mean and second moments of `LMResNet` over all its masks."""
    depth, keep = 6, 0.7
    masks = (torch.arange(2**depth)[:, None] >> torch.arange(depth) & 1).double()
    weights = keep ** masks.sum(1) * (1 - keep) ** (depth - masks.sum(1))
    block = linear(torch.from_numpy(noises.MATRIX))
    network = LMResNet([block] * depth, 1 / depth, Masked(masks / keep), k)
    x = torch.from_numpy(noises.START).expand(len(masks), 2)
    with torch.no_grad():
        states = list(network.layers(x))
    z = torch.cat(states[-1:-3:-1], dim=1)
    exact = LinearChain(k, (1 - keep) / keep).network(depth)
    assert np.allclose(weights @ z, exact.mean, atol=ROUNDING)
    assert np.allclose((weights[:, None] * z).T @ z, exact.second, atol=ROUNDING)


@pytest.mark.parametrize("k", [-0.4, 0.0, 0.5])
def test_increments_vary_as_the_modified_velocity_and_are_correlated_by_k(k: float) -> None:
    """q f f^T / (1 - k^2), and -k between neighbouring layers: both to O(h)."""
    depth, q = 4000, 0.25
    chain = LinearChain(k, q)
    last = chain.network(depth)
    moved = depth * np.hstack([np.eye(2), -np.eye(2)])
    f = noises.MATRIX @ last.mean[:2]
    expected = q * np.outer(f, f) / (1 - k**2)
    size = np.abs(expected).max()
    assert np.abs(last.mapped(moved).covariance - expected).max() < 0.01 * size
    assert np.abs(chain.modified(depth).covariance[2:, 2:] - expected).max() < 0.01 * size
    # d_L = -k d_{L-1} + A x_L (1 + e), where x_L is known to O(h) without d_{L-1}
    next_one = -k * moved + np.hstack([noises.MATRIX, np.zeros((2, 2))])
    neighbours = next_one @ last.covariance @ moved.T
    assert np.abs(neighbours + k * expected).max() < 0.01 * size


def test_paths_of_the_modified_equation_have_its_moments() -> None:
    """Within 4 standard errors and what 16 steps in a layer leave, 2% of the moments' own distance."""
    k, q, depth, paths = 1 / 3, 0.25, 6, 40_000
    chain, rng = LinearChain(k, q), np.random.default_rng(0)
    start = chain.head_start(depth)
    field = noises.MATRIX / (1 + k)
    slow = field @ start - (1 - k) / (1 + k) / (2 * depth) * field @ field @ start
    scheme = Langevin(lambda x, t: x @ noises.MATRIX.T, k, 1 / depth, q, 16)
    begin = (np.tile(z, (paths, 1)) for z in (start, slow))
    end = scheme.run(*begin, lambda: rng.standard_normal((paths, 1)))
    products = (end[:, :, None] * end[:, None, :]).reshape(paths, 4)
    exact = chain.modified(depth).second[:2, :2].ravel()
    error = products.std(axis=0) / np.sqrt(paths)
    assert (np.abs(products.mean(axis=0) - exact) < 4 * error + 2e-3).all()
    # without noise they are far off
    quiet = chain.modified(depth, noisy=False).second[:2, :2].ravel()
    assert (np.abs(products.mean(axis=0) - quiet) > 10 * error).any()


def test_orders_are_fitted_to_the_deepest() -> None:
    depths = [8, 16, 32, 64, 128, 256]
    errors = [9.0, 9.0, *(L**-2.0 for L in depths[2:])]
    assert fitted_order(depths, errors) == pytest.approx(2)
    assert np.isnan(fitted_order(depths, errors[:1]))


# ------------------------------------------------------------------ faults


def failing(part: Part) -> list[str]:
    """Claims of a part, run in its small version, that do not hold."""
    part.run(Memo(), Silent())
    return [claim.claim for claim in part.claims() if not claim.holds]


def broken_layers(change: float) -> Callable[..., Any]:
    """Heun with weights that do not sum to one."""

    def layers(self: FractalNet, x: Tensor) -> Any:
        for k in range(self.depth):
            first = self.increment(k, x)
            x = x + 0.5 * (first + change * self.increment(k, x + first))
            yield x

    return layers


def test_a_wrong_weight_of_a_scheme_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FractalNet, "layers", broken_layers(0.99))
    assert failing(Orders(0, True)) == ["FractalNet: order against x' = f"]


def test_a_missing_head_start_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoStep, "head_start", lambda self, field, points, step: points)
    found = failing(ModifiedEquation(0, True))
    assert len(found) == 2 and all("modified" in claim or "ResNet of" in claim for claim in found)


def test_a_wrong_inertia_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 - k) h in place of (1 - k) h/2."""
    right = TwoStep.modified
    monkeypatch.setattr(TwoStep, "modified", lambda self, f, x, step: right(self, f, x, 2 * step))
    assert failing(ModifiedEquation(0, True)) == ["LM-ResNet, 3 k: farthest order against modified equation"]


def test_a_wrong_strength_of_the_noise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = LinearChain.network
    monkeypatch.setattr(
        LinearChain, "network", lambda self, L: right(LinearChain(self.k, 1.1 * self.variance), L)
    )
    found = failing(StochasticDepth(0, True))
    assert any("modified" in claim for claim in found) and any("ResNet of" in claim for claim in found)


def test_wrong_masks_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept with 0.9 in the network, with 0.8 in the equations."""
    monkeypatch.setattr(expectations, "KEEP", 0.9)
    assert len(failing(Expectations(0, True, "skfem"))) >= 2


def test_rows_have_titles_of_their_own() -> None:
    titles = [row.title for row in rows(0)]
    assert len(set(titles)) == len(titles)
    assert fields.TOLERANCE < 1e-12
