"""What Kolmo finds on this machine, what it misses, and the command that mends it.

`report` asks, `lines` writes. Neither raises: a part that cannot be asked is reported as missing
with the error it gave.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kolmo

#: nothing works without these
_NEEDED = ("kolmo", "python", "skfem", "numba", "torch")

#: modules behind the extras that commands use, see pyproject.toml
_EXTRAS = {
    "report": ("bokeh", "jinja2", "latex2mathml"),
    "explore": ("panel", "bokeh"),
    "fields": ("meshio", "h5py"),
    "tensorboard": ("tensorboard",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}

#: Debian's and Ubuntu's dolfinx is for their own interpreter only
_DEBIAN_PYTHON = Path("/usr/bin/python3")
_DEBIAN_PACKAGES = Path("/usr/lib/python3/dist-packages")


def report() -> dict[str, Any]:
    """Everything found, ready for JSON.

    Keys: kolmo, python, skfem, numba, torchsde, dolfinx, mpi, petsc, torch, cuda, extras, memory, cores,
    compiler, each a dictionary. `error` in one of them says why the part cannot be used. Memory is in bytes.
    `missing` is a list of {"what", "why", "mend", "needed"}: a part, the reason, a command, and
    whether nothing works without the part.
    """
    parts = {name: _ask(question) for name, question in _QUESTIONS.items()}
    reinstall = f"{_pip()} -e '.[test]' -c constraints.txt"
    missing = [
        {"what": name, "why": part["error"], "mend": part.pop("mend", reinstall), "needed": name in _NEEDED}
        for name, part in parts.items()
        if "error" in part
    ]
    return {**parts, "missing": missing}


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal: a line for each part, then one for each missing part."""
    shown = [f"{name:9}{_sentence(part)}" for name, part in report.items() if name != "missing"]
    if not report["missing"]:
        return [*shown, "Nothing is missing."]
    return shown + [
        f"{'Missing' if m['needed'] else 'Missing, optional'}: {m['what']} ({m['why']}). "
        f"Mend it with: {m['mend']}"
        for m in report["missing"]
    ]


def _sentence(part: dict[str, Any]) -> str:
    if "error" in part:
        return f"missing: {part['error']}"
    return ", ".join(f"{key} {_readable(key, value)}" for key, value in part.items())


def _readable(key: str, value: Any) -> str:
    if value is None:
        return "none"
    return f"{value / 2**30:.1f} GiB" if key in ("total", "available") else str(value)


