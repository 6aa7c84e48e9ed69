"""The wheel and the environments that are written down for users."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from problems import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_in_the_wheel_s_list() -> None:
    """Packages of a clone and those that are installed are the same: an editable install cannot tell."""
    mapped = {"kolmo": "kolmo"}
    mapped |= {name: f"kolmo.{name}" for name in ("pde", "control", "experiments", "benchmarks")}
    found = {
        ".".join([mapped[path.relative_to(ROOT).parts[0]], *path.parent.relative_to(ROOT).parts[1:]])
        for folder in mapped
        for path in (ROOT / folder).glob("**/__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_extras_are_documented() -> None:
    """Every extra has its line in docs/interoperability.md, and a pin for each of its packages."""
    page = (ROOT / "docs" / "interoperability.md").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for extra, packages in PROJECT["project"]["optional-dependencies"].items():
        assert f"`{extra}`" in page, extra
        for package in packages:
            assert f"\n{package.partition('>')[0].lower()}==" in pins, package


@pytest.mark.slow
def test_the_wheel_runs_the_main_job_in_a_bare_environment(tmp_path: Path) -> None:
    """Built from the sdist, installed without dolfinx: reproduce --quick on the embedded elements holds.

    The environment sees this one's site-packages for what Kolmo depends on, but neither dolfinx nor the
    clone; Kolmo itself comes from the wheel, and what the system's Python has besides from the index.
    """
    if find_spec("build") is None:
        pytest.skip("build is not installed")
    # of a copy: building leaves traces
    leave = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "source", ignore=leave)
    building = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist"]
    made = subprocess.run([*building, tmp_path / "source"], capture_output=True, text=True, cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (source,) = (tmp_path / "dist").glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    configurations = "experiments/configs/default.toml"
    assert {"kolmo/pde/march.py", "kolmo/export/standalone.py", f"kolmo/{configurations}"} <= names
    assert not any(name.startswith(("tests/", "pde/")) for name in names)
    with tarfile.open(source) as archive:
        assert any(name.endswith(f"/{configurations}") for name in archive.getnames())
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    libraries = Path(find_spec("torch").origin or "").parents[1]  # type: ignore[union-attr]
    # behind the environment's own packages, and without running the .pth files there: the clone is not seen
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, "--no-deps", wheel], check=True)
    # what came with the system's Python is not there: from the index
    found = subprocess.run([*install, wheel], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    asked = "import kolmo; from kolmo.pde import dolfinx_compat as c; print(kolmo.__file__, c.unavailable())"
    told = subprocess.run(
        [python, "-I", "-c", asked], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert told.stdout.startswith(str(packages)) and "not installed" in told.stdout
    kolmo = tmp_path / "venv" / "bin" / "kolmo"
    run = subprocess.run(
        [kolmo, "reproduce", "--quick", "--quiet", "--out", tmp_path / "run"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "tables.csv").is_file()
