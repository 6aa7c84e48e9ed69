"""The gradient of J: Taylor tests, duality, backends and processes compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import fitted_order, perturbed_mesh, problem, trained_size
from torch import Tensor

from kolmo import noise
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, Propagator, space_on

CELLS = {1: 64, 2: 24, 3: 8}
HALF_WIDTH = 3.0
NOISES = {
    "none": noise.NoNoise(),
    "dropout": noise.BernoulliDropout(0.8),
    "injection": noise.GaussianInjection(0.3),
}


def equation_of(
    dim: int,
    model: str = "dropout",
    propagator: Propagator | str = "explicit",
    backend: str = "skfem",
    **options: Any,
) -> BackwardKolmogorov:
    """A network of trained size on moons (an interval, moons with a third feature)."""
    keys: dict[str, Any] = {"cells": CELLS[dim], "half_width": HALF_WIDTH, "limit": False, **options}
    return BackwardKolmogorov(problem(dim, NOISES[model]), propagator=propagator, backend=backend, **keys)


def gradient(equation: BackwardKolmogorov) -> tuple[float, list[Tensor]]:
    """J and its derivative by W, b and V."""
    loss = equation.expected_loss()
    return float(loss.detach()), list(torch.autograd.grad(loss, list(equation.problem.network.parameters())))


def direction(equation: BackwardKolmogorov, seed: int = 2) -> list[Tensor]:
    """A random direction in the weights, of the weights' own norm."""
    generator = torch.Generator().manual_seed(seed)
    weights = [p.detach() for p in equation.problem.network.parameters()]
    random = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    scale = sum(float(p.square().sum()) for p in weights) / sum(float(r.square().sum()) for r in random)
    return [r * scale**0.5 for r in random]


@torch.no_grad()
def along(equation: BackwardKolmogorov, step: list[Tensor], size: float) -> float:
    """J at weights + size * step."""
    weights = list(equation.problem.network.parameters())
    saved = [p.clone() for p in weights]
    for p, s in zip(weights, step, strict=True):
        p.add_(s, alpha=size)
    try:
        return float(equation.expected_loss())
    finally:
        for p, s in zip(weights, saved, strict=True):
            p.copy_(s)