def _ask(question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or the error as one: a doctor has to speak of a broken installation too."""
    try:
        return question()
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:120]
        return {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip install"


def _system(package: str, conda: str) -> str:
    """The command that installs a system package here."""
    if shutil.which("apt-get"):
        return f"apt-get install {package}" if os.geteuid() == 0 else f"sudo apt-get install {package}"
    return _conda(conda)


def _conda(package: str) -> str:
    return f"conda install -c conda-forge {package}"


def _kolmo() -> dict[str, Any]:
    return {"version": kolmo.__version__}


def _python() -> dict[str, Any]:
    return {"version": platform.python_version(), "executable": sys.executable, "system": platform.platform()}


def _library(module: str, distribution: str, requirement: str) -> dict[str, Any]:
    """A library from PyPI, imported: one that is there may still not fit its neighbours."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return {"error": f"importing it failed: {error}", "mend": f"{_pip()} '{requirement}'"}
    return {"version": importlib.metadata.version(distribution)}


def _skfem() -> dict[str, Any]:
    return _library("skfem", "scikit-fem", "scikit-fem>=10")


def _numba() -> dict[str, Any]:
    """Debian's own numba, which comes with its dolfinx, does not take pip's numpy."""
    return _library("numba", "numba", "numba>=0.59")


def _torchsde() -> dict[str, Any]:
    return _library("torchsde", "torchsde", "torchsde>=0.2.6")


def _dolfinx() -> dict[str, Any]:
    from kolmo.pde import dolfinx_compat

    reason = dolfinx_compat.unavailable()
    if reason is None:
        return {"version": ".".join(map(str, dolfinx_compat.version()))}
    return {"error": reason, "mend": _mend_dolfinx(reason)}


def _mend_dolfinx(reason: str) -> str:
    if "pkg_resources" in reason:
        return f"{_pip()} 'setuptools<80.9'"
    if "older" in reason:
        return _conda("fenics-dolfinx")
    return _debian("dolfinx", "python3-dolfinx-real", "fenics-dolfinx")


def _debian(module: str, package: str, conda: str) -> str:
    """The command after which this project has a module that Debian's and Ubuntu's Python can have.

    Another interpreter does not see what apt-get installs: there the environment is made anew.
    """
    ours = Path(sys.executable).resolve() == _DEBIAN_PYTHON.resolve()
    if not ours and any(_DEBIAN_PACKAGES.glob(f"{module}*")):
        return f"KOLMO_PYTHON={_DEBIAN_PYTHON} scripts/setup"
    command = _system(package, conda)
    return command if ours or "apt-get" not in command else f"{command} && scripts/setup"


def _mpi() -> dict[str, Any]:
    try:
        from mpi4py import MPI
    except ImportError as error:
        mend = _debian("mpi4py", "python3-mpi4py openmpi-bin", "mpi4py openmpi")
        return {"error": f"importing mpi4py failed: {error}", "mend": mend}
    if shutil.which("mpirun") is None:
        return {"error": "mpirun is not on the PATH", "mend": _system("openmpi-bin", "openmpi")}
    library = MPI.Get_library_version().split("\0")[0].splitlines()[0].split(",")[0].strip()
    version = importlib.import_module("mpi4py").__version__
    return {"mpi4py": version, "library": library, "mpirun": shutil.which("mpirun")}


def _petsc() -> dict[str, Any]:
    mend = _debian("petsc4py", "python3-petsc4py-real", "petsc4py")
    try:
        from petsc4py import PETSc
    except ImportError as error:
        return {"error": f"importing petsc4py failed: {error}", "mend": mend}
    scalar = PETSc.ScalarType.__name__
    if "complex" in scalar:
        return {"error": "its scalars are complex, real ones are needed", "mend": mend}
    return {"version": ".".join(map(str, PETSc.Sys.getVersion())), "scalar": scalar}


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"error": f"importing it failed: {error}", "mend": f"{_pip()} torch"}
    return {"version": torch.__version__, "threads": torch.get_num_threads()}


def _cuda() -> dict[str, Any]:
    """No device is no fault; a device that torch cannot use is one."""
    import torch

    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "count": torch.cuda.device_count()}
    if shutil.which("nvidia-smi") is None:
        return {"device": None}
    built = torch.version.cuda
    why = "this torch is a CPU build" if built is None else f"its CUDA {built} does not run with the driver"
    return {"error": f"there is an NVIDIA driver but {why}", "mend": f"{_pip()} --force-reinstall torch"}


def _extras() -> dict[str, Any]:
    """What was not asked for is not missing; the command that installs it is said all the same."""
    there = {e: all(importlib.util.find_spec(m) is not None for m in _EXTRAS[e]) for e in _EXTRAS}
    found: dict[str, Any] = {"installed": " ".join(e for e in there if there[e]) or None}
    others = ",".join(e for e in there if not there[e])
    return {**found, "others": f"{_pip()} 'kolmo[{others}]'"} if others else found


def _memory() -> dict[str, Any]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    table = Path("/proc/meminfo")  # Linux
    rows = dict(row.split(":") for row in table.read_text().splitlines()) if table.exists() else {}
    available = int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None
    return {"total": total, "available": available}


def _cores() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"usable": usable, "present": os.cpu_count()}


def _compiler() -> dict[str, Any]:
    """dolfinx compiles its forms at run time."""
    configured = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    for name in (*shlex.split(configured)[:1], "cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return {"path": path}
    return {"error": "no C compiler on the PATH, dolfinx needs one", "mend": _system("gcc", "c-compiler")}


_QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "kolmo": _kolmo,
    "python": _python,
    "skfem": _skfem,
    "numba": _numba,
    "torchsde": _torchsde,
    "dolfinx": _dolfinx,
    "mpi": _mpi,
    "petsc": _petsc,
    "torch": _torch,
    "cuda": _cuda,
    "extras": _extras,
    "memory": _memory,
    "cores": _cores,
    "compiler": _compiler,
}
