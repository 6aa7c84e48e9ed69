"""What Kolmo refuses: weights the mesh cannot resolve, noise no box holds, options that do not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PlainNetwork, points, problem, trained_size

import kolmo
from kolmo import noise
from kolmo.errors import (
    DomainError,
    InfeasibleError,
    InputError,
    KolmoError,
    MaximumPrincipleError,
    MissingBackendError,
    NonFiniteError,
    StiffnessError,
)
from kolmo.loss import LeastSquares
from kolmo.modified import Coefficients
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, make_space, resolve
from kolmo.pde.boundary import Taper
from kolmo.pde.domain import audit_domain, choose_half_width

REMEDIES = ("smaller weights", "weights are too large", "more cells", "less noise", "more layers", "implicit")


def scaled(given: kolmo.Problem, factor: float) -> kolmo.Problem:
    """The problem with V and W multiplied by a factor."""
    network = given.network
    assert isinstance(network, kolmo.ResidualNetwork)
    W, b, V = (p.detach() for p in (network.W, network.b, network.V))
    return given.with_network(kolmo.ResidualNetwork.from_weights(factor * W, b, factor * V))


def equation(given: kolmo.Problem, **options: Any) -> BackwardKolmogorov:
    keys: dict[str, Any] = {"cells": 16, "half_width": 3.0, "backend": "skfem", **options}
    return BackwardKolmogorov(given, **keys)


def refusal(given: kolmo.Problem, kind: type[InfeasibleError], **options: Any) -> InfeasibleError:
    """The error of J: one line, of the asked kind, that names a layer or a remedy."""
    with pytest.raises(kind) as caught:
        equation(given, **options).expected_loss()
    text = str(caught.value)
    assert isinstance(caught.value, InfeasibleError) and isinstance(caught.value, KolmoError)
    assert "\n" not in text and len(text) < 300
    assert any(remedy in text for remedy in REMEDIES)
    return caught.value


# ------------------------------------------------------------------ infeasible weights


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_weights_times_thirty_are_too_stiff(backend: str, dim: int) -> None:
    factor = 30 if dim > 1 else 300  # substeps are cheap in 1-D, more of them are allowed
    error = refusal(scaled(problem(dim), factor), StiffnessError, backend=backend)
    assert error.layer is not None and f"layer {error.layer}:" in str(error) and "substeps" in str(error)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("propagator", ["explicit", "implicit"])
@pytest.mark.parametrize("factor", [1e160, 1e200])
def test_weights_beyond_floating_point_are_not_finite(backend: str, factor: float, propagator: str) -> None:
    """The order-2 drift overflows: the coefficients are infinite or NaN, and a point is named."""
    error = refusal(scaled(problem(2), factor), NonFiniteError, backend=backend, propagator=propagator)
    assert "not finite at (" in str(error)


def test_huge_substep_counts_fit_in_a_line() -> None:
    """Weights times 1e100 need 10^199 substeps; the message does not spell them out."""
    refusal(scaled(problem(2), 1e100), StiffnessError)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_an_infinite_rate_is_infeasible() -> None:
    """Finite coefficients whose rate |K| / Ml overflows are refused like any others."""
    given = problem(2, noise.NoNoise())
    assert isinstance(given.network, kolmo.ResidualNetwork)
    with torch.no_grad():
        given.network.V *= 1e308
    refusal(given, InfeasibleError, order=1)


@pytest.mark.parametrize("factor", [1e6, 1e100])
def test_implicit_steps_refuse_what_they_cannot_follow(factor: float) -> None:
    """Huge weights are refused by the implicit steps too: J = min Phi would be a gift to an optimiser."""
    refusal(scaled(problem(2), factor), InfeasibleError, propagator="implicit")


@pytest.mark.parametrize("cells", [8, 16, 32])
@pytest.mark.parametrize("dim", [2, 3])
def test_unresolved_weights_break_the_maximum_principle(backend: str, dim: int, cells: int) -> None:
    """Implicit steps take any stiffness; what the mesh does not resolve then overshoots."""
    given, cells = scaled(problem(dim), 30), cells if dim == 2 else cells // 4 + 2
    error = refusal(given, MaximumPrincipleError, backend=backend, cells=cells, propagator="implicit")
    assert error.layer is not None and f"layer {error.layer}" in str(error) and "%" in str(error)


def test_the_guard_names_the_layer_that_fails() -> None:
    """Only layer 4 is huge: it is the one named, by either guard."""
    given = problem(2)
    assert isinstance(given.network, kolmo.ResidualNetwork)
    with torch.no_grad():
        given.network.V[4] *= 200
    assert refusal(given, StiffnessError).layer == 4
    given = problem(2)
    with torch.no_grad():
        given.network.V[4] *= 300  # type: ignore[index]
    assert refusal(given, MaximumPrincipleError, propagator=Implicit(2)).layer == 4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=40)
@given(
    st.floats(0, 2.5), st.integers(0, 3), st.sampled_from(["explicit", "implicit"]),
    st.sampled_from([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.5)]),
)  # fmt: skip
def test_j_is_bounded_by_the_loss_or_refused(
    exponent: float, seed: int, propagator: str, model: noise.Noise
) -> None:
    """No weights harvest overshoots: with the clip, J is in [min Phi, max Phi] or an InfeasibleError."""
    base = kolmo.Problem(points(2), trained_size(2, depth=3, seed=seed), model)
    solver = equation(scaled(base, 10**exponent), cells=10, propagator=propagator)
    phi = torch.stack([base.loss(torch.from_numpy(solver.space.coefficient_points), y) for y in (0, 1)])
    try:
        value = float(solver.expected_loss().detach())
    except InfeasibleError:
        return  # refused: what `refusal` examines elsewhere
    assert float(phi.min()) - 1e-12 <= value <= float(phi.max()) + 1e-12


def test_mild_weights_are_accepted(backend: str) -> None:
    """The guards refuse the multiples above, not the weights themselves."""
    for propagator in ("explicit", "implicit"):
        solver = equation(problem(2), backend=backend, propagator=propagator)
        assert 0 < float(solver.expected_loss().detach()) < 2
        assert solver.last is not None and solver.last.violation < 0.05


# ------------------------------------------------------------------ the box


def test_noise_that_no_box_holds() -> None:
    """Injection of strength 50: paths leave any box."""
    given = problem(2, noise.GaussianInjection(50.0))
    with pytest.raises(DomainError, match="less noise") as caught:
        BackwardKolmogorov(given, backend="skfem")
    assert isinstance(caught.value, InfeasibleError) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_paths_to_infinity() -> None:
    """An expanding linear block overflows: there is no box either."""
    W = torch.eye(2).expand(40, 2, 2)
    network = kolmo.ResidualNetwork.from_weights(1e5 * W, torch.zeros(40, 2), 1e5 * W, activation="identity")
    with pytest.raises(DomainError, match="infinity"):
        choose_half_width(kolmo.Problem(points(2), network, noise.BernoulliDropout(0.8)))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_box_chosen_holds(dim: int) -> None:
    """The chosen half width passes its audit, is the first of its sequence, and smaller boxes are worse."""
    given = problem(dim, noise.GaussianInjection(0.6))
    chosen = choose_half_width(given)
    start = 1.25 * given.data.radius
    power = np.log(chosen / start) / np.log(1.1)
    assert power >= -1e-12 and power == pytest.approx(round(power), abs=1e-9)
    assert audit_domain(given, chosen).holds
    for k in range(round(power)):
        assert not audit_domain(given, start * 1.1**k).holds
    assert abs(audit_domain(given, 0.6 * start).bias) > abs(audit_domain(given, 2 * chosen).bias)


def test_audit_of_the_box_by_hand() -> None:
    """f = 1, no noise, LeastSquares: x + 1 freely, x_{k+1} = x_k + h chi(x_k) in the box; bias by both."""
    R, depth, x = 2.0, 10, np.array([0.9, 1.2])
    one = torch.ones(depth, 1, 1)
    network = kolmo.ResidualNetwork.from_weights(0 * one, one[:, 0], one, activation="identity")
    cloud = kolmo.Dataset(torch.from_numpy(x[:, None]), torch.tensor([0, 1]))
    audit = audit_domain(kolmo.Problem(cloud, network, noise.NoNoise(), LeastSquares()), R)
    boxed, target = x.copy(), np.array([-1.0, 1.0])
    for _ in range(depth):
        t = np.clip((R - np.abs(boxed)) / (0.2 * R), 0, 1)
        boxed = boxed + 0.1 * t * t * (3 - 2 * t)
    loss = np.mean(0.5 * (x + 1 - target) ** 2)
    assert audit.loss == pytest.approx(loss, rel=1e-12)
    assert audit.bias == pytest.approx(np.mean(0.5 * (boxed - target) ** 2) - loss, rel=1e-12)
    assert audit.bias < -0.01 and not audit.holds


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@given(seed=st.integers(0, 10**6))
def test_taper_is_one_sided(full: bool, seed: int) -> None:
    """Inside 0.8 R and for inward drift nothing changes; at faces b n <= 0 and a n = 0; a stays >= 0."""
    R, rng = 2.0, np.random.default_rng(seed)
    x = rng.uniform(-R, R, (60, 3))
    faces = rng.integers(0, 3, 20)
    x[np.arange(20), faces] = R * rng.choice([-1.0, 1.0], 20)
    root = rng.standard_normal((1, 60, 3, 3))
    a = root @ root.transpose(0, 1, 3, 2) if full else root[..., 0] ** 2
    free = Coefficients(torch.from_numpy(rng.standard_normal((1, 60, 3))), torch.from_numpy(a))
    tapered = Taper(x, R, 0.0)(free)
    b, b_new, a_new = free.drift.numpy(), tapered.drift.numpy(), tapered.diffusion.numpy()
    same = (b * x <= 0) | (np.abs(x) <= 0.8 * R)
    assert np.array_equal(b[same], b_new[same]) and (np.abs(b_new) <= np.abs(b)).all()
    assert (np.abs(b_new)[~same] < np.abs(b)[~same]).all() and (b_new * b >= 0).all()
    inside = (np.abs(x) <= 0.8 * R).all(axis=1)
    assert np.array_equal(a[:, inside], a_new[:, inside])
    for i, face in enumerate(faces):
        assert (b_new * x)[0, i, face] <= 0
        assert np.abs(a_new[0, i, face]).max() == 0
    assert (np.linalg.eigvalsh(a_new) if full else a_new).min() >= -1e-12


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_the_strip_is_damped_and_nothing_else(full: bool) -> None:
    """a_ii += 2 dx |b_i| chi_i (1 - chi_i): zero inside 0.8 R and at the faces, positive between."""
    x = torch.tensor([[0.0, 1.59], [1.8, 0.0], [2.0, -2.0]], dtype=torch.float64)
    free = Coefficients(
        torch.full((1, 3, 2), -0.5), torch.zeros(1, 3, 2, 2) if full else torch.zeros(1, 3, 2)
    )
    added = Taper(x.numpy(), 2.0, 0.1)(Coefficients(free.drift.double(), free.diffusion.double())).diffusion
    if full:
        assert torch.equal(added, torch.diag_embed(added.diagonal(dim1=-2, dim2=-1)))
        added = added.diagonal(dim1=-2, dim2=-1)
    assert added[0, 1, 0] == pytest.approx(2 * 0.1 * 0.5 * 0.25)
    added[0, 1, 0] = 0
    assert not added.any()


def test_data_outside_the_box() -> None:
    with pytest.raises(InputError, match="outside the box"):
        equation(problem(2), half_width=1.0)


# ------------------------------------------------------------------ wrong input


def test_four_dimensions_are_for_the_chain() -> None:
    """d = 4: the equation refuses and names the chain, which works."""
    given = problem(4)
    with pytest.raises(InputError, match="chain") as caught:
        BackwardKolmogorov(given)
    assert "4" in str(caught.value)
    estimate = kolmo.Chain(given).estimate(4000)
    assert 0 < estimate.standard_error < 0.1 * estimate.value and estimate.paths == 4000


def test_order_two_needs_two_derivatives() -> None:
    given = problem(2, activation="relu")
    with pytest.raises(InputError, match=r"order: 2 .* order 1"):
        equation(given)
    with pytest.raises(InputError, match=r"order: 2 .* order 1"):
        equation(given.with_network(PlainNetwork(given.network)))  # type: ignore[arg-type]
    assert float(equation(given, order=1).expected_loss().detach()) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "dolfin"}, ("backend: 'dolfin'", "'dolfinx'")),
        ({"backend": "zzz"}, ("backend: 'zzz'", "skfem")),
        ({"propagator": "explict"}, ("propagator: 'explict'", "'explicit'")),
        ({"propagator": ""}, ("propagator: ''", "implicit")),
        ({"cells": 1}, ("cells: 1",)),
        ({"cells": 0}, ("cells: 0",)),
        ({"cells": 2.5}, ("cells: 2.5",)),
        ({"half_width": 0.0}, ("half_width: 0.0",)),
        ({"half_width": -1.0}, ("half_width: -1.0",)),
        ({"half_width": float("nan")}, ("half_width: nan",)),
        ({"order": 0}, ("order: 0",)),
        ({"order": 3}, ("order: 3",)),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        equation(problem(2), **options)
    text = str(caught.value)
    assert text.startswith(words[0]) and all(word in text for word in words) and "\n" not in text


def test_a_space_of_another_dimension() -> None:
    with pytest.raises(InputError, match="space: 1-dimensional, the problem has 2"):
        BackwardKolmogorov(problem(2), space=make_space("skfem", 1, 8, 3.0))


def test_resolve_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for by name and is absent is an error with the remedy, in one line."""
    assert resolve("skfem") == "skfem"
    monkeypatch.setattr("kolmo.pde.dolfinx_compat.unavailable", lambda: "it is not installed for this Python")
    with pytest.raises(MissingBackendError, match=r"install it .* box") as caught:
        resolve("dolfinx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("paths", [0, -5, 79, float("nan")])
def test_too_few_paths(paths: float) -> None:
    with pytest.raises(InputError, match="paths: "):
        kolmo.Chain(problem(2)).estimate(paths)  # type: ignore[arg-type]


def test_data_and_network_have_to_match() -> None:
    with pytest.raises(InputError, match="data have 3 features, the network takes 2"):
        kolmo.Problem(points(3), trained_size(2))


def test_messages_of_explicit_steps_name_the_remedy() -> None:
    """Every remedy the stiffness message offers does mend it."""
    given = problem(2, noise.GaussianInjection(1.0), depth=4)
    cap = Explicit(cap=8)
    text = str(refusal(given, StiffnessError, cells=24, propagator=cap))
    for words, options in [
        ("implicit", {"cells": 24, "propagator": "implicit"}),
        ("fewer cells", {"cells": 8, "propagator": cap}),
    ]:
        assert words in text
        assert float(equation(given, **options).expected_loss().detach()) > 0
    quiet = problem(2, noise.GaussianInjection(0.1), depth=4)
    assert "less noise" in text
    assert float(equation(quiet, cells=24, propagator=cap).expected_loss().detach()) > 0