def remainders(equation: BackwardKolmogorov, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|J(e) - J(0)| and |J(e) - J(0) - e dJ| in a random direction."""
    step = direction(equation)
    start, parts = gradient(equation)
    slope = sum(float(torch.vdot(g.ravel(), s.ravel())) for g, s in zip(parts, step, strict=True))
    change = np.array([along(equation, step, e) - start for e in sizes])
    return np.abs(change), np.abs(change - slope * sizes)


# ------------------------------------------------------------------ the gradient of J


@pytest.mark.parametrize("propagator", [Explicit(substeps=3), Implicit(2)], ids=["explicit", "implicit"])
@pytest.mark.parametrize("model", list(NOISES))
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_taylor_remainders(dim: int, model: str, propagator: Propagator) -> None:
    """In a random direction of the weights |J(e) - J| = O(e) and |J(e) - J - e dJ| = O(e^2)."""
    equation = equation_of(dim, model, propagator)
    sizes = 0.001 * 0.5 ** np.arange(5)
    zeroth, first = remainders(equation, sizes)
    assert equation.last is not None and equation.last.clipped == 0
    assert fitted_order(sizes, zeroth) == pytest.approx(1, abs=0.05)
    assert fitted_order(sizes, first) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("order", [1, 2])
def test_taylor_remainders_with_the_substeps_it_chooses(backend: str, order: int) -> None:
    """The same with the default propagator, both orders of the equation and both backends."""
    equation = equation_of(2, "injection", backend=backend, order=order)
    sizes = 0.001 * 0.5 ** np.arange(5)
    counts = set()
    for size in (0.0, sizes[0]):
        along(equation, direction(equation), size)
        assert equation.last is not None
        counts.add(equation.last.substeps)
    assert len(counts) == 1, "the number of substeps changes along the way: choose other sizes"
    zeroth, first = remainders(equation, sizes)
    assert fitted_order(sizes, zeroth) == pytest.approx(1, abs=0.05)
    assert fitted_order(sizes, first) == pytest.approx(2, abs=0.05)


def test_adjoint_masks_what_the_clip_cut() -> None:
    """Where the clip is active and cuts the same entries, J is smooth and its gradient exact."""
    equation = equation_of(2, "dropout", Explicit(substeps=4), cells=14, limit=True)
    step = direction(equation)
    sizes = 1e-4 * 0.5 ** np.arange(5)

    def masks(size: float) -> list[np.ndarray | None]:
        along(equation, step, size)
        assert equation.last is not None
        return [m for layer in equation.last.kept for m in layer]

    before = masks(0)
    clipped = sum(int((~m).sum()) for m in before if m is not None)
    assert clipped > 0
    for size in sizes:
        for old, new in zip(before, masks(size), strict=True):
            assert (old is None) == (new is None)
            assert old is None or new is None or np.array_equal(old, new)
    zeroth, first = remainders(equation, sizes)
    assert fitted_order(sizes, zeroth) == pytest.approx(1, abs=0.05)
    assert fitted_order(sizes, first) == pytest.approx(2, abs=0.05)
    limited, free = gradient(equation), gradient(equation_of(2, "dropout", Explicit(substeps=4), cells=14))
    assert limited[0] != free[0]
    assert any((a - b).abs().max() > 1e-9 for a, b in zip(limited[1], free[1], strict=True))


def test_other_weights_and_repeated_calls() -> None:
    """expected_loss(network) is J of that network; a second call and a scaled loss give the same gradient."""
    equation = equation_of(2)
    other = trained_size(2, seed=9)
    moved = BackwardKolmogorov(equation.problem.with_network(other), space=equation.space, limit=False)
    first, second = equation.expected_loss(other), moved.expected_loss()
    assert float(first.detach()) == float(second.detach())
    once = torch.autograd.grad(first, list(other.parameters()))
    scaled = torch.autograd.grad(-3 * second, list(other.parameters()))
    for a, b in zip(once, scaled, strict=True):
        assert torch.allclose(-3 * a, b, rtol=1e-12, atol=1e-15)


def test_evaluating_layers_again_gives_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers in small ranges, kept or evaluated again in the backward pass: one J, one gradient."""
    equation = equation_of(2, "injection")
    value, parts = gradient(equation)
    for limit in (10**9, 0):
        monkeypatch.setattr("kolmo.pde.coefficients._STORED_VALUES", limit)
        monkeypatch.setattr("kolmo.pde.coefficients._CACHE_VALUES", 1)
        again, others = gradient(equation)
        assert again == pytest.approx(value, rel=1e-14)
        for a, b in zip(parts, others, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-16)


# ------------------------------------------------------------------ duality


@pytest.mark.parametrize("propagator", [Explicit(), Implicit()], ids=["explicit", "implicit"])
@pytest.mark.parametrize("model", list(NOISES))
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_duality_and_mass(dim: int, model: str, propagator: Propagator) -> None:
    """sum_y <u_y(t), rho_y(t)> = J and 1^T rho_y(t) = share of class y, for every t."""
    equation = equation_of(dim, model, propagator)
    solution = equation.solve()
    with torch.no_grad():
        value = float(equation.expected_loss())
    assert equation.last is not None and equation.last.clipped == 0
    depth = equation.problem.network.depth
    assert solution.times.shape == (depth + 1,) and solution.times[-1] == pytest.approx(1)
    assert solution.value.shape == solution.density.shape == (depth + 1, len(solution.points), 2)
    assert np.abs(solution.duality / value - 1).max() < 1e-12
    labels = equation.problem.data.labels.double()
    shares = np.array([1 - labels.mean(), labels.mean()])
    assert np.abs(solution.density.sum(axis=1) - shares).max() < 1e-12
    assert np.abs(solution.value[0] - solution.value[-1]).max() > 1e-3  # and u does move
    terminal = equation.problem.loss(torch.from_numpy(solution.points), 1).numpy()
    assert np.array_equal(solution.value[-1][:, 1], terminal)


def test_duality_with_the_clip_is_bounded_by_what_it_cuts() -> None:
    """A clip of u from below raises <u, rho>, from above lowers it: J and <u(T), rho(T)> then differ."""
    equation = equation_of(2, "dropout", Explicit(), cells=14, limit=True)
    solution = equation.solve()
    assert equation.last is not None and equation.last.clipped > 0
    assert np.ptp(solution.duality) > 1e-9
    phi = solution.value[-1]
    assert (solution.value >= phi.min(axis=0)).all() and (solution.value <= phi.max(axis=0)).all()


# ------------------------------------------------------------------ backends and processes


@pytest.mark.usefixtures("dolfinx")
@pytest.mark.parametrize("model", ["dropout", "injection"])
@pytest.mark.parametrize("propagator", [Explicit(), Implicit()], ids=["explicit", "implicit"])
@pytest.mark.parametrize("kind", ["kuhn", "perturbed"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_backends_agree(dim: int, kind: str, propagator: Propagator, model: str) -> None:
    """One mesh, two libraries: the same J and gradient to 1e-10."""
    cells = {1: 40, 2: 16, 3: 6}[dim]
    found = []
    for backend in ("skfem", "dolfinx"):
        mesh = perturbed_mesh(dim, cells, HALF_WIDTH) if kind == "perturbed" else None
        options = {"space": space_on(backend, mesh)} if mesh is not None else {"cells": cells}
        equation = equation_of(dim, model, propagator, backend, **options)
        assert equation.space.backend == backend
        found.append(gradient(equation))
    (ours, g), (theirs, e) = found
    assert theirs == pytest.approx(ours, rel=1e-10)
    for a, b in zip(g, e, strict=True):
        assert (a - b).abs().max() < 1e-10 * a.abs().max()


@pytest.mark.usefixtures("dolfinx")
def test_two_processes_give_the_serial_result(tmp_path: Path) -> None:
    """mpirun -n 2: J to 1e-10, gradient to 1e-8, the same on both processes."""
    import mpi_worker

    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("no mpirun")
    vendor = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    options = (
        ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in vendor or "OpenRTE" in vendor else []
    )
    output = tmp_path / "two.npz"
    # mpi4py here has started MPI by itself: its variables would make the child a member of that run
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    done = subprocess.run(
        [mpirun, *options, "-n", "2", sys.executable, mpi_worker.__file__, str(output)],
        capture_output=True, text=True, timeout=240, env=clean | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    serial = mpi_worker.results()
    with np.load(output) as parallel:
        for key, value in serial.items():
            if key.endswith(".processes"):
                assert value == 1 and parallel[key] == 2
            elif key.endswith(".J"):
                assert parallel[key] == pytest.approx(value, rel=1e-10), key
            else:
                assert np.abs(parallel[key] - value).max() < 1e-8 * np.abs(value).max(), key
