"""What a run was made on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import kolmo
from kolmo.benchmarks.timing import cores
from kolmo.pde import dolfinx_compat

#: distributions whose versions results depend on
_LIBRARIES = ("numpy", "scipy", "torch", "numba", "scikit-fem", "torchsde", "py-pde", "petsc4py")


def machine() -> dict[str, object]:
    """Processor, cores, memory, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(cores()),
        "memory_GiB": round(memory, 1),
        "system": platform.platform(),
    }


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Of Python, Kolmo and the libraries; None where one is absent."""
    found: dict[str, str | None] = {"python": platform.python_version(), "kolmo": kolmo.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    absent = dolfinx_compat.unavailable() is not None
    found["dolfinx"] = None if absent else ".".join(map(str, dolfinx_compat.version()))
    return found
