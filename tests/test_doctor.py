"""The doctor speaks of every part, names a command for every missing one, and never raises."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kolmo
from kolmo import doctor
from kolmo.pde import dolfinx_compat

PARTS = [
    "kolmo", "python", "skfem", "numba", "torchsde", "dolfinx", "mpi", "petsc", "torch", "cuda", "extras",
    "memory", "cores", "compiler",
]  # fmt: skip


def hide_commands(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Makes shutil.which find none of these."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in hidden else which(name))


def hide_module(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Makes importing a module fail."""
    monkeypatch.setitem(sys.modules, hidden, None)


def missing(name: str) -> dict[str, Any]:
    (entry,) = [m for m in doctor.report()["missing"] if m["what"] == name]
    return entry


def test_report_is_json_with_every_part() -> None:
    report = doctor.report()
    assert list(report) == [*PARTS, "missing"]
    assert json.loads(json.dumps(report)) == report
    assert report["kolmo"]["version"] == kolmo.__version__
    assert report["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert report["skfem"]["version"][0].isdigit()
    assert 0 < report["memory"]["available"] <= report["memory"]["total"]
    assert 0 < report["cores"]["usable"] <= report["cores"]["present"]


def test_every_part_has_its_line() -> None:
    report = doctor.report()
    shown = doctor.lines(report)
    assert [line.split()[0] for line in shown[: len(PARTS)]] == PARTS
    assert len(shown) == len(PARTS) + max(1, len(report["missing"]))
    assert all("\n" not in line for line in shown)


def test_dolfinx_agrees_with_the_backend() -> None:
    part = doctor.report()["dolfinx"]
    assert part.get("error") == dolfinx_compat.unavailable()


def test_missing_dolfinx_on_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dolfinx_compat, "unavailable", lambda: "it is not installed for this Python")
    monkeypatch.setattr(doctor, "_DEBIAN_PACKAGES", tmp_path)
    monkeypatch.setattr(doctor, "_DEBIAN_PYTHON", Path(sys.executable))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    entry = missing("dolfinx")
    assert entry["why"] == "it is not installed for this Python"
    assert entry["mend"] == "apt-get install python3-dolfinx-real"
    assert any(entry["mend"] in line and "dolfinx" in line for line in doctor.lines(doctor.report()))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "_DEBIAN_PYTHON", tmp_path / "python3")
    assert missing("dolfinx")["mend"] == "sudo apt-get install python3-dolfinx-real && scripts/setup"


def test_missing_dolfinx_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dolfinx_compat, "unavailable", lambda: "it is not installed for this Python")
    monkeypatch.setattr(doctor, "_DEBIAN_PACKAGES", tmp_path)
    hide_commands(monkeypatch, "apt-get")
    assert missing("dolfinx")["mend"] == "conda install -c conda-forge fenics-dolfinx"


def test_dolfinx_of_another_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's interpreter has it, this one has not: use that one."""
    (tmp_path / "dolfinx.pth").touch()
    monkeypatch.setattr(doctor, "_DEBIAN_PACKAGES", tmp_path)
    monkeypatch.setattr(doctor, "_DEBIAN_PYTHON", tmp_path / "python3")
    monkeypatch.setattr(dolfinx_compat, "unavailable", lambda: "it is not installed for this Python")
    assert missing("dolfinx")["mend"] == f"KOLMO_PYTHON={tmp_path / 'python3'} scripts/setup"


def test_dolfinx_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dolfinx_compat, "unavailable", lambda: "version 0.3.0 is older than 0.5")
    assert missing("dolfinx")["mend"] == "conda install -c conda-forge fenics-dolfinx"


def test_dolfinx_without_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "importing it failed (ModuleNotFoundError: No module named 'pkg_resources')"
    monkeypatch.setattr(dolfinx_compat, "unavailable", lambda: reason)
    assert missing("dolfinx")["mend"].endswith("-m pip install 'setuptools<80.9'")


@pytest.mark.parametrize(
    ("module", "part", "mend"),
    [
        ("skfem", "skfem", "pip install 'scikit-fem>=10'"),
        ("numba", "numba", "pip install 'numba>=0.59'"),
        ("torchsde", "torchsde", "pip install 'torchsde>=0.2.6'"),
        ("mpi4py", "mpi", "conda install -c conda-forge mpi4py openmpi"),
        ("petsc4py", "petsc", "conda install -c conda-forge petsc4py"),
        ("torch", "torch", "pip install torch"),
    ],
)
def test_missing_library(monkeypatch: pytest.MonkeyPatch, module: str, part: str, mend: str) -> None:
    hide_module(monkeypatch, module)
    hide_commands(monkeypatch, "apt-get")
    monkeypatch.setattr(doctor, "_DEBIAN_PYTHON", Path(sys.executable))
    entry = missing(part)
    assert module in entry["why"]
    assert mend in entry["mend"]
    assert entry["needed"] == (part in ("skfem", "numba", "torch"))


def test_missing_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpi4py", reason="mpirun is looked for where mpi4py is")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "mpirun" in missing("mpi")["why"]
    assert missing("compiler")["mend"] == "conda install -c conda-forge c-compiler"


def test_driver_without_cuda_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    hide_commands(monkeypatch, "nvidia-smi")
    assert doctor.report()["cuda"] == {"device": None}
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert missing("cuda")["mend"].endswith("pip install --force-reinstall torch")


def test_extras_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named with their command, and nothing is called missing for it."""
    for module in ("panel", "h5py", "onnx"):
        hide_module(monkeypatch, module)
    report = doctor.report()
    extras = report["extras"]
    assert extras["others"].endswith("pip install 'kolmo[explore,fields,onnx]'")
    assert not {"explore", "fields", "onnx"} & set((extras["installed"] or "").split())
    assert all(m["what"] != "extras" for m in report["missing"])


def test_extras_are_those_of_the_package() -> None:
    """Their modules have the names of what pyproject.toml asks for."""
    asked: dict[str, set[str]] = {}
    for requirement in importlib.metadata.requires("kolmo") or []:
        found = re.match(r"""([\w-]+).*extra == ["'](\w+)["']""", requirement)
        if found:
            asked.setdefault(found[2], set()).add(found[1].lower())
    for extra, modules in doctor._EXTRAS.items():
        assert set(modules) == asked[extra] - {"torch"}


def test_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every import fails in a way nobody foresaw."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken\nover two lines")

    monkeypatch.setattr(dolfinx_compat, "unavailable", broken)
    assert missing("dolfinx")["why"] == "RuntimeError: broken"
    monkeypatch.setattr(builtins, "__import__", broken)
    report = doctor.report()
    monkeypatch.undo()
    assert {"dolfinx", "mpi", "petsc", "torch", "cuda"} <= {m["what"] for m in report["missing"]}
    assert all(m["mend"] for m in report["missing"])
    assert doctor.lines(report)


def test_importing_the_doctor_loads_nothing_heavy() -> None:
    code = "import sys, kolmo.doctor; print(sorted({'numpy', 'torch', 'scipy', 'skfem'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
