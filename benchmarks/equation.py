"""The equation's value and gradient: Kolmo's spaces, the exact recursion, dolfinx twice, py-pde."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kolmo.benchmarks.cases import Case
from kolmo.benchmarks.peers import MissingPeerError
from kolmo.benchmarks.peers.pypde import PyPDE
from kolmo.benchmarks.peers.tuned_dolfinx import TunedDolfinx
from kolmo.benchmarks.peers.tutorial_dolfinx import TutorialDolfinx
from kolmo.benchmarks.results import Results
from kolmo.benchmarks.timing import Contender, interleave
from kolmo.pde import BackwardKolmogorov, ExactRecursion, Explicit
from kolmo.pde.backend import BACKENDS
from kolmo.problem import Problem

#: cells that ours may choose from at equal error, and what the tutorial's gradient is computed with
CHOICES = (24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128)
TUTORIAL_STEPS = 2
#: cells of the mesh whose gradient is taken for the true one
FINEST = 256


def box_backend() -> str:
    """'box', or why it is not there."""
    if "box" not in BACKENDS:
        raise MissingPeerError("backend 'box' is not in this version")
    return "box"


def equation(case: Case, backend: str, cells: int | None = None) -> BackwardKolmogorov:
    """The case's equation in the box that all contenders share."""
    if backend == "box":
        box_backend()
    return BackwardKolmogorov(
        case.problem, cells=cells or case.cells, backend=backend, half_width=case.half_width
    )


def ours(
    problem: Problem, estimator: BackwardKolmogorov | ExactRecursion, gradient: bool
) -> Callable[[], float]:
    """What a user calls for J, or for J and its gradient: weights that nobody has seen before every time."""
    parameters = list(problem.network.parameters())

    def call() -> float:
        with torch.no_grad():
            for p in parameters:
                p.grad = None
                p.mul_(1 + 1e-13)  # nothing may be remembered from one call to the next
        if not gradient:
            with torch.no_grad():
                return float(estimator.expected_loss())
        loss = estimator.expected_loss()
        loss.backward()
        return float(loss.detach())

    return call


def exact_on_device(case: Case) -> tuple[Problem, ExactRecursion]:
    """The exact recursion with the weights on an accelerator; raises MissingPeerError where there is none."""
    if not torch.cuda.is_available():
        raise MissingPeerError("open: there is no accelerator, torch sees no CUDA device")
    problem = case.problem.with_network(copy.deepcopy(case.problem.network).cuda())
    return problem, ExactRecursion(problem, cells=case.cells)


def contenders(case: Case, peers: tuple[str, ...]) -> list[Contender]:
    """Everybody who is timed on a case. peers: of the names in `scripts` below, and our 'dolfinx'."""
    problem, found = case.problem, []
    spaces = {"box": "box", "mesh": "skfem"} | ({"dolfinx_space": "dolfinx"} if "dolfinx" in peers else {})
    for gradient, what in ((False, "value"), (True, "gradient")):
        for name, backend in spaces.items():
            found.append(
                Contender(
                    f"{name}_{what}",
                    lambda b=backend, g=gradient: ours(problem, equation(case, b), g),  # type: ignore[misc]
                )
            )
        found.append(
            Contender(
                f"exact_{what}",
                lambda g=gradient: ours(problem, ExactRecursion(problem, cells=case.cells), g),  # type: ignore[misc]
            )
        )
        found.append(
            Contender(f"exact_device_{what}", lambda g=gradient: ours(*exact_on_device(case), g))  # type: ignore[misc]
        )
    solver = "gmres" if case.dim == 3 else "lu"
    scripts: dict[str, Callable[[], Any]] = {
        "tutorial": lambda: TutorialDolfinx(case.task, case.cells, solver).value,
        # what a quadrature of half the degree, which is enough here, makes of the same script
        "tutorial_degree_2": lambda: TutorialDolfinx(case.task, case.cells, solver, degree=2).value,
        "tuned": lambda: TunedDolfinx(case.task, case.cells).value,
        "pypde": lambda: PyPDE(case.task, case.cells).value,
    }
    return found + [
        # dolfinx compiles forms when they are made
        Contender(f"{name}_value", build, prepared=name != "pypde")
        for name, build in scripts.items()
        if name in peers
    ]


