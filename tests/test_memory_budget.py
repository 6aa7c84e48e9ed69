"""A budget for the adjoint: the same J and gradient, within the bytes, by no more marching than promised."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_schedules import optimal_steps_binomial
from problems import points, problem, trained_size
from test_layer_guards import Ripples
from torch import Tensor

import kolmo
from kolmo import memory, noise
from kolmo.errors import InputError, MaximumPrincipleError, PecletError
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, Propagator, march
from kolmo.pde.box_space import BoxSpace
from kolmo.pde.checkpointed import Checkpointed, Plan, plan, record_size
from kolmo.pde.mapped import MappedSpace
from kolmo.pde.pool import Pool
from kolmo.pde.space import Steps

DEPTH, SUBSTEPS = 7, 4
#: coarse enough for the clip to cut
CELLS = {1: 8, 2: 14}


def equation_of(
    dim: int, backend: str, propagator: Propagator | None = None, cells: int | None = None, **keys: Any
) -> BackwardKolmogorov:
    scheme = Explicit(substeps=SUBSTEPS) if propagator is None else propagator
    return BackwardKolmogorov(
        problem(dim, noise.BernoulliDropout(0.8), depth=DEPTH),
        cells=CELLS[dim] if cells is None else cells,
        half_width=3.0,
        backend=backend,
        propagator=scheme,
        **keys,
    )


def gradient(equation: BackwardKolmogorov) -> tuple[float, list[Tensor]]:
    """J and its derivative by W, b and V."""
    loss = equation.expected_loss()
    return float(loss.detach()), list(torch.autograd.grad(loss, list(equation.problem.network.parameters())))


def prepared(equation: BackwardKolmogorov) -> tuple[Sequence[Steps], int]:
    """The layers' substeps, and what one of them records."""
    with torch.no_grad():
        found = equation.coefficients()
    steps = equation.steps(found.drift.numpy(), found.diffusion.numpy(), equation.problem.network.step)
    return steps, record_size(steps[0], equation.terminal)


def budgets(equation: BackwardKolmogorov) -> dict[str, int]:
    """The least that each way takes: records, states, snapshots of all layers (and records), a few, one."""
    steps, record = prepared(equation)
    state, marks = equation.terminal.nbytes, equation.terminal.size
    total, most = sum(s.count for s in steps), max(s.count for s in steps)
    layer = most * (state + marks) + 2 * state
    return {
        "records": total * (record + marks) + (DEPTH + 1) * state,
        "states": total * (state + marks) + state,
        "all layers": (DEPTH - 1) * state + layer,
        "three": 3 * state + layer,
        "one": state + layer,
    }


def planned(equation: BackwardKolmogorov, budget: float) -> Plan:
    steps, record = prepared(equation)
    return plan(equation.space, [s.count for s in steps], equation.terminal, record, budget, "budget")


