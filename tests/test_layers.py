"""Imports point one way: experiments -> control -> pde -> core. Read from the sources, nothing is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from problems import ROOT

CORE = (
    "network", "noise", "activation", "modified", "loss", "data", "problem", "chain", "training", "penalty",
    "device", "errors", "text", "stream", "philox", "sde", "brownian", "consistency", "explicit",
    "checkpoint", "files", "memory", "reading", "validity", "weights",
)  # fmt: skip
#: a folder's sources -> the packages it must know nothing of
RULES: list[tuple[str, list[Path], tuple[str, ...]]] = [
    (
        "core",
        [
            p
            for n in CORE
            for p in (ROOT / "kolmo" / f"{n}.py", *(ROOT / "kolmo" / n).glob("**/*.py"))
            if p.is_file()
        ],
        ("kolmo.pde", "kolmo.control", "kolmo.experiments", "kolmo.cli", "kolmo.verify"),
    ),
    (
        "pde",
        sorted((ROOT / "pde").glob("**/*.py")),
        ("kolmo.control", "kolmo.experiments", "kolmo.cli", "kolmo.verify"),
    ),
    (
        "control",
        sorted((ROOT / "control").glob("**/*.py")),
        ("kolmo.experiments", "kolmo.cli", "kolmo.verify"),
    ),
]


def package_of(path: Path) -> str:
    """The package that relative imports of a file start from."""
    relative = path.relative_to(ROOT)
    parts = list(relative.parent.parts)
    return ".".join(parts if parts[0] == "kolmo" else ["kolmo", *parts])


def imported(source: str, package: str) -> set[str]:
    """Every module or name that a source imports or reaches through `kolmo.`, absolute."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kolmo"
        ):
            found.add(f"kolmo.{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module", "__import__",
        ):  # fmt: skip
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def breaches(names: set[str], forbidden: tuple[str, ...]) -> set[str]:
    return {n for n in names for f in forbidden if n == f or n.startswith(f + ".")}


@pytest.mark.parametrize(("sources", "forbidden"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_imports_point_one_way(sources: list[Path], forbidden: tuple[str, ...]) -> None:
    assert sources
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sources
        if (found := breaches(imported(path.read_text(encoding="utf-8"), package_of(path)), forbidden))
    }
    assert not wrong


def test_meshes_know_nothing_of_networks() -> None:
    """Spaces, propagators and the march see values of b and a only: no torch, no network, no noise."""
    forbidden = ("torch", "kolmo.network", "kolmo.noise", "kolmo.modified", "kolmo.chain", "kolmo.problem")
    names = (
        "mesh",
        "space",
        "mapped",
        "skfem_space",
        "dolfinx_space",
        "dolfinx_compat",
        "propagator",
        "march",
    )
    for name in names:
        path = ROOT / "pde" / f"{name}.py"
        assert not breaches(imported(path.read_text(encoding="utf-8"), "kolmo.pde"), forbidden), name


@pytest.mark.parametrize(
    "source",
    [
        "import kolmo.pde", "from kolmo import pde", "from kolmo.pde import Space", "import kolmo.pde as p",
        "from kolmo.pde.mesh import Mesh", "def f():\n    from kolmo import pde",
        "import kolmo\nx = kolmo.pde", "from . import pde", "from .pde import x",
        "import importlib\nimportlib.import_module('kolmo.pde')", "import kolmo.pde.mesh as m",
    ],
)  # fmt: skip
def test_a_breach_is_seen(source: str) -> None:
    """The reader of imports finds every way of importing what is forbidden."""
    assert breaches(imported(source, "kolmo"), ("kolmo.pde",))


def test_a_good_import_is_no_breach() -> None:
    assert not breaches(imported("from kolmo.penalty import p\nimport kolmo", "kolmo"), ("kolmo.pde",))