def reference(case: Case) -> tuple[float, float]:
    """J by the equation on a fine mesh, and by the exact recursion on a grid of half as many cells again."""
    backend = "box" if "box" in BACKENDS else "skfem"
    fine = BackwardKolmogorov(
        case.problem,
        cells=case.fine,
        backend=backend,
        half_width=case.half_width,
        propagator=Explicit(cap=10**6),  # in 1-D a fine mesh needs many substeps, and they cost nothing
    )
    with torch.no_grad():
        exact = ExactRecursion(case.problem, cells=3 * case.cells // 2).expected_loss()
        return float(fine.expected_loss()), float(exact)


def measure(results: Results, case: Case, peers: tuple[str, ...], share: float) -> None:
    """Time a case and compare every J with its own reference."""
    timings, absent = interleave(contenders(case, peers), share)
    results.add(case.name, timings, absent)
    fine, exact = reference(case)
    results.errors[case.name] = {
        name: t.result - (exact if name.startswith("exact") else fine) for name, t in timings.items()
    }


def plane(results: Results, case: Case, share: float, quick: bool = False, suffix: str = "") -> None:
    """A 2-D case and its ratios, their keys with a suffix."""
    more = () if quick else ("tutorial_degree_2", "pypde", "dolfinx")
    measure(results, case, ("tutorial", "tuned", *more), share)

    def compare(key: str, above: str, below: str) -> None:
        note = (
            f"|J - J_fine|: {results.error(case.name, above)} above, {results.error(case.name, below)} below"
        )
        results.compare(key + suffix, case.name, above, below, note)

    compare("tutorial_value_over_box_gradient", "tutorial_value", "box_gradient")
    compare("tutorial_value_over_mesh_gradient", "tutorial_value", "mesh_gradient")
    compare("tuned_dolfinx_value_over_box_value", "tuned_value", "box_value")
    compare("gradient_over_value", "box_gradient", "box_value")
    compare("mesh_gradient_over_exact_gradient", "mesh_gradient", "exact_gradient")


def cube(results: Results, case: Case, share: float, quick: bool = False) -> None:
    """The 3-D case and its ratio."""
    measure(results, case, ("tutorial", "tuned", *(() if quick else ("tutorial_degree_2",))), share)
    note = (
        f"{case.cells}^3 cells, |J - J_fine|: {results.error(case.name, 'tutorial_value')} above, "
        f"{results.error(case.name, 'box_gradient')} below"
    )
    results.compare("gradient_3d_over_tutorial_3d", case.name, "tutorial_value", "box_gradient", note)


def weights_gradient(problem: Problem) -> np.ndarray:
    """The gradient that a backward pass has left, (L, m d + m + d m): W, b, V of each layer."""
    network: Any = problem.network
    parts = [p.grad.reshape(network.depth, -1) for p in (network.W, network.b, network.V)]
    return torch.cat(parts, dim=1).numpy().copy()


def equal_error(results: Results, case: Case, share: float, finest: int = FINEST) -> None:
    """The tutorial's gradient against ours on the coarsest mesh from which on ours is at least as good."""
    key, name = "tutorial_gradient_over_ours_equal_error", f"{case.name}-gradient"

    def gradient(cells: int) -> np.ndarray:
        ours(case.problem, equation(case, box_backend(), cells), True)()
        return weights_gradient(case.problem)

    tutorial = TutorialDolfinx(case.task, case.cells, steps=TUTORIAL_STEPS)
    fine = gradient(finest)
    errors = {n: _distance(gradient(n), fine) for n in CHOICES if n <= finest // 2}
    theirs = _distance(tutorial.gradient()[1], fine)
    # errors change sign: a mesh counts as good only if all finer ones are
    cells = max(errors)
    for n in sorted(errors, reverse=True):
        if errors[n] > theirs:
            break
        cells = n
    timings, absent = interleave(
        [
            Contender("box_gradient", lambda: ours(case.problem, equation(case, "box", cells), True)),
            Contender("tutorial_gradient", lambda: tutorial.gradient, prepared=True),
        ],
        share,
    )
    results.add(name, timings, absent)
    results.errors[name] = {"box_gradient": errors[cells], "tutorial_gradient": theirs}
    note = (
        f"error of the gradient against {finest} cells: {theirs:.3f} above ({case.cells} cells, "
        f"{TUTORIAL_STEPS} steps a layer), {errors[cells]:.3f} below ({cells} cells)"
    )
    results.compare(key, name, "tutorial_gradient", "box_gradient", note)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