def same(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]]) -> None:
    """J and gradients to 1e-12 relative."""
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    for a, b in zip(found[1], expected[1], strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * float(b.abs().max())


# ------------------------------------------------------------------ the same J and gradient


@pytest.mark.parametrize("scheme", ["explicit", "implicit"])
@pytest.mark.parametrize("backend", ["box", "skfem"])
@pytest.mark.parametrize("dim", [1, 2])
def test_every_budget_gives_the_same_gradient(dim: int, backend: str, scheme: str) -> None:
    """Records, states, and snapshots of all layers, of some, of one; with the clip at work."""

    def make(budget: float | None) -> BackwardKolmogorov:
        propagator = Explicit(substeps=SUBSTEPS) if scheme == "explicit" else Implicit(SUBSTEPS)
        return equation_of(dim, backend, propagator, budget=budget)

    plain = make(None)
    expected = gradient(plain)
    assert isinstance(plain.last, march.Trajectory) and plain.last.clipped > 0
    for name, budget in budgets(plain).items():
        equation = make(budget)
        same(gradient(equation), expected)
        assert equation.last is not None
        assert isinstance(equation.last, Checkpointed) == (name not in ("records", "states"))
        for inspected in ("substeps", "clipped", "violation"):
            assert getattr(equation.last, inspected) == getattr(plain.last, inspected)
        assert np.array_equal(equation.last.initial, plain.last.initial)


@pytest.mark.parametrize("limit", [True, False])
def test_full_diffusion_and_the_substeps_it_chooses(limit: bool) -> None:
    """Layers of different counts; injected noise; with and without the clip."""
    model = noise.GaussianInjection(0.3)

    def make(budget: float | None) -> BackwardKolmogorov:
        given = problem(2, model, depth=DEPTH)
        return BackwardKolmogorov(given, cells=40, half_width=3.0, backend="box", limit=limit, budget=budget)

    expected = gradient(make(None))
    steps, _ = prepared(make(None))
    assert len({s.count for s in steps}) > 1
    for name, budget in budgets(make(None)).items():
        assert planned(make(None), budget).snapshots == {
            "records": None, "states": None, "all layers": DEPTH - 1, "three": 3, "one": 1,
        }[name]  # fmt: skip
        same(gradient(make(budget)), expected)


def test_the_gradient_can_be_asked_for_twice() -> None:
    """The snapshots are used up by then: it marches for them again."""
    equation = equation_of(2, "box")
    expected = gradient(equation)
    equation = equation_of(2, "box", budget=budgets(equation)["one"])
    weights = list(equation.problem.network.parameters())
    loss = equation.expected_loss()
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(-3 * loss, weights)
    same((expected[0], list(first)), expected)
    for a, b in zip(first, second, strict=True):
        assert float((b + 3 * a).abs().max()) <= 1e-12 * float(b.abs().max())


def test_one_layer_needs_no_snapshot() -> None:
    given = problem(2, depth=1)
    keys: dict[str, Any] = {"cells": 14, "half_width": 3.0, "backend": "box"}
    plain = BackwardKolmogorov(given, propagator=Explicit(substeps=SUBSTEPS), **keys)
    state, marks = plain.terminal.nbytes, plain.terminal.size
    keys["propagator"] = plain.propagator
    tight = SUBSTEPS * (state + marks) + state
    same(gradient(BackwardKolmogorov(given, budget=tight, **keys)), gradient(plain))
    with pytest.raises(InputError, match="1 layers of up to 4 substeps"):
        BackwardKolmogorov(given, budget=tight - 1, **keys).expected_loss()
    steps, _ = prepared(plain)
    marched = Checkpointed(plain.space, steps, plain.terminal, Plan(0, False, 0))
    marched.adjoint(plain.initial, lambda *_: None)
    assert marched.replayed == 0


def test_a_value_needs_no_budget() -> None:
    """Without a gradient nothing has to be kept: what fits is, for inspection."""
    plain = equation_of(2, "skfem")
    small = equation_of(2, "skfem", budget=1)
    with torch.no_grad():
        assert float(small.expected_loss()) == float(plain.expected_loss())
    assert isinstance(plain.last, march.Trajectory) and type(small.last) is march.March
    assert small.last.clipped == plain.last.clipped > 0
    assert np.abs(small.solve().value - plain.solve().value).max() == 0


def test_available_memory_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it may be kept; what does not fit is computed again."""
    equation = equation_of(2, "box")
    expected, limits = gradient(equation), budgets(equation)
    monkeypatch.setattr(memory, "lately_available", lambda: 2 * limits["three"])
    same(gradient(equation), expected)
    assert isinstance(equation.last, Checkpointed)
    monkeypatch.setattr(memory, "lately_available", lambda: 100)
    with pytest.raises(InputError, match=r"^cells: the adjoint of 7 layers"):
        equation.expected_loss()


# ------------------------------------------------------------------ what is kept, and marched again


@pytest.mark.parametrize("backend", ["box", "skfem"])
@pytest.mark.parametrize("snapshots", range(1, DEPTH))
def test_layers_marched_again_are_those_of_the_schedule(backend: str, snapshots: int) -> None:
    """The binomial number of layers; states and marks no more than planned, counted one by one."""
    equation = equation_of(2, backend)
    steps, _ = prepared(equation)
    state, marks = equation.terminal.nbytes, equation.terminal.size
    needed = snapshots * state + SUBSTEPS * (state + marks) + 2 * state
    found = planned(equation, needed)
    assert found == Plan(snapshots, False, needed)
    marched = Checkpointed(equation.space, steps, equation.terminal, found)
    assert marched.replayed == 0 and marched.clipped > 0
    layers: list[int] = []
    marched.adjoint(equation.initial, lambda layer, _: layers.append(layer))
    assert layers == list(range(DEPTH))
    assert marched.replayed == optimal_steps_binomial(DEPTH, snapshots) - DEPTH
    assert 0.8 * needed < marched.peak <= needed


@pytest.mark.parametrize("name", ["records", "states", "all layers", "three", "one"])
@pytest.mark.parametrize("backend", ["box", "skfem"])
def test_memory_that_is_really_taken(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes allocated when a substep of the march or of its adjoint begins, the density and dJ/dK apart."""
    equation = equation_of(2, backend, cells=48)
    budget = budgets(equation)[name]
    steps = list(prepared(equation)[0])
    found = planned(equation, budget)
    held: list[int] = []

    def watched(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            held.append(tracemalloc.get_traced_memory()[0])
            return right(*arguments)

        return wrapped

    def there_and_back() -> None:
        if found.snapshots is None:
            trajectory = march.backward(equation.space, steps, equation.terminal, record=found.record)
            march.adjoint(trajectory, equation.initial, lambda *_: None)
        else:
            marched = Checkpointed(equation.space, steps, equation.terminal, found)
            marched.adjoint(equation.initial, lambda *_: None)

    there_and_back()  # compiles, and transposes the matrices
    for method in ("backward", "record", "adjoint"):
        monkeypatch.setattr(type(steps[0]), method, watched(getattr(type(steps[0]), method)))
    assert isinstance(equation.space, (BoxSpace, MappedSpace))
    equation.space.pool = Pool()  # what is lent again is not allocated again
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        there_and_back()
    finally:
        tracemalloc.stop()
    state = equation.terminal.nbytes
    # two densities, three dJ/dK of seven entries a node, a substep's stages (two where they are not wanted,
    # four where they are) and the weights of its adjoint (four), five states on their way, objects
    apart = 2 * state + 3 * 7 * state // 2 + 15 * state + 50_000
    assert max(held) - before <= budget + apart
    if found.snapshots is None:  # and the budget is no exaggeration
        assert max(held) - before >= 0.8 * budget


def test_four_states_a_substep_hold_the_adjoint() -> None:
    """At n = 64 and 20 layers, 5 MB times their substeps: no layer is marched again."""
    given = problem(2, depth=20, width=16)
    keys: dict[str, Any] = {"cells": 64, "half_width": 3.0, "backend": "box"}
    steps, _ = prepared(BackwardKolmogorov(given, **keys))
    equation = BackwardKolmogorov(given, budget=5e6 * sum(s.count for s in steps) / len(steps), **keys)
    gradient(equation)
    assert isinstance(equation.last, march.Trajectory)


# ------------------------------------------------------------------ refusals


def test_budgets_too_small_are_refused() -> None:
    """One line: the budget, what it is for, what would do."""
    plain = equation_of(2, "box")
    least = budgets(plain)["one"]
    gradient(equation_of(2, "box", budget=least))
    equation = equation_of(2, "box", budget=least - 1)
    with pytest.raises(InputError, match=r"^budget: the adjoint of 7 layers of up to 4 substeps .* at least"):
        equation.expected_loss()
    assert equation.last is None
    for budget in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"budget: .* is not a positive number of bytes"):
            equation_of(2, "box", budget=budget)


def huge_layer() -> kolmo.Problem:
    """Layer 4 overshoots."""
    given = problem(2, depth=DEPTH)
    assert isinstance(given.network, kolmo.ResidualNetwork)
    with torch.no_grad():
        given.network.V[4] *= 300
    return given


def rippled() -> kolmo.Problem:
    """A value function that alternates from node to node of a mesh of 24 cells."""
    return kolmo.Problem(points(2), trained_size(2, DEPTH, std=0.05), noise.NoNoise(), Ripples(6.0 / 24))


@pytest.mark.parametrize("adjoint", [True, False])
@pytest.mark.parametrize(
    ("make", "error"), [(huge_layer, MaximumPrincipleError), (rippled, PecletError)], ids=["huge", "rippled"]
)
def test_guards_say_the_same(
    make: Callable[[], kolmo.Problem], error: type[Exception], adjoint: bool
) -> None:
    """Marched with all states or within a budget: the same error, naming the same layer."""
    words, given = [], make()
    for budget in (None, 60_000 if adjoint else 1):
        equation = BackwardKolmogorov(
            given, cells=24, half_width=3.0, backend="box", propagator=Implicit(2), budget=budget
        )
        with torch.set_grad_enabled(adjoint), pytest.raises(error) as found:
            equation.expected_loss()
        words.append(str(found.value))
    assert words[0] == words[1] and words[0].startswith("layer ")
    kept = planned(equation_of(2, "box", Implicit(2), cells=24), 60_000)
    assert kept.snapshots is not None
