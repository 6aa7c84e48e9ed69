"""Sizes before allocation: refusals with their estimates, and the estimates against what is measured."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hostile import refused, small_case
from problems import problem

from kolmo import ResidualNetwork, cli, memory
from kolmo.errors import InputError
from kolmo.pde import BackwardKolmogorov, ExactRecursion, march
from kolmo.pde.mesh import box_mesh


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_case(tmp_path / "case")


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 2 GiB to spare."""
    monkeypatch.setattr(memory, "available", lambda: 2 * 2**30)


# ------------------------------------------------------------------ sizes before allocation

BIG_CONFIGS = {
    "snapshots": "[network]\nwidth = 4096\ndepth = 400\n[check]\nsnapshots = 1000",
    "steps": "[noiseless]\nsteps = 1000000000",
    "paths": "[stochastic]\npaths = 100000",
    "cells": "[control]\ncells = [4096]\niterations = [2]",
    "test points": "[data]\ntest = 1000000\n[network]\nwidth = 400",
}


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("name", BIG_CONFIGS)
def test_configurations_beyond_memory(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with the estimate and the remedy, before the folder is made."""
    path = tmp_path / "c.toml"
    path.write_text(BIG_CONFIGS[name])
    line = refused(capsys, "reproduce", "--config", path, "--out", tmp_path / "out")
    assert "GiB of memory, 2 GiB are available; take less" in line
    assert not (tmp_path / "out").exists()


def test_a_billion_cells_are_beyond_any_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[control]\ncells = [1000000000]\niterations = [2]")
    assert "cells has 1000000000, expected integers from 2 to 4096" in refused(
        capsys, "reproduce", "--config", path
    )


@pytest.mark.usefixtures("little")
def test_flags_beyond_memory(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, the estimate and the remedy; the output folder is not left behind."""
    arguments = ("evaluate", folder, "--gradient", "--out", tmp_path / "a" / "out", "--backend", "skfem")
    line = refused(capsys, *arguments, "--cells", 1000)
    assert "--cells: 1000 cells a direction in 2-D" in line and "2 GiB are available; take fewer" in line
    assert "--paths: 1000000000000 paths" in refused(capsys, *arguments, "--paths", 10**12)
    assert "exact" in refused(capsys, *arguments, "--estimator", "exact", "--exact-cells", 10**9)
    assert not (tmp_path / "a").exists()


def test_a_refused_evaluation_takes_its_folder_away(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few paths are found out late; the folder was made early."""
    out = tmp_path / "a" / "out"
    arguments = ("evaluate", folder, "--estimator", "chain", "--gradient", "--out", out)
    assert "too few" in refused(capsys, *arguments, "--paths", 1)
    assert not (tmp_path / "a").exists()
    assert cli.main([str(a) for a in (*arguments, "--paths", 64)]) == 0
    assert [p.name for p in out.iterdir()] == ["chain.npz"]


@pytest.mark.usefixtures("little")
def test_the_library_refuses_what_memory_cannot_hold() -> None:
    """Constructors, with the estimate, before they allocate."""
    small = problem(2)
    for make in (
        lambda: box_mesh(3, 1000, 1.0),
        lambda: BackwardKolmogorov(small, cells=2000, backend="skfem"),
        lambda: ExactRecursion(small, cells=20_000),
        lambda: ResidualNetwork(2, 4096, 10_000),
    ):
        with pytest.raises(InputError, match=r"about .* GiB of memory, 2 GiB are available; take fewer"):
            make()
    for width in (float("inf"), float("nan"), 0, -1, 2.5):
        with pytest.raises(InputError, match=r"network\.width"):
            ResidualNetwork(2, width, 4)  # type: ignore[arg-type]


# ------------------------------------------------------------------ the estimates themselves


def test_available_memory_is_plausible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More than this process has, no more than the machine; a container's limit counts."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**26 < memory.available() <= total
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "used").write_text("400000\n")
    monkeypatch.setattr(memory, "_LIMITS", ((str(tmp_path / "max"), str(tmp_path / "used")),))
    assert memory.available() == 600_000
    (tmp_path / "max").write_text("max\n")
    assert memory.available() > 2**26


def within_two(estimate: float, measured: float) -> bool:
    return measured / 2 <= estimate <= 2 * measured


@pytest.mark.parametrize(("dim", "cells"), [(1, 20_000), (2, 200), (3, 30)])
def test_the_mesh_takes_what_was_estimated(dim: int, cells: int) -> None:
    tracemalloc.start()
    box_mesh(dim, cells, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert within_two(memory.mesh(dim, cells), peak), (memory.mesh(dim, cells), peak)


@pytest.mark.parametrize(("dim", "cells"), [(1, 500), (2, 96), (3, 16)])
def test_the_states_take_what_was_estimated(dim: int, cells: int) -> None:
    """What a clipped march keeps: values and marks of every substep."""
    equation = BackwardKolmogorov(problem(dim, depth=8), cells=cells, backend="skfem")
    with torch.no_grad():
        found = equation.coefficients()
        steps = list(
            equation.steps(found.drift.numpy(), found.diffusion.numpy(), equation.problem.network.step)
        )
    march.backward(equation.space, steps, equation.terminal)  # compiles
    tracemalloc.start()
    kept = march.backward(equation.space, steps, equation.terminal)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    estimate = memory.states(len(equation.space.coefficient_points), kept.substeps)
    assert within_two(estimate, size), (estimate, size)


MEASURE = """
import re, sys
import torch
from kolmo.pde import BackwardKolmogorov
sys.path.insert(0, sys.argv[1])
from problems import problem
torch.set_num_threads(1)
# not ru_maxrss: it starts from the parent's
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
given, cells = problem(int(sys.argv[2]), depth=int(sys.argv[4])), int(sys.argv[3])
BackwardKolmogorov(given, cells=8, backend="skfem", half_width=3.0).expected_loss().backward()
before = peak()
equation = BackwardKolmogorov(given, cells=cells, backend="skfem", half_width=3.0)
equation.expected_loss().backward()
print(peak() - before, equation.last.substeps)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "cells", "depth"), [(2, 200, 10), (2, 128, 60), (3, 28, 10)])
def test_an_equation_takes_what_was_estimated(dim: int, cells: int, depth: int) -> None:
    """Space, map, matrices, states and gradient together: the resident set of a process of its own."""
    root = str(Path(__file__).parent)
    command = [sys.executable, "-c", MEASURE, root, str(dim), str(cells), str(depth)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    peak, substeps = (int(word) for word in done.stdout.split())
    estimate = memory.equation(dim, cells, depth, 8, substeps, units=False)
    assert within_two(estimate, peak), (estimate, peak)


def test_the_recursion_takes_what_was_estimated() -> None:
    """Its nodes, splines and dense collocation, with the states of all layers for the gradient."""
    given, cells = problem(2, depth=20), 150
    ExactRecursion(given, cells=10, half_width=3.0).expected_loss()  # compiles
    tracemalloc.start()
    loss = ExactRecursion(given, cells=cells, half_width=3.0).expected_loss()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert float(loss.detach()) > 0
    estimate = memory.recursion(2, cells, given.network.depth)
    assert within_two(estimate, peak), (estimate, peak)
